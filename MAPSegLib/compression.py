"""Compressed voxels, read to the end of their stream: its checksum lies there, where image libraries do not look."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from .text_headers import TextHeader

_PIECE = 1 << 20  # bytes held in memory at once
_DEFLATED = 1100  # a byte of deflate's stands for fewer than this


def check_gzip(path: Path) -> int:
    """The number of bytes in a gzip file, read to its end.

    Raises:
        EOFError, OSError, zlib.error: it is damaged or cut short.
    """
    with path.open("rb") as file:
        return _gzip_size(file)


def check_voxels(header: TextHeader, size: int) -> None:
    """Read the compressed voxels of an NRRD or MetaImage file, from which an image of ``size`` bytes was made.

    Raises:
        EOFError, OSError, zlib.error: they are damaged, or fewer than that.
    """
    measure = {"gzip": _gzip_size, "gz": _gzip_size, "zlib": _zlib_size}.get(header.encoding)
    if measure is None:
        return
    inflated = 0
    for path in header.files:
        with path.open("rb") as file:
            file.seek(header.start)
            for _ in range(int(header.fields.get("lineskip", 0))):
                if not file.readline():
                    break
            inflated += measure(file)
    if inflated < size:
        raise EOFError(f"{inflated} bytes of {size}")


def check_claim(header: TextHeader, voxels: int) -> None:
    """Raise EOFError if the files cannot hold so many voxels: the memory for them would be taken before that shows."""
    most = {"raw": 1, "gzip": _DEFLATED, "gz": _DEFLATED, "zlib": _DEFLATED}.get(header.encoding)
    if most and voxels > most * sum(path.stat().st_size for path in header.files):
        raise EOFError(f"no {voxels} voxels")


def _gzip_size(file: BinaryIO) -> int:
    with gzip.open(file) as stream:
        return sum(map(len, iter(lambda: stream.read(_PIECE), b"")))


def _zlib_size(file: BinaryIO) -> int:
    size, stream = 0, zlib.decompressobj(32 + zlib.MAX_WBITS)  # 32: gzip's header is taken, too, as by ITK
    while not stream.eof:
        piece = stream.unconsumed_tail or file.read(_PIECE)
        if not piece:
            raise EOFError("the stream has no end")
        size += len(stream.decompress(piece, _PIECE))
    return size
