"""A look at volumes before anything is run."""

import re

import numpy as np
import pytest
import slicer
from MAPSegModule import images
from MAPSegModule import preflight as preflights
from MAPSegModule.models import ModelEntry, find_entry
from MAPSegModule.preflight import preflight

from MAPSegLib.levels import modality_notes
from Testing.host.scene import add_hollow

from .conftest import add_ball, add_volume, matrix_of, oblique


@pytest.fixture
def entry(scene):
    return find_entry("brain-t1")


def cost(told):
    """Seconds and GB in what is told of a volume."""
    return [
        float(each) for each in re.search(r"about (\d+) s on the CPU, and ([\d.]+) GB", told.summary).groups()
    ]


def test_what_is_told_of_a_volume(entry):
    told = preflight(add_ball(affine=oblique((1, 1, 2))), entry)
    assert told.spacing == pytest.approx((1, 1, 2))
    assert told.modality == "mr" and told.problem == ""
    assert "1 × 1 × 2 mm voxels, 34 × 38 × 64 mm, looks like MR" in told.summary
    seconds, memory = cost(told)
    assert 0.5 < memory < 4 and 1 < seconds < 120


def test_larger_volumes_cost_more_and_are_looked_at_in_samples(entry, monkeypatch):
    looked_at = []
    compare = preflights._compare
    monkeypatch.setattr(
        preflights, "_compare", lambda sample, *told: looked_at.append(sample.size) or compare(sample, *told)
    )
    small = preflight(add_ball(), entry)
    large = add_volume(np.random.default_rng(0).gamma(2, 50, (256, 256, 256)).astype(np.float32))
    told = preflight(large, entry)
    assert all(more > less for more, less in zip(cost(told), cost(small), strict=True))
    assert all(0 < size <= preflights._SAMPLE for size in looked_at)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.full((5, 5, 5), 3.0), "alike"),
        (np.where(np.eye(5) > 0, np.nan, 1)[None].repeat(5, 0), "not numbers"),
        (np.ones((1, 5, 5)), "picture"),
    ],
)
def test_volumes_that_cannot_be_segmented(entry, array, told):
    assert told in preflight(add_volume(array.astype(np.float32)), entry).problem


def test_nodes_that_are_no_scans(entry):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert "no voxels" in preflight(empty, entry).problem
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(labels, np.ones((5, 5, 5), np.uint8))
    assert "label map" in preflight(labels, entry).problem
    colours = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    slicer.util.updateVolumeFromArray(colours, np.ones((5, 5, 5, 3), np.uint8))
    assert "colour" in preflight(colours, entry).problem


def test_an_image_that_has_a_size_and_no_values_holds_no_voxels(entry):
    hollow = add_hollow("hollow")
    assert preflight(hollow, entry).problem == "It holds no voxels."
    with pytest.raises(ValueError, match="hollow holds no voxels"):
        images.Snapshot.of(hollow)


def test_whatever_a_look_at_a_volume_raises_is_its_own_problem(entry, monkeypatch):
    monkeypatch.setattr(preflights, "_modality", lambda *_: 1 / 0)
    told = preflight(add_ball(), entry)
    assert told.problem == told.summary == "It cannot be looked at: division by zero"


def test_another_modality_is_foreign(entry, rng):
    tissue = np.full((40, 40, 40), -1000, np.int16)
    tissue[10:30, 10:30, 10:30] = rng.integers(-100, 400, (20, 20, 20))
    told = preflight(add_volume(tissue), entry)
    assert told.modality == "ct" and told.foreign is True and "expects MR" in told.summary


@pytest.mark.parametrize(
    ("air", "wanted", "looks_like"),
    [(-1000.25, "mr", "ct"), (-120, "ct", "ct"), (0, "ct", "mr"), (-120, "mr", "mr")],
    ids=["resampled CT", "CT cropped to soft tissue", "MR", "MR with an offset"],
)
def test_the_modality_is_the_one_that_the_worker_will_speak_of(entry, rng, air, wanted, looks_like):
    values = np.full((40, 40, 40), air, np.float32)
    values[10:30, 10:30, 10:30] = rng.integers(0, 400, (20, 20, 20))
    card = entry.card | {"preprocessing": entry.card["preprocessing"] | {"modality": wanted}}
    flight = preflight(add_volume(values), ModelEntry("x", entry.path, card, True))
    assert flight.modality == looks_like
    assert bool(modality_notes(values, wanted)) == (flight.modality != wanted)


@pytest.mark.parametrize("told", ["CT", "PT", "US", "NM"])
def test_dicom_knows_the_modality_better(entry, scene, told):
    flight = preflight(add_dicom(scene, told), entry)
    assert flight.modality == told.lower() and flight.foreign is True
    assert f"looks like {told}, but the model expects MR" in flight.summary
    assert flight.advice == "This model is for MR: choose another one."  # adapting is for contrasts


def test_dicom_may_not_know_the_modality(entry, scene):
    assert preflight(add_dicom(scene, "OT"), entry).modality == "mr"


def add_dicom(scene, modality):
    """A ball that a DICOM series was loaded for."""
    node = add_ball()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", modality)
    return node


def test_intensities_unlike_the_sources_are_foreign(scene, entry):
    """The ball is dim with a bright core: half of it at half of the brightest."""
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]

    def with_mean(mean):
        profile = {"quantiles": quantiles, "mean": mean, "covariance": (0.05**2 * np.eye(5)).tolist()}
        return ModelEntry("x", entry.path, entry.card | {"priors": {"intensity": profile}}, True)

    ball = add_ball()
    assert preflight(ball, with_mean([0.4, 0.45, 0.48, 0.5, 0.9])).foreign is False
    assert preflight(ball, with_mean([0.4, 0.8, 0.85, 0.9, 0.95])).foreign is True
    without = ModelEntry("x", entry.path, entry.card | {"priors": {}}, True)
    assert preflight(ball, without).foreign is False


def turn(degrees):
    angle = np.radians(degrees)
    return [
        [np.cos(angle), -np.sin(angle), 0, 5],
        [np.sin(angle), np.cos(angle), 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]


@pytest.mark.parametrize(
    ("matrix", "told"),
    [(np.diag([-1, 1, 1, 1]), True), (turn(90), True), (turn(20), False), (1.1 * np.eye(4), False)],
    ids=["mirrored", "turned", "registered", "scaled"],
)
def test_a_transform_that_turns_a_scan_over_is_told(entry, scene, matrix, told):
    volume = add_ball()
    above = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    above.SetMatrixTransformToParent(matrix_of(matrix))
    volume.SetAndObserveTransformNodeID(above.GetID())
    assert ("harden it first" in preflight(volume, entry).advice) == told
