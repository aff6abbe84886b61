"""Geometry and intensity changes: what must stay, what must move, and by how much."""

import math

import pytest
import torch
from model_cases import generator

from MAPSegLib import augmentation as aug


def image(*shape):
    return torch.rand(shape or (7, 9, 8), generator=generator(5))


def test_turns_keep_lengths_and_handedness():
    matrix = aug.rotation((0.3, -0.2, 0.9))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_leaves_its_axis(axis):
    angles = [0.0, 0.0, 0.0]
    angles[axis] = 0.5
    matrix = aug.rotation(tuple(angles))
    assert matrix[axis].tolist() == torch.eye(3)[axis].tolist()
    assert float(matrix.trace()) == pytest.approx(1 + 2 * math.cos(0.5), abs=1e-6)


def test_affine_draws_stay_within_their_bounds():
    g = generator()
    for _ in range(50):
        sizes = torch.linalg.svdvals(aug.random_affine((0.8, 1.25), 20.0, 0.0, g))
        assert sizes.min() >= 0.8 * 0.95 - 1e-4 and sizes.max() <= 1.25 * 1.05 + 1e-4
    assert torch.equal(
        aug.random_affine((0.8, 1.2), 9.0, 0.1, generator(3)),
        aug.random_affine((0.8, 1.2), 9.0, 0.1, generator(3)),
    )


def test_an_identity_grid_returns_the_image():
    x = image()
    one = torch.ones(3)
    grid = aug.warp_grid(tuple(x.shape), torch.eye(3), one, one, tuple(x.shape))
    voxels = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in x.shape), indexing="ij")
    )
    torch.testing.assert_close(grid, voxels, atol=1e-5, rtol=0)
    torch.testing.assert_close(aug.sample(x[None], grid)[0], x, atol=1e-4, rtol=0)


def test_a_grid_keeps_millimetres_and_the_centre():
    spacing_in, spacing_out = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 1.0, 1.5])
    grid = aug.warp_grid((5, 5, 5), torch.eye(3), spacing_in, spacing_out, (11, 7, 31))
    torch.testing.assert_close(grid[:, 2, 2, 2], torch.tensor([5.0, 3.0, 15.0]))
    assert [float(grid[0, 3, 2, 2] - grid[0, 2, 2, 2]), float(grid[1, 2, 3, 2] - grid[1, 2, 2, 2])] == [
        2.0,
        0.5,
    ]
    assert float(grid[2, 2, 2, 3] - grid[2, 2, 2, 2]) == 3.0


def test_a_quarter_turn_moves_voxels_where_it_should():
    x = image(5, 5, 5)
    one = torch.ones(3)
    grid = aug.warp_grid((5, 5, 5), aug.rotation((0.0, 0.0, math.pi / 2)), one, one, (5, 5, 5))
    torch.testing.assert_close(aug.sample(x[None], grid)[0], x.rot90(-1, (0, 1)), atol=1e-4, rtol=0)


def test_a_turn_of_thick_slices_is_one_in_millimetres():
    x = torch.zeros(13, 13, 5)
    x[6, 10, 2] = 1  # 4 mm from the centre along the second axis
    spacing = torch.tensor([1.0, 1.0, 4.0])
    moved, classes = aug.warp_pair(x, x.long(), aug.rotation((math.pi / 2, 0.0, 0.0)), spacing)
    assert float(moved[6, 6, 1]) == pytest.approx(1, abs=1e-4) and classes[6, 6, 1] == 1
    assert float(moved.sum()) == pytest.approx(4, abs=1e-3)  # a slice of 4 mm is four voxels now


def test_samples_outside_are_zero_and_nearest_ones_are_values_of_the_volume():
    x = torch.ones(1, 4, 4, 4)
    positions = torch.tensor([-1.6, 0.0, 5.2]).view(1, 3, 1, 1).expand(3, 3, 1, 1)
    assert aug.sample(x, positions).flatten().tolist() == [0.0, 1.0, 0.0]
    labels = torch.randint(5, (1, 6, 6, 6), generator=generator()).float()
    near = aug.sample(labels, 5 * torch.rand(3, 4, 4, 4, generator=generator()), "nearest")
    assert set(near.unique().tolist()) <= set(range(5))


def test_blur_keeps_the_sum_and_spreads_as_far_as_it_says():
    x = torch.zeros(21, 21, 21)
    x[10, 10, 10] = 1
    y = aug.blur(x, (1.5, 0.0, 0.8))
    assert float(y.sum()) == pytest.approx(1.0, abs=1e-5)
    place = (torch.arange(21) - 10.0) ** 2
    assert float((y.sum((1, 2)) * place).sum()) ** 0.5 == pytest.approx(1.5, rel=0.07)
    assert float((y.sum((0, 1)) * place).sum()) ** 0.5 == pytest.approx(0.8, rel=0.07)
    assert float(y.sum((0, 2))[10]) == pytest.approx(1.0, abs=1e-5)


def test_a_blur_does_not_darken_what_was_cut():
    torch.testing.assert_close(aug.blur(torch.ones(6, 7, 8), (1.2, 1.2, 1.2)), torch.ones(6, 7, 8))


def test_thick_slices_smooth_one_axis_only():
    x = image(12, 12, 12)
    y = aug.thick_slices(x, 1, 3.0)
    assert y.shape == x.shape
    assert float(y.diff(dim=1).abs().mean()) < 0.5 * float(x.diff(dim=1).abs().mean())
    stripes = torch.arange(12.0).view(12, 1, 1).expand(12, 12, 12) % 2
    torch.testing.assert_close(aug.thick_slices(stripes, 1, 3.0), stripes)


def test_a_bias_field_is_smooth_positive_and_off_at_zero():
    x = torch.ones(16, 16, 16)
    field = aug.bias_field(x, 0.3, generator())
    assert (field > 0).all() and 0.05 < float(field.log().std()) < 0.6
    assert float(field.log().diff(dim=0).abs().max()) < 0.5
    assert torch.equal(aug.bias_field(x, 0.0, generator()), x)


def test_gamma_keeps_the_ends_and_the_order():
    x = torch.linspace(0, 1, 11)
    for log_gamma in (-0.5, 0.0, 0.5):
        y = aug.gamma(x, log_gamma)
        assert (float(y[0]), float(y[-1])) == (0.0, 1.0) and (y.diff() > 0).all()
    torch.testing.assert_close(aug.gamma(x, math.log(2.0)), x**2)


def test_every_draw_comes_from_the_generator():
    torch.manual_seed(0)
    draws = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        g = generator(7)
        draws.append(
            (
                aug.uniform(0, 1, g),
                aug.smooth_noise((4, 4, 4), 3, g),
                aug.random_affine((0.9, 1.1), 5, 0.1, g),
            )
        )
    assert draws[0][0] == draws[1][0] and all(
        torch.equal(a, b) for a, b in zip(draws[0][1:], draws[1][1:], strict=True)
    )


def test_a_random_curve_maps_grey_to_grey_and_leaves_the_background():
    look = next(look for look in map(aug.Look.draw, map(generator, range(9))) if look.curve is not None)
    x = image(6, 6, 6)
    x[0] = 0
    y = look.contrast(x)
    assert not y[0].any() and y.min() >= 0 and y.max() <= 1
    line = look.contrast(torch.linspace(0.01, 1, 500))
    assert (line.diff() > 0).any() and (line.diff() < 0).any()
    assert line.diff().abs().max() < 0.02  # without jumps


def test_recoloured_scans_keep_their_range_and_repeat_with_the_generator():
    draws = [aug.recolour(image(), generator(seed)) for seed in range(12)]
    assert all(float(d.min()) >= 0 and float(d.max()) <= 1 for d in draws)
    assert any(not torch.equal(d, image()) for d in draws)
    assert torch.equal(draws[3], aug.recolour(image(), generator(3)))


def test_what_is_shown_of_one_scan_has_one_look_but_noise_of_its_own():
    look, stream = aug.Look(None, 0.0, 0.05), generator(3)
    one, other = (look(torch.full((9, 9, 9), 0.5), stream) for _ in range(2))
    assert not torch.equal(one, other) and one.std() == pytest.approx(0.05, rel=0.2)
    looks = [aug.Look.draw(generator(seed)) for seed in range(90)]
    shares = [
        sum(known) / 90 for known in ([k.curve is not None for k in looks], [k.noise > 0 for k in looks])
    ]
    assert shares == pytest.approx([1 / 2, 1 / 3], abs=0.15)


def test_recolouring_leaves_no_hole_in_a_scan():
    bright = torch.ones(12, 12, 12)  # in many curves the darkest
    bright[:3] = 0
    for seed in range(60):
        shown = aug.recolour(bright, generator(seed))
        assert bool((shown[3:] > 0).all())


def test_a_value_at_which_several_knots_lie_takes_the_middle_of_their_heights():
    heights = torch.linspace(0, 1, 9)
    constant = torch.full((9,), 0.4)
    assert aug.piecewise(torch.tensor([0.4]), constant, heights).item() == pytest.approx(0.5)
    clipped = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.9])
    found = aug.piecewise(torch.tensor([0.0, 0.1, 0.15, 0.3, 0.9, 1.0]), clipped, heights)
    assert found.tolist() == pytest.approx([0, 0.125, 0.3125, 0.5, 0.9375, 1])


# --- another scan's intensities -----------------------------------------------------------------------------------


def two_tissues(first, second):
    """Two halves, each with a mean and a spread, and zeros along one face; and the classes."""
    classes = torch.zeros(24, 24, 24, dtype=torch.long)
    classes[12:] = 1
    noise = image(24, 24, 24) - 0.5
    shown = torch.where(classes == 0, first[0] + first[1] * noise, second[0] + second[1] * noise)
    shown[:, :3] = 0
    return shown, classes


def test_levels_are_quantiles_of_each_class_s_own_voxels():
    shown, classes = two_tissues((0.3, 0.2), (0.7, 0.4))
    levels = aug.intensity_levels(shown, classes, 3)
    assert levels.shape == (3, aug.LEVELS) and levels[2].isnan().all()
    torch.testing.assert_close(levels[:2, aug.LEVELS // 2], torch.tensor([0.3, 0.7]), atol=0.02, rtol=0)
    assert float(levels[0, 0]) == pytest.approx(0.2, abs=0.01)  # zeros outside of the scan are no intensities
    assert float(levels[1, -1]) == pytest.approx(0.9, abs=0.01)


def test_a_scan_wears_another_s_intensities_class_by_class():
    shown, classes = two_tissues((0.3, 0.2), (0.7, 0.2))
    other, places = two_tissues((0.8, 0.1), (0.2, 0.3))  # the other order: no single curve does this
    levels = aug.intensity_levels(other, places.flip(0), 2)
    worn = aug.match_histograms(shown, classes, levels)
    turned = aug.match_histograms(shown.mT, classes.mT, levels)  # stored in another order
    torch.testing.assert_close(turned.mT, worn)
    assert torch.equal(worn == 0, shown == 0)
    for half, mean in ((slice(0, 9), 0.2), (slice(15, 24), 0.8)):
        assert float(worn[half, 6:].mean()) == pytest.approx(mean, abs=0.02)
        assert (
            float(torch.corrcoef(torch.stack([worn[half, 6:].flatten(), shown[half, 6:].flatten()]))[0, 1])
            > 0.9
        )


def test_what_the_other_scan_lacks_keeps_its_intensities():
    shown, classes = two_tissues((0.3, 0.2), (0.7, 0.2))
    levels = aug.intensity_levels(shown, classes, 2)
    torch.testing.assert_close(aug.match_histograms(shown, classes, levels), shown, atol=1e-5, rtol=0)
    levels[1] = math.nan
    levels[0] = levels[0] / 2
    worn = aug.match_histograms(shown, classes, levels)
    torch.testing.assert_close(worn[15:], shown[15:], atol=1e-6, rtol=0)
    assert float(worn[:9, 6:].mean()) == pytest.approx(0.15, abs=0.01)
