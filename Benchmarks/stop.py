"""The label-free stop of test-time adaptation, step by step: what it costs, and how measures follow the Dice meanwhile.

    python -m Benchmarks.stop TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--methods ...] [--preset cpu]

Scored on the target scans that are adapted to, at every check, with labels that no training sees. Every adaptation
takes all its steps. Folders and source models are those of ``Benchmarks.uda``, and so is ``--add``.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from MAPSegLib.config import AdaptationOptions
from MAPSegLib.manifests import list_pairs
from MAPSegLib.metrics import dice_scores
from MAPSegLib.models import load_model
from MAPSegLib.preprocessing import prepare
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.volumes import read_image, read_labels

from . import claims
from .tables import write_section
from .uda.grid import Bench, Grid
from .uda.methods import source_model
from .uda.report import Cells, mean_of_known, seed_means, spread
from .uda.tasks import STRONG, TEST_TIME, Size, Task, adaptation_options, training_options

CHECKS = 10
"""Of one adaptation; its patience is as long."""
MEASURES = ("score", "agreement", "shape_deviation", "border_contrast", "eta")
HEADER = ["method", "seeds", "start", "kept", "best step", "last step", "steps kept", "stop regret, by seed"]


def options_of(size: Size, method: str, seed: int) -> dict[str, Any]:
    """What the figures of a method depend on."""
    steps = {"check_every": _between_checks(size), "patience": CHECKS + 1}
    return {
        "training": training_options(size, seed, method in STRONG),
        "adaptation": adaptation_options(size, method, seed) | steps,
    }


def _between_checks(size: Size) -> int:
    """Steps."""
    return max(1, size.adapt_steps // CHECKS)


def run_method(bench: Bench, method: str) -> dict[str, Any]:
    """Adapt to the target scans; Dice and measures at every check."""
    start, _ = source_model(bench, method in STRONG)
    model, card = load_model(start)
    target = bench.material / "target"
    pairs = list_pairs(target / "images", target / "labels")
    scans = [prepare(read_image(image), card.preprocessing) for image, _ in pairs]
    references = [read_labels(labels).array for _, labels in pairs]
    values = [value for group in bench.task.structures.values() for value in group]
    found: list[list[dict[int, float]]] = []

    def preview(index: int, labels: np.ndarray, step: int) -> None:
        if index == 0:
            found.append([])
        found[-1].append(dice_scores(labels, references[index], values))

    known = options_of(bench.size, method, bench.seed)["adaptation"]
    options = AdaptationOptions(**known | {"preview_seconds": 1e-6})  # one at every check
    with tempfile.TemporaryDirectory() as folder:
        adapted = adapt(model, card, scans, options, Path(folder), lambda *_, **__: None, preview)
    results, checks = {}, []
    for index, (entry, scores) in enumerate(zip(adapted.history, found, strict=True)):
        results[str(index)] = [
            {"scan": image.name, "dice": _by_structure(bench.task, dice)}
            for (image, _), dice in zip(pairs, scores, strict=True)
        ]
        eta = {label.value: entry["eta_per_class"].get(rank) for rank, label in enumerate(card.labels, 1)}
        measured = {name: entry.get(name) for name in ("step", "kept", *MEASURES)}
        checks.append(measured | {"eta_of": _by_structure(bench.task, eta)})
    kept = max(index for index, check in enumerate(checks) if check["kept"])
    return {"checks": checks, "results": results | {"final": results[str(kept)]}}


def _by_structure(task: Task, shares: Mapping[int, float | None]) -> dict[str, float]:
    """Means over the values of each structure; NaN where none is defined."""
    return {name: mean_of_known(shares[v] for v in values) for name, values in task.structures.items()}


def _dice(cell: dict[str, Any], structure: str | None = None) -> list[float]:
    """Of every check, mean over scans."""
    return [seed_means([cell], str(i), "dice", structure)[0] for i in range(len(cell["checks"]))]


def table(cells: Cells) -> list[list[str]]:
    """A line per method."""
    lines = []
    for name in TEST_TIME:
        own = [cell for cell in cells if cell["method"] == name]
        if own:
            dice, kept = [_dice(cell) for cell in own], seed_means(own, "final", "dice")
            lines.append(
                [
                    name,
                    str(len(own)),
                    spread([d[0] for d in dice]),
                    spread(kept),
                    spread([max(d) for d in dice]),
                    spread([d[-1] for d in dice]),
                    ", ".join(str([c["step"] for c in cell["checks"] if c["kept"]][-1]) for cell in own),
                    ", ".join(f"{max(d) - k:.1f}" for d, k in zip(dice, kept, strict=True)),
                ]
            )
    return lines


def claims_table(cells: Cells) -> list[list[str]]:
    """How measures follow the Dice over all checks, eta also structure by structure."""
    whole, single = [], defaultdict(list)
    for cell in cells:
        for check, dice in zip(cell["checks"], _dice(cell), strict=True):
            known = {name: check[name] for name in MEASURES if check[name] is not None}
            if "shape_deviation" in known:
                known["plausible shapes"] = -known.pop("shape_deviation")
            whole.append(claims.Result(dice / 100, known))
        for structure in cell["checks"][0]["eta_of"]:
            for check, dice in zip(cell["checks"], _dice(cell, structure), strict=True):
                name = f"eta of {structure}"
                single[name].append(claims.Result(dice / 100, {name: check["eta_of"][structure]}))
    lines = claims.table(whole, [], None)
    for results in single.values():
        lines += claims.table(results, [], None)
    return lines


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The sections of a task."""
    write_section(
        section,
        f"Test-time adaptation by step, {task.title}: Dice (%) on the scans adapted to, mean ± deviation over seeds. "
        f"{size.adapt_steps} steps, from the model of source-only or, for test-time-strong, source-strong, and a "
        f"check after every {_between_checks(size)}. Kept: at the step with the best label-free score, "
        "without a gate. Stop regret: what the best step has more.",
        HEADER,
        table(cells),
        path,
    )
    write_section(
        f"{section}, claims",
        "What is said without labels against the Dice, over all checks of all methods and seeds, means over scans; eta "
        "is that of the step before a check.",
        claims.HEADER,
        claims_table(cells),
        path,
    )


GRID = Grid("stop", "methods", TEST_TIME, options_of, run_method, write_results)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
