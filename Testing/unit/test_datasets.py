"""What the training loop is fed: patches that know their place, scans from files in any orientation."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from head_phantom import CLASS_OF, LABELS, head
from model_cases import generator

from MAPSegLib.config import Preprocessing
from MAPSegLib.datasets import (
    EMPTY,
    OTHERS,
    Matched,
    PatchBatch,
    Recoloured,
    ScanSource,
    SyntheticSource,
    crop,
    cut_patches,
    resize_whole,
)
from MAPSegLib.errors import InputError
from MAPSegLib.preprocessing import prepare
from MAPSegLib.synthesis import brain_labels
from MAPSegLib.volumes import read_image

FOUR = Preprocessing(spacing=(4.0, 4.0, 4.0))


def image(*shape):
    return torch.rand(shape, generator=generator(5)) * 0.9 + 0.1


def corners_of(batch, shape):
    return (batch.low * torch.tensor(shape)).round().long().tolist()


# --- patches ------------------------------------------------------------------------------------------------------


def test_patches_and_labels_are_cut_at_the_place_they_state():
    x = image(24, 31, 27)
    labels = (x * 5).long()
    batch = cut_patches(x, 6, 16, 8, generator(), labels)
    assert batch.patches.shape == (6, 1, 16, 16, 16) and batch.target.shape == (6, 16, 16, 16)
    assert batch.whole.shape == (1, 1, 8, 8, 8) and batch.whole_target.shape == (1, 8, 8, 8)
    torch.testing.assert_close(batch.high - batch.low, (16 / torch.tensor([24.0, 31, 27])).expand(6, 3))
    for patch, target, corner in zip(batch.patches, batch.target, corners_of(batch, x.shape), strict=True):
        part = tuple(slice(c, c + 16) for c in corner)
        assert torch.equal(patch[0], x[part]) and torch.equal(target, labels[part])


def test_without_labels_there_are_no_targets():
    batch = cut_patches(image(20, 20, 20), 2, 16, 8, generator())
    assert batch.target is None and batch.whole_target is None
    assert batch.to(torch.device("cpu")).target is None


def test_patches_reach_every_end_of_the_scan():
    batch = cut_patches(image(18, 17, 40), 200, 16, 8, generator())
    for axis, n in enumerate((18, 17, 40)):
        starts = {corner[axis] for corner in corners_of(batch, (18, 17, 40))}
        assert starts == set(range(n - 16 + 1))


def test_a_scan_smaller_than_a_patch_is_padded_and_says_so():
    x = image(10, 40, 9)
    batch = cut_patches(x, 3, 16, 8, generator(), (x > 0.5).long())
    assert batch.patches.shape == (3, 1, 16, 16, 16) and batch.target.shape == (3, 16, 16, 16)
    assert (batch.patches[:, :, 10:] == 0).all() and (batch.patches[..., 9:] == 0).all()
    assert (batch.low[:, [0, 2]] == 0).all()
    torch.testing.assert_close(batch.high[:, [0, 2]], torch.tensor([[1.6, 16 / 9]]).expand(3, 2))


def test_structures_are_drawn_alike_whatever_their_size():
    labels = torch.zeros(40, 40, 40, dtype=torch.int64)
    labels[:20] = 1
    labels[38, 38, 38] = 2
    batch = cut_patches(image(40, 40, 40), 200, 16, 8, generator(), labels, foreground_share=1.0)
    holds = [(batch.target == c).flatten(1).any(1) for c in (1, 2)]
    assert (holds[0] | holds[1]).all()
    assert 0.35 < float(holds[1].float().mean()) < 0.65
    chance = cut_patches(image(40, 40, 40), 200, 16, 8, generator(), labels, foreground_share=0.0)
    assert float((chance.target == 2).flatten(1).any(1).float().mean()) < 0.05


def test_a_scan_without_structures_is_cut_at_random():
    labels = torch.zeros(20, 20, 20, dtype=torch.int64)
    batch = cut_patches(image(20, 20, 20), 4, 16, 8, generator(), labels, foreground_share=1.0)
    assert len({tuple(c) for c in corners_of(batch, (20, 20, 20))}) > 1


def test_cutting_draws_from_the_generator_alone():
    x = image(30, 30, 30)
    labels = (x * 3).long()
    torch.manual_seed(1)
    first = cut_patches(x, 4, 16, 8, generator(3), labels, 0.5)
    torch.manual_seed(2)
    again = cut_patches(x, 4, 16, 8, generator(3), labels, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


def test_batches_move_as_a_whole():
    x = image(20, 20, 20)
    batch = cut_patches(x, 2, 16, 8, generator(), (x > 0.5).long()).to(torch.device("meta"))
    assert isinstance(batch, PatchBatch) and all(t.device.type == "meta" for t in vars(batch).values())


def test_crops_beyond_the_volume_are_zero():
    x = image(6, 7, 8)
    part = crop(x, (4, 0, 5), 7)
    assert part.shape == (7, 7, 7)
    assert torch.equal(part[:2, :, :3], x[4:, :, 5:]) and (part[2:] == 0).all() and (part[..., 3:] == 0).all()
    assert crop((x > 0.5).long(), (0, 0, 0), 7).dtype == torch.int64


# --- the whole scan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 24, 33), (8, 8, 8), (5, 3, 20)])
def test_the_whole_scan_fits_its_box_from_end_to_end(shape):
    ramps = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in shape), indexing="ij")
    for axis, ramp in enumerate(ramps):
        line = resize_whole(ramp, 8)[0, 0].movedim(axis, 0).mean((1, 2))
        expected = (torch.arange(8) + 0.5) / 8
        if shape[axis] >= 8:  # finer than the scan's voxels, the ends repeat
            torch.testing.assert_close(line, expected, atol=0.035, rtol=0)
        assert (line.diff() >= -1e-6).all() and float(line.mean()) == pytest.approx(0.5, abs=1e-5)


def test_shrinking_averages_instead_of_picking():
    stripes = (torch.arange(64) % 2).float().view(64, 1, 1).expand(64, 64, 64)
    torch.testing.assert_close(resize_whole(stripes, 16), torch.full((1, 1, 16, 16, 16), 0.5))


def test_an_equal_size_is_a_copy():
    x = image(8, 8, 8)
    torch.testing.assert_close(resize_whole(x, 8)[0, 0], x)


# --- sources ------------------------------------------------------------------------------------------------------


def save(path, array, orientation, dtype):
    """Write an RAS array with 4 mm voxels in another orientation."""
    image = nib.Nifti1Image(array.astype(dtype), np.diag([4.0, 4, 4, 1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    nib.save(image.as_reoriented(turn), path)
    return path


def middle(target, value):
    return (target == CLASS_OF[value]).nonzero().float().mean(0)


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PSR"])
def test_synthetic_scans_come_in_canonical_order_from_any_orientation(tmp_path, orientation):
    path = save(tmp_path / "labels.nii.gz", head().numpy(), orientation, np.int32)
    source = SyntheticSource([path], LABELS, FOUR)
    straight = SyntheticSource([save(tmp_path / "ras.nii.gz", head().numpy(), "RAS", np.int32)], LABELS, FOUR)
    ours, theirs = source.draw(generator(2)), straight.draw(generator(2))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert middle(ours[1], 10)[0] < middle(ours[1], 49)[0]  # left is at the start of the first axis
    assert middle(ours[1], 16)[2] < middle(ours[1], 10)[2]  # the brain stem is below


def test_every_anatomy_is_drawn_from(tmp_path):
    small = head()
    small[small == 10] = 2
    files = [
        save(tmp_path / f"{i}.nii.gz", codes.numpy(), "RAS", np.int32)
        for i, codes in enumerate((head(), small))
    ]
    source, g = SyntheticSource(files, LABELS, FOUR), generator()
    assert len({bool((source.draw(g)[1] == CLASS_OF[10]).any()) for _ in range(8)}) == 2


@pytest.fixture
def pair(tmp_path):
    """A scan whose intensities tell its labels, in an orientation of its own."""
    codes = head().numpy()
    level = {0: 0.0, 507: 20.0, 24: 40.0, **{v: 60.0 + 20 * i for v, i in CLASS_OF.items()}}
    brightness = np.vectorize(level.get)(codes) + (codes > 0) * np.random.default_rng(0).normal(
        size=codes.shape
    )
    return (
        save(tmp_path / "a_img.nii.gz", brightness * 7, "LPI", np.float32),
        save(tmp_path / "a_label.nii.gz", codes, "LPI", np.int32),
    )


@pytest.mark.parametrize("seed", range(4))
def test_real_scans_are_deformed_together_with_their_labels(pair, seed, monkeypatch):
    monkeypatch.setattr("MAPSegLib.augmentation.bias_field", lambda image, *_: image)
    monkeypatch.setattr("MAPSegLib.augmentation.gamma", lambda image, *_: image)
    source = ScanSource([pair], LABELS, FOUR)
    plain, labels = source.scans[0]
    x, target = source.draw(generator(seed))
    level = torch.tensor([float(plain[labels == c].median()) for c in range(len(LABELS) + 1)])
    inside = target > 0
    assert float((x - level[target])[inside].abs().median()) < 0.05
    assert middle(target, 10)[0] < middle(target, 49)[0]


def test_real_scans_vary_and_return_by_seed(pair):
    source = ScanSource([pair], LABELS, FOUR)
    first, again, other = (source.draw(generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def drawn(pair, domains, draws):
    """Which of several copies of a scan are drawn, one after the other, and the generator afterwards."""
    files = [(pair[0].with_name(f"{number}.nii.gz"), pair[1]) for number in range(len(domains))]
    for image, _ in files:
        shutil.copy(pair[0], image)
    stated = {image: domain for (image, _), domain in zip(files, domains, strict=True) if domain}
    g, source = generator(), ScanSource(files, LABELS, FOUR, domains=stated)
    return [source._pick(g) for _ in range(draws)], g.get_state()


def test_domains_of_a_source_are_drawn_alike_however_many_scans_they_have(pair):
    picks, _ = drawn(pair, ["small", *["large"] * 4], 600)
    assert 240 < picks.count(0) < 360 and min(picks.count(i) for i in range(1, 5)) > 45


@pytest.mark.parametrize("domain", [None, "one"])
def test_a_source_of_one_domain_draws_a_number_for_a_scan(pair, domain):
    picks, state = drawn(pair, [domain] * 4, 20)
    g = generator()
    assert picks == [int(torch.randint(4, (), generator=g)) for _ in range(20)]
    assert torch.equal(state, g.get_state())


def test_scans_for_measuring_shapes_keep_theirs(pair):
    source = ScanSource([pair], LABELS, FOUR)
    plain, draws = source.scans[0][0], [source.draw_undeformed(generator(s))[0] for s in range(4)]
    assert all(torch.equal(x > 0, plain > 0) for x in draws) and not torch.equal(draws[0], draws[1])


def test_labels_that_the_model_does_not_know_are_refused(pair, tmp_path):
    foreign = save(tmp_path / "other.nii.gz", (head() > 0).numpy() * 999, "LPI", np.int32)
    with pytest.raises(
        InputError, match=r"No label map holds any of the structures' values \[.*other.nii.gz"
    ):
        ScanSource([(pair[0], foreign)], LABELS, FOUR)


def test_a_label_map_of_other_structures_is_learnt_from_beside_others(pair, tmp_path):
    """Of many organs one is to be learnt, which some scans do not show."""
    image = tmp_path / "b_img.nii.gz"
    shutil.copy(pair[0], image)
    foreign = save(tmp_path / "b_label.nii.gz", (head() > 0).numpy() * 999, "LPI", np.int32)
    source = ScanSource([pair, (image, foreign)], LABELS, FOUR)
    assert source.notes == {OTHERS: [image]}
    assert [bool(classes.any()) for _, classes in source.scans] == [True, False]


def test_an_empty_label_map_is_learnt_from_beside_others(pair, tmp_path):
    """A patient without the organ, or the tumour: nothing is wrong with that."""
    image = tmp_path / "b_img.nii.gz"
    shutil.copy(pair[0], image)
    none = save(tmp_path / "b_label.nii.gz", 0 * head().numpy(), "LPI", np.int32)
    source = ScanSource([(image, none), pair], LABELS, FOUR)
    assert source.notes == {EMPTY: [image]}
    drawn = [source.draw(generator(seed))[1].any() for seed in range(8)]
    assert any(drawn) and not all(drawn)
    shown = [source.draw_undeformed(generator(seed))[0] for seed in range(8)]
    assert all(torch.equal(x > 0, source.scans[1][0] > 0) for x in shown)  # to measure shapes on
    with pytest.raises(InputError, match="No label map holds any of.*b_label.nii.gz"):
        ScanSource([(image, none)], LABELS, FOUR)


def test_a_scan_below_the_ct_window_is_refused(pair):
    """After the last step its intensities could not be measured."""
    with pytest.raises(InputError, match="a_img.* no voxel lies above 3000, where the CT window begins"):
        ScanSource([pair], LABELS, Preprocessing(modality="ct", window=(3000, 4000)))


def test_labels_of_another_grid_are_refused(pair, tmp_path):
    shifted = save(tmp_path / "other.nii.gz", head((36, 40, 41)).numpy(), "LPI", np.int32)
    with pytest.raises(InputError, match="a_img"):
        ScanSource([(pair[0], shifted)], LABELS, FOUR)


def test_labels_of_the_whole_scan_lie_on_its_image():
    side = 50
    ball = (
        torch.stack(torch.meshgrid(*[torch.arange(side) - 24.5] * 3, indexing="ij")).norm(dim=0) < 10
    ).long()
    batch = cut_patches(ball.float(), 1, 16, 32, generator(), ball)
    for found in (batch.whole[0, 0], batch.whole_target[0]):
        places = torch.stack(torch.where(found > 0.5)).float()
        assert places.mean(1).tolist() == pytest.approx([15.5] * 3, abs=0.02)


def test_codes_without_intensities_are_refused_and_parcels_are_cortex(tmp_path):
    codes = (head() > 0).numpy().astype(np.int32) * 3
    codes[:10][codes[:10] > 0] = 1035
    path = save(tmp_path / "aparc.nii.gz", codes, "LPI", np.int32)
    source = SyntheticSource([path], brain_labels(), FOUR)
    assert source.anatomies[0].values == (0, 3)
    codes[:5][codes[:5] > 0] = 999
    path = save(tmp_path / "other.nii.gz", codes, "LPI", np.int32)
    with pytest.raises(
        InputError, match=r"other.nii.gz: holds codes that no intensities are known for \(999\)"
    ):
        SyntheticSource([path], brain_labels(), FOUR)


@pytest.mark.parametrize("code", [0, 24, 507])
def test_label_maps_without_a_brain_are_refused(tmp_path, code):
    """Fluid and skin have intensities, but nothing to extract, or to cut the neck off below."""
    path = save(tmp_path / "skin.nii.gz", (head() > 0).numpy().astype(np.int32) * code, "RAS", np.int32)
    with pytest.raises(
        InputError, match=r"skin.nii.gz: holds none of FreeSurfer's codes of the brain"
    ) as refusal:
        SyntheticSource([path], brain_labels(), FOUR)
    assert refusal.value.advice


def test_a_label_map_that_cannot_be_read_is_told_with_its_folder(tmp_path):
    path = save(tmp_path / "scan.nii.gz", head().numpy() + 0.5, "RAS", np.float32)
    with pytest.raises(InputError) as refusal:
        SyntheticSource([path], brain_labels(), FOUR)
    assert refusal.value.message.startswith(f"{path} is not a label map")


def test_a_patch_knows_which_of_its_voxels_lie_within_the_scan():
    scan = torch.ones(20, 9, 16)
    batch = cut_patches(scan, 3, 16, 16, generator())
    assert torch.equal(batch.inside(), batch.patches[:, 0] > 0)


def test_label_maps_of_a_synthetic_source_hold_the_structures_that_are_drawn(tmp_path):
    codes = (head() > 0).numpy().astype(np.int32) * 3
    codes[:10][codes[:10] > 0] = 1035
    path = save(tmp_path / "aparc.nii.gz", codes, "LPI", np.int32)
    labels = brain_labels()
    ((classes, spacing),) = SyntheticSource([path], labels, FOUR).label_maps()
    cortex = 1 + [label.value for label in labels].index(3)
    assert classes.unique().tolist() == [0, cortex] and spacing == [4.0, 4.0, 4.0]
    assert int((classes > 0).sum()) == np.count_nonzero(codes)


def test_label_maps_of_scans_are_those_on_the_working_grid(pair):
    source = ScanSource([pair], LABELS, FOUR)
    ((classes, spacing),) = source.label_maps()
    assert classes is source.scans[0][1] and spacing == (4.0, 4.0, 4.0)


def test_shapes_are_measured_in_the_spacing_that_scans_really_have(pair):
    """Of 40 mm there are 6 voxels of 7 mm, which are smaller: else a source's own labels would look implausible."""
    seven = Preprocessing(spacing=(7.0, 7.0, 7.0))
    source, grid = ScanSource([pair], LABELS, seven), prepare(read_image(pair[0]), seven).grid
    assert grid.working_spacing != (7.0, 7.0, 7.0)
    assert [spacing for _, spacing in source.label_maps()] == [grid.working_spacing]
    assert source.draw_undeformed(generator())[1] == grid.working_spacing


def test_scans_are_deformed_in_the_spacing_that_they_really_have(pair):
    seven = Preprocessing(spacing=(7.0, 7.0, 7.0))
    asked = []

    def augment(image, target, spacing, generator):
        asked.append(spacing.tolist())
        return image, target

    source = ScanSource([pair], LABELS, seven, augment)
    source.draw(generator())
    assert asked == [pytest.approx(source.spacings[0])] != [[7.0, 7.0, 7.0]]


# --- folders ------------------------------------------------------------------------------------------------------


def test_recoloured_scans_keep_their_labels():
    class Scans:
        def draw(self, generator):
            return image(8, 9, 7), (image(8, 9, 7) * 3).long()

    g = generator()
    draws = [Recoloured(Scans()).draw(g) for _ in range(8)]
    assert all(torch.equal(target, Scans().draw(g)[1]) for _, target in draws)
    assert any(not torch.equal(shown, image(8, 9, 7)) for shown, _ in draws)


def test_matched_scans_show_a_target_s_intensities_in_half_of_the_draws():
    target = (image(8, 9, 7) * 3).long()
    source, other = 0.2 + 0.1 * image(8, 9, 7), 0.6 + 0.1 * image(8, 9, 7)

    class Scans:
        def __init__(self, shown):
            self.shown = shown

        def draw(self, generator):
            return self.shown, target

    g = generator()
    draws = [Matched(Scans(source), Scans(other), 3).draw(g) for _ in range(40)]
    assert all(torch.equal(found, target) for _, found in draws)
    levels = [float(shown.mean()) for shown, _ in draws]
    kept = sum(level == pytest.approx(float(source.mean()), abs=1e-5) for level in levels)
    worn = sum(level == pytest.approx(float(other.mean()), abs=0.02) for level in levels)
    assert kept + worn == 40 and 10 <= kept <= 30
