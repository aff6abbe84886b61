"""The text that NRRD and MetaImage files begin with, for what SimpleITK does not tell of them."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "?", "???")
"""What stands for millimetres, or for no unit at all."""
_LONGEST = 500
"""Bytes of a field or of a file's name: of longer ones in NRRD, ITK's complaints are written past the end of memory."""
_MOST_FILES = 1 << 16
"""Of one scan: a pattern may claim any number of them."""
_MOST_AXES = 16
"""What NRRD allows; ITK counts through as many as MetaImage claims."""


@dataclass(frozen=True)
class TextHeader:
    """Fields by name (in lower case, without spaces), the files of the voxels, and where these begin in each."""

    fields: dict[str, str]
    files: tuple[Path, ...]
    start: int

    @property
    def encoding(self) -> str:
        """How the voxels are stored: NRRD's word for it; for MetaImage ``zlib``, ``ascii`` or ``raw``."""
        if self.fields.get("compresseddata", "").startswith(("T", "t", "1")):
            return "zlib"
        if not self.fields.get("binarydata", "True").startswith(("T", "t", "1")):
            return "ascii"
        return self.fields.get("encoding", "raw").lower()

    @property
    def packed_size(self) -> int:
        """Bytes of compressed voxels in a file, as MetaImage states them; 0 where it does not."""
        return int(float(self.fields.get("compresseddatasize", 0)))

    @property
    def sizes(self) -> list[str]:
        """A voxel's size as it is stated, along each axis."""
        stated = (
            self.fields.get(name) for name in ("spacedirections", "spacings", "elementspacing", "elementsize")
        )
        return re.findall(r"\([^)]*\)|[^\s()]+", next(filter(None, stated), "").lower())

    @property
    def sized(self) -> bool:
        """Whether a voxel's size is stated along three axes."""
        return sum(size != "none" and "nan" not in size for size in self.sizes) >= 3

    @property
    def oriented(self) -> bool:
        """Whether a MetaImage file says which way its axes run; of NRRD, ITK tells."""
        matrices = ("transformmatrix", "rotation", "orientation")
        return "ndims" not in self.fields or any(name in self.fields for name in matrices)

    @property
    def mirrored(self) -> bool:
        """Whether a voxel's size along an axis is below zero: ITK turns that axis round, and did not always."""
        return any(size.startswith("-") for size in self.sizes)

    @property
    def foreign_unit(self) -> str:
        """The unit of the voxel's size, if that is stated and not mm; else empty."""
        fields = self.fields
        told = fields.get("spaceunits") or fields.get("units") or fields.get("distanceunits", "")
        units = re.findall(r'"([^"]*)"', told) or told.split()
        return next((unit for unit in units[:3] if unit.lower() not in _MM), "")


def read_text_header(path: Path) -> TextHeader:
    """Parse the header of a file. Of one that SimpleITK cannot read, or must not be given, this may raise anything."""
    fields: dict[str, str] = {}
    blank = "" if path.suffix.lower() in (".nrrd", ".nhdr") else None  # such a line ends NRRD's headers only
    with path.open("rb") as file:
        for line in iter(file.readline, b""):
            if blank is not None and len(line) > _LONGEST and not line.startswith(b"#") and b":=" not in line:
                raise ValueError("a field without end")
            # not at ":=", behind which NRRD has what is nobody's but the writer's
            name, *value = re.split(":(?!=)|=", _decoded(line).strip(), maxsplit=1)
            name = name.lower().replace(" ", "")
            fields[name] = "".join(value).strip()
            if name in (blank, "elementdatafile") or (name == "datafile" and fields[name].startswith("LIST")):
                break
        if not 0 <= int(fields.get("ndims", 0)) <= _MOST_AXES:  # below 0 it counts without end, too
            raise ValueError("no scan has so many axes")
        told = fields.get("elementdatafile") or fields.get("datafile", "LOCAL")
        if told.upper() == "LOCAL":
            if int(fields.get("headersize", 0)) > 0:  # which ITK counts from the beginning of the file
                raise ValueError("voxels within the header")
            return TextHeader(fields, (path,), file.tell())
        names = _decoded(file.read()).split("\n") if told.startswith("LIST") else _names(told, fields)
    files = tuple(path.parent / name for name in filter(None, map(str.strip, names)))
    for file in files:  # a pipe or a device has no end that ITK would come to
        if len(os.fsencode(file.name)) > _LONGEST or (file.exists() and not file.is_file()):
            raise ValueError(f"{file} is no file")
    return TextHeader(fields, files, 0)


def _decoded(text: bytes) -> str:
    """Text of a header, as this system reads the names of files in it: nearly always as UTF-8.

    As Latin-1, a name would be split behind an "à" or "Å", of which the last byte stands for a space there.
    """
    with suppress(UnicodeDecodeError):  # on Windows, where older programs do write Latin-1
        return os.fsdecode(text)
    return text.decode("latin-1")


def _names(told: str, fields: dict[str, str]) -> list[str]:
    """One name, or those of a pattern with the first number, the last one and a step (``s%03d.raw 1 20 1``).

    MetaImage may leave out the last and the step, and then has a file for every slice.
    """
    # NRRD's may hold one otherwise, as in "50% dose.raw"; MetaImage takes any for a pattern's
    if not re.search("%" if "dimsize" in fields else r"%\d*d.*\s", told):
        return [told]
    pattern, first, *rest = told.split()[:4]
    sizes = (fields.get("dimsize") or fields["sizes"]).split()
    most = math.prod(map(int, sizes[-1:] if "dimsize" in fields else sizes))  # NRRD's may hold a voxel each
    last, step = rest if len(rest) == 2 else (int(first) + most - 1, 1)
    end = int(last) + (1 if int(step) > 0 else -1)
    numbers = range(int(first), end, int(step))[:most]
    # Whatever else a pattern may hold, ITK hands it to C, which would take numbers for places in memory.
    if len(numbers) > _MOST_FILES or not re.fullmatch(r"[^%]*%\d{0,2}d[^%]*", pattern):
        raise ValueError(f"no pattern of files: {pattern}")
    return [pattern % number for number in numbers]
