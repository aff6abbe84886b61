"""What a segmentation or an adaptation tells of its scans, in files and events, and what an earlier one told."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import Cancelled, InputError, MAPSegError, MemoryExhausted
from ..jobs import AdaptJob, Report, SegmentJob
from ..manifests import reported_in
from ..models import ModelCard
from ..reports import plain, read_json, write_csv, write_json
from ..volumes import Volume, write_volume
from . import resume
from .outputs import ScanOutputs, refuse_existing

if TYPE_CHECKING:
    import numpy as np

    from ..inference import Segmentation
    from ..quality import Assessment

REPORTS = ("report.json", "volumes.csv")
ADAPTED_MODEL = "adapted_model.safetensors"
UNFINISHED = "unfinished"
"""In the report of a segmentation as long as it goes on: what the same job, given again, is known by."""


@dataclass
class Findings:
    """What ``report.json`` and ``volumes.csv`` say, rewritten after every scan."""

    job: SegmentJob | AdaptJob
    card: ModelCard
    outputs: ScanOutputs
    report: Report
    scans: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    errors: list[MAPSegError] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    earlier: frozenset[Path] = frozenset()
    """Results that lie there, of a run whose results may be overwritten."""
    written: bool = False
    """Whether the reports are this job's: another one may have written some since it began."""

    def volume(self, path: Path, array: np.ndarray, like: Volume) -> str:
        """Write a map, and return its path."""
        write_volume(path, array, like, self.job.overwrite)
        self.files.append(str(path))
        return str(path)

    def add(self, entry: dict[str, Any]) -> None:
        self.scans.append(entry)
        try:
            self.write()
        except BaseException:
            self.scans.pop()
            raise
        self.report("scan", scan=entry["file"], entry=plain(entry))

    def forgetresults_before(self, scans: Iterable[Path]) -> None:
        """Remove an earlier run's results of scans: what this one does not write again would be taken for its own."""
        stale = [path for scan in scans for path in self.outputs.every(scan) if path in self.earlier]
        stale = [path for path in stale if str(path) not in self.files and path.exists()]
        if stale and not self.written:
            self.write()  # the earlier report must not tell of what is no longer there
        for path in stale:
            path.unlink()

    @contextmanager
    def isolated(self, scan: Path) -> Iterator[None]:
        """Tell a scan's failure, keep nothing of it, and go on with the next one."""
        before, done = len(self.files), len(self.scans)
        try:
            yield
        except BaseException as error:
            if len(self.scans) == done:
                for file in self.files[before:]:
                    Path(file).unlink(missing_ok=True)
                del self.files[before:]
            if isinstance(error, Cancelled) or not isinstance(error, Exception):
                raise
            from ..devices import is_out_of_memory

            if not isinstance(error, MAPSegError) and is_out_of_memory(error):
                error = MemoryExhausted(
                    f"{scan.name} does not fit into memory.", "Close other programs, or crop the scan."
                )
            elif not isinstance(error, MAPSegError):
                logging.getLogger(__name__).exception("%s", scan)
                error = MAPSegError(f"{scan.name} failed unexpectedly: {type(error).__name__}: {error}.")
            entry = {"kind": error.kind, "message": error.message, "advice": error.advice, "scan": str(scan)}
            self.errors.append(error)
            self.failed.append(entry)
            self.report("error", **entry)

    def withdraw(self) -> None:
        """Remove what was written."""
        reports = map(self.outputs.beside, REPORTS) if self.written else ()
        for path in (*map(Path, self.files), *reports):
            with suppress(OSError):
                path.unlink()

    def write(self) -> None:
        report, volumes = map(self.outputs.beside, REPORTS)
        overwrite = self.written or self.job.overwrite
        write_json(report, self.summary(), overwrite)
        self.written = True
        rows = [
            {"scan": Path(entry["file"]).name, **structure, "trusted": entry["trusted"]}
            for entry in self.scans
            for structure in entry["structures"]
        ]
        write_csv(volumes, rows, overwrite)

    def summary(self) -> dict[str, Any]:
        return {
            "task": self.job.task,
            "model": self.card.name,
            "version": __version__,
            "options": self.job.options.model_dump(mode="json"),
            "labels": [label.model_dump(mode="json") for label in self.card.labels],
            **self.extra,
            "scans": self.scans,
            "failed": self.failed,
        }

    def finish(self) -> dict[str, Any]:
        """The result, or the first failure where no scan came through."""
        self.extra.pop(UNFINISHED, None)
        if self.scans or self.written:
            self.write()
        if not self.scans:
            raise self.errors[0]
        files = map(self.outputs.beside, REPORTS)
        return {**plain(self.summary()), "files": [*self.files, *map(str, files)]}

    def entry(
        self, scan: Path, output: str, segmentation: Segmentation, verdict: Assessment
    ) -> dict[str, Any]:
        return {
            "file": str(scan),
            **self.side(output, segmentation, verdict),
            "notes": segmentation.notes,
            "seconds": round(segmentation.seconds, 2),
        }

    def side(self, output: str, segmentation: Segmentation, verdict: Assessment) -> dict[str, Any]:
        """What is said of each of an adaptation's two results, and of the one result without."""
        names = {label.value: label.name for label in self.card.labels}
        return {
            "output": output,
            "trusted": verdict.trusted,
            "reason": verdict.reason,
            "measures": verdict.measures,
            "structures": [
                {
                    "value": value,
                    "structure": names[value],
                    "volume_ml": ml,
                    "confidence": segmentation.confidence.get(value, math.nan),
                }
                for value, ml in segmentation.volumes_ml.items()
            ],
        }


def stamps_of(scans: Sequence[Path]) -> dict[str, list[int]]:
    """Size and time of the last change of the scans that are there, by their paths as a report has them."""
    found = {}
    for scan in scans:
        with suppress(OSError):  # told when it is its turn
            found[plain(str(scan))] = resume.stamp(scan)
    return found


def done_before(
    outputs: ScanOutputs, begun: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """What the report of the same job, which was ended, says of scans that are as they were and have their results.

    Returns: their entries and stamps; none of a job that was started without the right to overwrite, given with it.
    """
    with suppress(InputError, KeyError, TypeError, ValueError):  # no report, or something else
        report = read_json(outputs.beside(REPORTS[0]), "a report")
        then = report[UNFINISHED]
        if {key: then[key] for key in begun} == begun:
            stamps = stamps_of([Path(entry["file"]) for entry in report["scans"]])
            same = {scan: stamp for scan, stamp in stamps.items() if then["scans"].get(scan) == stamp}
            done = [
                entry
                for entry in report["scans"]
                if entry["file"] in same and all(Path(file).is_file() for file in written_maps([entry]))
            ]
            return done, same
    return [], {}


def written_maps(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The maps that entries of a segmentation's report tell of."""
    return [entry[kind] for entry in entries for kind in ("output", "uncertainty") if kind in entry]


def results_before(
    job: SegmentJob | AdaptJob, outputs: ScanOutputs, scans: Sequence[Path]
) -> frozenset[Path]:
    """Results that may be removed: those that a report tells of, but for the scans themselves."""
    return frozenset(reported_in(outputs.folder) - set(scans)) if job.overwrite else frozenset()


def _told_of(report: Path) -> set[str]:
    """The scans that a report tells of."""
    with suppress(InputError, KeyError, TypeError):
        return {entry["file"] for entry in read_json(report, "a report")["scans"]}
    return set()


def refuse_results(
    job: SegmentJob | AdaptJob,
    outputs: ScanOutputs,
    scans: Sequence[Path],
    kinds: Sequence[str],
    continued: bool = False,
) -> None:
    """Refuse to replace results, but for the reports of a job that is ``continued``."""
    paths = [outputs.label_map(scan) for scan in scans]
    paths += [outputs.volume(scan, kind) for scan in scans for kind in kinds]
    names = [*REPORTS]
    names += [ADAPTED_MODEL] if getattr(job, "save_model", False) else []
    given = {scan.resolve() for scan in scans}
    for path in paths:
        if path.resolve() in given:
            raise InputError(f"A result would replace the scan {path}.", "Choose another output.")
    report = outputs.beside(REPORTS[0])
    theirs = report.exists() and not any(path.exists() for path in paths)
    theirs = theirs and not _told_of(report) & {plain(str(scan)) for scan in scans}
    if theirs and not (continued or job.overwrite or outputs.single):
        name = f"name the result (-o {paths[0]})" if len(scans) == 1 else "choose another output"
        raise InputError(
            f"{report} already there, of other scans.",
            f"Give all scans to one command, or {name}; --overwrite replaces the report.",
        )
    beside = [] if continued else map(outputs.beside, names)
    refuse_existing([*paths, *beside], job.overwrite)
