"""What a batch works on: image files and DICOM series, each under a name of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAPSegLib import windows
from MAPSegLib.errors import InputError
from MAPSegLib.formats import READABLE, quietly, scan_suffix
from MAPSegLib.segments import is_segmentation
from MAPSegLib.volumes import scan_stem

REPORTS = "cases"
"""Where a batch keeps the reports of its cases, in its output."""
_WHOLE = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Headers whose voxels lie in another file, and what holds both."""
_LONGEST = 200
"""Bytes of a case's name: 255 are the limit for a file's, of which numbers and endings take some."""


@dataclass(frozen=True)
class Case:
    """One scan: a file, or the files of one DICOM series."""

    name: str
    source: Path
    """The file, or the folder of the series."""
    files: tuple[Path, ...]

    def stamp(self) -> list:
        """Changes when the scan does."""
        stats = [file.stat() for file in self.files if os.path.exists(file)]  # a link may lead nowhere
        return [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]

    def staged(self, folder: Path) -> Path:
        """What the worker gets: named as the case, so that results of all cases fit into one folder."""
        if self.source.is_dir():
            target = folder / self.name
            target.mkdir(parents=True, exist_ok=True)
            for index, file in enumerate(self.files):
                _link(file, target / f"{index:05d}.dcm")
            return target
        folder.mkdir(parents=True, exist_ok=True)
        suffix = scan_suffix(self.source)
        if suffix in _WHOLE and (whole := _in_one_file(self.source, folder / f"{self.name}{_WHOLE[suffix]}")):
            return whole
        return _link(self.source, folder / f"{self.name}{suffix}")


def find_cases(inputs: Sequence[str | Path], output: str | Path) -> list[Case]:
    """Scans in files and folders, folders with all that is below them; the output folder is left out.

    So is what earlier batches and ``mapseg`` have written in other folders, as far as their reports tell.

    Raises:
        InputError: an input does not exist, or there is nothing in any of them.
    """
    output = Path(output).expanduser().resolve()
    found: dict[str, Case] = {}

    def add(name: str, source: Path, files: Sequence[Path]) -> None:
        plain = re.sub(r"[^\w.-]+", "_", name).encode()[-_LONGEST:].decode(errors="ignore")
        name = plain.strip("._") or "scan"
        unique, number = name, 1
        while unique.casefold() in found:  # on many disks one file, whatever the case
            number += 1
            unique = f"{name}_{number}"
        found[unique.casefold()] = Case(unique, source, tuple(files))

    for given in inputs:
        path = Path(given).expanduser().absolute()
        if not path.exists():
            raise InputError(f"{path} does not exist.", "Check the path.")
        if path.resolve() == output:
            raise InputError(
                f"Input and output are the same folder, {path}.", "Give the results a folder of their own."
            )
        if path.is_file():
            add(scan_stem(path), path, _parts(path))
            continue
        for folder, below, names in os.walk(path):
            below[:] = sorted(
                name for name in below if Path(folder, name).resolve() != output and name[0] != "."
            )
            here = Path(folder)
            prefix = "_".join(here.relative_to(path).parts)
            made = _results_in(here)
            plain = sorted(
                name
                for name in names
                if name[0] != "."
                and name not in made
                and scan_suffix(name) not in ("", ".dcm")
                and not is_segmentation(name)
            )
            for name in plain:
                add(
                    "_".join(filter(None, (prefix, scan_stem(here / name)))), here / name, _parts(here / name)
                )
            if len(plain) < len(names):
                for index, files in enumerate(_series(here)):
                    label = prefix or here.name
                    add(label if index == 0 else f"{label}_{index + 1}", here, files)
    if not found:
        raise InputError(
            "There are no scans in the input.", f"Files that can be read: {', '.join(READABLE)}."
        )
    return list(found.values())


def read_report(path: Path) -> dict[str, Any]:
    """A report; empty where there is none, and of a file that no batch has written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    parts = (found, found.get("settings"), found.get("files", {})) if isinstance(found, dict) else (None,)
    return found if all(isinstance(part, dict) for part in parts) else {}


def _results_in(folder: Path) -> set[str]:
    """Names of the files in a folder that a batch or ``mapseg`` has written."""
    from MAPSegLib.results import results_in  # which needs a package that Slicer does not bring

    reports = map(read_report, (folder / REPORTS).glob("*.json"))
    of_batches = {str(name) for one in reports for name in one.get("files", {}).values()}
    return of_batches | {path.name for path in results_in(folder)}


def _series(folder: Path) -> list[list[Path]]:
    """The files of every DICOM series in a folder."""
    from SimpleITK import ImageSeriesReader as reader

    def find() -> list[list[Path]]:
        series = reader.GetGDCMSeriesIDs(str(folder))
        return [[Path(f) for f in reader.GetGDCMSeriesFileNames(str(folder), one)] for one in series]

    return quietly(find)  # it warns about every file that is no DICOM


def _parts(path: Path) -> list[Path]:
    """A file, and where it is a header alone, all that may hold its voxels."""
    if scan_suffix(path) not in _WHOLE:
        return [path]
    beside = (
        file for file in path.parent.iterdir() if file.name.startswith(f"{scan_stem(path)}.") and file != path
    )
    return [path, *sorted(file for file in beside if file.is_file())]


def _in_one_file(path: Path, target: Path) -> Path | None:
    """The scan written anew; None where it cannot be read, which the worker will tell."""
    import SimpleITK as sitk

    try:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(target))
    except RuntimeError:
        return None
    return target


def _link(file: Path, target: Path) -> Path:
    """A link where the disk can, a copy elsewhere; Windows would not remove a link to a file that is read-only."""
    target.unlink(missing_ok=True)
    try:
        if windows.ON and not os.access(file, os.W_OK):
            raise PermissionError
        os.link(file.resolve(), target)  # a symbolic link would be linked itself
    except OSError:
        shutil.copyfile(file, target)
    return target
