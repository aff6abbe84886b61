"""What a segmentation or an adaptation tells of its scans, in files and events."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, windows
from ..errors import Cancelled, InputError, MAPSegError, MemoryExhausted
from ..jobs import AdaptJob, Report, SegmentJob
from ..models import ModelCard
from ..reports import plain, write_csv, write_json
from ..volumes import Volume, write_volume
from .earlier import ADAPTED_MODEL, KNOWN_BY, REPORTS, UNFINISHED, Beginning, written_maps
from .outputs import ScanOutputs

if TYPE_CHECKING:
    import numpy as np

    from ..config import Label
    from ..inference import Segmentation
    from ..quality import Assessment


@dataclass
class Findings:
    """What ``report.json`` and ``volumes.csv`` say, written before the first map and after every scan."""

    job: SegmentJob | AdaptJob
    card: ModelCard
    outputs: ScanOutputs
    report: Report
    begun: Beginning
    scans: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    first_error: MAPSegError | None = None
    """Of a scan. No other is kept: what it happened to, a scan's memory, hangs on its traceback."""
    files: list[str] = field(default_factory=list)
    written: bool = False
    """Whether the reports are this run's: another one may have written some since it began."""

    def __post_init__(self) -> None:
        self.scans += self.begun.done
        self.files += written_maps(self.scans)
        self.extra[UNFINISHED] = self.begun.mark

    def volume(self, path: Path, array: np.ndarray, like: Volume, labels: Sequence[Label] = ()) -> str:
        """Write a map, of labels where these are given, and return its path."""
        if not self.written:
            self._write_report()  # first, so that the same command knows what a killed job leaves
        write_volume(path, array, like, self.job.overwrite, labels)
        self.files.append(str(path))
        return str(path)

    def add(self, entry: dict[str, Any]) -> None:
        """Add a scan. The report tells of it at once; of an adaptation, which is all or nothing, only at the end."""
        self.scans.append(entry)
        try:
            if self.job.task == "segment":
                self.write()
        except BaseException:
            self.scans.pop()
            raise
        self.report("scan", scan=entry["file"], entry=plain(entry))

    def forget_results_before(self, scans: Iterable[Path]) -> None:
        """Remove an earlier run's results of scans: what this one does not write again would be taken for its own."""
        known = {path for scan in scans for path in self.outputs.every(scan)}
        stale = self.begun.earlier & (known | {self.outputs.beside(ADAPTED_MODEL)})
        stale = [path for path in stale if str(path) not in self.files and path.exists()]
        if stale and not self.written:
            self.write()  # the earlier report must not tell of what is no longer there
        for path in stale:
            windows.remove(path)

    @contextmanager
    def isolated(self, scan: Path) -> Iterator[None]:
        """Tell a scan's failure, keep nothing of it, and go on with the next one."""
        before, done = len(self.files), len(self.scans)
        try:
            yield
        except BaseException as error:
            if len(self.scans) == done:
                for file in self.files[before:]:
                    windows.remove(Path(file))
                del self.files[before:]
                if not (self.scans or self.begun.earlier):
                    self.withdraw()  # a report of nothing
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
            self.first_error = self.first_error or error
            self.failed.append({**error.record(), "scan": str(scan)})
            self.report("error", **self.failed[-1])

    def withdraw(self) -> None:
        """Remove what was written."""
        reports = map(self.outputs.beside, REPORTS) if self.written else ()
        for path in (*map(Path, self.files), *reports):
            with suppress(OSError):
                windows.remove(path)
        self.files.clear()
        self.written = False

    def write(self, last: bool = False) -> None:
        """Write the table and the report of what there is.

        Args:
            last: there will be no more. Until then, a table that Windows keeps as it is open in a spreadsheet must
                cost no scan its result.
        """
        rows = [
            {"scan": Path(entry["file"]).name, **structure, "trusted": entry["trusted"]}
            for entry in self.scans
            if plain(entry["file"]) not in self.begun.changed  # their volumes are not today's
            for structure in entry["structures"]
        ]
        try:
            write_csv(self.outputs.beside(REPORTS[1]), rows, self._mine)
        except InputError as error:
            if last or not (windows.ON and isinstance(error.__cause__, PermissionError)):
                raise
        self._write_report()  # last: without a mark it says that the job is done

    def _write_report(self) -> None:
        write_json(self.outputs.beside(REPORTS[0]), self.summary(), self._mine)
        self.written = True

    @property
    def _mine(self) -> bool:
        """Whether the reports that lie there may be replaced."""
        return self.written or self.begun.continued or self.job.overwrite

    def summary(self) -> dict[str, Any]:
        return {
            "task": self.job.task,
            "model": self.card.name,
            "version": __version__,
            "options": self.job.options.model_dump(mode="json"),
            "labels": [label.model_dump(mode="json") for label in self.card.labels],
            **self.extra,
            "scans": self.scans,
            "failed": [*self.begun.failed, *self.failed],
        }

    def finish(self) -> dict[str, Any]:
        """The result, which tells of this job's scans alone, or the first failure where none of them came through."""
        mark = self.extra.pop(UNFINISHED)
        if self.job.task == "segment":
            self.extra[KNOWN_BY] = {"job": mark["job"], "overwrite": False, "scans": mark["scans"]}
        if self.scans or self.written:
            self.write(last=True)
        self.extra.pop(KNOWN_BY, None)
        own, others = [], []
        asked = self.begun.asked - self.begun.changed
        for entry in self.scans:
            (own if plain(entry["file"]) in asked else others).append(entry)
        if not own:
            raise self.first_error
        theirs = set(written_maps(others))
        files = [file for file in self.files if file not in theirs]
        files += map(str, map(self.outputs.beside, REPORTS))
        return plain({**self.summary(), "scans": own, "failed": self.failed}) | {"files": files}

    def entry(
        self, scan: Path, output: str, segmentation: Segmentation, verdict: Assessment
    ) -> dict[str, Any]:
        return {
            "file": str(scan),
            **self.side(output, segmentation, verdict),
            "seconds": round(segmentation.seconds, 2),
        }

    def side(self, output: str, segmentation: Segmentation, verdict: Assessment) -> dict[str, Any]:
        """What is said of each of an adaptation's two results, and of the one result without."""
        return {
            "output": output,
            "trusted": verdict.trusted,
            "reason": verdict.reason,
            "measures": verdict.measures,
            "structures": structure_rows(self.card.labels, segmentation),
            "notes": segmentation.notes,
        }


def structure_rows(labels: Iterable[Label], segmentation: Segmentation) -> list[dict[str, Any]]:
    """What is said of every structure; the confidence of one that was not found is NaN."""
    names = {label.value: label.name for label in labels}
    return [
        {
            "value": value,
            "structure": names[value],
            "volume_ml": ml,
            "confidence": segmentation.confidence.get(value, math.nan),
        }
        for value, ml in segmentation.volumes_ml.items()
    ]
