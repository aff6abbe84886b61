"""Results to look at: a picture of every label map over its scan, and a page with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ..config import Label, check_path
from ..errors import InputError, MAPSegError, first_problem
from ..jobs import Report, ReviewJob
from ..reports import read_json, replacing, write_text
from ..volumes import check_same_grid, read_image, read_labels
from .earlier import REPORTS
from .outputs import output_folder, refuse_existing
from .reading import track

NAME = "review"
"""Of the folder of the pictures and, with its suffix, of the page."""


class Structure(BaseModel):
    """What a report tells of a structure."""

    value: int
    structure: str
    volume_ml: float
    confidence: float | None = None


class Side(BaseModel):
    """And of a result."""

    output: Path
    trusted: bool
    reason: str
    notes: list[str] = []
    structures: list[Structure] = []
    measures: dict[str, float | None] = {}


class Entry(Side):
    """And of a scan; of an adaptation, also of both results that the gate chose from."""

    file: Path
    chosen: Literal["source", "adapted"] | None = None
    gate: str = ""
    source: Side | None = None
    adapted: Side | None = None


class Results(BaseModel):
    """What is read of ``report.json``."""

    task: Literal["segment", "adapt"]
    model: str
    labels: list[Label]
    scans: list[Entry]
    failed: list[dict[str, str]] = []


@dataclass(frozen=True)
class Shown:
    """A scan's results and the file of their picture."""

    entry: Entry
    picture: Path


def review(job: ReviewJob, report: Report) -> dict[str, Any]:
    """Draw the results of a segmentation or an adaptation. See :class:`~MAPSegLib.jobs.ReviewJob`."""
    from ..pictures import drawing
    from ..review_page import page

    drawing()  # told once, and not for every scan
    file = check_path(job.results)
    if file.suffix != ".json":
        file = _report_in(file)
    found = _read(file)
    mine = file.name.removesuffix(REPORTS[0])  # of a job that named its result, the name's beginning
    folder, written = file.parent / f"{mine}{NAME}", file.parent / f"{mine}{NAME}.html"
    pictures = [folder / f"{entry.output.name}.png" for entry in found.scans]
    refuse_existing([written, *pictures], job.overwrite)
    shown: list[Shown] = []
    failed: list[dict[str, Any]] = []
    errors: list[MAPSegError] = []
    with output_folder(folder):
        paths = [entry.file for entry in found.scans]
        for entry, picture in track(list(zip(found.scans, pictures, strict=True)), report, paths, NAME):
            try:
                _draw(entry, found.labels, file.parent, picture, job.overwrite)
            except InputError as error:
                errors.append(error)
                failed.append({**error.record(), "scan": str(entry.file)})
                report("error", **failed[-1])
            else:
                shown.append(Shown(entry, picture))
        if not shown:
            raise errors[0]
        write_text(written, page(found, shown, failed), job.overwrite)
    files = [written, *(one.picture for one in shown)]
    return {"files": list(map(str, files)), "failed": failed}


def _report_in(folder: Path) -> Path:
    """The report of a folder's results; raises InputError where there are only those of jobs that named theirs."""
    file = folder / REPORTS[0]
    named = sorted(folder.glob(f"*_{REPORTS[0]}"))
    if named and not file.exists():
        raise InputError(
            f"{folder} holds no {REPORTS[0]}, but reports of jobs that named their results.",
            f"Give one of them, such as {named[0]}.",
        )
    return file


def _read(file: Path) -> Results:
    content = read_json(file, "a report")
    if isinstance(content, dict) and content.keys() >= {"settings", "waiting"}:
        raise InputError(
            f"{file} is the report of a batch in Slicer, which lacks what a page needs.",
            "Open its segmentations (.seg.nrrd) in Slicer, or segment the scans with `mapseg segment`.",
        )
    try:
        found = Results.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{file} is not the report of a segmentation or an adaptation: {first_problem(error)}.",
            "Give the folder of the results.",
        ) from error
    if not found.scans:
        raise InputError(f"{file} tells of no results yet.", "Finish the job first.")
    known: set[str] = set()
    for entry in found.scans:  # one picture would stand for both
        if entry.output.name in known:
            raise InputError(
                f"{file} tells of two results called {entry.output.name}.", "Keep one of the entries."
            )
        known.add(entry.output.name)
    return found


def _draw(entry: Entry, labels: Sequence[Label], folder: Path, picture: Path, overwrite: bool) -> None:
    """Raises InputError where a file is missing, or lies elsewhere than it did."""
    from ..pictures import Panel, overlay

    image = read_image(folder / entry.file)  # which reports write in full; another path starts from them
    sides: dict[str, Side] = {"": entry}
    if entry.source and entry.adapted:
        sides = {"the model as it was": entry.source, "adapted": entry.adapted}
        if entry.chosen == "adapted":  # what was kept comes first: planes are chosen for it
            sides = dict(reversed(sides.items()))
    panels = []
    for title, side in sides.items():
        found = read_labels(folder / side.output.name)  # the folder may have moved since
        check_same_grid(image, found)
        panels.append(Panel(f"kept: {title}" if title and not panels else title, image, found.array))
    with replacing(picture, overwrite) as temporary:
        overlay(panels, labels, temporary)
