"""Whether training in bf16, where the device computes it fast, ends as well as training in fp32.

    python -m Benchmarks.precision TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--precisions ...] [--preset cpu]

Supervised, on the labels of the target, from the same weights with the same draws; scored on the test scans. Scans are
those of ``Benchmarks.uda``, and so is ``--add``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .tables import write_section
from .uda.grid import Bench, Grid
from .uda.methods import score, train_model
from .uda.report import Cells, comparison
from .uda.tasks import Size, Task, training_options

PRECISIONS = ("bf16", "fp32")
HEADER = ["training in", "seeds", "Dice", "HD95 (mm)", "Dice less fp32"]


def options_of(size: Size, precision: str, seed: int) -> dict[str, Any]:
    """What the figures of a precision depend on."""
    return {"training": training_options(size, seed) | {"precision": precision}}


def run_precision(bench: Bench, precision: str) -> dict[str, Any]:
    """Train in this precision; segment and score the test scans."""
    model, cost = train_model(bench, f"supervised-{precision}", "target", precision=precision)
    return cost | {"results": {"final": score(bench, model, model.parent / "test")}}


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The section of a task."""
    write_section(
        section,
        f"Training on the target's labels in either precision, {task.title}: Dice (%) and HD95 on the test scans, "
        f"mean ± deviation over seeds; {size.train_steps} steps.",
        HEADER,
        comparison(cells, PRECISIONS, "fp32"),
        path,
    )


GRID = Grid("precision", "precisions", PRECISIONS, options_of, run_precision, write_results)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
