"""A federation of three sites with tiny scans, without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model_cases import SINGLE, card_of, tiny_model

from MAPSegLib.federated.plan import Plan
from MAPSegLib.models import save_model
from MAPSegLib.volumes import Volume, write_volume

SITES = ({"name": "a", "role": "source"}, {"name": "b", "role": "target"}, {"name": "c", "role": "target"})
STEP = {"mask_cube": 4, "patches": 1, "device": "cpu", "precision": "fp32", "threads": 1}


def write_scan(folder: Path, name: str, seed: int, labelled: bool = False) -> None:
    generator = np.random.default_rng(seed)
    array = generator.random((18, 17, 19), dtype=np.float32) * 100
    like = Volume(array, np.diag([-1.0, 1.0, 1.0, 1.0]))
    write_volume(folder / f"{name}{'_img' if labelled else ''}.nii.gz", array, like)
    if labelled:
        values = np.array([0, *(label.value for label in SINGLE)], np.uint16)
        write_volume(folder / f"{name}_label.nii.gz", values[(array // 25.01).astype(int)], like)


def make_place(folder: Path) -> Path:
    """A start model, and folders a (two labelled scans), b (one scan) and c (three scans)."""
    model = tiny_model(SINGLE)
    save_model(folder / "start.safetensors", model.state_dict(), card_of(model))
    for site, count in (("a", 2), ("b", 1), ("c", 3)):
        (folder / site).mkdir()
        for i in range(count):
            write_scan(folder / site, f"{site}{i}", 10 * ord(site) + i, labelled=site == "a")
    return folder


def plan_of(place: Path, **changes) -> Plan:
    content = {
        "name": "fed",
        "model": str(place / "start.safetensors"),
        "sites": SITES,
        "rounds": 2,
        "steps": 2,
    }
    return Plan.model_validate(content | {"options": STEP} | changes)


def pretraining(**changes) -> Plan:
    options = {"mask_cube": 4, "scans": 2, "device": "cpu", "precision": "fp32"}
    content = {"name": "enc", "task": "pretrain", "preset": "tiny", "sites": SITES, "rounds": 2, "steps": 1}
    return Plan.model_validate(content | {"options": options} | changes)
