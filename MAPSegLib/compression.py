"""Compressed voxels, read to the end of their stream: its checksum lies there, where image libraries do not look."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

from .errors import InputError
from .text_headers import TextHeader

_PIECE = 1 << 20  # bytes held in memory at once
_DEFLATED = 1100  # a byte of deflate's stands for fewer than this
_SPARE = 1 << 25  # bytes beyond those that are needed, which a stream may hold
_SLICE = 1 << 22  # voxels that no file is too small for: of a black slice, a codec keeps next to nothing


def check_gzip(path: Path, most: int) -> int:
    """The number of bytes in a gzip file, read to its end.

    Args:
        most: bytes that may be in it; a small file may hold more than anyone waits for.

    Raises:
        EOFError, OSError, zlib.error: it is damaged or cut short, or holds far more than that.
    """
    with path.open("rb") as file:
        return _gzip_size(file, most + _SPARE)


def check_voxels(header: TextHeader, size: int) -> None:
    """Read the compressed voxels of an NRRD or MetaImage file, of which an image takes ``size`` bytes; count others.

    For voxels that a list of files lacks, or the bytes that MetaImage says to take, ITK gives whatever memory holds.

    Raises:
        EOFError, OSError, zlib.error: they are damaged, or fewer than that, or far more.
        InputError: they lie behind the header, and their size is not stated: ITK takes them from the file's beginning.
    """
    measure = _MEASURES.get(header.encoding)
    if measure is None:
        if header.encoding == "raw" and size > sum(path.stat().st_size for path in header.files):
            raise EOFError(f"fewer than {size} bytes")
        return
    if int(header.fields.get("headersize", 0)):  # by which ITK goes astray here
        raise EOFError("an offset before compressed voxels")
    inflated = 0
    for path in header.files:
        with path.open("rb") as file:
            file.seek(header.start)
            for _ in range(int(header.fields.get("lineskip", 0))):
                if not file.readline():
                    break
            if header.encoding == "zlib" and header.packed_size:
                if not 0 < header.packed_size <= path.stat().st_size - header.start:
                    raise EOFError(f"no {header.packed_size} bytes")
                inflated += _zlib_size(file, 2 * size + _SPARE, length=header.packed_size)
            else:
                inflated += measure(file, 2 * size + _SPARE)
    if inflated < size:
        raise EOFError(f"{inflated} bytes of {size}")
    if header.encoding == "zlib" and header.start and not header.packed_size:
        raise InputError(
            f"{header.files[0].name} does not state the size of its compressed voxels (CompressedDataSize), without "
            "which ITK does not read them.",
            "Save it uncompressed.",
        )


def check_claim(header: TextHeader, voxels: int) -> None:
    """Raise EOFError if the files cannot hold so many voxels: the memory for them would be taken before that shows."""
    most = _DEFLATED if header.encoding in _MEASURES else 1  # in a text, too, a voxel takes a byte or more
    if voxels > most * sum(path.stat().st_size for path in header.files):
        raise EOFError(f"no {voxels} voxels")


def check_deflated(path: Path, start: int) -> None:
    """Read what is deflated behind the first bytes of a DICOM file: its readers inflate it as a whole.

    Raises:
        EOFError, zlib.error: it is damaged or cut short, or holds more than a scan in so small a file can.
    """
    with path.open("rb") as file:
        file.seek(start)
        _zlib_size(file, 32 * path.stat().st_size + _SPARE, -zlib.MAX_WBITS)


def check_pictures(path: Path, voxels: int) -> None:
    """As :func:`check_claim`, of a DICOM file whose slices are compressed as pictures."""
    if voxels > _DEFLATED * path.stat().st_size + _SLICE:
        raise EOFError(f"no {voxels} voxels")


def _gzip_size(file: BinaryIO, most: int) -> int:
    size = 0
    with gzip.open(file) as stream:
        while piece := stream.read(_PIECE):
            size += len(piece)
            if size > most:
                raise EOFError(f"more than {most} bytes")
    return size


def _zlib_size(file: BinaryIO, most: int, kind: int = 32 + zlib.MAX_WBITS, length: float = math.inf) -> int:
    """As :func:`_gzip_size`, of the first ``length`` bytes."""
    size, stream = 0, zlib.decompressobj(kind)  # 32: gzip's header is taken, too, as by ITK
    while not stream.eof:
        piece = stream.unconsumed_tail
        if not piece:
            piece = file.read(min(_PIECE, length))
            length -= len(piece)
        if not piece:
            raise EOFError("the stream has no end")
        size += len(stream.decompress(piece, _PIECE))
        if size > most:
            raise EOFError(f"more than {most} bytes")
    return size


_MEASURES = {"gzip": _gzip_size, "gz": _gzip_size, "zlib": _zlib_size}
"""What counts the bytes in a compressed stream, by how the voxels are stored."""
