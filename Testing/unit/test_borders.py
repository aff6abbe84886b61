"""How much more a scan changes at borders than inside, on scans whose changes are known by hand."""

import math

import pytest
import torch

from MAPSegLib.borders import UNSEEN, border_contrast


def striped():
    """Six planes along the first axis, which change by 10, 20, 60, 10 and 5 percent; class 1, then 2."""
    image = torch.tensor([0.0, 0.1, 0.3, 0.9, 1.0, 1.05]).view(6, 1, 1).expand(6, 4, 5)
    classes = torch.tensor([1, 1, 1, 2, 2, 2]).view(6, 1, 1).expand(6, 4, 5)
    return image, classes


def test_changes_at_borders_are_held_against_those_inside():
    image, classes = striped()
    faces = 2 * 20 + 3 * (3 * 5 + 4 * 4)  # inside of each
    inside = [(0.1 + 0.2) * 20 / faces, (0.1 + 0.05) * 20 / faces]
    expected = sum(math.log((0.6 + UNSEEN) / (value + UNSEEN)) for value in inside) / 2
    assert border_contrast(image, classes, 2) == pytest.approx(expected, abs=1e-5)
    # a third structure that is not found changes nothing
    assert border_contrast(image, classes, 3) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_neither_the_axis_nor_contrast_and_brightness_count(axis):
    image, classes = striped()
    expected = border_contrast(image, classes, 2)
    turned, other = image.transpose(0, axis), classes.transpose(0, axis)
    assert border_contrast(turned, other, 2) == pytest.approx(expected, abs=1e-5)
    assert border_contrast(1 - 0.9 * turned, other, 2) == pytest.approx(expected, abs=1e-2)


def test_in_noise_borders_lie_anywhere():
    image = torch.rand(40, 40, 40, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(40, 40, 40, dtype=torch.int16)
    classes[10:30, 10:30, 10:30] = 1
    assert abs(border_contrast(image, classes, 1)) < 0.03
    assert border_contrast(image + 0.5 * classes, classes, 1) > 0.4


def test_without_a_structure_or_a_change_it_is_zero():
    image, classes = striped()
    assert border_contrast(image, torch.zeros_like(classes), 2) == 0.0
    assert border_contrast(torch.zeros_like(image), classes, 2) == 0.0
