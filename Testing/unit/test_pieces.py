"""Which structures are one piece by the source's label maps, and what becomes of parts that lie apart in a result."""

import numpy as np
import pytest
import torch
from model_cases import SINGLE, Thresholds

from MAPSegLib.config import InferenceOptions, Label, Preprocessing
from MAPSegLib.inference import segment_scan
from MAPSegLib.pieces import FEWEST_MAPS, ISLAND, islands_told, largest_shares, remove_islands, with_pieces
from MAPSegLib.preprocessing import prepare
from MAPSegLib.volumes import Volume


def labels(*one_piece, mirror=()):
    """Labels 2, 4, ...: apart from class indices, so that one is not taken for the other."""
    twins = dict(mirror) | {b: a for a, b in mirror}
    return tuple(
        Label(value=2 * i, name=f"part {i}", one_piece=one, mirror=twins.get(2 * i))
        for i, one in enumerate(one_piece, 1)
    )


def ball(shape, centre, radius):
    axes = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (axes**2).sum(0) <= radius**2


def maps(count, *, stray=0, classes=1):
    """What is seen of label maps with a ball of every class, the first with so many voxels apart from it."""
    array = np.zeros((20, 20 * classes, 20), np.int16)
    for index in range(1, classes + 1):
        array[ball(array.shape, (8, 20 * index - 10, 8), 6)] = index
    array[0, 0, :stray] = 1
    return [largest_shares(torch.tensor(array), classes)] * count


def stated(found):
    return [label.one_piece for label in found]


def test_what_many_label_maps_show_in_one_piece_is_one_piece():
    assert stated(with_pieces(labels(None), maps(FEWEST_MAPS))) == [True]
    assert stated(with_pieces(labels(None), maps(FEWEST_MAPS - 1))) == [None]
    assert stated(with_pieces(labels(None, None), maps(FEWEST_MAPS))) == [True, None]


def test_stray_voxels_of_a_label_map_count_little_and_a_second_part_counts():
    size = int(ball((20, 20, 20), (8, 10, 8), 6).sum())
    assert size // 100 == 9
    assert stated(with_pieces(labels(None), maps(FEWEST_MAPS - 1) + maps(1, stray=9))) == [True]
    assert stated(with_pieces(labels(None), maps(FEWEST_MAPS - 1) + maps(1, stray=10))) == [False]


def test_what_labels_say_already_stays_unless_a_label_map_shows_otherwise():
    assert stated(with_pieces(labels(False), maps(FEWEST_MAPS))) == [False]
    assert stated(with_pieces(labels(True), maps(1))) == [True]
    assert stated(with_pieces(labels(True), maps(1, stray=10))) == [False]


def test_what_holds_on_one_side_of_the_body_holds_on_the_other():
    pair = labels(None, None, mirror=[(2, 4)])
    assert stated(with_pieces(pair, maps(FEWEST_MAPS, classes=2))) == [True, True]
    assert stated(with_pieces(pair, maps(FEWEST_MAPS, stray=10, classes=2))) == [False, False]


def test_parts_that_touch_at_a_corner_are_one_piece():
    array = np.zeros((6, 6, 6), np.uint8)
    array[1:3, 1:3, 1:3] = array[3:5, 3:5, 3:5] = 2
    before = array.copy()
    assert remove_islands(array, labels(True)) == ({}, []) and np.array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_islands_become_what_surrounds_them_at_the_edge_of_the_scan_too(dtype):
    array = np.zeros((30, 30, 30), dtype)
    array[12:, :, :] = 4
    array[15:25, 10:20, 10:20] = 2
    expected = array.copy()
    array[29, 29, 29] = array[20, 5, 5] = 2  # in the other structure
    array[0:2, 0, 0] = 2  # in the background
    assert remove_islands(array, labels(True, None)) == ({(2, 4): 2, (2, 0): 2}, [])
    assert np.array_equal(array, expected)


def test_what_may_have_several_pieces_keeps_them():
    array = np.zeros((9, 9, 9), np.uint8)
    array[1, 1, 1] = array[5, 5, 5:9] = 2
    array[7, 1, 1] = array[1, 7, 1:5] = 4
    before = array.copy()
    for said in (None, False):
        assert remove_islands(array, labels(said, said)) == ({}, []) and np.array_equal(array, before)
    assert remove_islands(array, labels(True, False)) == ({(2, 0): 1}, [])
    assert array[1, 1, 1] == 0 and (array == 4).sum() == 5


@pytest.mark.parametrize("second", [3, 4])
def test_a_second_part_that_is_no_small_one_is_kept_and_told(second):
    """Which of the two is right cannot be said: a ventricle that is nearly closed may be found in two parts."""
    array = np.zeros((9, 9, 20), np.uint8)
    array[1, 1, :10], array[5, 5, :second], array[8, 8, 0] = 2, 2, 2
    assert ISLAND == 0.3
    moved, split = remove_islands(array, labels(True))
    assert (moved, split) == (({(2, 0): 1}, [2]) if second > 3 else ({(2, 0): 4}, []))
    assert (array == 2).sum() == (10 + second if second > 3 else 10)


def test_islands_that_touch_each_other_leave_no_island():
    generator = np.random.default_rng(0)
    array = generator.integers(0, 4, (24, 24, 24), dtype=np.uint8) * 2
    array *= generator.random(array.shape) < 0.15
    array[8:14, 8:14, 8:14], array[16:20, 16:20, 16:20], array[2:5, 2:5, 16:20] = 2, 4, 6
    before = array.copy()
    moved, _ = remove_islands(array, labels(True, True, True))
    assert sum(moved.values()) > 100 and remove_islands(array, labels(True, True, True)) == ({}, [])
    counts = np.bincount(before.ravel(), minlength=8)
    for (value, other), voxels in moved.items():
        counts[value] -= voxels
        counts[other] += voxels
    assert np.array_equal(np.bincount(array.ravel(), minlength=8), counts)
    assert (array[8:14, 8:14, 8:14] == 2).all() and (array[16:20, 16:20, 16:20] == 4).all()


def test_the_doubt_of_a_label_that_an_island_gets_is_at_least_the_old_ones_probability():
    array, doubt = np.zeros((9, 9, 9), np.uint8), np.full((9, 9, 9), 0.125, np.float32)
    array[1:4, 1:4, 1:4] = 2
    array[6, 6, 6] = array[6, 6, 7] = 2
    doubt[6, 6, 7] = 0.625
    remove_islands(array, labels(True), doubt)
    assert doubt[6, 6, 6] == 0.875 and doubt[6, 6, 7] == 0.625
    assert (
        np.delete(doubt.ravel(), np.ravel_multi_index(([6, 6], [6, 6], [6, 7]), doubt.shape)) == 0.125
    ).all()


def test_islands_are_told_where_they_are_more_than_stray_voxels():
    moved, left = {(2, 0): 30, (2, 4): 20, (4, 2): 1}, {2: 400, 4: 100}
    assert islands_told(moved, [], left, labels(True, True), 0.001) == [
        "Removed small parts that lay apart from their structure: part 1 0.05 ml."
    ]
    assert islands_told({(4, 2): 1}, [], left, labels(True, True), 0.001) == []
    assert islands_told({}, [4], left, labels(True, True), 0.001) == [
        "In several large parts, unlike in the source's label maps: part 2."
    ]


def test_of_many_structures_with_islands_the_largest_are_named():
    moved = {(2 * i, 0): 100 * i for i in range(1, 6)}
    left = dict.fromkeys(range(2, 11, 2), 400)
    gone, apart = islands_told(moved, [2, 4, 6, 10], left, labels(*[True] * 5), 0.01)
    assert gone.endswith(": part 5 5 ml, part 4 4 ml, part 3 3 ml and 2 more.")
    assert apart.endswith(": part 1, part 2, part 3 and 1 more.")


# --- in a segmentation --------------------------------------------------------------------------------------------

OPTIONS = InferenceOptions(device="cpu", precision="fp32")
ONE = tuple(label.model_copy(update={"one_piece": label.name == "bright"}) for label in SINGLE)
DARK, BRIGHT = SINGLE[0].value, SINGLE[2].value


def two_bright_parts():
    """A prepared scan of a dim block with a bright part and a smaller one, 2 mm along the first axis, oblique."""
    array = np.zeros((30, 26, 28), np.float32)
    array[3:28, 3:24, 3:25] = 40
    array[6:14, 6:14, 6:14] = array[20:24, 18:22, 18:22] = 100
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [-2, 1, 1]
    return array, prepare(Volume(array, affine), Preprocessing(spacing=(2, 1, 1)))


def test_a_segmentation_has_no_islands_where_labels_say_one_piece():
    array, scan = two_bright_parts()
    plain = segment_scan(Thresholds(), SINGLE, scan, OPTIONS, uncertainty=True)
    assert np.array_equal(plain.labels == BRIGHT, array == 100) and not plain.notes
    result = segment_scan(Thresholds(), ONE, scan, OPTIONS, uncertainty=True)
    expected = plain.labels.copy()
    expected[20:24, 18:22, 18:22] = DARK
    assert np.array_equal(result.labels, expected)
    assert result.volumes_ml == {v: pytest.approx((expected == v).sum() * 0.002) for v in result.volumes_ml}
    assert result.notes == ["Removed small parts that lay apart from their structure: bright 0.13 ml."]
    changed = plain.labels != result.labels
    assert (result.uncertainty[changed] > 0.9).all()
    assert np.array_equal(result.uncertainty[~changed], plain.uncertainty[~changed])
    assert torch.equal(result.classes, plain.classes)  # what is judged has them


def test_islands_are_kept_when_they_are_asked_for():
    _, scan = two_bright_parts()
    kept = segment_scan(Thresholds(), ONE, scan, OPTIONS.model_copy(update={"islands": True}))
    assert np.array_equal(kept.labels, segment_scan(Thresholds(), SINGLE, scan, OPTIONS).labels)
    assert not kept.notes
