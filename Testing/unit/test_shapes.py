"""Extents of structures, of boxes whose extents are known, and how far they lie from a source's."""

import math

import pytest
import torch
from model_cases import PAIRED

from MAPSegLib.augmentation import rotation, sample, warp_grid
from MAPSegLib.config import Label
from MAPSegLib.shapes import (
    FURTHEST,
    LARGER,
    MANY,
    NARROWEST,
    absences,
    extent_priors,
    log_extents,
    shape_deviation,
)

MM = (1.0, 1.0, 1.0)
SCALE = math.sqrt(12)
"""Edge of a box over the standard deviation of its points along it."""


def boxes(*edges, shape=(40, 40, 40)):
    """One box per class, side by side along the first axis."""
    classes, at = torch.zeros(shape, dtype=torch.int64), 1
    for index, (a, b, c) in enumerate(edges, 1):
        classes[at : at + a, 2 : 2 + b, 3 : 3 + c] = index
        at += a + 1
    return classes


def stated(*axes, deviation=0.5):
    """Priors of as many structures as there are triples of edges."""
    rows = [[[math.log(edge / SCALE), deviation] for edge in sorted(edges, reverse=True)] for edges in axes]
    return {"extents": {str(label.value): row for label, row in zip(PAIRED, rows, strict=False)}}


def test_extents_of_boxes_are_those_of_uniform_bodies():
    found = log_extents(boxes((4, 12, 8), (10, 1, 2)), 3, (1.0, 1.0, 2.0))
    assert found[0].exp().tolist() == pytest.approx([16 / SCALE, 12 / SCALE, 4 / SCALE])
    assert found[1].exp().tolist() == pytest.approx([10 / SCALE, 4 / SCALE, 1 / SCALE])
    assert found[2].isnan().all() and found.dtype == torch.float64


def test_neither_place_nor_turn_nor_type_of_index_matters():
    classes = boxes((6, 24, 12))
    found = log_extents(classes, 1, MM)
    moved = classes.roll((9, 5, 7), (0, 1, 2)).permute(2, 0, 1).to(torch.int16)
    assert torch.allclose(log_extents(moved, 1, MM), found)
    one, mm = torch.ones(3), tuple(classes.shape)
    grid = warp_grid(mm, rotation((0.3, 0.2, 0.4)), one, one, mm)
    centred = classes.roll((16, 6, 11), (0, 1, 2))
    turned = sample(centred[None].float(), grid, "nearest")[0].long()
    assert log_extents(turned, 1, MM)[0].tolist() == pytest.approx(found[0].tolist(), abs=0.05)


def test_priors_are_mean_and_deviation_over_the_maps_that_hold_a_structure():
    maps = [(boxes((2, 4, 8)), MM), (boxes((2, 4, 8), (3, 3, 3)), (1.0, 1.0, 2.0)), (boxes(), MM)]
    extents = [log_extents(classes, len(PAIRED), mm) for classes, mm in maps]
    priors = extent_priors(PAIRED, extents)
    first, second, third = (str(label.value) for label in PAIRED)
    assert set(priors) == {first, second}
    assert priors[first][0] == pytest.approx(
        [math.log(8 / SCALE) + math.log(2) / 2, math.log(2) / 2**0.5], abs=1e-3
    )
    assert priors[first][1] == pytest.approx([math.log(4 / SCALE), 0.0], abs=1e-3)
    assert [deviation for _, deviation in priors[second]] == [0.0] * 3
    assert absences(PAIRED, extents) == pytest.approx({int(first): 1 / 3, int(second): 2 / 3, int(third): 1})


def test_shapes_of_the_source_deviate_by_nothing_and_others_by_their_logs():
    classes = boxes((4, 8, 12), (6, 6, 6))
    same = stated((4, 8, 12), (6, 6, 6))
    assert shape_deviation(PAIRED, classes, MM, same) == pytest.approx(0.0, abs=1e-9)
    assert shape_deviation(PAIRED, classes, (2.0, 2.0, 2.0), same) == pytest.approx(2 * math.log(2))
    longer = stated((4, 8, 12 * math.e), (6, 6, 6))
    assert shape_deviation(PAIRED, classes, MM, longer) == pytest.approx(2 / 6)


def test_tight_priors_are_widened_and_missing_structures_count_most():
    tight = stated((4, 8, 12 * math.exp(NARROWEST)), deviation=0.001)
    assert shape_deviation(PAIRED, boxes((4, 8, 12)), MM, tight) == pytest.approx(1 / 3)
    both = stated((4, 8, 12), (6, 6, 6))
    assert shape_deviation(PAIRED, boxes((4, 8, 12)), MM, both) == pytest.approx(FURTHEST / 2)
    assert shape_deviation(PAIRED, boxes((4, 8, 12)), MM, stated((1e-9, 1e-9, 1e-9))) == FURTHEST


def several(count, scale=1.0, **others):
    """As many bodies of 4 x 6 x 8 mm times ``scale``, and label values; ``others`` have edges of their own."""
    edges = [others.get(f"s{i}", (4, 6, 8)) for i in range(count)]
    classes = boxes(*edges, shape=(sum(a for a, _, _ in edges) + count + 2, 40, 40))
    labels = tuple(Label(value=i + 1, name=f"s{i}") for i in range(count))
    return labels, classes, (scale,) * 3


def known_of(count):
    row = [[math.log(edge / SCALE), 0.1] for edge in (8, 6, 4)]
    return {"extents": {str(i + 1): row for i in range(count)}}


@pytest.mark.parametrize("scale", [1 / LARGER, 0.8, 1.0, 1.2, LARGER])
def test_a_size_that_many_structures_have_in_common_is_no_deviation(scale):
    assert shape_deviation(*several(MANY, scale), known_of(MANY)) == pytest.approx(0.0, abs=1e-9)
    few = shape_deviation(*several(MANY - 1, scale), known_of(MANY - 1))
    assert few == pytest.approx(abs(math.log(scale)) / 0.1)


def test_a_size_beyond_that_of_any_head_is_one():
    for scale in (1 / (2 * LARGER), 2 * LARGER):
        found = shape_deviation(*several(MANY, scale), known_of(MANY))
        assert found == pytest.approx(math.log(2) / 0.1)


def test_structures_that_differ_from_the_others_or_are_missing_count_beside_a_common_size():
    labels, classes, mm = several(MANY + 1, 0.8, s2=(8, 12, 16))
    apart = math.log(2) / 0.1
    assert shape_deviation(labels, classes, mm, known_of(MANY + 1)) == pytest.approx(apart / (MANY + 1))
    classes[classes == 1] = 0
    lost = shape_deviation(labels, classes, mm, known_of(MANY + 1))
    assert lost == pytest.approx((apart + FURTHEST) / (MANY + 1))
    classes[classes == 2] = 0  # fewer are left than can tell a size
    few = shape_deviation(labels, classes, mm, known_of(MANY + 1))
    small = -math.log(0.8) / 0.1
    assert few == pytest.approx((2 * FURTHEST + apart - small + (MANY - 2) * small) / (MANY + 1))


def test_only_structures_that_the_source_states_count():
    classes = boxes((4, 8, 12), (1, 1, 1))
    assert shape_deviation(PAIRED, classes, MM, stated((4, 8, 12))) == pytest.approx(0.0, abs=1e-9)
    assert shape_deviation(PAIRED, classes, MM, {}) is None
    assert shape_deviation(PAIRED, classes, MM, {"extents": {"999": [[1.0, 0.5]] * 3}}) is None


def test_a_scattered_structure_of_the_right_volume_is_told():
    """What volumes miss: as many voxels, elsewhere."""
    classes = boxes((8, 8, 8))
    spread = torch.zeros_like(classes)
    spread[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:8], ::5, ::5] = 1
    assert int((spread > 0).sum()) == int((classes > 0).sum())
    known = stated((8, 8, 8), deviation=0.1)
    assert (
        shape_deviation(PAIRED, classes, MM, known) < 0.01 and shape_deviation(PAIRED, spread, MM, known) > 5
    )
