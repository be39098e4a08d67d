"""Content codings of event streams (RFC 9110, section 8.4.1), undone piece by piece.

A piece is bounded, however well the input was compressed: a few bytes can stand for gigabytes.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE = 256 * 1024


class DecodingError(Exception):
    """The bytes are not what Content-Encoding says."""


class Decoder(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data` adds, at most about PIECE bytes at a time. Raises DecodingError."""
        ...


def decoder(content_encoding: bytes | None) -> Decoder | None:
    """A decoder for the header's value, or None for a coding that is not known here."""
    coding = (content_encoding or b"identity").strip().lower()
    make = _DECODERS.get(coding)
    return make() if make else None


class Identity:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Zlib:
    """gzip and deflate; the latter comes with and without the zlib header, against the RFC."""

    def __init__(self, *, deflate: bool) -> None:
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._may_be_raw = deflate

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            yield self._piece(data)
            data = self._inflate.unconsumed_tail

    def _piece(self, data: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(data, PIECE)
        except zlib.error as error:
            if not self._may_be_raw:
                raise DecodingError(str(error)) from error
            self._may_be_raw = False
            self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
            return self._piece(data)
        self._may_be_raw = False
        return piece


class _Brotli:
    def __init__(self) -> None:
        self._inflate = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            yield self._inflate.process(data, output_buffer_limit=PIECE)
            while not self._inflate.can_accept_more_data():
                yield self._inflate.process(b"", output_buffer_limit=PIECE)
        except brotli.error as error:
            raise DecodingError(str(error)) from error


class _Zstd:
    def __init__(self) -> None:
        self._inflate = zstd.ZstdDecompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            yield self._inflate.decompress(data, PIECE)
            while not (self._inflate.needs_input or self._inflate.eof):
                yield self._inflate.decompress(b"", PIECE)
        except zstd.ZstdError as error:
            raise DecodingError(str(error)) from error


_DECODERS: dict[bytes, Callable[[], Decoder]] = {
    b"identity": Identity,
    b"gzip": lambda: _Zlib(deflate=False),
    b"x-gzip": lambda: _Zlib(deflate=False),
    b"deflate": lambda: _Zlib(deflate=True),
    b"br": _Brotli,
    b"zstd": _Zstd,
}
