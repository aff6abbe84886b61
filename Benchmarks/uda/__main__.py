"""Source-only, adapting and supervised methods on a target domain, each with the same number of training steps.

    python -m Benchmarks.uda TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--methods ...] [--preset cpu]

Presets: cpu takes two cores about an hour for a seed of cardiac (estimated from its parts) and ten minutes for one of
hippocampus, gpu is made for one graphics card with the `small` model, smoke for a trial of a minute that says nothing.
A method and seed that is done is kept in WORK and not run again; a training that was killed continues. The scores of
every scan go into Benchmarks/uda/cells; with --add the tables hold what is there of other methods and seeds as well.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from MAPSegLib.errors import MAPSegError

from ..claims import HEADER as CLAIMS_HEADER
from ..tables import RESULTS, write_section
from . import kept
from .data import existing
from .methods import Bench, cell_settings, run_cell
from .report import (
    GATE_HEADER,
    MAIN_HEADER,
    Cells,
    claims_table,
    gate_table,
    main_table,
    seed_means,
    structure_table,
)
from .tasks import METHODS, TASKS, Size, Task


def prepare(task: Task, size: Size, data: Path, folder: Path) -> None:
    """Fill ``folder`` with the task's scans, unless it is there: it appears only when it is whole."""
    if folder.exists():
        return
    existing(data)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    task.write(data, part, size.cases)
    part.rename(folder)


def write_results(name: str, preset: str, cells: Cells, path: Path) -> None:
    """The sections of a task."""
    task, size = TASKS[name], TASKS[name].sizes[preset]
    section = f"uda {name}" if preset == "cpu" else f"uda {name} ({preset})"
    grid = " × ".join(f"{s:g}" for s in task.spacing)
    write_section(
        section,
        f"Domain adaptation, {task.title}: Dice (%) and HD95 over test scans and structures, mean ± deviation over "
        f"seeds. Every method took {size.start} + {size.own} steps; grid {grid} mm; width "
        f"{size.architecture.width}, depth {size.architecture.depth}, patches of {size.architecture.patch}³. "
        "Not found: structures without a voxel, which have no distance. Training: seconds of all its steps, "
        f"label-free checks included. Memory: resident. Scan by scan: `Benchmarks/uda/cells/{name}-{preset}.jsonl`.",
        MAIN_HEADER,
        main_table(cells),
        path,
    )
    write_section(
        f"{section}, structures",
        "Dice (%) / HD95 (mm) per structure, mean ± deviation over seeds; gated where there is a gate.",
        *structure_table(cells, task.structures),
        path,
    )
    gate = gate_table(cells)
    if gate:
        write_section(
            f"{section}, gate",
            "What the gate did, over test scans and seeds; differences in Dice points. A method's start is the "
            f"source model of {size.start} steps, which the gate falls back on.",
            GATE_HEADER,
            gate,
            path,
        )
        write_section(
            f"{section}, claims",
            "What is said without labels against the Dice, over all methods' results on the test scans and seeds. "
            "Collapsed: a Dice below half of target-supervised.",
            CLAIMS_HEADER,
            claims_table(cells),
            path,
        )


def run(arguments: argparse.Namespace) -> None:
    """Run the cells that are missing, then write the sections from all that are asked for."""
    task = TASKS[arguments.task]
    size = task.sizes[arguments.preset]
    folder = arguments.work.absolute() / arguments.task / arguments.preset
    folder.mkdir(parents=True, exist_ok=True)
    prepare(task, size, arguments.data, folder / "scans")
    cells = []
    for seed in arguments.seeds:
        for method in arguments.methods:
            cell = run_cell(Bench(task, size, folder / "scans", folder, seed), method)
            dice = seed_means([cell], "final", "dice")[0]
            print(f"{method} seed {seed}: Dice {dice:.1f}, {cell['seconds']:.0f} s", flush=True)
            cells.append(cell)
    # A trial's figures mean nothing: they stay out of the published ones.
    trial = arguments.preset == "smoke"
    file = (folder if trial else kept.FOLDER) / f"{arguments.task}-{arguments.preset}.jsonl"
    if arguments.add:
        cells = kept.added(file, cells, lambda method, seed: cell_settings(size, method, seed))
    kept.write(file, cells)
    write_results(arguments.task, arguments.preset, cells, folder / "RESULTS.md" if trial else RESULTS)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 where the data are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the tasks' data")
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, models and cells")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--add", action="store_true", help="leave the cells that the results have already in the tables"
    )
    parser.add_argument("--preset", choices=("cpu", "gpu", "smoke"), default="cpu")
    try:
        run(parser.parse_args(words))
    except MAPSegError as error:
        print(f"{error.message} {error.advice}".strip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Cancelled; the same command continues.", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
