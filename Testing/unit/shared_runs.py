"""Short runs of everything that several processes can share: ``torchrun shared_runs.py all|memory FOLDER``."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model_cases import Blobs, card_of, tiny_architecture, tiny_model

from MAPSegLib import distributed, worker
from MAPSegLib.config import CentralisedOptions, PretrainingOptions, TrainingOptions
from MAPSegLib.domains import Domains
from MAPSegLib.networks.autoencoder import Autoencoder
from MAPSegLib.preprocessing import prepare
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.pretraining import pretrain
from MAPSegLib.training.source import train
from MAPSegLib.volumes import Volume

COMMON = {"device": "cpu", "precision": "fp32", "threads": 1, "steps": 10, "mask_cube": 4}


class Told(list):
    """The losses of every step."""

    def __call__(self, event, **fields):
        if fields.get("losses"):
            self.append(fields["losses"])


def run_train(folder: Path, accumulate: int) -> list[dict]:
    told, own = Told(), {"patches": 2, "warmup": 3, "reuse": 3, "validate_every": 7, "learning_rate": 3e-3}
    options = TrainingOptions(**COMMON, **own, accumulate=accumulate)
    validation = [Blobs().draw(torch.Generator().manual_seed(1))]
    train(tiny_model(dropout=0.2), Blobs(), options, folder, told, validation)
    return told


def run_pretrain(folder: Path, accumulate: int) -> list[dict]:
    told, own = Told(), {"scans": 2, "warmup": 3, "reuse": 2, "learning_rate": 3e-3}
    options = PretrainingOptions(**COMMON, **own, picture_every=0, accumulate=accumulate)
    torch.manual_seed(0)
    named = [(str(i), lambda g: Blobs().draw(g)[0]) for i in range(3)]
    domains = Domains(named, (1.0, 1.0, 1.0))
    pretrain(Autoencoder(tiny_architecture()), domains, options, folder, told)
    return told


def run_adapt(folder: Path, accumulate: int, preset: str = "paper") -> list[dict]:
    own = {"preset": preset, "search": False, "warmup": 5, "check_every": 5, "learning_rate": 3e-3}
    told, own = Told(), own | {"minutes": 1000.0}
    options = CentralisedOptions(**COMMON, **own, preview_seconds=0.0, accumulate=accumulate)
    arrays = [np.random.default_rng(seed).random((20, 18, 20 + seed), np.float32) for seed in range(2)]
    model = tiny_model(dropout=0.2)
    card = card_of(model)
    scans = [prepare(Volume(array * 100, np.eye(4)), card.preprocessing) for array in arrays]
    adapt(model, card, scans, options, folder, told, source=Blobs())
    return told


def line(accumulate: int) -> Loop:
    torch.manual_seed(0)
    return Loop(torch.nn.Linear(4, 1), TrainingOptions(**COMMON, accumulate=accumulate), ema_decay=0.9)


def run_broken(folder: Path, accumulate: int) -> list[dict]:
    """The second micro-batch of the third step is no number; returns what is left of the model, and the skips."""
    loop = line(accumulate)

    def losses():
        bad = math.nan if (loop.step, loop.part) == (2, 1) else 1.0
        return {"fit": bad * loop.model(torch.rand(8, 4)).pow(2).mean()}

    skipped = []
    for _ in range(4):
        loop.update(losses)
        skipped.append(loop.skipped)
    weight = sum(float(p.detach().double().sum()) for p in loop.model.parameters())
    return [{"weight": weight, "skipped": skipped, "step": loop.step}]


RUNS = {
    "train": run_train,
    "pretrain": run_pretrain,
    "adapt": run_adapt,
    "plus": partial(run_adapt, preset="plus"),
    "broken": run_broken,
}


def run_all(folder: Path, accumulate: int) -> dict[str, list[dict]]:
    """What every run told; each has a folder of its own."""
    found = {}
    for name, run in RUNS.items():
        (folder / name).mkdir(exist_ok=True)
        found[name] = run(folder / name, accumulate)
    return found


def fill_memory(job, emit, stopped) -> dict:
    """A job whose second process runs out of memory in its second step."""
    loop = line(1)

    def losses():
        if (loop.step, loop.part) == (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"fit": loop.model(torch.rand(8, 4)).pow(2).mean()}

    for _ in range(4):
        emit({"event": "progress", "loss": loop.update(losses)["loss"]})
    return {"failed": []}


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "memory":
        worker.run_job = fill_memory
        distributed.end(worker.execute(lambda: None, lambda event: print(json.dumps(event), flush=True)))
    distributed.join()
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(run_all(folder, 1)))
    distributed.leave()
    distributed.end(0)
