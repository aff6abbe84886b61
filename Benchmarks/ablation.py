"""What each part of the preset ``plus`` is worth: one taken away, or added, at a time.

    python -m Benchmarks.ablation TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--variants ...] [--preset cpu]

Scored on the target scans that are adapted to, with labels that no training sees; test scans take no part, so that
nothing is chosen by them. Folders and source models are those of ``Benchmarks.uda``; what is done is kept in WORK.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAPSegLib import api
from MAPSegLib.config import RECIPES, Recipe, Views
from MAPSegLib.errors import MAPSegError
from MAPSegLib.reports import plain, read_json, write_json
from MAPSegLib.tasks.scans import ADAPTED_MODEL

from .tables import RESULTS, write_section
from .uda.__main__ import prepare
from .uda.methods import Bench, score, train_model
from .uda.report import seed_means, spread
from .uda.tasks import TASKS, adaptation_options

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


def run_variant(bench: Bench, name: str) -> dict[str, Any]:
    """Scores of the target scans by the start and by the adapted model, or what an earlier run found."""
    file = bench.place("ablation") / f"{name.replace(' ', '-')}.json"
    if file.exists():
        return read_json(file, "a result")
    variant = VARIANTS[name]
    start = "start-strong" if variant.strong_start else "start"
    train_model(bench, start, bench.size.start, strong=variant.strong_start)
    model, folder = bench.place(start) / "model.safetensors", file.with_suffix("")
    place, target = bench.material / "source", bench.material / "target"
    source = (
        {"source_from_labels": place / "labels"}
        if bench.task.synthetic
        else {"source": place / "images", "source_labels": place / "labels"}
    )
    options = adaptation_options(bench.size, "plus", bench.seed) | variant.options
    RECIPES["plus"] = variant.recipe
    try:
        adapted = api.adapt(
            model, target / "images", folder, save_model=True, overwrite=True, **source, **options
        )
    finally:
        RECIPES["plus"] = PLUS
    cell = {
        "variant": name,
        "seed": bench.seed,
        "best_step": adapted["adaptation"]["best_step"],
        "results": {
            "start": score(bench, model, folder / "start", "target"),
            "adapted": score(bench, folder / ADAPTED_MODEL, folder / "adapted", "target"),
        },
    }
    write_json(file, plain(cell))
    return plain(cell)


def table(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line per variant."""
    lines = []
    whole = {c["seed"]: seed_means([c], "adapted", "dice")[0] for c in cells if c["variant"] == "plus"}
    for name in VARIANTS:
        own = [cell for cell in cells if cell["variant"] == name]
        if not own:
            continue
        before, after = (seed_means(own, result, "dice") for result in ("start", "adapted"))
        less = [a - whole[c["seed"]] for a, c in zip(after, own, strict=True) if c["seed"] in whole]
        lines.append(
            [
                name,
                str(len(own)),
                spread(before),
                spread(after),
                spread([b - a for a, b in zip(before, after, strict=True)]),
                ", ".join(str(cell["best_step"]) for cell in own),
                "" if name == "plus" else spread(less),
            ]
        )
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 where the data are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the tasks' data")
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, models and results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--preset", choices=("cpu", "gpu", "smoke"), default="cpu")
    arguments = parser.parse_args(words)
    task = TASKS[arguments.task]
    size = task.sizes[arguments.preset]
    folder = arguments.work.absolute() / arguments.task / arguments.preset
    cells = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prepare(task, size, arguments.data, folder / "scans")
        for seed in arguments.seeds:
            for name in arguments.variants:
                cells.append(run_variant(Bench(task, size, folder / "scans", folder, seed), name))
                dice = seed_means(cells[-1:], "adapted", "dice")[0]
                print(f"{name}, seed {seed}: Dice {dice:.1f}, step {cells[-1]['best_step']}", flush=True)
    except MAPSegError as error:
        print(f"{error.message} {error.advice}".strip(), file=sys.stderr)
        return error.exit_code
    write_section(
        f"ablation {arguments.task}",
        f"Parts of `plus`, {task.title}: Dice (%) on the target scans adapted to, whose labels no training sees, mean "
        f"± deviation over seeds; {size.start} + {size.own} steps. Scored is the step with the best label-free "
        "score, without a gate.",
        HEADER,
        table(cells),
        folder / "RESULTS.md" if arguments.preset == "smoke" else RESULTS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
