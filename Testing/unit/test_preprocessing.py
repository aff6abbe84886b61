"""Orientation, foreground, intensities, resampling, and the way back to the native grid."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_cases import affines, make_affine, positions

from MAPSegLib.config import Preprocessing
from MAPSegLib.errors import InputError
from MAPSegLib.levels import mr_levels
from MAPSegLib.preprocessing import (
    COARSE,
    FINE,
    interpolation_weights,
    labels_to_working,
    prepare,
    prepare_to_learn,
    resample,
    restore,
    to_native,
)
from MAPSegLib.volumes import Volume, canonical, read_image, read_labels

SHAPE = (11, 13, 9)


def blob_scan(affine, shape=SHAPE, margin=1, seed=0):
    """A scan with an empty margin, and labels (1, 2, 7) inside its foreground."""
    rng = np.random.default_rng(seed)
    inner = tuple(slice(margin, n - margin) for n in shape)
    image, labels = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    image[inner] = rng.uniform(50, 150, image[inner].shape)
    labels[inner] = rng.choice([0, 1, 2, 7], labels[inner].shape)
    return Volume(image, affine), labels


def canonical_axes(affine):
    """Native axis nearest to right, anterior, superior, found independently: greedily, closest first."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    axes = [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(cosines.argmax(), (3, 3))
        axes[world] = int(axis)
        cosines[world, :] = cosines[:, axis] = -1
    return axes


def canonical_spacing(volume):
    return tuple(volume.spacing[axis] for axis in canonical_axes(volume.affine))


# --- geometry -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(affine=affines(), seed=st.integers(0, 99))
def test_labels_return_exactly_at_equal_spacing(affine, seed):
    volume, labels = blob_scan(affine, seed=seed)
    scan = prepare(volume, Preprocessing(spacing=canonical_spacing(volume)))
    assert scan.image.shape == scan.grid.working_shape == scan.grid.box_shape
    assert sorted(scan.grid.box_shape) == [7, 9, 11]
    working = labels_to_working(labels, scan.grid)
    assert working.dtype == torch.int32 and working.shape == scan.grid.working_shape
    back = restore(working, scan.grid)
    assert back.shape == SHAPE and back.dtype == np.int32
    np.testing.assert_array_equal(back, labels)


@settings(max_examples=40, deadline=None)
@given(affine=affines())
def test_axes_run_right_anterior_superior(affine):
    """Every working axis rises along its own world axis more than along the two others."""
    volume, _ = blob_scan(affine)
    grid = prepare(volume, Preprocessing(spacing=canonical_spacing(volume))).grid
    world = [positions_array(axis, volume) for axis in range(3)]
    for axis in range(3):
        turned = [grid.canonical(w) for w in world]
        steps = [np.diff(w, axis=axis).mean() / grid.canonical_spacing[axis] for w in turned]
        assert steps[axis] > 0.5
        assert steps[axis] == max(np.abs(steps))


def test_canonical_view():
    volume, _ = blob_scan(make_affine((2, 0, 1), (1, -1, -1), (0.75, 2, 12)))
    array, spacing = canonical(volume)
    assert spacing == (2, 12, 0.75)
    assert np.shares_memory(array, volume.array)
    np.testing.assert_array_equal(
        array, prepare(volume, Preprocessing(spacing=spacing)).grid.canonical(volume.array)
    )


def positions_array(axis, volume):
    """World coordinate of every voxel along one axis, in mm."""
    return positions(np.ones(volume.shape, bool), volume.affine)[:, axis].reshape(volume.shape)


@settings(max_examples=40, deadline=None)
@given(affine=affines(), factor=st.sampled_from([0.6, 1.0, 1.5]))
def test_sides_stay_sides(affine, factor):
    """A large bright blob on the right and a small one on the left stay there, both ways."""
    shape = (22, 24, 26)
    axis = canonical_axes(affine)[0]
    rightwards = affine[0, axis] > 0
    across = np.arange(shape[axis]) if rightwards else np.arange(shape[axis])[::-1]
    labels = np.zeros(shape, np.int32)
    planes = np.moveaxis(labels, axis, 0)
    planes[(across >= 3) & (across < 8), 6:12, 7:12] = 1
    planes[(across >= 11) & (across < 20), 5:16, 6:17] = 2
    image = 20 + 80 * (labels == 2) + 40 * (labels == 1) + np.random.default_rng(0).random(shape)
    volume = Volume(image.astype(np.float32), affine)
    scan = prepare(
        volume, Preprocessing(spacing=tuple(min(20, s * factor) for s in canonical_spacing(volume)))
    )

    working = labels_to_working(labels, scan.grid)
    right, left = (torch.argwhere(working == value)[:, 0].float().mean() for value in (2, 1))
    assert right > left + 3
    assert scan.image[working == 2].mean() > scan.image[working == 1].mean() > scan.image[working == 0].mean()
    back = restore(working, scan.grid)
    for value in (1, 2):
        before, after = (np.argwhere(a == value).mean(0) for a in (labels, back))
        np.testing.assert_allclose(after, before, atol=0.75)
        overlap = np.count_nonzero((labels == value) & (back == value))
        assert overlap > 0.5 * np.count_nonzero(labels == value)
    right, left = (positions(back == value, affine)[:, 0].mean() for value in (2, 1))
    assert right > left or max(volume.spacing) > 3 * volume.spacing[axis]  # a tilt may outweigh thin voxels


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_outermost_planes_are_kept(axis, end):
    image = np.zeros((9, 10, 11), np.float32)
    image[3:6, 3:6, 3:6] = 80
    plane = np.moveaxis(image, axis, 0)[end]
    plane[4, 4] = 100
    volume = Volume(image, make_affine((2, 0, 1), (1, -1, 1)))
    scan = prepare(volume, Preprocessing())
    assert np.count_nonzero(to_native(scan.image, scan.grid) > 0.9) == 1
    labels = (image == 100).astype(np.int32)
    np.testing.assert_array_equal(restore(labels_to_working(labels, scan.grid), scan.grid), labels)


@pytest.mark.parametrize("size_out", [7, 13, 20, 31])
def test_resampling_follows_the_stated_coordinates(size_out):
    ramp = torch.arange(20.0).reshape(1, 20, 1).expand(3, 20, 4).contiguous()
    result = resample(ramp, (3, size_out, 4))[1, :, 2]
    expected = (torch.arange(size_out) + 0.5) * 20 / size_out - 0.5
    inside = (expected > 3) & (expected < 16)  # at the ends the border repeats
    torch.testing.assert_close(result[inside], expected[inside], atol=1e-4, rtol=0)


def test_a_grid_that_gets_hardly_coarser_is_hardly_blurred():
    assert float(interpolation_weights(1000, 999)[[0, -1]].max(1).values.min()) > 0.97


def test_downsampling_does_not_alias():
    stripes = torch.zeros(64, 8, 8)
    stripes[::2] = 1
    coarse = resample(stripes, (16, 8, 8))
    assert (coarse[1:-1] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    ("shape", "spacing", "working"),
    [
        ((48, 40, 8), (0.75, 0.75, 12), (1.0, 1.0, 4.0)),
        ((35, 50, 36), (1, 1, 1), (1.5, 1.5, 1.5)),
        ((2, 3, 2), (1, 1, 1), (3.0, 3.0, 3.0)),
        ((40, 40, 40), (1, 1, 1), (0.8, 1.0, 1.3)),
    ],
)
def test_grids_of_any_size(shape, spacing, working):
    affine = make_affine((1, 0, 2), (-1, 1, -1), spacing, (12, -7, 5))
    volume, _ = blob_scan(affine, shape, margin=0)
    labels = np.zeros(shape, np.int32)
    labels[: shape[0] // 2 + 1, :, shape[2] // 3 :] = 5
    scan = prepare(volume, Preprocessing(spacing=working))
    grid = scan.grid
    for n, s, m, w in zip(
        grid.box_shape, grid.canonical_spacing, grid.working_shape, grid.working_spacing, strict=True
    ):
        assert n * s == pytest.approx(m * w)
    back = restore(labels_to_working(labels, grid), grid)
    assert back.shape == shape and set(np.unique(back)) <= {0, 5}
    if min(shape) > 2:
        assert np.mean(back == labels) > 0.95


def test_maps_of_floats_return_with_zeros_outside():
    volume, _ = blob_scan(make_affine((2, 1, 0), (-1, -1, 1)))
    grid = prepare(volume, Preprocessing()).grid
    native = to_native(torch.full(grid.box_shape, 0.25), grid)
    assert native.dtype == np.float32
    np.testing.assert_array_equal(native > 0, volume.array > 0)


def test_labels_are_made_in_slabs(monkeypatch):
    """The pieces do not show: one slab and many give the same labels."""
    volume, labels = blob_scan(np.eye(4), (30, 31, 32))
    grid = prepare(volume, Preprocessing(spacing=(1.4, 1.4, 1.4))).grid
    working = labels_to_working(labels, grid)
    whole = restore(working, grid)
    monkeypatch.setattr("MAPSegLib.preprocessing._PIECE", 2000)
    np.testing.assert_array_equal(restore(working, grid), whole)


def test_each_voxel_gets_the_strongest_label():
    """The same as interpolating all one-hot maps in full."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.integers(0, 5, (6, 7, 5)).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    volume = Volume(rng.random((19, 21, 16), dtype=np.float32), np.diag([12 / 19, 14 / 21, 10 / 16, 1.0]))
    grid = prepare(volume, Preprocessing()).grid
    assert grid.working_shape == tuple(coarse.shape)
    shares = torch.stack([resample((coarse == value).float(), (19, 21, 16)) for value in range(5)])
    top = shares.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-3).numpy()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(restore(coarse, grid)[clear], shares.argmax(0).numpy()[clear])


# --- intensities and foreground -----------------------------------------------------------------------------


def head(rng, shape=(40, 44, 36)):
    """A whole head in noisy air: (image, mask), of maximum about 200."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    mask = (grid**2).sum(0) < 0.4
    return (mask * rng.uniform(60, 200, shape)).astype(np.float32), mask


def tissue_order(scan, image, mask):
    """Rank agreement between the prepared and the given tissue."""
    prepared = to_native(scan.image, scan.grid)[mask]
    return np.corrcoef(np.argsort(np.argsort(prepared)), np.argsort(np.argsort(image[mask])))[0, 1]


def bounding_box(mask):
    indices = np.argwhere(mask)
    return tuple(indices.min(0)), tuple(indices.max(0) + 1)


BACKGROUNDS = {
    "zero": lambda image, mask, rng: image,
    "offset": lambda image, mask, rng: image + 1000,
    "negative": lambda image, mask, rng: image - 1024,
    "z-scored": lambda image, mask, rng: (image - image.mean()) / image.std(),
    "z-scored in the mask": lambda image, mask, rng: (image - image[mask].mean()) / image[mask].std() * mask,
    "white": lambda image, mask, rng: np.where(mask, 260 - image, 255),
    "ringing": lambda image, mask, rng: np.where(
        mask, image, 0.5 * rng.standard_normal(image.shape) * (image < -1)
    ),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_background_of_one_value(rng, name):
    image, mask = head(rng)
    given_image = BACKGROUNDS[name](image, mask, rng).astype(np.float32)
    scan = prepare(Volume(given_image, np.eye(4)), Preprocessing())
    assert scan.grid.box == bounding_box(mask)
    prepared = to_native(scan.image, scan.grid)
    assert prepared.min() == 0 and prepared.max() == 1
    assert prepared[~mask].max() == 0
    assert tissue_order(scan, given_image, mask) > 0.99
    if name in ("offset", "negative", "z-scored"):
        plain = prepare(Volume(image, np.eye(4)), Preprocessing())
        torch.testing.assert_close(scan.image, plain.image, atol=0.01, rtol=0)


@pytest.mark.parametrize("change", [(1, 0), (1, 100), (0.01, -0.7), (1, -90)])
def test_noisy_air(rng, change):
    image, mask = head(rng)
    image += np.abs(1.5 * rng.standard_normal(image.shape))
    scale, offset = change
    scan = prepare(Volume((image * scale + offset).astype(np.float32), np.eye(4)), Preprocessing())
    low, high = bounding_box(mask)
    assert all(
        0 <= a - b <= 7 and 0 <= d - c <= 7
        for a, b, c, d in zip(low, scan.grid.box[0], high, scan.grid.box[1], strict=True)
    )
    assert tissue_order(scan, image, mask) > 0.99
    prepared = to_native(scan.image, scan.grid)
    assert prepared[~mask].mean() < 0.03
    assert 0.2 < prepared[mask].min() < 0.4


def test_five_millimetres_are_kept_around_a_head_in_noisy_air(rng):
    image = np.abs(1.5 * rng.standard_normal((40, 44, 36))).astype(np.float32)
    image[12:28, 12:30, 14:22] = rng.uniform(100, 200, (16, 18, 8))
    image[2, 2, 2] = image[38, 40, 33] = 150  # a spike is no head
    scan = prepare(Volume(image, np.diag([1.0, 2.0, 4.0, 1.0])), Preprocessing())
    assert scan.grid.box == ((7, 9, 12), (33, 33, 24))


def test_small_negatives_are_clipped(rng):
    image, mask = head(rng)
    image[~mask] = np.where(rng.random((~mask).sum()) < 0.3, -2, 0)
    scan = prepare(Volume(image, np.eye(4)), Preprocessing())
    expected = np.clip(image / np.percentile(image[mask], 99.5), 0, 1)
    np.testing.assert_allclose(to_native(scan.image, scan.grid), expected, atol=0.01)


def test_a_few_bright_voxels_in_a_large_volume():
    """Missed by sampling, not by the foreground."""
    image = np.zeros((100, 100, 100), np.float32)
    image[50, 60, 70] = image[51, 60, 70] = 9
    scan = prepare(Volume(image, np.eye(4)), Preprocessing())
    assert scan.grid.box == ((50, 60, 70), (52, 61, 71))
    assert scan.image.tolist() == [[[1.0]], [[1.0]]]


def test_percentile_and_clipping(rng):
    image = rng.uniform(1, 1000, (20, 20, 20)).astype(np.float32)
    scan = prepare(Volume(image, np.eye(4)), Preprocessing(percentile=90))
    assert float((scan.image == 1).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert not np.shares_memory(scan.image.numpy(), image)


def test_ct_window(rng):
    image = np.full((30, 30, 30), -1000, np.float32)
    image[5:25, 6:30, 7:20] = rng.uniform(-150, 250, (20, 24, 13))
    image[10, 10, 10] = 2000
    scan = prepare(Volume(image, np.eye(4)), Preprocessing(modality="ct", window=(-200, 300)))
    assert scan.grid.box == ((5, 6, 7), (25, 30, 20))
    np.testing.assert_allclose(
        to_native(scan.image, scan.grid), np.clip((image + 200) / 500, 0, 1), atol=1e-6
    )
    air = prepare(Volume(image - 5000, np.eye(4)), Preprocessing(modality="ct"))
    assert air.grid.box_shape == (30, 30, 30) and float(air.image.max()) == 0


def test_the_foreground_of_ct_is_what_lies_above_the_window():
    image = np.full((30, 30, 30), -1000, np.float32)
    image[5:25, 28, 7:20] = -250  # the foam that a head lies on is none
    image[5:25, 6:26, 7:20] = -100  # fat, darker than most of the window
    image[10:15, 10:15, 10:15] = 50
    scan = prepare(Volume(image, np.eye(4)), Preprocessing(modality="ct"))
    assert scan.grid.box == ((5, 6, 7), (25, 26, 20))


def test_tissue_below_a_white_background_keeps_its_black():
    image = np.full((30, 30, 30), 4000, np.float32)
    image[5:25, 5:25, 5:25] = np.random.default_rng(0).uniform(200, 900, (20, 20, 20))
    levels = mr_levels(image, 99.5)
    assert levels.black == 0.0 and levels.blank == 4000


def test_the_scan_is_left_as_it_was(rng):
    image, _ = head(rng)
    before = image.copy()
    prepare(Volume(image, np.eye(4)), Preprocessing(spacing=(2, 2, 2)))
    np.testing.assert_array_equal(image, before)


def test_real_labels_survive(data_folder):
    """Round trips of manual labels: exact at the scan's spacing, close at 1.5 mm."""
    image = read_image(data_folder / "oasis_t1" / "1000_SS.nii.gz")
    labels = read_labels(data_folder / "oasis_t1" / "1000_glm.nii.gz").array
    grid = prepare(image, Preprocessing()).grid
    exact = restore(labels_to_working(labels, grid), grid)
    np.testing.assert_array_equal(exact, np.where(exact | (grid_mask(grid)), labels, 0))
    assert np.count_nonzero(exact != labels) < 1e-4 * np.count_nonzero(labels)
    grid = prepare(image, Preprocessing(spacing=(1.5, 1.5, 1.5))).grid
    back = restore(labels_to_working(labels, grid), grid)
    for value in (60, 59, 37, 36, 58, 57, 48, 47, 32, 31):
        a, b = labels == value, back == value
        assert 2 * np.count_nonzero(a & b) / (a.sum() + b.sum()) > 0.88


def grid_mask(grid):
    return to_native(np.ones(grid.box_shape, np.uint8), grid)


def test_a_scan_that_would_fill_the_memory_is_refused():
    volume, _ = blob_scan(np.diag([50.0, 50.0, 50.0, 1.0]), (60, 60, 60))
    with pytest.raises(InputError, match="2900 x 2900 x 2900 mm large"):
        prepare(volume, Preprocessing(spacing=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("spacing", "told"),
    [
        ((0.5, 0.5, 0.5), (FINE,)),
        ((0.5, 0.5, 0.6), ()),
        ((1.25, 1.25, 5), ()),
        ((1.25, 1.25, 5.2), (COARSE,)),
        ((2, 2, 2), (COARSE,)),
    ],
)
def test_voxels_far_from_those_that_nobody_chose_are_told_to_who_trains(spacing, told):
    volume, _ = blob_scan(np.diag([*spacing, 1.0]))
    assert prepare_to_learn(volume, Preprocessing(modality="mr")).notes == told
    assert prepare_to_learn(volume, Preprocessing(spacing=(1.0, 1.0, 1.0))).notes == ()
    assert prepare(volume, Preprocessing()).notes == ()


def test_the_volume_of_a_sheared_voxel_is_that_of_its_box():
    affine = np.array([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    grid = prepare(blob_scan(affine)[0], Preprocessing(spacing=(1.0, 1.0, 1.0))).grid
    assert grid.native_voxel_ml == pytest.approx(0.002)
