"""Benchmarks that are a table of methods and seeds: one command, and what is done is not done again.

A cell is one method with one seed. It lies in the folder WORK, with its trainings, and its scores, scan by scan, in a
file of the repository, so that anyone can test other hypotheses on them, and seeds can be added on another day.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAPSegLib.errors import InputError
from MAPSegLib.reports import plain, read_json, write_json, write_text

from ..commands import told
from ..tables import RESULTS
from .data import existing
from .report import Cells, seed_means
from .tasks import TASKS, VERSION, Size, Task

KEPT = Path(__file__).parent / "cells"
DIGITS = 4


@dataclass(frozen=True)
class Bench:
    """A task at one size, in a folder, with a seed."""

    task: Task
    size: Size
    material: Path
    """Prepared scans (see :mod:`.data`)."""
    folder: Path
    seed: int

    def place(self, name: str) -> Path:
        return self.folder / f"{name}-{self.seed}"

    @property
    def source(self) -> dict[str, Path]:
        """The labelled source, as an adaptation is given it."""
        images, labels = (self.material / "source" / kind for kind in ("images", "labels"))
        return (
            {"source_from_labels": labels}
            if self.task.synthetic
            else {"source": images, "source_labels": labels}
        )


@dataclass(frozen=True)
class Grid:
    """A benchmark over methods and seeds."""

    title: str
    """Before the task's name, in the sections and the file of cells."""
    word: str
    """What its methods are called on the command line."""
    names: Sequence[str]
    options: Callable[[Size, str, int], dict[str, Any]]
    """What the figures of a method and seed depend on beside the size and :data:`~.tasks.VERSION`."""
    run: Callable[[Bench, str], dict[str, Any]]
    """``results`` of a method, ``final`` among them (:data:`~.methods.Scores`), and what else its tables need."""
    write: Callable[[str, Task, Size, Cells, Path], None]
    """Writes the sections, called with the name of the first one."""
    default: Sequence[str] = ()
    """What is run unless something else is asked for; all where it is empty."""
    size: Callable[[str, str], Size] = lambda task, preset: TASKS[task].sizes[preset]
    """Of a task and preset."""

    def settings(self, size: Size, name: str, seed: int) -> dict[str, Any]:
        """Everything that the figures of a method and seed depend on, as JSON has it."""
        shared = {"version": VERSION, "size": size.model_dump(mode="json")}
        return plain(shared | self.options(size, name, seed))

    def cell(self, bench: Bench, name: str) -> dict[str, Any]:
        """Run a method with the seed of ``bench``, or read what an earlier run found.

        Raises:
            InputError: the earlier run had other options.
        """
        file = bench.place(self.title) / f"{name}.json"
        settings = self.settings(bench.size, name, bench.seed)
        if file.exists():
            cell = read_json(file, "a result")
            if cell.get("settings") != settings:
                raise InputError(f"{file} was made with other options.", "Choose another folder (--work).")
            return cell
        day = datetime.date.today().isoformat()
        cell = {"method": name, "seed": bench.seed, "date": day, "settings": settings}
        cell = rounded(plain(cell | self.run(bench, name)))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, cell)
        return cell

    def ordered(self, cells: Cells) -> list[dict[str, Any]]:
        """By method and seed: tables tell what each seed gave in this order."""
        return sorted(cells, key=lambda cell: (self.names.index(cell["method"]), cell["seed"]))

    def added(self, path: Path, cells: Cells, size: Size) -> list[dict[str, Any]]:
        """``cells``, and those of a file that are of other methods and seeds.

        Raises:
            InputError: some of those were made with other options than today's.
        """
        own = {(cell["method"], cell["seed"]) for cell in cells}
        others = [c for c in read(path) if (c["method"], c["seed"]) not in own]
        if any(
            c["method"] not in self.names or c["settings"] != self.settings(size, c["method"], c["seed"])
            for c in others
        ):
            raise InputError(
                f"{path} holds results that were made with other options.",
                "Without --add, those of this run take their place.",
            )
        return [*cells, *others]

    def keep(self, path: Path, cells: Cells) -> None:
        """Put cells in place of a file's, in order."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in self.ordered(cells))
        text = "".join(f"{line}\n" for line in lines)
        write_text(path, text, overwrite=True)

    def main(self, doc: str, words: Sequence[str] | None = None) -> int:
        """Run the command; returns its exit code, 2 where the data are missing."""
        parser = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("task", choices=list(TASKS))
        parser.add_argument("--data", type=Path, required=True, help="folder that holds the tasks' data")
        parser.add_argument("--work", type=Path, required=True, help="folder for scans, models and cells")
        parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        names, default = list(self.names), list(self.default or self.names)
        parser.add_argument(f"--{self.word}", dest="names", nargs="+", choices=names, default=default)
        parser.add_argument(
            "--add", action="store_true", help="leave the cells that the results have already in the tables"
        )
        presets = dict.fromkeys(preset for task in TASKS.values() for preset in task.sizes)
        parser.add_argument("--preset", choices=list(presets), default="cpu")
        try:
            return told(lambda: self._run(parser.parse_args(words)))
        except KeyboardInterrupt:
            print("Cancelled; the same command continues.", file=sys.stderr)
            return 4

    def _run(self, arguments: argparse.Namespace) -> None:
        """Run the cells that are missing, then write the sections from all that are asked for."""
        name, preset = arguments.task, arguments.preset
        task = TASKS[name]
        if preset not in task.sizes:
            raise InputError(
                f"The task {name} has no preset {preset}.", f"Its presets: {', '.join(task.sizes)}."
            )
        size = self.size(name, preset)
        folder = arguments.work.absolute() / name / preset
        # A trial's figures mean nothing: they stay out of the published ones.
        trial = preset == "smoke"
        file = (folder if trial else KEPT) / f"{self.title}-{name}-{preset}.jsonl"
        seeds, methods = (list(dict.fromkeys(given)) for given in (arguments.seeds, arguments.names))
        if arguments.add:  # what cannot be added to is told before hours of training
            self.added(file, [{"method": m, "seed": s} for s in seeds for m in methods], size)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(task, size, arguments.data, folder / "scans")
        cells = []
        for seed in seeds:
            for method in methods:
                cells.append(self.cell(Bench(task, size, folder / "scans", folder, seed), method))
                print(
                    f"{method} seed {seed}: Dice {seed_means(cells[-1:], 'final', 'dice')[0]:.1f}", flush=True
                )
        if arguments.add:
            cells = self.added(file, cells, size)
        self.keep(file, cells)
        section = f"{self.title} {name}" if preset == "cpu" else f"{self.title} {name} ({preset})"
        self.write(section, task, size, self.ordered(cells), folder / "RESULTS.md" if trial else RESULTS)


def prepare(task: Task, size: Size, data: Path, folder: Path) -> None:
    """Fill ``folder`` with the task's scans, unless it is there: it appears only when it is whole."""
    if folder.exists():
        return
    existing(data)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    task.write(data, part, size.cases)
    part.rename(folder)


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a file; none where there is no file."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def rounded(content: Any) -> Any:
    """The same with numbers of :data:`DIGITS` digits behind the point, and None for NaN."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, DIGITS) if isinstance(content, float) else content
