"""Scans of a ball, and a tiny model of it: what the tests of commands, scene and panel segment."""

from pathlib import Path

import nibabel as nib
import numpy as np

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


def write_balls(folder: Path) -> None:
    """Folders images/ and labels/ with three cases."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i, radius in enumerate((6, 7, 8)):
        write_ball(folder / "images", folder / "labels", f"case{i}", radius, i)


def train_on(data: Path, output: Path) -> dict:
    """Result of a short training on the cases of :func:`write_balls`."""
    return api.train(
        output,
        "ball",
        images=data / "images",
        labels=data / "labels",
        preset="tiny",
        preprocessing={"spacing": (2, 2, 2)},
        steps=40,
        **OPTIONS,
    )
