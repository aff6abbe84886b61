"""The maps that earlier jobs left in a folder, which are no scans: by the reports beside them, and by their names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from .formats import scan_suffix
from .reports import MAPS, SIDE_RESULTS, reports_in
from .volumes import scan_stem


class _Side(BaseModel):
    """What a report tells of a result."""

    output: str
    uncertainty: str | None = None
    probabilities: str | None = None


class _Scan(_Side):
    source: _Side | None = None
    adapted: _Side | None = None


class _Unfinished(BaseModel):
    files: list[str] = []


class _Report(BaseModel):
    model_config = ConfigDict(protected_namespaces=())  # older pydantic warns of the name of `model_file`

    task: Literal["segment", "adapt"]
    scans: list[_Scan]
    model_file: str | None = None
    unfinished: _Unfinished = _Unfinished()
    """What a job that was killed may have been writing."""


def results_in(folder: Path) -> set[Path]:
    """The maps in a folder that the reports in it tell of, and those beside a label map of the same scan."""
    return reported_in(folder) | _sides_in(folder) if folder.is_dir() else set()


def _sides_in(folder: Path) -> set[Path]:
    files = [path for path in folder.iterdir() if scan_suffix(path)]
    stems = {scan_stem(path) for path in files}
    sides = {
        f"{stem.removesuffix('_seg')}{side}"
        for stem in stems
        for side in SIDE_RESULTS
        if stem.endswith("_seg")
    }
    return {path for path in files if scan_stem(path) in sides}


def reported_in(folder: Path) -> set[Path]:
    """The maps in a folder, and the adapted models, that the reports in it tell of."""
    found: set[Path] = set()
    for content in reports_in(folder):
        with suppress(ValidationError):
            report = _Report.model_validate(content)
            sides = [side for scan in report.scans for side in (scan, scan.source, scan.adapted) if side]
            names = [name for side in sides for kind in ("output", *MAPS) if (name := getattr(side, kind))]
            names += [*report.unfinished.files, *([report.model_file] if report.model_file else [])]
            found |= {folder / _file_name(name) for name in names}
    return found


def _file_name(told: str) -> str:
    """Of a path in a report, which may have been written on Windows."""
    there = PureWindowsPath(told)
    return there.name if there.is_absolute() else Path(told).name
