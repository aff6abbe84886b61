"""A scene of real MRML, and the tiny trained model of the end-to-end tests."""

import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer", reason="needs the slicer-core wheel")
ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "Testing", ROOT / "MAPSeg"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import slicer  # noqa: E402
import vtk  # noqa: E402

from Testing import warm  # noqa: E402
from Testing.host import scene as host  # noqa: E402

host.offer_module_base_classes()

from MAPSegModule import run as runs  # noqa: E402
from MAPSegModule.parameters import Parameters  # noqa: E402
from MAPSegModule.selftest import make_ball  # noqa: E402

FAST = {"threads": 1, "precision": "fp32"}
"""Options of a worker in these tests."""
LEFT_HANDED = [[-2, 0, 0, 9], [0, 0, 2, -30], [0, -2, 0, 40], [0, 0, 0, 1.0]]
"""From voxels to RAS mm."""


@pytest.fixture
def scene():
    """A new scene, as an application that has just started has it."""
    made = host.install()
    yield made
    made.Clear(True)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's models are none of the machine's."""
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Workers do not import PyTorch anew."""
    if sys.platform == "linux":
        monkeypatch.setattr(subprocess, "Popen", warm.start)


def eventually(wanted, seconds=60):
    """Wait for what comes by itself."""
    limit = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < limit
        time.sleep(0.01)


def matrix_of(rows) -> "vtk.vtkMatrix4x4":
    matrix = vtk.vtkMatrix4x4()
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            matrix.SetElement(i, j, float(value))
    return matrix


def oblique(spacing=(2.0, 2.0, 2.0), angles=(0.3, -0.2, 0.5), mirrored=False, origin=(12.3, -45.6, 7.8)):
    """IJK to RAS of a turned grid; ``mirrored`` makes it left-handed."""
    (a, b, c) = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = z @ y @ x @ np.diag([-1 if mirrored else 1, 1, 1]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def add_volume(array, affine=None, name="scan"):
    """A scalar volume node from voxels (k, j, i)."""
    matrix = matrix_of(np.eye(4) if affine is None else affine)
    node = slicer.util.addVolumeFromArray(np.ascontiguousarray(array), matrix)
    node.SetName(name)
    return node


def add_ball(name="scan", radius=7.0, affine=None, seed=0):
    """What the tiny model was trained on, as a node."""
    from MAPSegModule.selftest import make_ball

    image, _ = make_ball(radius, seed)
    return add_volume(image, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine, name)


def harden(volume):
    """Put a transform over a volume, and into its geometry, as the Data module does."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix_of(oblique((1, 1, 1))))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    assert volume.HardenTransform()


def voxels_of(segmentation, volume) -> np.ndarray:
    """The label values that a segmentation gives the volume's voxels."""
    from MAPSegModule.scene import VALUE_TAG

    found = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint16)
    for identifier in segmentation.GetSegmentation().GetSegmentIDs():
        value = vtk.reference("")
        assert segmentation.GetSegmentation().GetSegment(identifier).GetTag(VALUE_TAG, value)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, identifier, volume) > 0
        assert not found[mask].any()
        found[mask] = int(str(value))
    return found


@pytest.fixture
def start(scene, model):
    """Starts runs, and ends those that a test leaves."""
    started = []

    def begin(nodes, **choices):
        options = FAST | ({"search": False} if choices.get("adapt") else {}) | choices.pop("options", {})
        parameters = Parameters(**{"model": str(model), "device": "cpu", "options": options} | choices)
        started.append(runs.Run(nodes, parameters))
        started[-1].start()
        return started[-1]

    yield begin
    for one in started:
        one.clean()


def until(run, wanted, seconds=60):
    limit = time.monotonic() + seconds
    while not wanted():
        assert run.poll() or wanted(), (run.error, [item.message for item in run.items])
        assert time.monotonic() < limit, run.stage
        time.sleep(0.01)


def left_handed(array: np.ndarray) -> np.ndarray:
    """Voxels (k, j, i) that run to the right, the front and up, in the order of ``LEFT_HANDED``."""
    return array.transpose(2, 1, 0)[::-1, :, ::-1].transpose(0, 2, 1)


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A NIfTI scan, an NRRD scan of the same stem in a folder, a file that is no scan, and two DICOM series."""
    folder = tmp_path / "in"
    (folder / "second").mkdir(parents=True)
    scans = [make_ball(radius, seed)[0] for seed, radius in enumerate((6, 7, 8, 7))]
    nib.save(nib.Nifti1Image(left_handed(scans[0]), np.array(LEFT_HANDED)), folder / "head.nii.gz")
    image = sitk.GetImageFromArray(scans[1])
    image.SetSpacing((2, 2, 2))
    sitk.WriteImage(image, str(folder / "second" / "head.nrrd"))
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    for index in (2, 3):
        write_series(folder / "dicom", scans[index], index)
    return folder


def write_series(folder: Path, array: np.ndarray, number: int) -> None:
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.clip(array, 0, None).astype(np.int16))
    image.SetSpacing((2, 2, 2))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetDepth()):
        piece = image[:, :, k]
        tags = {"0008|0060": "MR", "0020|000e": f"1.2.3.{number}", "0020|000d": "1.2.3", "0020|0013": str(k)}
        tags |= {
            "0008|0018": f"1.2.3.{number}.{k}",
            "0020|0032": f"0\\0\\{2 * k}",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
        }
        tags["0020|0037"] = "1\\0\\0\\0\\1\\0"
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{number}{k:03d}"))
        writer.SetImageIO("GDCMImageIO")
        writer.Execute(piece)
