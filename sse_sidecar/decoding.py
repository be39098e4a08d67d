"""Content codings of event streams (RFC 9110, section 8.4.1), undone piece by piece.

A piece is bounded, however well the input was compressed: a few bytes can stand for gigabytes.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, ClassVar, Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PIECE = 256 * 1024


class DecodingError(Exception):
    """The bytes are not what Content-Encoding says."""


class Decoder(Protocol):
    def pieces(self, data: bytes) -> Iterable[bytes]:
        """What `data` adds, at most about PIECE bytes at a time. Raises DecodingError."""
        ...


def decoder(content_encoding: bytes | None) -> Decoder | None:
    """A decoder for the header's value, or None for a coding that is not known here."""
    coding = (content_encoding or b"identity").strip().lower()
    make = _DECODERS.get(coding)
    return make() if make else None


class Identity:
    def pieces(self, data: bytes) -> Iterable[bytes]:
        return (data,)


IDENTITY = Identity()


class _Zlib:
    """gzip and deflate. What follows the end is dropped, as browsers do."""

    def __init__(self, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data and not self._inflate.eof:
            try:
                yield self._inflate.decompress(data, PIECE)
            except zlib.error as error:
                raise DecodingError(str(error)) from error
            data = self._inflate.unconsumed_tail


class _Deflate:
    """deflate comes with the zlib header that the RFC asks for, and without it; two bytes tell (RFC 1950, 2.2)."""

    def __init__(self) -> None:
        self._start = b""
        self._inflate: _Zlib | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            self._start += data
            if len(self._start) < 2:
                return
            data = self._start
            is_zlib = data[0] & 15 == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
            self._inflate = _Zlib(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        yield from self._inflate.pieces(data)


class _Brotli:
    def __init__(self) -> None:
        self._inflate = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._inflate.is_finished():
            return
        try:
            piece = self._inflate.process(data, output_buffer_limit=PIECE)
            while piece:
                yield piece
                piece = b"" if self._inflate.is_finished() else self._inflate.process(b"", output_buffer_limit=PIECE)
        except brotli.error as error:
            raise DecodingError(str(error)) from error


class _Zstd:
    """Frames one after the other (RFC 8878, section 3), each with a window of at most 8 MiB (RFC 9659, section 3)."""

    _MAGIC = b"\x28\xb5\x2f\xfd"
    _OPTIONS: ClassVar[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}

    def __init__(self) -> None:
        self._inflate = zstd.ZstdDecompressor(options=self._OPTIONS)
        self._start = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        data = self._frame(data)
        while data:
            try:
                yield self._inflate.decompress(data, PIECE)
                while not (self._inflate.needs_input or self._inflate.eof):
                    yield self._inflate.decompress(b"", PIECE)
            except zstd.ZstdError as error:
                raise DecodingError(str(error)) from error
            data = self._frame(self._inflate.unused_data) if self._inflate.eof else b""

    def _frame(self, data: bytes) -> bytes:
        """What of `data` is for the decompressor: after the end of a frame, nothing but a further frame."""
        if not self._inflate.eof:
            return data
        self._start = (self._start + data)[:PIECE]
        if not self._start.startswith(self._MAGIC):
            return b""
        self._inflate = zstd.ZstdDecompressor(options=self._OPTIONS)
        data, self._start = self._start, b""
        return data


_DECODERS: dict[bytes, Callable[[], Decoder]] = {
    b"identity": lambda: IDENTITY,
    b"gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    b"x-gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    b"deflate": _Deflate,
    b"br": _Brotli,
    b"zstd": _Zstd,
}
