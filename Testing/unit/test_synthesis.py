"""Synthetic scans: the same again by seed, labels where the image shows them, sides and contrasts as they should be."""

import numpy as np
import pytest
import torch
from head_phantom import CLASS_OF, CSF, LABELS, SCALP, SPACING, anatomy, head
from model_cases import generator

from MAPSegLib import synthesis
from MAPSegLib.synthesis import (
    Anatomy,
    acquire,
    brain_labels,
    brain_priors,
    brain_twins,
    draw_intensities,
    known_codes,
    synthesise,
)

OUT = (5.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def subject():
    return anatomy()


@pytest.mark.parametrize("contrast", ["t1", "t2", "random", "mixed"])
def test_a_seed_draws_the_same_scan_again(subject, contrast):
    torch.manual_seed(1)
    image, target = synthesise(subject, OUT, generator(4), contrast)
    torch.manual_seed(2)
    again, target_again = synthesise(subject, OUT, generator(4), contrast)
    assert torch.equal(image, again) and torch.equal(target, target_again)
    other, _ = synthesise(subject, OUT, generator(5), contrast)
    assert other.shape != image.shape or not torch.equal(image, other)


@pytest.mark.parametrize("extracted", [0.0, 1.0])
def test_images_and_labels_are_as_the_training_wants_them(subject, extracted):
    image, target = synthesise(subject, OUT, generator(), extracted=extracted)
    assert image.dtype == torch.float32 and target.dtype == torch.int64 and image.shape == target.shape
    assert float(image.min()) >= 0 and float(image.max()) == 1.0 and image.isfinite().all()
    assert set(target.unique().tolist()) == set(range(len(LABELS) + 1))


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_where_the_image_shows_them(subject, seed, monkeypatch):
    means = torch.tensor([40.0 if v in (0, SCALP, CSF) else 60.0 + 20 * CLASS_OF[v] for v in subject.values])
    monkeypatch.setattr(synthesis, "draw_intensities", lambda values, *_: (means, torch.zeros(len(means))))
    monkeypatch.setattr(synthesis, "acquire", lambda image, _: image)
    image, target = synthesise(subject, OUT, generator(seed), extracted=1.0)
    of_class = torch.tensor([40.0, *(60.0 + 20 * i for i in range(1, len(LABELS) + 1))])

    def error(labels):
        inside = labels > 0
        return float((image - of_class[labels])[inside].abs().mean())

    here = error(target)
    assert here < 12
    for axis in range(3):
        for shift in (-1, 1):
            assert error(target.roll(shift, axis)) > 1.1 * here


@pytest.mark.parametrize("seed", range(4))
def test_left_stays_left(subject, seed):
    _, target = synthesise(subject, OUT, generator(seed))
    for left, right in ((2, 41), (4, 43), (10, 49)):
        middle = [
            float((target == CLASS_OF[value]).nonzero()[:, 0].float().mean()) for value in (left, right)
        ]
        assert middle[0] + 1 < middle[1]


def test_extraction_removes_what_is_outside_the_brain(subject):
    for seed in range(3):
        whole, whole_target = synthesise(subject, OUT, generator(seed), extracted=0.0, deform=False)
        brain, brain_target = synthesise(subject, OUT, generator(seed), extracted=1.0, deform=False)
        assert all(b < w for b, w in zip(brain.shape, whole.shape, strict=True))
        share = [float((t > 0).float().mean()) for t in (brain_target, whole_target)]
        assert share[0] > 1.15 * share[1]
        assert float((brain == 0).float().mean()) > 0.1


def test_without_deformation_shape_is_the_anatomy_s_own(subject):
    _, target = synthesise(subject, SPACING, generator(), extracted=1.0, deform=False)
    codes = head()
    for value, index in CLASS_OF.items():
        assert int((target == index).sum()) == int((codes == value).sum())


def test_deformation_changes_shape(subject):
    volumes = {int((synthesise(subject, OUT, generator(s))[1] == CLASS_OF[10]).sum()) for s in range(4)}
    assert len(volumes) > 1


def test_spacing_is_honoured(subject):
    coarse, fine = (
        synthesise(subject, (s,) * 3, generator(), extracted=1.0, deform=False)[1] for s in (8.0, 4.0)
    )
    assert 6.5 < int((fine > 0).sum()) / int((coarse > 0).sum()) < 9.5


# --- intensities --------------------------------------------------------------------------------------------------

WHITE, GREY, WATER = 41, 42, 43


@pytest.mark.parametrize(("contrast", "order"), [("t1", (WHITE, GREY, WATER)), ("t2", (WATER, GREY, WHITE))])
def test_tissues_are_ordered_as_in_their_contrast(contrast, order):
    draws = [draw_intensities((WHITE, GREY, WATER), contrast, generator(seed))[0] for seed in range(30)]
    means = sum(draws) / len(draws)
    by_code = dict(zip((WHITE, GREY, WATER), means.tolist(), strict=True))
    assert [by_code[code] for code in order] == sorted(by_code.values(), reverse=True)


def test_random_contrasts_have_no_order():
    first = [draw_intensities((WHITE, GREY), "random", generator(s))[0] for s in range(20)]
    assert 3 < sum(bool(a > b) for a, b in first) < 17


def test_both_sides_are_one_tissue_and_like_tissues_differ_a_little():
    values = (10, 49, 11, 50, 17, 53)
    means, deviations = draw_intensities(values, "t1", generator())
    assert means[0::2].tolist() == means[1::2].tolist() and (deviations >= 0).all()
    caudate, hippocampus = float(means[2]), float(means[4])
    assert 0 < abs(caudate - hippocampus) < 30


def test_the_codes_present_do_not_change_the_others_draws():
    few = draw_intensities((10, 16), "t1", generator())[0]
    many = draw_intensities((4, 10, 12, 16), "t1", generator())[0]
    assert few.tolist() == [many[1].item(), many[3].item()]


def test_a_scanner_adds_noise_inside_only_and_scales_to_one():
    image = torch.zeros(24, 24, 24)
    image[6:18, 6:18, 6:18] = 100.0
    thick = 0
    for seed in range(6):
        y = acquire(image, generator(seed))
        assert float(y.min()) >= 0 and 0.98 <= float(y.max()) <= 1.0
        thick += bool(y[5, 12, 12] or y[12, 5, 12] or y[12, 12, 5])
        assert y[0, 0, 0] == 0 and float(y[8:16, 8:16, 8:16].std()) > 0
    assert thick < 6


# --- anatomies ----------------------------------------------------------------------------------------------------


def test_anatomies_are_cropped_and_lose_nothing():
    codes = torch.zeros(10, 12, 14, dtype=torch.int64)
    codes[2, 3:9, 4] = 10
    codes[7, 5, 11] = 49
    subject = Anatomy.from_labels(codes, SPACING, CLASS_OF)
    assert subject.codes.shape == (6, 6, 8)
    counts = torch.bincount(subject.classes[subject.codes.long()].flatten(), minlength=8)
    assert (int(counts[CLASS_OF[10]]), int(counts[CLASS_OF[49]])) == (6, 1)


def test_choroid_plexus_and_lesions_count_as_what_holds_them():
    codes = torch.tensor([163, 137, 25, 57, 4, 0]).view(6, 1, 1)
    subject = Anatomy.from_labels(codes, SPACING, {**CLASS_OF, 44: 8, 5: 9})
    found = {v: int(c) for v, c in zip(subject.values, subject.classes, strict=True)}
    assert found == {0: 0, 4: 2, 25: CLASS_OF[2], 57: CLASS_OF[41], 137: 9, 163: CLASS_OF[43]}


def test_rank_0_is_the_background_even_where_labels_fill_the_box():
    subject = Anatomy.from_labels(torch.full((8, 8, 8), 10), SPACING, CLASS_OF)
    assert subject.values[0] == 0 and int(subject.classes[0]) == 0
    image, target = synthesise(subject, (4.0, 4.0, 4.0), generator(1), extracted=0.0)
    assert (target[image == 0] == 0).float().mean() > 0.5


def test_an_empty_label_map_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Anatomy.from_labels(torch.zeros(4, 4, 4, dtype=torch.int64), SPACING, CLASS_OF)


def test_twins_are_a_left_structure_and_a_right_one():
    names = {label.value: label.name for label in brain_labels()}
    for left, right in brain_twins():
        assert names[left].startswith("left ") and names[right].startswith("right ")


def test_freesurfers_own_maps_are_drawn_from():
    labels = np.zeros((12, 4, 4), np.int32)
    labels[1:5], labels[7:11] = 2, 41
    labels[5:7] = 251
    labels[1, 0, 0], labels[2, 0, 0], labels[8, 0, 0] = 1035, 31, 4012
    labels[3, 0, 0] = labels[9, 0, 0] = 77
    found = known_codes(labels)
    assert found[5, 0, 0] == 2 and found[6, 0, 0] == 41  # the corpus callosum, by side
    assert [found[x, 0, 0] for x in (1, 2, 8)] == [3, 136, 41]
    assert found[3, 0, 0] == 25 and found[9, 0, 0] == 57  # hypointensities, which have no side of their own
    assert set(np.unique(found)) <= {code for prior in brain_priors() for code in prior["labels"]}
