"""Self-tests for a real Slicer: a tiny model is trained and used, in about a minute."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import slicer

from . import images
from .job import Worker
from .parameters import Parameters
from .run import Run
from .scene import export_segmentation

_SHAPE = (32, 38, 34)
_CORE = (-3, 3, 5)
"""Voxels from the middle to that of the ball's core: a label map that is mirrored shows it elsewhere."""
_FAST = {"device": "cpu", "threads": 1, "precision": "fp32"}


def make_ball(radius: float = 7.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright core to one side of a dim ball, with the noise of a scan, and their labels: (k, j, i)."""
    axes = np.indices(_SHAPE) - np.reshape([n / 2 for n in _SHAPE], (3, 1, 1, 1))
    labels = ((axes**2).sum(0) < 14**2).astype(np.uint8)
    labels[((axes - np.reshape(_CORE, (3, 1, 1, 1))) ** 2).sum(0) < radius**2] = 2
    noise = np.random.default_rng(seed).normal(0, 8, _SHAPE)
    return np.where(labels > 0, np.array([0, 100, 200])[labels] + noise, 0).astype(np.float32), labels


def add_ball():
    """The ball as an oblique volume under a transform."""
    node = slicer.util.addVolumeFromArray(make_ball(seed=9)[0])
    node.SetName("ball")
    turn = slicer.util.vtkMatrixFromArray(
        np.array([[1.6, -1.2, 0, 10], [1.2, 1.6, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]], float)
    )
    node.SetIJKToRASMatrix(turn)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(turn)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def train_tiny(folder: Path) -> str:
    """Train a tiny model with the worker; returns its file."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    directions = (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # to the right and to the front, as the volume to be segmented
    for index, radius in enumerate((6, 7, 8)):
        for name, array in zip(("images", "labels"), make_ball(radius, index), strict=True):
            images.Snapshot(array, (2, 2, 2), (0, 0, 0), directions).write(
                folder / name / f"case{index}.nrrd"
            )
    job = {
        "task": "train",
        "name": "ball",
        "output": str(folder / "model"),
        "images": str(folder / "images"),
        "labels": str(folder / "labels"),
        "preset": "tiny",
        "preprocessing": {"spacing": [2, 2, 2]},
        "options": {"steps": 40, "patches": 2, "warmup": 5, "learning_rate": 3e-3, **_FAST},
    }
    worker = Worker()
    worker.start(job, folder)
    while worker.running:
        worker.poll()
        time.sleep(0.05)
    if worker.exit_code != 0:
        raise RuntimeError(f"The tiny model was not trained: {worker.error}\n{worker.log}")
    return str(folder / "model" / "ball.safetensors")


@contextmanager
def _tiny_model():
    folder = Path(tempfile.mkdtemp(prefix="MAPSegTest-", dir=slicer.app.temporaryPath))
    try:
        yield train_tiny(folder), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_path(test, logic) -> None:
    """A model is trained; a volume is segmented, adapted to and exported."""
    with _tiny_model() as (model, folder):
        volume = add_ball()
        run = logic.segment(volume, model=model, **_FAST)
        [node] = run.segmentations
        test.assertEqual(node.GetTransformNodeID(), volume.GetTransformNodeID())
        labels = make_ball(seed=9)[1]
        for identifier in node.GetSegmentation().GetSegmentIDs():
            value = int(identifier.rsplit("_", 1)[1])
            found = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume) > 0
            overlap = (
                2 * np.count_nonzero(found & (labels == value)) / (found.sum() + (labels == value).sum())
            )
            test.assertGreater(overlap, 0.6, f"structure {value}")  # mirrored, the core has at most half
        test.assertEqual(len(run.results[0]["structures"]), 2)
        export_segmentation(node, volume, folder / "out.nii.gz")
        written = images.read_array(folder / "out.nii.gz")
        test.assertTrue(np.array_equal(written, images.read_array(run.results[0]["output"])))
        run.clean()

        stages = set()
        options = {"steps": 4, "check_every": 2, "preview_seconds": 0.001, "search": False, **_FAST}
        run = logic.adapt(volume, model=model, minutes=1, onProgress=lambda r: stages.add(r.stage), **options)
        test.assertIn("adapt", stages)
        test.assertIn(run.results[0]["chosen"], ("source", "adapted"))
        run.clean()


def check_cancel(test) -> None:
    """Cancelling ends the worker within two seconds."""
    run = Run([add_ball()], Parameters(device="cpu"))
    run.start()
    while run.poll() and run.stage != "start":
        pass
    test.assertEqual(run.stage, "start", run.error)
    began = time.monotonic()
    run.cancel()
    while run.poll():
        time.sleep(0.02)
    test.assertLess(time.monotonic() - began, 2.0)
    test.assertEqual([item.state for item in run.items], ["cancelled"])
    run.clean()
