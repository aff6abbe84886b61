"""Dice, surface distance, volumes, and their means."""

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from volume_cases import make_affine

from MAPSegLib.config import Label
from MAPSegLib.errors import InputError
from MAPSegLib.metrics import dice_scores, evaluate_pair, hd95, summarise
from MAPSegLib.volumes import Volume, map_values


def cube(start, size=4, shape=(20, 20, 20), value=1):
    array = np.zeros(shape, np.int32)
    array[tuple(slice(s, s + size) for s in start)] = value
    return array


def test_dice_of_known_overlap():
    prediction, reference = cube((4, 4, 4)), cube((6, 4, 4))
    reference[0, 0, 0] = 3
    prediction[1, 0, 0] = 9
    scores = dice_scores(prediction, reference, [1, 3, 5])
    assert scores[1] == pytest.approx(0.5)
    assert scores[3] == 0
    assert math.isnan(scores[5])  # absent from both: not scored, rather than perfect


def test_dice_agrees_with_the_definition(rng):
    a, b = rng.integers(-1, 6, (2, 9, 10, 11))
    for value, score in dice_scores(a, b, [1, 2, 5, 4]).items():
        assert score == pytest.approx(
            2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum())
        )


@pytest.mark.parametrize(("axis", "spacing"), [(0, (0.75, 0.75, 12)), (2, (0.75, 0.75, 12)), (1, (1, 2, 3))])
def test_distance_is_in_mm(axis, spacing):
    start = [4, 4, 4]
    start[axis] += 2
    assert hd95(cube((4, 4, 4)) > 0, cube(start) > 0, spacing) == pytest.approx(2 * spacing[axis])


def test_distance_of_equal_and_of_empty_masks():
    mask = cube((4, 4, 4)) > 0
    assert hd95(mask, mask, (1, 1, 1)) == 0
    assert math.isnan(hd95(mask, np.zeros_like(mask), (1, 1, 1)))
    assert math.isnan(hd95(np.zeros_like(mask), mask, (1, 1, 1)))
    full = np.ones((5, 5, 5), bool)
    assert hd95(full, full, (1, 1, 1)) == 0


def test_distance_is_that_of_the_worse_direction():
    """Whichever map has the part that the other lacks: a missed one is as bad as an invented one."""
    near, both = cube((2, 2, 2)) > 0, (cube((2, 2, 2)) + cube((14, 2, 2))) > 0
    for masks in ((near, both), (both, near)):
        assert hd95(*masks, (1, 1, 1)) == pytest.approx(12)


def test_distance_agrees_with_distance_maps(rng):
    spacing = (0.8, 1.1, 3.0)
    for _ in range(5):
        masks = [rng.random((12, 13, 8)) > 0.8 for _ in range(2)]
        surfaces = []
        for mask in masks:
            padded = np.pad(mask, 1)
            inner = np.all([np.roll(padded, s, a) for a in range(3) for s in (-1, 1)], axis=0)
            surfaces.append(mask & ~inner[1:-1, 1:-1, 1:-1])
        maps = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
        expected = max(np.percentile(maps[1 - i][surfaces[i]], 95) for i in (0, 1))
        assert hd95(*masks, spacing) == pytest.approx(expected)


def test_a_pair_is_scored_per_structure():
    affine = make_affine((2, 0, 1), (1, -1, 1), (2, 1, 5))
    prediction = Volume(cube((4, 4, 4)) + cube((12, 12, 12), 2, value=4), affine)
    reference = Volume(cube((4, 4, 5)), affine)
    labels = [Label(value=1, name="left"), Label(value=4, name="extra"), Label(value=9, name="absent")]
    left, extra, absent = evaluate_pair(prediction, reference, labels)
    assert (left["value"], left["structure"]) == (1, "left")
    assert left["dice"] == pytest.approx(0.75)
    assert left["hd95_mm"] == pytest.approx(5)
    assert left["volume_ml"] == left["reference_ml"] == pytest.approx(64 * 10 / 1000)
    assert left["volume_error"] == 0
    assert extra["dice"] == 0 and extra["volume_ml"] == pytest.approx(0.08)
    assert math.isnan(extra["hd95_mm"]) and math.isnan(extra["volume_error"])
    assert math.isnan(absent["dice"]) and absent["volume_ml"] == 0
    for row in (left, extra, absent):
        assert all(isinstance(v, int | float | str) for v in row.values())
        assert not any(isinstance(v, np.generic) for v in row.values())


def test_a_structure_is_measured_where_it_lies_alone(monkeypatch):
    """A scan has dozens of structures, and most of its voxels belong to none of them."""
    shapes, whole = [], hd95(cube((4, 4, 4)) > 0, cube((6, 4, 4)) > 0, (1, 2, 3))

    def watched(prediction, reference, spacing):
        shapes.append((prediction.shape, reference.shape))
        return hd95(prediction, reference, spacing)

    monkeypatch.setattr("MAPSegLib.metrics.hd95", watched)
    prediction, reference = (Volume(cube(at), np.diag([1, 2, 3, 1.0])) for at in ((4, 4, 4), (6, 4, 4)))
    rows = evaluate_pair(prediction, reference, {1: "one", 2: "none"})
    assert shapes == [((6, 4, 4), (6, 4, 4))] and rows[0]["hd95_mm"] == whole
    assert math.isnan(rows[1]["hd95_mm"])


def test_volumes_on_a_sheared_grid():
    sheared = np.array([[2.0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    (row,) = evaluate_pair(Volume(cube((4, 4, 4)), sheared), Volume(cube((6, 4, 4)), sheared), {1: "a"})
    assert row["volume_ml"] == row["reference_ml"] == pytest.approx(64 * 12 / 1000)


def test_the_volume_error_is_a_share_of_the_reference():
    reference, prediction = np.zeros((2, 8, 8, 8), np.int32)
    reference[:4] = prediction[:6] = 1
    (row,) = evaluate_pair(Volume(prediction, np.eye(4)), Volume(reference, np.eye(4)), {1: "a"})
    assert row["volume_error"] == pytest.approx(0.5)


def test_reference_of_another_protocol():
    affine = np.eye(4)
    prediction = Volume(cube((4, 4, 4), value=10), affine)
    # its own 10 is no thalamus
    reference = Volume(cube((4, 4, 4), value=60) + cube((12, 12, 12), 3, value=10), affine)
    (row,) = evaluate_pair(prediction, reference, {10: "thalamus"}, {60: 10})
    assert row["dice"] == 1 and row["volume_error"] == 0


@pytest.mark.parametrize("large", [60, 312_782_616])
def test_values_are_mapped_whatever_their_size(large):
    labels = np.array([[-1, 0, 2], [3, large, large + 1]], np.int32)
    for zero in (0, 7):
        found = map_values(labels, {large: 10, 2: 5, 0: zero})
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, [[zero, zero, 5], [0, 10, 0]])


def test_pairs_must_share_a_grid():
    volume = Volume(cube((4, 4, 4)), np.eye(4))
    with pytest.raises(InputError):
        evaluate_pair(volume, Volume(volume.array, make_affine(signs=(-1, 1, 1))), {1: "a"})
    with pytest.raises(InputError):
        evaluate_pair(volume, Volume(volume.array[1:], np.eye(4)), {1: "a"})


def test_means_per_structure():
    def row(value, dice, distance, volume, reference):
        error = (volume - reference) / reference if reference else math.nan
        row = {"value": value, "structure": str(value), "dice": dice, "hd95_mm": distance}
        return row | {"volume_ml": volume, "reference_ml": reference, "volume_error": error}

    nan = math.nan
    rows = [
        row(1, 0.8, 2.0, 0.11, 0.1),
        row(2, nan, nan, 0, 0),
        row(1, 0.6, 4.0, 0.09, 0.1),
        row(1, 0.0, nan, 0, 0.1),
    ]
    first, second = summarise(rows)
    assert (first["value"], first["scans"], first["missed"]) == (1, 3, 1)
    assert first["dice"] == pytest.approx(1.4 / 3)
    assert first["dice_sd"] == pytest.approx(np.std([0.8, 0.6, 0], ddof=1))
    assert first["hd95_mm"] == pytest.approx(3)
    assert first["volume_error"] == pytest.approx(-1 / 3)
    assert first["absolute_volume_error"] == pytest.approx(1.2 / 3)
    assert second["scans"] == 0 and math.isnan(second["dice"])
    assert second["missed"] == 0  # the reference has none
    assert summarise([]) == []
