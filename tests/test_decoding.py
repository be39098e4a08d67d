"""Content codings of event streams: any chunking, bombs, broken input, and what follows the end."""

from __future__ import annotations

import gzip
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_sidecar.decoding import PIECE, DecodingError, decoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compress = Callable[[bytes], bytes]


def raw_deflate(plain: bytes) -> bytes:
    """Deflate without the zlib header: against RFC 9110, 8.4.1.2, and sent by some servers all the same."""
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return coder.compress(plain) + coder.flush()


def fast_brotli(plain: bytes) -> bytes:
    return bytes(brotli.compress(plain, quality=5))


def big_window_zstd(plain: bytes) -> bytes:
    """As `zstd --ultra --long=27` does it."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    coder = zstd.ZstdCompressor(options=options)
    return coder.compress(plain) + coder.flush()


CODINGS: list[tuple[bytes, Compress]] = [
    (b"identity", bytes),
    (b"gzip", gzip.compress),
    (b"x-gzip", gzip.compress),
    (b"deflate", zlib.compress),
    (b"deflate", raw_deflate),
    (b"br", fast_brotli),
    (b"zstd", zstd.compress),
]
COMPRESSED = [row for row in CODINGS if row[0] != b"identity"]

each_coding = pytest.mark.parametrize(
    ("coding", "compress"), CODINGS, ids=[f"{name.decode()}-{compress.__name__}" for name, compress in CODINGS]
)
each_compressed = pytest.mark.parametrize(
    ("coding", "compress"), COMPRESSED, ids=[f"{name.decode()}-{compress.__name__}" for name, compress in COMPRESSED]
)


def decoded(coding: bytes, chunks: Iterable[bytes]) -> bytes:
    found = decoder(coding)
    assert found is not None
    return b"".join(piece for chunk in chunks for piece in found.pieces(chunk))


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """`data` in chunks that end at the places `at`; places beyond it are taken modulo its length."""
    places = sorted({place % len(data) for place in at if data} - {0})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


PLAIN = b"event: token\ndata: Gr\xc3\xbc\xc3\x9fe \xf0\x9f\x91\x8b\n\n: ping\n\ndata: [DONE]\n\n"


@each_coding
@given(plain=st.binary(max_size=2000), at=st.lists(st.integers(0, 4000), max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_plain_bytes_come_out_of_any_chunking(
    coding: bytes, compress: Compress, plain: bytes, at: list[int]
) -> None:
    assert plain == decoded(coding, cut(compress(plain), at))


@each_coding
def test_the_plain_bytes_come_out_byte_by_byte(coding: bytes, compress: Compress) -> None:
    data = compress(PLAIN)

    assert PLAIN == decoded(coding, cut(data, range(len(data))))


@each_coding
def test_the_plain_bytes_come_out_of_every_split(coding: bytes, compress: Compress) -> None:
    data = compress(PLAIN)
    wrong = [place for place in range(len(data)) if decoded(coding, cut(data, [place])) != PLAIN]

    assert [] == wrong


EVENTS = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]


def flushed_gzip() -> Iterator[bytes]:
    coder = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return (coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS)


def flushed_brotli() -> Iterator[bytes]:
    coder = brotli.Compressor()
    return (coder.process(event) + coder.flush() for event in EVENTS)


def flushed_zstd() -> Iterator[bytes]:
    coder = zstd.ZstdCompressor()
    return (coder.compress(event, coder.FLUSH_BLOCK) for event in EVENTS)


@pytest.mark.parametrize(
    ("coding", "flushed"), [(b"gzip", flushed_gzip), (b"br", flushed_brotli), (b"zstd", flushed_zstd)]
)
def test_an_event_comes_out_as_soon_as_the_upstream_has_flushed_it(
    coding: bytes, flushed: Callable[[], Iterator[bytes]]
) -> None:
    found = decoder(coding)
    assert found is not None

    assert EVENTS == [b"".join(found.pieces(chunk)) for chunk in flushed()]


# Bounds


@each_compressed
def test_a_piece_of_a_bomb_is_bounded(coding: bytes, compress: Compress) -> None:
    """100 MiB in one small chunk; nothing larger than a piece, or a little more, is ever held."""
    size = 100 << 20
    found = decoder(coding)
    assert found is not None
    lengths = [len(piece) for piece in found.pieces(compress(bytes(size)))]

    assert size == sum(lengths)
    assert max(lengths) <= 2 * PIECE


def test_a_zstd_window_larger_than_http_allows_is_refused() -> None:
    """RFC 9659, section 3: 8 MB at most. Each stream would cost the window's size in memory."""
    with pytest.raises(DecodingError):
        decoded(b"zstd", [big_window_zstd(random.Random(1).randbytes(1 << 20) * 9)])


# Broken input


@each_compressed
def test_what_is_not_in_the_coding_raises_a_decoding_error(coding: bytes, compress: Compress) -> None:
    with pytest.raises(DecodingError):
        decoded(coding, [b"data: these bytes were never compressed\n\n" * 3])


@each_compressed
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), at=st.lists(st.integers(0, 1000), max_size=2))
@settings(max_examples=40, deadline=None)
def test_damaged_bytes_raise_a_decoding_error_or_come_out_and_nothing_else(
    coding: bytes, compress: Compress, place: int, bit: int, at: list[int]
) -> None:
    """Not every coding has a checksum; but no other exception may reach the connection."""
    data = bytearray(compress(PLAIN * 3))
    data[place % len(data)] ^= 1 << bit
    with suppress(DecodingError):
        decoded(coding, cut(bytes(data), at))


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
@given(noise=st.binary(min_size=1, max_size=300), at=st.lists(st.integers(0, 300), max_size=2))
@settings(max_examples=40, deadline=None)
def test_noise_raises_a_decoding_error_or_comes_out_and_nothing_else(
    coding: bytes, noise: bytes, at: list[int]
) -> None:
    with suppress(DecodingError):
        decoded(coding, cut(noise, at))


# What follows the end. Browsers drop it: Chromium's GzipSourceStream goes to STATE_IGNORING_EXTRA_BYTES, which "matches
# the behavior of other browsers", its Brotli and Zstd streams have tests called IgnoreExtraData, and Firefox's
# nsHTTPCompressConv discards once mStreamEnded is set. Concatenated Zstandard frames are one content to both.


@each_compressed
def test_bytes_after_the_end_in_a_chunk_of_their_own_are_dropped_as_browsers_do(
    coding: bytes, compress: Compress
) -> None:
    assert PLAIN == decoded(coding, [compress(PLAIN), 100 * b"x"])


@each_compressed
def test_bytes_after_the_end_in_the_same_chunk_are_dropped_as_browsers_do(
    request: pytest.FixtureRequest, coding: bytes, compress: Compress
) -> None:
    if coding == b"br":
        reason = "the binding raises, and what it decoded of that chunk is lost"
        request.applymarker(pytest.mark.xfail(reason=reason, raises=DecodingError, strict=True))

    assert PLAIN == decoded(coding, [compress(PLAIN) + 100 * b"x"])


@each_compressed
def test_bytes_after_the_end_are_dropped_one_by_one(coding: bytes, compress: Compress) -> None:
    data = compress(PLAIN) + 20 * b"x"

    assert PLAIN == decoded(coding, cut(data, range(len(data))))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_second_gzip_member_is_dropped_as_browsers_do(size: int) -> None:
    data = gzip.compress(PLAIN) + gzip.compress(b"data: more\n\n")

    assert PLAIN == decoded(b"gzip", cut(data, range(0, len(data), size)))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_second_zstandard_frame_goes_on_as_in_browsers(size: int) -> None:
    """RFC 8878, section 3: concatenated frames are the concatenated content."""
    data = zstd.compress(PLAIN) + zstd.compress(b"data: more\n\n")

    assert PLAIN + b"data: more\n\n" == decoded(b"zstd", cut(data, range(0, len(data), size)))


# The header's value


@pytest.mark.parametrize("value", [None, b"", b"identity", b"Identity", b" identity "])
def test_no_coding_passes_the_bytes_as_they_are(value: bytes | None) -> None:
    found = decoder(value)
    assert found is not None

    assert [PLAIN] == list(found.pieces(PLAIN))


@pytest.mark.parametrize("value", [b"GZIP", b" gzip", b"gzip\t", b"X-GZip"])
def test_a_coding_is_known_in_any_case_and_with_space_around_it(value: bytes) -> None:
    assert PLAIN == decoded(value, [gzip.compress(PLAIN)])


@pytest.mark.parametrize("value", [b"compress", b"dcb", b"gzip, br", b"gzip;q=1", b"\xff"])
def test_a_coding_that_is_not_known_has_no_decoder(value: bytes) -> None:
    assert decoder(value) is None
