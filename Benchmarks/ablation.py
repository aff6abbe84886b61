"""What each part of the preset ``plus`` is worth: one taken away, or added, at a time.

    python -m Benchmarks.ablation TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--variants ...] [--preset cpu]

Scored on the target scans that are adapted to, with labels that no training sees; test scans take no part, so that
nothing is chosen by them. Folders and source models are those of ``Benchmarks.uda``, and so is ``--add``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAPSegLib import api
from MAPSegLib.config import RECIPES, Recipe, Views
from MAPSegLib.tasks.findings import ADAPTED_MODEL

from .tables import write_section
from .uda.grid import Bench, Grid
from .uda.methods import score, source_model
from .uda.report import Cells, less_by_seed, seed_means, spread
from .uda.tasks import Size, Task, adaptation_options, training_options

PLUS = RECIPES["plus"]
HEADER = ["variant", "seeds", "start", "adapted", "gain", "steps kept", "less plus"]


@dataclass(frozen=True)
class Variant:
    """A change to ``plus``."""

    recipe: Recipe = PLUS
    options: dict[str, Any] = field(default_factory=dict)
    strong_start: bool = True


VARIANTS = {
    "plus": Variant(),
    "no curve": Variant(PLUS._replace(curve=False)),
    "no other contrasts": Variant(PLUS._replace(strong=False)),
    "no target intensities": Variant(PLUS._replace(matched=False)),
    "neither": Variant(PLUS._replace(curve=False, strong=False)),
    "start without other contrasts": Variant(strong_start=False),
    "target masked only": Variant(PLUS._replace(target=Views(plain=0.0, masked=1.0))),
    "target plain only": Variant(PLUS._replace(target=Views(plain=1.0, masked=0.0))),
    "no global-local terms": Variant(options={"global_weight": 0.0, "cosine_weight": 0.0}),
    "teacher 0.9": Variant(options={"ema_decay": 0.9}),
    "teacher 0.99": Variant(options={"ema_decay": 0.99}),
    "rate 3e-4": Variant(options={"learning_rate": 3e-4}),
}


def options_of(size: Size, name: str, seed: int) -> dict[str, Any]:
    """What a variant's figures depend on."""
    variant = VARIANTS[name]
    return {
        "training": training_options(size, seed, variant.strong_start),
        "adaptation": adaptation_options(size, "plus", seed) | variant.options,
        "recipe": variant.recipe._asdict(),
    }


def run_variant(bench: Bench, name: str) -> dict[str, Any]:
    """Scores of the target scans by the start and by the adapted model."""
    variant = VARIANTS[name]
    model, _ = source_model(bench, variant.strong_start)
    folder = bench.place("ablation") / name.replace(" ", "-")
    options = adaptation_options(bench.size, "plus", bench.seed) | variant.options
    RECIPES["plus"] = variant.recipe
    try:
        adapted = api.adapt(
            model,
            bench.material / "target" / "images",
            folder,
            save_model=True,
            overwrite=True,
            **bench.source,
            **options,
        )
    finally:
        RECIPES["plus"] = PLUS
    return {
        "best_step": adapted["adaptation"]["best_step"],
        "results": {
            "start": score(bench, model, folder / "start", "target"),
            "final": score(bench, folder / ADAPTED_MODEL, folder / "adapted", "target"),
        },
    }


def table(cells: Cells) -> list[list[str]]:
    """A line per variant."""
    lines = []
    whole = [cell for cell in cells if cell["method"] == "plus"]
    for name in VARIANTS:
        own = [cell for cell in cells if cell["method"] == name]
        if not own:
            continue
        before, after = (seed_means(own, result, "dice") for result in ("start", "final"))
        lines.append(
            [
                name,
                str(len(own)),
                spread(before),
                spread(after),
                spread([b - a for a, b in zip(before, after, strict=True)]),
                ", ".join(str(cell["best_step"]) for cell in own),
                "" if name == "plus" else spread(less_by_seed(own, whole)),
            ]
        )
    return lines


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The section of a task."""
    write_section(
        section,
        f"Parts of `plus`, {task.title}: Dice (%) on the target scans adapted to, whose labels no training sees, mean "
        f"± deviation over seeds; {size.train_steps} + {size.adapt_steps} steps. Scored is the step with the best "
        "label-free score, without a gate.",
        HEADER,
        table(cells),
        path,
    )


GRID = Grid("ablation", "variants", list(VARIANTS), options_of, run_variant, write_results)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
