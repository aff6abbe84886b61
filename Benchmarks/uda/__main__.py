"""Source-only, adapting and supervised methods on a target domain, all from the same weights and by the same schedules.

    python -m Benchmarks.uda TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--methods ...] [--preset cpu]

Presets: cpu takes one core an hour and a half for a seed of cardiac, one for brain-contrast and eight minutes for
hippocampus, gpu is made for one graphics card with the `small` model, smoke for a trial of a minute that says nothing.
A method and seed that is done is kept in WORK and not run again; a training that was killed continues. The scores of
every scan go into Benchmarks/uda/cells; with --add the tables hold what is there of other methods and seeds as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..claims import HEADER as CLAIMS_HEADER
from ..tables import write_section
from .grid import Grid
from .methods import options_of, run_method
from .report import (
    GATE_HEADER,
    MAIN_HEADER,
    Cells,
    claims_table,
    gate_table,
    main_table,
    structure_table,
)
from .tasks import METHODS, Size, Task


def _how(task: Task, size: Size) -> str:
    """What the methods share."""
    if size.models:
        plain, strong = (f"`{name}`" for name in size.models)
        return (
            f"Adaptations took {size.adapt_steps} steps from the embedded models {plain} and, for `plus` and "
            f"test-time-strong, {strong}. These are source-only and source-strong; target-supervised continues the "
            f"second. Both have learnt from all anatomies, the test ones among them; {strong} from T2-like images of "
            "them, too."
        )
    grid = " × ".join(f"{s:g}" for s in task.spacing)
    return (
        f"Trainings on labels took {size.train_steps} steps, adaptations {size.adapt_steps} more, from the model of "
        f"source-only or, for `plus` and test-time-strong, source-strong; grid {grid} mm; width "
        f"{size.architecture.width}, depth {size.architecture.depth}, patches of {size.architecture.patch}³."
    )


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The sections of a task."""
    write_section(
        section,
        f"Domain adaptation, {task.title}: Dice (%) and HD95 over test scans and structures, mean ± deviation over "
        f"seeds. {_how(task, size)} "
        "Not found: structures without a voxel, which have no distance. Training: seconds of the "
        "whole command, with reading and checking, and of adaptations with segmenting their scans. Memory: resident. "
        "The parts of `plus` were chosen by the Dice of the scans adapted to (`Benchmarks.ablation`), not of these.",
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
            "source model that it adapts, which the gate falls back on.",
            GATE_HEADER,
            gate,
            path,
        )
        write_section(
            f"{section}, claims",
            "What is said without labels against the Dice, over all methods' results on the test scans and seeds; "
            "equal ones count once. Collapsed: a Dice below half of target-supervised.",
            CLAIMS_HEADER,
            claims_table(cells),
            path,
        )


GRID = Grid("uda", "methods", METHODS, options_of, run_method, write_results)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
