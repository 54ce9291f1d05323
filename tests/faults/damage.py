"""Ways to damage a file: each takes the bytes of a sound one and a random generator and gives other bytes."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

import numpy as np

Damage = Callable[[bytes, np.random.Generator], bytes]

EXTREMES = (0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""Numbers at which a length, an offset or a count goes wrong."""

WORDS = (
    "-1", "0", "1e308", "-1e308", "1e999", "NaN", "-Infinity", "99999999999999999999999", "9" * 5000, "2147483648",
    "null", "true", '"x"', "[]", "{}", "[[[]]]", '"\\ud800"', '"../../x"', '"\\u0000"', "",
)  # fmt: skip
"""What a number in a text file may turn into."""


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    """Keep only the beginning."""
    return data[: int(rng.integers(0, max(1, len(data))))]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """Turn 1 to 16 bits anywhere."""
    return _flip(data, rng, len(data))


def flip_head(data: bytes, rng: np.random.Generator) -> bytes:
    """Turn 1 to 16 bits in the first 300 bytes, where headers are."""
    return _flip(data, rng, min(300, len(data)))


def _flip(data: bytes, rng: np.random.Generator, end: int) -> bytes:
    if not data:
        return data
    out = bytearray(data)
    for place in rng.integers(0, end, int(rng.integers(1, 17))):
        out[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(out)


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """Put random bytes, or zeros, over a piece."""
    start, stop = _piece(data, rng)
    filler = bytes(stop - start) if rng.random() < 0.5 else rng.bytes(stop - start)
    return data[:start] + filler + data[stop:]


def remove(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut a piece out."""
    start, stop = _piece(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert a piece a second time."""
    start, stop = _piece(data, rng)
    return data[:stop] + data[start:stop] + data[stop:]


def extreme_number(data: bytes, rng: np.random.Generator) -> bytes:
    """Put an extreme number of 2, 4 or 8 bytes at an even place, most often near one end of the file."""
    if len(data) < 16:
        return data
    size, code = ((2, "H"), (4, "I"), (8, "Q"))[int(rng.integers(0, 3))]
    near = min(len(data) - size, 400)
    place = int(rng.integers(0, near + 1))
    if rng.random() < 0.3:
        place = len(data) - size - place
    place -= place % 2
    number = EXTREMES[int(rng.integers(0, len(EXTREMES)))] % 2 ** (8 * size)
    return data[:place] + struct.pack("<" + code, number) + data[place + size :]


def append(data: bytes, rng: np.random.Generator) -> bytes:
    """Add rubbish at the end."""
    return data + rng.bytes(int(rng.integers(1, 5000)))


def change_word(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number or a quoted word of a text by something that is none of its kind."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"\n]*"', data))
    if not found:
        return truncate(data, rng)
    chosen = found[int(rng.integers(0, len(found)))]
    word = WORDS[int(rng.integers(0, len(WORDS)))].encode()
    return data[: chosen.start()] + word + data[chosen.end() :]


def not_utf8(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert bytes that are no UTF-8."""
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + b"\xff\xfe\x80" + data[place:]


def drop_line(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove a line, or write it twice."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    place = int(rng.integers(0, len(lines)))
    lines[place : place + 1] = [lines[place]] * (2 if rng.random() < 0.5 else 0)
    return b"".join(lines)


BINARY: tuple[Damage, ...] = (
    truncate, flip_bits, flip_head, overwrite, remove, repeat, extreme_number, extreme_number, append,
)  # fmt: skip
TEXT: tuple[Damage, ...] = (
    change_word,
    change_word,
    change_word,
    truncate,
    flip_bits,
    remove,
    repeat,
    not_utf8,
    drop_line,
)


def _piece(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(0, len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, 200)))


def endless_zeros(n_bytes: int) -> bytes:
    """Return a zlib stream that unpacks to so many zeros, without ever having them: 1 MiB costs about 1 KiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 1 + (n_bytes % 65521) * 65536  # Adler-32 of zeros
    return b"\x78\xda" + block * (n_bytes // 2**20) + b"\x03\x00" + struct.pack(">I", checksum % 2**32)


def tiff_of(shape: tuple[int, int], segment: bytes, tile: int | None, compression: int = 8) -> bytes:
    """Write a grey 8-bit TIFF by hand whose every tile (or one strip) is the same few bytes.

    Parameters
    ----------
    shape : (height, width)
        What the header says.
    segment : bytes
        The compressed tile or strip.
    tile : int or None
        Side of the tiles; None for one strip of all rows.
    compression : int
        8 is deflate, 1 none.
    """
    height, width = shape
    count = 1 if tile is None else -(-height // tile) * -(-width // tile)
    n_tags = 9 if tile is None else 10
    lists = 8 + 2 + 12 * n_tags + 4
    data = lists + (8 * count if count > 1 else 0)
    offsets, sizes = (lists, lists + 4 * count) if count > 1 else (data, len(segment))
    cut = [(273, 4, count, offsets), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, count, sizes)]
    if tile is not None:
        cut = [(277, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, offsets), (325, 4, count, sizes)]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), *cut]
    out = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    out += b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags)) + struct.pack("<I", 0)
    if count > 1:
        out += np.full(count, data, "<u4").tobytes() + np.full(count, len(segment), "<u4").tobytes()
    return out + segment


def png_of(shape: tuple[int, int], pixels: bytes) -> bytes:
    """Write a grey 8-bit PNG by hand: a header that says ``shape``, and a zlib stream."""
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
