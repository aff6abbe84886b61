"""One source site and three target sites, against the same scans in one place and against each site alone.

    python -m Benchmarks.federated TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--ways ...] [--preset cpu]

All start from the same source model (``source-strong`` of ``Benchmarks.uda``, whose folders and options are shared) and
take the same number of steps; a site's target scans are every third one. The recipe is ``plus`` without its intensity
curve, which belongs to one target domain, and without the target's intensities, which no site could give to the
source. A site alone adapts at test time, with a curve. Nothing is gated. A federation gives its last round; the others
the step with the best label-free score.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from MAPSegLib import api
from MAPSegLib.config import RECIPES
from MAPSegLib.errors import InputError
from MAPSegLib.federated.coordinator import Coordinator
from MAPSegLib.federated.plan import read_plan
from MAPSegLib.federated.scans import SiteData
from MAPSegLib.federated.site import Site
from MAPSegLib.reports import CHECKPOINT, plain, read_json, write_json
from MAPSegLib.tasks.findings import ADAPTED_MODEL
from MAPSegLib.volumes import find_scans

from .tables import write_section
from .uda.grid import Bench, Grid
from .uda.methods import Scores, run_worker, score, source_model
from .uda.report import Cells, comparison, less_by_seed, seed_means, spread
from .uda.tasks import TASKS, Size, Task, adaptation_options, training_options

ROUND = 20
"""Steps of a round."""
SITES = 3
FEW = 5
"""Scans of the small site."""
STEPS = {("cardiac", "cpu"): 80}
"""Fewer than the task's own, where one machine would train all sites in turn for hours."""
WAYS = (
    "source model",
    "each site alone",
    "federated",
    f"federated, one target site of at most {FEW} scans",
    "centralised",
)
RECIPE = RECIPES["plus"]._replace(matched=False)
AFRESH = "federated, optimisers afresh in every round"
PRIVATE: dict[str, dict[str, dict[str, float]]] = {
    "the largest half": {"percentile": {"percentile": 50, "gamma": 0.01}},
    "the largest tenth": {"percentile": {"percentile": 90, "gamma": 0.01}},
    "clipped to 0.001": {"percentile": {"percentile": 0, "gamma": 0.001}},
    "half, weak noise": {"noise": {"fraction": 0.5, "epsilon": 10, "noise_var": 100, "gamma": 0.01}},
    "half, strong noise": {"noise": {"fraction": 0.5, "epsilon": 1, "noise_var": 10, "gamma": 0.01}},
}
"""Filters on what leaves a site (``Docs/federated.md``), each with all target sites."""


def size_of(name: str, preset: str) -> Size:
    """The task's size, with the steps of a federation."""
    if TASKS[name].synthetic:
        raise InputError("A source that is synthesised cannot be a site.", "Choose another task.")
    size = TASKS[name].sizes[preset]
    return size.model_copy(update={"adapt_steps": STEPS.get((name, preset), size.adapt_steps)})


def options(size: Size, seed: int) -> dict[str, Any]:
    """Of every adaptation beside a source."""
    return adaptation_options(size, "plus", seed) | {"curve_knots": 0}


def options_of(size: Size, way: str, seed: int) -> dict[str, Any]:
    """What a way's figures depend on."""
    alone = adaptation_options(size, "test-time", seed)
    return {
        "training": training_options(size, seed, strong=True),
        "adaptation": alone if way == WAYS[1] else options(size, seed),
        "recipe": RECIPE._asdict(),
        "privacy": PRIVATE.get(way),
    }


def site_scans(bench: Bench) -> list[list[Path]]:
    """Every third target scan to one site."""
    scans = find_scans(bench.material / "target" / "images")
    return [scans[site::SITES] for site in range(SITES)]


def centralised(bench: Bench) -> list[tuple[Path, dict]]:
    """Adaptation with all scans in one place."""
    place, folder = bench.material / "source", bench.place("in-one-place")
    with patch.dict(RECIPES, plus=RECIPE):
        api.adapt(
            source_model(bench, strong=True)[0],
            bench.material / "target" / "images",
            folder,
            source=place / "images",
            source_labels=place / "labels",
            save_model=True,
            overwrite=True,
            **options(bench.size, bench.seed),
        )
    return [(folder / ADAPTED_MODEL, {})]


def alone(bench: Bench) -> list[tuple[Path, dict]]:
    """Test-time adaptation at each target site, for itself."""
    models = []
    for number, scans in enumerate(site_scans(bench)):
        folder = bench.place(f"site-{number}-alone")
        job = {
            "task": "adapt",
            "model": source_model(bench, strong=True)[0],
            "scans": scans,
            "output": folder,
        }
        job |= {"save_model": True, "options": adaptation_options(bench.size, "test-time", bench.seed)}
        run_worker(folder, job, folder / "adaptation" / CHECKPOINT)
        models.append((folder / ADAPTED_MODEL, {}))
    return models


def write_plan(
    bench: Bench, folder: Path, targets: Sequence[Sequence[Path]], privacy: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """The plan of a federation of the source and ``targets``, and where each site's scans are."""
    folder.mkdir(parents=True, exist_ok=True)
    source = bench.material / "source"
    names = [f"target-{number}" for number in range(len(targets))]
    known = options(bench.size, bench.seed)
    steps = min(ROUND, bench.size.adapt_steps)
    step = {key: known[key] for key in ("patches", "learning_rate", "ema_decay", "preset", "seed")}
    plan = {
        "name": "model",
        "model": str(source_model(bench, strong=True)[0]),
        "sites": [{"name": "source", "role": "source"}, *({"name": n, "role": "target"} for n in names)],
        "rounds": bench.size.adapt_steps // steps,
        "steps": steps,
        "options": step,
        "privacy": privacy or {},
    }
    sites: dict[str, Any] = {"source": {"images": source / "images", "labels": source / "labels"}}
    for name, scans in zip(names, targets, strict=True):
        cases = {"cases": [{"image": str(scan)} for scan in scans]}
        sites[name] = {"images": write_json(folder / f"{name}.json", cases, overwrite=True)}
    return (
        write_json(folder / "plan.json", plan, overwrite=True),
        write_json(folder / "sites.json", plain(sites), overwrite=True),
    )


def federated(
    bench: Bench, name: str, targets: Sequence[Sequence[Path]], privacy: dict[str, Any] | None = None
) -> list[tuple[Path, dict]]:
    """A federation, with its rounds."""
    folder = bench.place(name)
    plan, sites = write_plan(bench, folder, targets, privacy)
    run_worker(
        folder,
        {"task": "simulate", "plan": plan, "sites": sites, "output": folder},
        folder / "state.safetensors",
    )
    return [(folder / "model.safetensors", {"rounds": read_json(folder / "rounds.json", "rounds")})]


def forgetful(bench: Bench, targets: Sequence[Sequence[Path]]) -> list[tuple[Path, dict]]:
    """A federation whose sites' optimisers start every round anew. Not continued: the product has no such option."""
    folder = bench.place("federated-afresh")
    shutil.rmtree(folder, ignore_errors=True)
    plan, places = write_plan(bench, folder, targets)
    coordinator, sites = Coordinator(read_plan(plan), folder), {}
    with TemporaryDirectory() as scratch:
        for name, place in read_json(places, "sites").items():
            own = Path(scratch, name)
            own.mkdir()
            sites[name] = Site(coordinator.federation, name, SiteData(**place), own, ignore)
        fresh = {name: deepcopy(site.loop.optimizer.state_dict()) for name, site in sites.items()}
        while not coordinator.done:
            started, weights, answers = time.monotonic(), coordinator.payload(), {}
            for name, site in sites.items():
                site.loop.optimizer.load_state_dict(deepcopy(fresh[name]))
                answers[name] = site.train_round(coordinator.round, weights, ignore)
            coordinator.absorb(answers, time.monotonic() - started)
    return [(coordinator.finish(overwrite=True), {})]


def ignore(*_: object, **__: object) -> None:
    """Hear a report and do nothing."""


def run_way(bench: Bench, way: str) -> dict[str, Any]:
    """The test scores of one way of training."""
    sites = site_scans(bench)
    ways: dict[str, Callable[[], list[tuple[Path, dict]]]] = {
        WAYS[0]: lambda: [(source_model(bench, strong=True)[0], {})],
        WAYS[1]: lambda: alone(bench),
        WAYS[2]: lambda: federated(bench, "federated", sites),
        WAYS[3]: lambda: federated(bench, "federated-few", [sites[0][:FEW]]),
        WAYS[4]: lambda: centralised(bench),
        AFRESH: lambda: forgetful(bench, sites),
    }
    for filters, privacy in PRIVATE.items():
        ways[filters] = partial(federated, bench, f"federated-{_slug(filters)}", sites, privacy)
    results: Scores = []
    more: dict[str, Any] = {}
    for model, told in ways[way]():
        results += score(bench, model, model.parent / "test-federated")
        more |= told
    return {"results": {"final": results}, **more}


def _slug(way: str) -> str:
    return re.sub("[^a-z0-9]+", "-", way)


def tables(cells: Cells) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """A line per way, a line per federation of what its rounds cost, and a line per choice of filters."""
    by_way = {way: [cell for cell in cells if cell["method"] == way] for way in (*WAYS, AFRESH, *PRIVATE)}
    cost, private = [], []
    for way, own in by_way.items():
        if own and way in PRIVATE:
            filters = ", ".join(f"{k} {v:g}" for options in PRIVATE[way].values() for k, v in options.items())
            dice, less = seed_means(own, "final", "dice"), less_by_seed(own, by_way[WAYS[2]])
            private.append([way, filters, str(len(own)), spread(dice), spread(less)])
            continue
        rounds = [entry for cell in own for entry in cell.get("rounds", ())]
        if rounds:
            up = [site["bytes"] for entry in rounds for site in entry["sites"].values() if site["used"]]
            seconds = [entry["seconds"] for entry in rounds]
            members = len(rounds[0]["sites"])
            cost.append(
                [
                    way,
                    str(members),
                    f"{np.median(seconds):.1f} s",
                    f"{np.median(seconds) / members:.1f} s",
                    f"{rounds[0]['bytes_to_a_site'] / 1e6:.2f} MB",
                    f"{np.median(up) / 1e6:.2f} MB",
                ]
            )
    return comparison(cells, (*WAYS, AFRESH), WAYS[4]), cost, private


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The sections of a task."""
    table, cost, private = tables(cells)
    write_section(
        section,
        f"Federated adaptation, {task.title}: Dice (%) and HD95 (mm) on the test scans, mean ± deviation over seeds. "
        f"{SITES} target sites, {size.adapt_steps} steps after a source model of {size.train_steps}; rounds of "
        f"{min(ROUND, size.adapt_steps)} steps, of which the last gives the model; the others' step is the one with "
        "the best label-free score. A site alone adapts at test time, with an intensity curve; the others have none.",
        ["way", "seeds", "Dice", "HD95 (mm)", "Dice less centralised"],
        table,
        path,
    )
    write_section(
        f"{section}, cost",
        "Medians over rounds and seeds. All sites of a simulation train in turn on one machine; a real round takes as "
        "long as its slowest site. Bytes without what an engine wraps around them.",
        ["way", "sites", "a round, in turn", "a site", "to a site", "from a site"],
        cost,
        path,
    )
    if private:
        write_section(
            f"{section}, privacy",
            "The same federation with privacy filters on what leaves a site (`privacy` of a plan; "
            "`Docs/federated.md`): Dice (%) on the test scans, mean ± deviation over seeds.",
            ["filters", "options", "seeds", "Dice", "Dice less federated"],
            private,
            path,
        )


GRID = Grid("federated", "ways", [*WAYS, AFRESH, *PRIVATE], options_of, run_way, write_results, WAYS, size_of)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
