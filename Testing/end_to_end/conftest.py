"""A tiny trained model and tiny scans; the same for every test."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from MAPSegLib import api

OPTIONS = {
    "patches": 2,
    "warmup": 5,
    "learning_rate": 3e-3,
    "threads": 1,
    "device": "cpu",
    "precision": "fp32",
}
"""Of a short training."""
CORE = (5, 3, -3)
"""Voxels from the middle of a scan to that of its core: a label map that is mirrored shows it elsewhere."""


def write_ball(images: Path, labels: Path, name: str, radius: float, seed: int) -> None:
    """A dim ball with a bright core that lies to one side of all axes, 2 mm voxels, with the noise of a scan."""
    shape = (34, 38, 32)
    axes = np.indices(shape) - np.reshape([n / 2 for n in shape], (3, 1, 1, 1))
    core = axes - np.reshape(CORE, (3, 1, 1, 1))
    classes = ((axes**2).sum(0) < 14**2).astype(np.uint8)
    classes[(core**2).sum(0) < radius**2] = 2
    noise = np.random.default_rng(seed).normal(0, 8, shape)
    image = np.where(classes > 0, np.array([0, 100, 200])[classes] + noise, 0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), images / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(classes, affine), labels / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folders images/ and labels/ with three cases."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i, radius in enumerate((6, 7, 8)):
        write_ball(folder / "images", folder / "labels", f"case{i}", radius, i)
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> dict:
    """Result of a short training."""
    return api.train(
        tmp_path_factory.mktemp("model"),
        "ball",
        images=data / "images",
        labels=data / "labels",
        preset="tiny",
        preprocessing={"spacing": (2, 2, 2)},
        steps=40,
        **OPTIONS,
    )


@pytest.fixture(scope="session")
def model(trained) -> Path:
    return Path(trained["model"])


class Worker:
    """``python -m MAPSegLib.worker`` on a job, its events read as they come."""

    def __init__(self, job: dict, folder: Path, *flags: str):
        path = folder / "job-file.json"
        path.write_text(json.dumps(job, default=str))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "MAPSegLib.worker", *flags, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.events: list[dict] = []

    def until(self, wanted) -> dict:
        """Read events up to the first for which ``wanted`` holds."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if wanted(self.events[-1]):
                return self.events[-1]
        pytest.fail(f"not told: {self.events[-3:]} {self.process.stderr.read()}")

    def signal(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        out, self.log = self.process.communicate(timeout=120)
        self.events += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode


@pytest.fixture
def worker(tmp_path):
    """Starts workers, and ends those that a failing test leaves."""
    started = []

    def start(job: dict, *flags: str) -> Worker:
        started.append(Worker(job, tmp_path, *flags))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.fixture(scope="session")
def anatomy(tmp_path_factory):
    """A folder with a rough head: cortex, white matter, a thalamus on each side, and skin."""
    folder = tmp_path_factory.mktemp("anatomy")
    axes = np.indices((40, 44, 40)) - np.reshape([20, 22, 20], (3, 1, 1, 1))
    distance, left = np.sqrt((axes**2).sum(0)), axes[0] < 0
    codes = np.zeros(distance.shape, np.int16)
    for radius, pair in ((19, (502, 502)), (16, (3, 42)), (11, (2, 41)), (5, (10, 49))):
        codes[(distance < radius) & left] = pair[0]
        codes[(distance < radius) & ~left] = pair[1]
    nib.save(nib.Nifti1Image(codes, np.diag([3.0, 3.0, 3.0, 1.0])), folder / "head.nii.gz")
    return folder
