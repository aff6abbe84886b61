"""What an earlier job left where this one writes: part of this very job, or results to refuse or to remove."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import InputError
from ..jobs import AdaptJob, SegmentJob
from ..reports import MAPS, plain, read_json
from ..results import reported_in
from . import resume
from .outputs import ScanOutputs, on_disk, refuse_existing

REPORTS = ("report.json", "volumes.csv")
ADAPTED_MODEL = "adapted_model.safetensors"
UNFINISHED = "unfinished"
"""In the report of a job as long as it goes on: what the same job, given again, is known by, and what it may write."""
KNOWN_BY = "known_by"
"""The former in the report of a segmentation that is through, which takes up scans that failed or came since."""


@dataclass(frozen=True)
class Beginning:
    """How a job begins: from nothing, or where the same one has ended."""

    mark: dict[str, Any]
    """What its report says of it as long as it goes on (:data:`UNFINISHED`)."""
    continued: bool
    """Whether the report that lies there is this very job's."""
    done: Sequence[dict[str, Any]]
    """Of that report, the entries of scans that have their results."""
    changed: frozenset[str]
    """Those of them that are not as they were when they got these, as reports have them."""
    failed: Sequence[dict[str, Any]]
    """And of scans that failed, and are none of this job's."""
    asked: frozenset[str]
    """This job's scans, as reports have them."""
    earlier: frozenset[Path]
    """Results that may be removed: an earlier run's that may be overwritten, or those this very job was writing."""
    results: tuple[Path, ...]
    """All that is still to be written."""


def begin(
    job: SegmentJob | AdaptJob,
    outputs: ScanOutputs,
    scans: Sequence[Path],
    kinds: Sequence[str],
    files: Sequence[Path],
) -> Beginning:
    """See what lies there, before anything is computed.

    Args:
        kinds: of the maps beside the label maps.
        files: all that the results depend on, beside the scans.

    Raises:
        InputError: results that are there would be replaced, and neither is that allowed nor are they this very job's.
    """
    mark = {"job": resume.fingerprint(job, files), "overwrite": job.overwrite}
    stamps = stamps_of(scans)
    left = _left_by_the_same(outputs, mark, stamps)
    asked = frozenset(plain(str(scan)) for scan in scans)
    rest = remaining(scans, left.done)
    maps = [outputs.label_map(scan) for scan in rest]
    maps += [outputs.volume(scan, kind) for scan in rest for kind in kinds]
    reports = [outputs.beside(name) for name in REPORTS]
    model = [outputs.beside(ADAPTED_MODEL)] if getattr(job, "save_model", False) else []
    _refuse_inputs(maps, rest, files)
    if not (left.continued or job.overwrite or outputs.single):
        _refuse_others(reports[0], maps, rest)
    mine = left.half.union(reports if left.continued else ())
    new = [path for path in [*maps, *reports, *model] if path not in mine]
    refuse_existing(new, job.overwrite, left.whose)
    found = _told_before(outputs, scans) if job.overwrite else left.half
    earlier = frozenset(found.difference(_among(found, [*scans, *files])))
    known = [path for scan in rest for path in outputs.every(scan)] + [outputs.beside(ADAPTED_MODEL)]
    claimed = [path for path in [*maps, *model] if not os.path.exists(path)]
    claimed += [path for path in known if path in earlier]
    mark |= {"scans": {**stamps, **left.stamps}, "files": sorted({path.name for path in claimed})}
    failed = [entry for entry in left.failed if plain(entry["scan"]) not in asked]
    results = (*maps, *reports, *model)
    return Beginning(mark, left.continued, left.done, left.changed, failed, asked, earlier, results)


def remaining(scans: Sequence[Path], done: Sequence[dict[str, Any]]) -> list[Path]:
    """The scans that entries do not tell of."""
    told = {entry["file"] for entry in done}
    return [scan for scan in scans if plain(str(scan)) not in told]


def stamps_of(scans: Sequence[Path]) -> dict[str, list[int]]:
    """Size and time of the last change of the scans that are there, by their paths as a report has them."""
    found = {}
    for scan in scans:
        with suppress(OSError):  # told when it is its turn
            found[plain(str(scan))] = resume.stamp(scan)
    return found


def written_maps(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The maps that entries of a segmentation's report tell of."""
    return [entry[kind] for entry in entries for kind in ("output", *MAPS) if kind in entry]


class _Left(NamedTuple):
    """What the report of the same job says, if there is one (``continued``)."""

    continued: bool = False
    done: Sequence[dict[str, Any]] = ()
    """Entries of scans that have their results."""
    changed: frozenset[str] = frozenset()
    """Those of these scans that are not as they were, nor gone."""
    stamps: Mapping[str, list[int]] = MappingProxyType({})
    """Of scans that are as they were, or gone; of the others, of what they were."""
    failed: Sequence[dict[str, Any]] = ()
    half: frozenset[Path] = frozenset()
    """What that job was writing as it was killed: it began where nothing had these names."""
    whose: str = ""
    """Of another job that might be taken for the same: what it differs in."""


def _left_by_the_same(outputs: ScanOutputs, mark: dict[str, Any], asked: Mapping[str, list[int]]) -> _Left:
    with suppress(InputError, KeyError, TypeError, ValueError):  # no report, or something else
        report = read_json(outputs.beside(REPORTS[0]), "a report")
        then = report[UNFINISHED if UNFINISHED in report else KNOWN_BY]
        if {key: then[key] for key in mark} == mark:
            others = [Path(entry["file"]) for entry in report["scans"] if entry["file"] not in asked]
            stamps = {**stamps_of(others), **asked}  # a report may hold no true name of a scan
            same = {scan: stamp for scan, stamp in then["scans"].items() if stamps.get(scan, stamp) == stamp}
            kept = then["scans"].keys() if not mark["overwrite"] else same.keys()
            done = [
                entry for entry in report["scans"] if entry["file"] in kept and _are_there(entry, outputs)
            ]
            changed = frozenset(entry["file"] for entry in done) - same.keys()
            same |= {scan: then["scans"][scan] for scan in changed}
            told = {Path(file).name for file in written_maps(report["scans"])}
            half = frozenset(outputs.folder / name for name in then.get("files", ()) if name not in told)
            return _Left(True, done, changed, same, report.get("failed", ()), half)
        if then["job"] != mark["job"]:
            return _Left(
                whose=f"by a job with {resume.differences(then['job'], mark['job'], 'another model file')}"
            )
    return _Left()


def _are_there(entry: dict[str, Any], outputs: ScanOutputs) -> bool:
    """Whether the maps that an entry tells of are there, and none is a file of somebody else's: a report may be."""
    files = set(map(Path, written_maps([entry])))
    return files.issubset(outputs.every(Path(entry["file"]))) and all(file.is_file() for file in files)


def _refuse_inputs(maps: Sequence[Path], scans: Sequence[Path], files: Sequence[Path]) -> None:
    """Raise InputError if a result would replace a scan, or another file that the job reads."""
    for path in _among(maps, scans):
        raise InputError(f"A result would replace the scan {path}.", "Choose another output.")
    for path in _among(maps, files):
        raise InputError(f"A result would replace {path}, which this job reads.", "Choose another output.")


def _among(paths: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """The paths that name one of the other files, however it is spelled."""

    def file(path: Path) -> str:
        return on_disk(os.path.realpath(path))  # which, unlike resolve(), takes links that lead nowhere

    known = set(map(file, others))
    return [path for path in paths if file(path) in known]


def _told_before(outputs: ScanOutputs, scans: Sequence[Path]) -> set[Path]:
    """The results that reports tell of, but for a model that was adapted to other scans."""
    found = reported_in(outputs.folder)
    if _told_of(outputs.beside(REPORTS[0])).isdisjoint(plain(str(scan)) for scan in scans):
        found.discard(outputs.beside(ADAPTED_MODEL))
    return found


def _refuse_others(report: Path, maps: Sequence[Path], scans: Sequence[Path]) -> None:
    """Raise InputError for a report of other scans, with a way on."""
    if not report.exists() or any(map(os.path.exists, maps)):
        return
    if _told_of(report).isdisjoint(plain(str(scan)) for scan in scans):
        name = f"name the result (-o {maps[0]})" if len(scans) == 1 else "choose another output"
        raise InputError(
            f"{report} is already there, of other scans.",
            f"Give all scans to one command, or {name}; --overwrite replaces the report.",
        )


def _told_of(report: Path) -> set[str]:
    """The scans that a report tells of, or would have told of."""
    with suppress(InputError, KeyError, TypeError, AttributeError):
        content = read_json(report, "a report")
        return {entry["file"] for entry in content["scans"]} | content.get(UNFINISHED, {}).get(
            "scans", {}
        ).keys()
    return set()
