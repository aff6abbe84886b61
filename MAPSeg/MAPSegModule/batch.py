"""The headless batch: folders of scans in; segmentations, label maps, a table and a report out.

Every case is complete, with its own report, before the next one begins: a batch that was ended continues where it was.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer

from MAPSegLib.errors import InputError
from MAPSegLib.formats import WRITABLE
from MAPSegLib.reports import plain, read_json, remove_leftovers, unusable, write_csv, write_json
from MAPSegLib.volumes import read_labels, write_volume
from MAPSegLib.windows import remove_folder, replace

from . import dependencies, images, scene, texts, workfiles
from .cases import REPORTS, Case, find_cases, read_report
from .models import find_entry
from .parameters import DEVICES, Parameters
from .queue import Queue

_WORK = ".mapseg-work"
_BEGUN = "begun"
_COLUMNS = ("scan", "value", "structure", "volume_ml", "confidence", "trusted")
_ENDINGS = (".seg.nrrd", "_seg.nii.gz", *(f"_uncertainty{suffix}" for suffix in WRITABLE))
"""What the files of a case are called, after its name."""
_ELSEWHERE = "Segment it with `mapseg segment`, which keeps its grid."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; argparse ends with exit code 2, as the worker does for bad input."""
    parser = argparse.ArgumentParser(
        prog="MAPSegBatch",
        description="Segment scans with MAPSeg, without a window. Research software: not for clinical use.",
    )
    parser.add_argument("--model", default="brain", help="name or file of a model")
    parser.add_argument("--input", nargs="+", required=True, help="scans, DICOM folders, or folders of them")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--adapt", action="store_true", help="adapt the model to every scan first")
    parser.add_argument(
        "--together", action="store_true", help="adapt to all scans jointly: one scanner and sequence"
    )
    parser.add_argument(
        "--minutes", type=float, default=Parameters.minutes, help="time for adapting to a scan"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--uncertainty", action="store_true", help="write uncertainty maps, too")
    parser.add_argument("--overwrite", action="store_true", help="do cases again, and replace others' files")
    parser.add_argument(
        "--options", help="JSON file with further options of the backend (MAPSegLib/config.py)"
    )
    return parser.parse_args(list(arguments))


def main(arguments: Sequence[str]) -> int:
    """Run a batch; returns an exit code, the worker's where it ran.

    0 done, 1 failure, 2 bad input or some failed, 3 memory, 4 cancelled.
    """
    chosen = parse(arguments)
    batch = None
    try:
        if missing := dependencies.missing():
            names = ", ".join(missing)
            raise InputError(
                f"Missing packages: {names}.", "Call MAPSegLogic().installDependencies() in Slicer first."
            )
        batch = Batch(chosen)
        with _signals(batch):
            return batch.run()
    except (InputError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 4
    except Exception:  # whatever is raised on would leave the application open
        traceback.print_exc()
        return 1
    finally:
        if batch is not None:
            batch.clean()


@contextmanager
def _signals(batch: Batch) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask the batch to stop. An exception could be lost in a library's callback."""

    def stop(*_signal) -> None:
        batch.stopped = True

    before = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@dataclass
class Batch:
    """One batch over all cases; ``stopped`` ends it at the next opportunity."""

    chosen: argparse.Namespace
    stopped: bool = False
    codes: list[int] = field(default_factory=list)
    queue: Queue | None = None

    def __post_init__(self) -> None:
        from MAPSegLib.models import members  # which needs a package that Slicer does not bring

        self.output = Path(self.chosen.output).expanduser().absolute()
        self.work = self.output / workfiles.own(_WORK)
        self._tables = self.output / "report.json", self.output / "volumes.csv"
        options = {}
        if self.chosen.options:
            options = read_json(Path(self.chosen.options), "options")
            if not isinstance(options, dict):
                raise InputError(f"{self.chosen.options} has to hold options by their names: a JSON object.")
        self.adapt = self.chosen.adapt or self.chosen.together
        self.parameters = Parameters(
            self.chosen.model,
            self.adapt,
            self.chosen.minutes,
            self.chosen.device,
            self.chosen.uncertainty,
            preview_seconds=0,
            options=options,
        )
        if problem := self.parameters.problem():
            raise InputError(problem)
        self.entry = find_entry(self.chosen.model)
        self.cases = find_cases(self.chosen.input, self.output)
        stamps = [file.stat() for file in members(self.entry.path)]
        self.settings = {
            "model": self.entry.name,
            "model_stamp": [number for each in stamps for number in (each.st_size, each.st_mtime_ns)],
            "task": "adapt" if self.adapt else "segment",
            "minutes": self.chosen.minutes if self.adapt else None,
            "together": [case.name for case in self.cases] if self.chosen.together else None,
            "uncertainty": self.chosen.uncertainty,
            "options": {name: value for name, value in options.items() if name not in ("device", "threads")},
        }
        if not self.chosen.overwrite:
            self._refuse_others()
        (self.output / REPORTS).mkdir(parents=True, exist_ok=True)

    def _refuse_others(self) -> None:
        """Raise InputError where a result would replace a file that no batch has written, or another batch's result."""
        begun = any(map(read_report, [self._tables[0], *map(self._report_path, self.cases)]))
        paths = [] if begun else [*self._tables]
        for case in self.cases:
            known = self._known(case)
            if not known:
                paths.append(self._report_path(case))
            if known.get("state", "failed") == "failed":
                own = known.get("files", {}).values()
                paths += [path for path in self._paths(case) if path.name not in own]
        there = filter(os.path.lexists, paths)
        told = [f"{path} is there already, and is no result of a batch." for path in there]
        told += filter(None, map(self._belongs_to_another, self.cases))
        if told:
            raise InputError(told[0], "Choose another output, or allow overwriting (--overwrite).")

    def _belongs_to_another(self, case: Case) -> str:
        """Why a result that lies under the case's name is not this batch's to replace; empty where it is."""
        known, about = self._known(case), self._about(case)
        files = (self.output / name for name in known.get("files", {}).values())
        there = list(filter(os.path.lexists, files))
        if not there:
            return ""
        if known.get("file") != about["file"]:
            return f"{there[0]} is of another scan, {known.get('file')}."
        others = [name for name, value in about["settings"].items() if known["settings"].get(name) != value]
        if others == ["together"]:
            return f"{there[0]} was made together with other scans."
        told = ", ".join("the model's file" if name == "model_stamp" else name for name in others)
        return f"{there[0]} was made with other settings: {told}." if others else ""

    def run(self) -> int:
        """All cases that are not done yet."""
        remove_leftovers([*self._tables, *map(self._report_path, self.cases)])
        waiting = [case for case in self.cases if self.chosen.overwrite or not self._is_done(case)]
        scans = texts.counted(len(self.cases), "{n} scan", "{n} scans")
        print(f"{scans}, {len(self.cases) - len(waiting)} done before.", flush=True)
        alone = self.adapt and not self.chosen.together
        for group in [[case] for case in waiting] if alone else [waiting] if waiting else []:
            self.codes.append(self._do(group))
            if self.codes[-1] == 4:
                break
        self._write_tables()
        done = sum(self._is_done(case) for case in self.cases)
        print(f"{done} of {scans} done: {self.output}", flush=True)
        failures = [code for code in self.codes if code]
        if 4 in failures or not failures:
            return 4 if failures else 0
        return failures[0] if not done else 2

    def clean(self) -> None:
        """End the worker, and delete what is half done: of this batch, and of those that were killed."""
        if self.queue is not None:
            self.queue.close()
        remove_folder(self.work)
        workfiles.remove_abandoned(self.output, _WORK)

    def _do(self, group: list[Case]) -> int:
        remove_folder(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        staged, unfinished = {}, 0
        for case in group:
            try:
                staged[str(case.staged(self.work / "scans"))] = case
            except OSError as error:  # a link to nowhere, or not ours to read: of this scan
                unfinished = 2
                self._fail(case, unusable(error).record())
        if not staged:
            return unfinished
        parameters = self.parameters
        if self.chosen.together:  # the worker counts per scan
            parameters = Parameters(**{**vars(parameters), "minutes": parameters.minutes * len(staged)})
        self.queue = Queue(list(staged), parameters, self.work)
        self.queue.start()
        stage = ""
        while self.queue.running:
            if self.stopped:
                raise KeyboardInterrupt
            for event in self.queue.poll():
                case = staged.get(event.get("scan", ""))
                if event["event"] == "scan" and case:
                    try:
                        self._finish(case, event["entry"])
                    except (OSError, InputError) as error:  # of this scan; the others go on
                        unfinished = 2
                        refused = error if isinstance(error, InputError) else InputError(str(error))
                        self._fail(case, refused.record())
                elif event["event"] == "error" and case:
                    self._fail(case, event)
                elif event["event"] == "progress":
                    before, stage = stage, f"{event['stage']} {case.name if case else ''}"
                    if stage != before:
                        print(f"  {stage}", flush=True)
            slicer.app.processEvents()
            time.sleep(0.05)
        if self.queue.error:
            print(f"Error: {self.queue.error['message']}", file=sys.stderr, flush=True)
        return self.queue.exit_code or unfinished

    def _finish(self, case: Case, entry: dict[str, Any]) -> None:
        """Write a case's files; its report comes last and says that the others are complete.

        Raises:
            OSError, InputError: Slicer cannot read or hold the scan's grid.
        """
        written = read_labels(entry["output"])
        if images.is_sheared(written.affine):
            raise InputError(
                "The scan's axes are not at right angles, which Slicer cannot show in place.", _ELSEWHERE
            )
        files = {"segmentation": self._path(case, ".seg.nrrd"), "labels": self._path(case, "_seg.nii.gz")}
        reference = _load_label_volume(entry["output"], case.name)
        # A batch that is ended here goes on, and knows the files as its own.
        if self._known(case).get("state") != "done":
            self._write_report(case, {"state": _BEGUN, "files": {}})
        # Voxels and grid from one reader: Slicer's reverses the slices of left-handed files.
        labels = images.cut_labels(slicer.util.arrayFromVolume(reference))
        node = scene.load_labels(labels, reference, self.entry.card, case.name)
        try:
            exported = scene.export_segmentation(node, reference, self.work / files["segmentation"].name)
            replace(exported, files["segmentation"])
            if entry["output"].endswith(".nii.gz"):
                replace(entry["output"], files["labels"])
            else:  # as it is: Slicer's reader turns left-handed grids
                write_volume(files["labels"], written.array, written, overwrite=True)
        finally:
            scene.remove(node)
            scene.remove(reference)
        if entry.get("uncertainty"):
            suffix = "".join(Path(entry["uncertainty"]).name.partition("_uncertainty")[1:])
            files["uncertainty"] = self._path(case, suffix)
            replace(entry["uncertainty"], files["uncertainty"])
        kept = {
            k: v for k, v in entry.items() if k not in ("file", "output", "uncertainty", "source", "adapted")
        }
        for side in ("source", "adapted"):
            if side in entry:
                kept[side] = {k: v for k, v in entry[side].items() if k != "output"}
        self._report(case, {"state": "done", "files": {k: path.name for k, path in files.items()}, **kept})
        told = " ".join(filter(None, (entry.get("gate"), entry["reason"], *entry["notes"])))
        print(f"  {case.name}: {told}", flush=True)

    def _fail(self, case: Case, event: dict[str, Any]) -> None:
        kept = {key: event.get(key, "") for key in ("kind", "message", "advice")}
        known = self._known(case)
        files = known.get("files", {})  # of an earlier run
        if known.get("state") == _BEGUN:
            files = {path.name: path.name for path in self._paths(case) if path.exists()}
        self._report(case, {"state": "failed", "files": files, **kept})
        print(f"  {case.name}: {kept['message']} {kept['advice']}".rstrip(), file=sys.stderr, flush=True)

    def _report(self, case: Case, content: dict[str, Any]) -> None:
        self._write_report(case, content)
        try:
            self._write_tables()
        except InputError as error:  # open in a spreadsheet, on Windows; written once more at the end
            if not isinstance(error.__cause__, PermissionError):
                raise

    def _write_report(self, case: Case, content: dict[str, Any]) -> None:
        write_json(self._report_path(case), {**self._about(case), **content}, overwrite=True)

    def _about(self, case: Case) -> dict[str, Any]:
        """What a report is of: a case is done as long as all of it is the same."""
        about = {
            "case": case.name,
            "file": str(case.source),
            "stamp": case.stamp(),
            "settings": self.settings,
        }
        return plain(about)

    def _is_done(self, case: Case) -> bool:
        known = self._known(case)
        same = all(known.get(name) == value for name, value in self._about(case).items())
        there = all((self.output / name).is_file() for name in known.get("files", {}).values())
        return known.get("state") == "done" and same and there

    def _known(self, case: Case) -> dict[str, Any]:
        return read_report(self._report_path(case))

    def _write_tables(self) -> None:
        """The report and the table of volumes over all cases in the folder, those of other batches included."""
        reports = {path.stem: read_report(path) for path in sorted((self.output / REPORTS).glob("*.json"))}
        ended = {name: one for name, one in reports.items() if one.get("state", _BEGUN) != _BEGUN}
        own = [case.name for case in self.cases]
        known = [ended[name] for name in dict.fromkeys([*own, *ended]) if name in ended]
        waiting = sum(name not in ended for name in own)
        report = {"settings": self.settings, "scans": known, "waiting": waiting}
        write_json(self._tables[0], report, overwrite=True)
        rows = [
            {"scan": one["case"], **row, "trusted": one["trusted"]}
            for one in known
            for row in one.get("structures", [])
        ]
        write_csv(self._tables[1], rows, overwrite=True, columns=_COLUMNS)

    def _paths(self, case: Case) -> list[Path]:
        """All results that a case may have."""
        return [self._path(case, ending) for ending in _ENDINGS]

    def _path(self, case: Case, ending: str) -> Path:
        return self.output / f"{case.name}{ending}"

    def _report_path(self, case: Case) -> Path:
        return self.output / REPORTS / f"{case.name}.json"


def _load_label_volume(path: str, name: str):
    """A label map as a volume node: the grid that the segmentation refers to."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        slicer.mrmlScene.RemoveNode(node)
        raise InputError(f"Slicer cannot read {Path(path).name}.", _ELSEWHERE)
    return node
