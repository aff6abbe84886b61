"""Block masking: exact shares, whole cubes, new draws."""

import pytest
import torch
from model_cases import generator

from MAPSegLib.masking import cube_mask


@pytest.mark.parametrize(("edge", "cube", "ratio"), [(32, 8, 0.7), (32, 4, 0.7), (24, 8, 0.5)])
def test_the_share_of_hidden_cubes_is_exact_in_every_sample(edge, cube, ratio):
    keep = cube_mask((5, 1, edge, edge, edge), cube, ratio, generator())
    cubes = (edge // cube) ** 3
    assert keep.shape == (5, 1, edge, edge, edge) and keep.dtype == torch.bool
    assert ((~keep).sum((1, 2, 3, 4)) == round(ratio * cubes) * cube**3).all()


def test_something_is_hidden_even_where_one_cube_is_all():
    assert not cube_mask((2, 1, 8, 8, 8), 8, 0.3).any()


def test_cubes_are_hidden_or_kept_as_a_whole():
    keep = cube_mask((3, 1, 32, 32, 32), 8, 0.7, generator())
    blocks = keep.view(3, 4, 8, 4, 8, 4, 8).float().mean((2, 4, 6))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}


def test_samples_differ():
    keep = cube_mask((4, 1, 32, 32, 32), 8, 0.7, generator())
    assert all(not torch.equal(keep[i], keep[j]) for i in range(4) for j in range(i))


def test_every_cube_is_hidden_as_often_as_the_ratio_says():
    keep = cube_mask((2000, 1, 8, 8, 8), 4, 0.5, generator())
    often = (~keep[:, 0, ::4, ::4, ::4]).float().mean(0)
    assert ((often - 0.5).abs() < 0.06).all()


def test_edges_that_are_no_multiple_get_a_part_of_a_cube():
    keep = cube_mask((2, 1, 10, 9, 16), 8, 0.5, generator())
    assert keep.shape == (2, 1, 10, 9, 16)
    assert (keep[:, :, 8:] == keep[:, :, 8:9]).all() and (keep[:, :, :, 8:] == keep[:, :, :, 8:9]).all()


def test_a_restored_generator_draws_what_would_have_come():
    g = generator()
    shape = (2, 1, 16, 16, 16)
    cube_mask(shape, 4, 0.7, g)
    state = g.get_state()
    expected = cube_mask(shape, 4, 0.7, g)
    g = generator(99)
    g.set_state(state)
    assert torch.equal(cube_mask(shape, 4, 0.7, g), expected)
    assert not torch.equal(cube_mask(shape, 4, 0.7, g), expected)
