"""One method with one seed: its trainings in worker processes, then its results on the test scans.

Everything lies under a folder of its own and is found there again: a finished training is not repeated, a killed
one continues from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from MAPSegLib import api
from MAPSegLib.config import RECIPES, AdaptationOptions, Preprocessing
from MAPSegLib.errors import InputError, MAPSegError
from MAPSegLib.models import ModelCard, resolve, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.quality import Assessment, better, needed_gain
from MAPSegLib.reports import CHECKPOINT, plain, read_json, write_json
from MAPSegLib.tasks.findings import ADAPTED_MODEL

from .grid import Bench
from .report import mean_of_known
from .tasks import ADAPTING, STRONG, TEST_TIME, VERSION, Size, Task, adaptation_options, training_options

Scores = list[dict[str, Any]]
"""An entry per test scan: ``scan``; ``dice`` and ``hd95`` (mm) by structure; and what is known without labels,
``trusted`` and ``measures`` (the gate's ``score``, and ``confidence``, the mean over structures, among them)."""


def options_of(size: Size, method: str, seed: int) -> dict[str, Any]:
    """What a method's figures depend on."""
    recipe = RECIPES.get(method)
    return {
        "training": training_options(size, seed, method in STRONG),
        "adaptation": adaptation_options(size, method, seed) if method in ADAPTING else None,
        "recipe": recipe and recipe._asdict(),
    }


def run_method(bench: Bench, method: str) -> dict[str, Any]:
    """Train, segment the test scans and score them."""
    return (_adapting if method in ADAPTING else _supervised)(bench, method)


def _supervised(bench: Bench, method: str) -> dict[str, Any]:
    if method == "target-supervised":
        model, cost = train_model(bench, method, "target")
    else:
        model, cost = source_model(bench, method in STRONG)
    return cost | {"results": {"final": score(bench, model, bench.place(method) / "test")}}


def _adapting(bench: Bench, method: str) -> dict[str, Any]:
    """Adapt to the target scans; then the gate chooses, per test scan and without its labels, as it does there.

    What all target scans gained together counts for the test scans, too: they are of the same domain.
    """
    start, cost = source_model(bench, method in STRONG)
    costs, folder = [cost], bench.place(method)
    job: dict[str, Any] = {
        "task": "adapt",
        "model": start,
        "scans": [bench.material / "target" / "images"],
        "output": folder,
        "save_model": True,
        "options": adaptation_options(bench.size, method, bench.seed),
    }
    if method not in TEST_TIME:
        job |= bench.source
    costs.append(run_worker(folder, job, folder / "adaptation" / CHECKPOINT))
    before = score(bench, start, folder / "test-start")
    after = score(bench, folder / ADAPTED_MODEL, folder / "test-adapted")
    report = read_json(folder / "report.json", "a report")
    known = [e["adapted"]["measures"]["score"] - e["source"]["measures"]["score"] for e in report["scans"]]
    needed = needed_gain(known, AdaptationOptions().gate_margin)
    chosen = [
        "adapted" if better(_verdict(b), _verdict(a), needed) else "start"
        for b, a in zip(before, after, strict=True)
    ]
    gated = [b if c == "start" else a for b, a, c in zip(before, after, chosen, strict=True)]
    best = report["adaptation"]["best_step"]
    results = {"final": gated, "adapted": after, "start": before}
    return add_costs(costs) | {"results": results, "chosen": chosen, "best_step": best}


def _verdict(scan: dict[str, Any]) -> Assessment:
    return Assessment(scan["trusted"], "", scan["measures"])


def source_model(bench: Bench, strong: bool) -> tuple[Path, dict[str, Any]]:
    """The model of source-only or source-strong, trained where it is not there, and what it cost."""
    if bench.size.models:
        return resolve(bench.size.models[strong]), {"seconds": 0.0, "peak_gb": 0.0, "continued": False}
    return train_model(bench, "source-strong" if strong else "source-only", "source", strong)


def train_model(
    bench: Bench, name: str, part: str, strong: bool = False, **options: Any
) -> tuple[Path, dict[str, Any]]:
    """A supervised training, from fresh weights unless there are others: the model, and what it cost.

    Args:
        options: in place of those of all trainings (:func:`~.tasks.training_options`).
    """
    folder, place = bench.place(name), bench.material / part
    drawn = bench.task.synthetic and part == "source"
    job = {
        "task": "train",
        "output": folder,
        "name": "model",
        "init": str(resolve(bench.size.models[1]) if bench.size.models else fresh_model(bench)),
        "options": training_options(bench.size, bench.seed, strong) | options,
    }
    job |= (
        {"from_labels": place / "labels"}
        if drawn
        else {"images": place / "images", "labels": place / "labels"}
    )
    return folder / "model.safetensors", run_worker(folder, job, folder / CHECKPOINT)


def fresh_model(bench: Bench) -> Path:
    """A model file with random weights, which every training of a seed starts from."""
    path = bench.place("fresh") / "model.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(bench.seed)
        model = Segmenter(bench.size.architecture, bench.task.labels)
        card = ModelCard(
            name="fresh",
            architecture=model.architecture,
            preprocessing=Preprocessing(spacing=bench.task.spacing),
            labels=model.labels,
        )
        save_model(path, model.state_dict(), card)
    return path


def run_worker(folder: Path, job: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Run a job in a worker process, unless it is done: seconds, peak resident GiB, and whether it was continued.

    Raises:
        InputError: another job was done in this folder, or the same with an earlier :data:`~.tasks.VERSION`.
        MAPSegError: the job failed; the worker's log lies beside its results.
    """
    done, asked = folder / "cost.json", folder / "asked.json"
    content = plain({"version": VERSION, "task": job["task"], "options": job.get("options")})
    continued = checkpoint.exists()
    if (continued or done.exists()) and (not asked.exists() or read_json(asked, "a job") != content):
        raise InputError(f"{folder} was made with other options.", "Choose another folder (--work).")
    if done.exists():
        return read_json(done, "a cost")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(asked, content, overwrite=True)
    file = write_json(folder / "request.json", job | {"overwrite": True}, overwrite=True)
    command = [sys.executable, "-m", "MAPSegLib.worker", "--attached", str(file)]
    started, told, failure = time.monotonic(), 0.0, None
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "error":
                    failure = event
                if event["event"] == "progress" and time.monotonic() - told > 30:
                    told = time.monotonic()
                    print(f"  {folder.name}: {event['stage']} {event['step']}/{event['steps']}", flush=True)
        finally:  # an attached worker whose input ends keeps its checkpoint and ends, too
            process.stdin.close()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise MAPSegError(
            failure["message"] if failure else f"A training ended early; see {folder / 'log.txt'}."
        )
    cost = {"seconds": time.monotonic() - started, "peak_gb": usage.ru_maxrss / 2**20, "continued": continued}
    write_json(done, cost)
    return cost


def add_costs(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """What several trainings of one method cost together."""
    return {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_gb": max(cost["peak_gb"] for cost in costs),
        "continued": any(cost["continued"] for cost in costs),
    }


def score(bench: Bench, model: Path, folder: Path, part: str = "test") -> Scores:
    """Segment the scans of a part with a model, and score the structures of the task."""
    test = bench.material / part
    segmented = api.segment(model, test / "images", folder, overwrite=True)
    rows = api.evaluate(folder, test / "labels", folder / "scores", overwrite=True)["scans"]
    by_scan: dict[str, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        by_scan[row["scan"]][row["value"]] = row
    return [
        {
            "scan": Path(entry["file"]).name,
            "trusted": entry["trusted"],
            "measures": entry["measures"] | {"confidence": _mean_confidence(entry["structures"])},
            **_by_structure(bench.task, by_scan[Path(entry["output"]).name]),
        }
        for entry in segmented["scans"]
    ]


def _mean_confidence(structures: Scores) -> float:
    """Over the structures that were found; NaN without any."""
    return mean_of_known(s["confidence"] for s in structures)


def _by_structure(task: Task, rows: dict[int, dict]) -> dict[str, dict[str, float]]:
    """Means over the values of each structure; absent where the reference has none of it."""
    scores: dict[str, dict[str, float]] = {"dice": {}, "hd95": {}}
    for name, values in task.structures.items():
        found = [rows[value] for value in values if value in rows]
        for key, column in (("dice", "dice"), ("hd95", "hd95_mm")):
            if found:
                scores[key][name] = mean_of_known(row[column] for row in found)
    return scores
