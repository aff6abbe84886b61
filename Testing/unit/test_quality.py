"""Label-free quality: scores known by hand, agreement of cases that are symmetric and of such that are not."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from model_cases import PAIRED, SIDES, SINGLE, Thresholds, card_of, sided, tiny_model

from MAPSegLib.config import InferenceOptions, Label, Preprocessing, TrainingOptions
from MAPSegLib.inference import predict_classes
from MAPSegLib.networks.segmenter import mirrored_classes
from MAPSegLib.quality import (
    UNSEEN,
    Looks,
    agreement,
    assess_image,
    class_dice,
    intensity_profile,
    judge,
    look_twice,
    measure,
    transformation,
    transformed_classes,
    trust_limits,
    validation_dice,
)
from MAPSegLib.shapes import FURTHEST, extent_priors, log_extents
from MAPSegLib.tasks.training import with_trust

MM = (1.0, 1.0, 1.0)
FP32 = InferenceOptions(device="cpu", precision="fp32", overlap=0.0)


def card_of_sides(priors):
    return SimpleNamespace(labels=SIDES, priors=priors, preprocessing=Preprocessing())


def symmetric_image(n=32):
    x = torch.zeros(n, 20, 24)
    x[3:9, 4:15, 5:18] = 0.5
    x[10:14, 6:9, 6:9] = 1.0
    return torch.maximum(x, x.flip(0))


def classes_of(model, image):
    return predict_classes(model, image, FP32).long()


def transformed_agreement(model, labels, image):
    other = transformed_classes(model, labels, image, FP32, MM)
    return agreement(labels, classes_of(model, image), other, {})


# --- Dice ---------------------------------------------------------------------------------------------------------


def test_dice_per_class_and_nan_for_what_neither_has():
    a = torch.tensor([0, 1, 1, 2, 2, 2, 4])
    b = torch.tensor([0, 1, 2, 2, 2, 0, 0])
    dice = class_dice(a, b, 5)
    assert dice[:3].tolist() == pytest.approx([2 / 4, 2 / 3, 4 / 6])
    assert math.isnan(dice[3]) and dice[4] == 0.0 and dice.dtype == torch.float64


def test_dice_of_equal_and_of_disjoint_maps():
    a = torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    assert class_dice(a, a.to(torch.int16), 3).tolist() == [1.0] * 3
    assert class_dice(a, (a + 1) % 3, 3).tolist() == [0.0] * 3


# --- mirrored classes ---------------------------------------------------------------------------------------------


def test_classes_and_their_mirror_images():
    assert mirrored_classes(PAIRED).tolist() == [0, 3, 2, 1]
    assert mirrored_classes(SIDES).tolist() == [0, 3, 4, 1, 2]
    assert mirrored_classes(SINGLE) is None
    assert mirrored_classes([Label(value=1, name="one side only", mirror=2)]) is None


def test_mirroring_twice_changes_nothing():
    twin = mirrored_classes(SIDES)
    assert torch.equal(twin[twin], torch.arange(5))


# --- agreement ----------------------------------------------------------------------------------------------------


def test_agreement_is_one_where_scan_and_model_are_symmetric():
    model, image = sided(), symmetric_image()
    classes = classes_of(model, image)
    assert classes.unique().tolist() == [0, 1, 2, 3, 4]
    assert transformed_agreement(model, SIDES, image) == 1.0


def test_agreement_is_one_on_an_asymmetric_scan_that_is_understood():
    image = symmetric_image()
    image[:6] = 0
    model = sided()
    assert transformed_agreement(model, SIDES, image) == 1.0


def test_agreement_falls_when_the_model_mistakes_a_side():
    model, image = sided(middle=0.3), symmetric_image()
    assert transformed_agreement(model, SIDES, image) < 0.9


def test_agreement_is_zero_where_nothing_is_found():
    model, image = sided(), symmetric_image()
    model.levels[:, 1:] = 90.0
    assert transformed_agreement(model, SIDES, image) == 0.0


def test_a_structure_the_source_has_must_be_found_to_agree():
    one = torch.tensor([0, 1, 1, 3, 3])
    assert agreement(SIDES, one, one, {"extents": {"10": [[0.0, 1.0]] * 3}}) == 1.0
    known = {"extents": dict.fromkeys(("10", "17", "49"), [[0.0, 1.0]] * 3)}
    assert agreement(SIDES, one, one, known) == pytest.approx(2 / 3)
    assert agreement(SIDES, one, one * 0, known) == 0.0
    assert agreement(SIDES, one, one, {}) == 0.5  # where a card states none, a lost structure is no gain
    assert agreement(SIDES, one * 0, one * 0, {"extents": {"999": [[0.0, 1.0]] * 3}}) == 0.0


def test_what_the_source_often_lacks_may_be_missing_but_to_lose_it_is_no_gain():
    """A single scan without a structure had lowered the limits so far that no result of the model was trusted."""
    priors = {"extents": dict.fromkeys(("3", "7"), [[0.0, 1.0]] * 3), "often_absent": [7]}
    classes = torch.zeros(12, 12, 12, dtype=torch.int64)
    classes[2:6, 2:6, 2:6] = 1
    looks = Looks(torch.rand(12, 12, 12), classes, classes)
    told = measure(SINGLE[:2], looks, classes, MM, priors)
    strict = measure(SINGLE[:2], looks, classes, MM, priors | {"often_absent": []})
    assert told["agreement"] == 1.0 and strict["agreement"] == 0.5
    assert told["shape_deviation"] == pytest.approx(2 * strict["shape_deviation"] - FURTHEST)
    assert told["score"] == strict["score"]
    nothing, priors = classes * 0, priors | {"often_absent": [3, 7]}
    told = measure(SINGLE[:2], Looks(looks.image, nothing, nothing), nothing, MM, priors)
    assert told["agreement"] == 0.0 and told["shape_deviation"] == FURTHEST


def test_limits_are_not_lowered_by_scans_that_lack_a_structure():
    whole = torch.zeros(24, 24, 24, dtype=torch.int64)
    for index, at in enumerate((2, 9, 16), 1):
        whole[3:20, 3:20, at : at + 5] = index
    dim = torch.where(whole == 3, 0, whole)
    levels = torch.tensor((0.0, 0.4, 0.7, 1.0))

    def card_after(maps):
        images = itertools.cycle(levels[classes] for classes in maps)
        source = SimpleNamespace(
            draw_undeformed=lambda generator: (next(images), MM),
        )
        model, card = Thresholds(), card_of(tiny_model(SINGLE))
        extents = [log_extents(classes, len(card.labels), MM) for classes in maps]
        return with_trust(model, card, source, extents, TrainingOptions(device="cpu", precision="fp32"))

    always, often = card_after([whole]), card_after([whole, dim])
    assert often.priors["trust"]["agreement"] == pytest.approx(always.priors["trust"]["agreement"], abs=0.1)
    assert often.priors["trust"]["shape_deviation"] < 2
    assert often.priors["often_absent"] == [300] and "often_absent" not in always.priors
    rarely = card_after([whole] * 10 + [dim])
    assert "often_absent" not in rarely.priors
    image = levels[dim]
    verdicts = [assess_image(Thresholds(), card, image, MM, FP32)[0].trusted for card in (often, rarely)]
    assert verdicts == [True, False]


def test_a_structure_where_the_turned_scan_is_not_seen_is_left_out():
    one, other = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, UNSEEN, UNSEEN])
    both = {"extents": dict.fromkeys(("3", "7"), [[0.0, 1.0]] * 3)}
    assert agreement(SINGLE[:2], one, other, both) == 1.0
    assert agreement(SINGLE[:2], one * (one == 1), other, both) == 0.5


def test_without_sides_a_turn_takes_the_mirror_s_place():
    axes = torch.meshgrid(*(torch.arange(32) - 15.5 for _ in range(3)), indexing="ij")
    radius = (axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2) ** 0.5
    labels = SINGLE[:2]
    model = Thresholds(levels=(0.0, 0.5, 1.0))
    ball = 0.5 * (radius < 14) + 0.5 * (radius < 8)
    round_ = transformed_agreement(model, labels, ball)
    assert 0.93 < round_ <= 1.0
    biased = Thresholds(levels=(0.0, 0.5, 1.0), sided=False, pull=0.0)
    # half of the scan is missed
    biased.decode = lambda local, under, patches: model.decode(local * (under[:, 1:] > 0.5), under, patches)
    half = transformed_agreement(biased, labels, ball)
    assert half < round_ - 0.03


def test_a_scan_is_turned_and_made_smaller_and_no_class_is_made_up_on_the_way_back():
    classes = torch.zeros(24, 30, 36)
    classes[8:16, 10:20, 12:24] = 3  # next to the background: a mean of both would be another class
    way = transformation(SINGLE, classes.shape, MM)
    there = way.there(classes)
    assert there.shape == (20, 25, 30)
    back = way.back((there > 1.5) * 3)
    assert back.shape == classes.shape and set(back.unique().tolist()) == {UNSEEN, 0, 3}
    assert class_dice(back.clamp(min=0), classes, 4)[3] > 0.85


def test_what_a_turn_moves_out_of_the_scan_is_not_compared():
    scan = torch.zeros(60, 30, 12)
    scan[1:16, 5:25, 1:11] = scan[44:59, 5:25, 1:11] = 1.0  # as far as corners that a turn loses
    model, labels = Thresholds(levels=(0.0, 1.0)), SINGLE[:1]
    one, other = classes_of(model, scan), transformed_classes(model, labels, scan, FP32, MM)
    assert agreement(labels, one, other, {}) > 0.93
    assert class_dice(one, other.clamp(min=0), 2)[1] < 0.88


def test_thick_slices_are_turned_in_millimetres():
    """A box that is long across the slices: turned as if voxels were cubes, more of it would leave the scan."""
    model, labels, scan = Thresholds(levels=(0.0, 1.0)), SINGLE[:1], torch.ones(80, 24, 15)
    thick, cubes = (
        (transformed_classes(model, labels, scan, FP32, spacing) == UNSEEN).float().mean()
        for spacing in ((0.75, 0.75, 12.0), (1.0, 1.0, 1.0))
    )
    assert thick < 0.25 and cubes > 0.3


def test_half_a_pair_leaves_no_mirror():
    alone = (Label(value=17, name="left hippocampus", mirror=53), *PAIRED)
    assert mirrored_classes(PAIRED) is not None and mirrored_classes(alone) is None


# --- the verdict --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreement", "deviation", "trusted"),
    [(0.9, 1.0, True), (0.9, None, True), (0.3, 1.0, False), (0.9, 9.0, False), (0.3, None, False)],
)
def test_results_are_trusted_when_they_agree_and_are_plausible(agreement, deviation, trusted):
    measures = {"agreement": agreement} | ({} if deviation is None else {"shape_deviation": deviation})
    verdict = judge(measures, {})
    assert verdict.trusted is trusted and verdict.measures == measures
    assert verdict.reason.endswith(".") and (
        f"{agreement:.2f}" in verdict.reason or f"{deviation}" in verdict.reason
    )
    assert verdict.reason.startswith("Not to be trusted") is not trusted


def test_without_limits_of_its_own_a_model_has_the_general_ones():
    for reached, deviation, trusted in ((0.59, 0.0, False), (0.61, 2.4, True), (0.61, 2.6, False)):
        assert judge({"agreement": reached, "shape_deviation": deviation}, {}).trusted is trusted


def test_a_model_s_own_limits_decide():
    strict = {"trust": {"agreement": 0.95, "shape_deviation": 0.5}}
    assert not judge({"agreement": 0.9, "shape_deviation": 0.1}, strict).trusted
    assert not judge({"agreement": 0.99, "shape_deviation": 0.6}, strict).trusted
    assert judge({"agreement": 0.99, "shape_deviation": 0.4}, strict).trusted
    assert judge({"agreement": 0.95, "shape_deviation": 0.5}, strict).trusted  # just met


def test_limits_leave_room_below_the_worst_of_the_own_domain():
    own = [{"agreement": 0.9, "shape_deviation": 0.8}, {"agreement": 0.85, "shape_deviation": 1.4}]
    limits = trust_limits(own)
    assert limits == {"agreement": 0.7, "shape_deviation": 2.15}
    assert all(judge(measures, {"trust": limits}).trusted for measures in own)
    assert trust_limits([{"agreement": 0.9}]) == {"agreement": 0.75}


def test_borders_that_the_scan_does_not_show_are_not_trusted():
    own = [{"agreement": 0.9, "border_contrast": 0.6}, {"agreement": 0.9, "border_contrast": 0.45}]
    limits = trust_limits(own)
    assert limits == {"agreement": 0.75, "border_contrast": 0.15}
    faint = judge({"agreement": 0.9, "border_contrast": 0.14}, {"trust": limits})
    assert not faint.trusted and "contrast 0.14, expected at least 0.15" in faint.reason
    assert judge({"agreement": 0.9, "border_contrast": 0.16}, {"trust": limits}).trusted
    assert judge({"agreement": 0.9, "border_contrast": -1.0}, {"trust": {"agreement": 0.75}}).trusted
    assert trust_limits([{"agreement": 0.9, "border_contrast": -0.2}])["border_contrast"] == 0.0


def test_borders_count_where_nothing_is_mirrored():
    image = torch.zeros(24, 24, 24)
    image[:] = torch.rand(24, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.3
    image[8:16, 8:16, 8:16] = 1.0
    model, labels = Thresholds(levels=(0.3, 1.0)), SINGLE[:1]
    looks = look_twice(model, labels, image, MM, FP32)
    right, aside = looks.plain.long(), torch.roll(looks.plain.long(), 3, 0)
    known, moved = (measure(labels, looks, classes, MM, {}) for classes in (right, aside))
    assert known["border_contrast"] > 3 and known["border_contrast"] > moved["border_contrast"] + 2
    assert known["agreement"] == moved["agreement"]
    for measures in (known, moved):
        expected = measures["agreement"] + 0.1 * measures["border_contrast"]
        assert measures["score"] == pytest.approx(expected)
    assert (
        "border_contrast"
        not in assess_image(sided(), card_of_sides({}), symmetric_image(), MM, FP32)[0].measures
    )


def test_a_model_that_fails_in_its_own_domain_makes_nothing_trusted():
    limits = trust_limits([{"agreement": 0.0, "shape_deviation": 10.0}])
    assert limits == {"agreement": 0.3, "shape_deviation": 5.0}
    assert not judge({"agreement": 0.2, "shape_deviation": 1.0}, {"trust": limits}).trusted
    verdict = judge({"agreement": 0.9, "shape_deviation": 0.1}, {"trust": limits})
    assert not verdict.trusted and "does not agree with itself" in verdict.reason
    shapes = judge({"agreement": 0.9, "shape_deviation": 0.1}, {"trust": limits | {"agreement": 0.7}})
    assert not shapes.trusted and "implausible shapes" in shapes.reason
    for alone in ({"agreement": 0.3}, {"shape_deviation": 5.0}):
        assert not judge({"agreement": 0.9, "shape_deviation": 0.1}, {"trust": alone}).trusted


def test_general_limits_are_told_to_be_that():
    measures = {"agreement": 0.9, "shape_deviation": 0.1}
    assert "no limits of its own" in judge(measures, {}).reason
    assert "no limits" not in judge(measures, {"trust": {"agreement": 0.7}}).reason


def test_a_result_without_a_structure_is_never_trusted():
    image = symmetric_image()
    nothing = torch.zeros(image.shape, dtype=torch.int64)
    verdict, _ = assess_image(sided(), card_of_sides({}), image, MM, FP32, nothing)
    assert verdict.measures["agreement"] == 1.0 and not verdict.trusted and "no structure" in verdict.reason
    verdict, _ = assess_image(sided(), card_of_sides({}), image, MM, FP32, nothing + 1)  # the first alone
    assert verdict.trusted


def test_a_limit_that_is_just_missed_is_told_with_the_digits_that_say_so():
    limits = {"trust": {"agreement": 0.739, "shape_deviation": 1.512}}
    assert "agreement 0.7386, expected at least 0.7390" in judge({"agreement": 0.7386}, limits).reason
    shapes = judge({"agreement": 0.9, "shape_deviation": 1.541}, limits).reason
    assert "1.54, expected at most 1.51" in shapes


def test_a_scan_is_assessed_by_agreement_and_shapes():
    model, image, mm = sided(), symmetric_image(), (1.0, 2.0, 1.0)
    classes = classes_of(model, image)
    known = extent_priors(SIDES, [log_extents(classes, len(SIDES), mm)])
    verdict, found = assess_image(model, card_of_sides({"extents": known}), image, mm, FP32)
    assert torch.equal(found, classes) and verdict.trusted
    assert verdict.measures == pytest.approx(
        {"agreement": 1.0, "shape_deviation": 0.0, "score": 1.0}, abs=1e-3
    )
    other = {value: [[mean + 2.0, 0.5] for mean, _ in axes] for value, axes in known.items()}
    verdict, _ = assess_image(model, card_of_sides({"extents": other}), image, mm, FP32)
    assert verdict.measures["shape_deviation"] == pytest.approx(4.0, abs=1e-3)
    assert verdict.measures["score"] == pytest.approx(1 - 4 * 0.05, abs=1e-3)
    assert verdict.measures["agreement"] == 1.0
    assert not verdict.trusted and "shapes" in verdict.reason


def test_progress_of_looks_counts_to_the_end():
    seen = []
    look_twice(sided(), SIDES, symmetric_image(), MM, FP32, lambda *n: seen.append(n[0] / n[1]))
    assert seen == sorted(seen) and 0.5 in seen and seen[-1] == 1


def test_without_priors_the_score_is_the_agreement():
    verdict, _ = assess_image(sided(), card_of_sides({}), symmetric_image(), MM, FP32)
    assert verdict.measures == {"agreement": 1.0, "score": 1.0}


def test_validation_scores_scans_and_structures_alike():
    model, image = sided(), symmetric_image()
    target = classes_of(model, image)
    assert validation_dice(model, [(image, target)], FP32) == 1.0
    wrong = target.clone()
    wrong[wrong == 1] = 0
    assert validation_dice(model, [(image, target), (image, wrong)], FP32) == pytest.approx(7 / 8)
    fewer = image.clamp(max=0.5)  # what neither has is not scored
    assert validation_dice(model, [(fewer, classes_of(model, fewer))], FP32) == 1.0


def test_the_profile_of_intensities_is_of_the_foreground():
    ramp = torch.linspace(0, 1, 101)[1:]
    images = [torch.cat([torch.zeros(500), level * ramp]).view(-1, 2, 2) for level in (0.47, 0.83)]
    profile = intensity_profile(images)
    middle = profile["quantiles"].index(0.5)
    assert profile["mean"][middle] == pytest.approx(0.5 * 0.65, abs=0.01)
    assert profile["covariance"][middle][middle] == pytest.approx((0.5 * 0.36) ** 2 / 2, abs=0.003)
    assert profile["covariance"][middle][middle + 1] > 0
    assert profile["mean"] == sorted(profile["mean"])


def test_a_scan_of_many_voxels_has_a_profile():
    """PyTorch takes no quantiles of more than 16 million values."""
    images = [torch.tensor([0.25]).expand(257, 257, 257), torch.tensor([0.75]).expand(2, 2, 2)]
    assert intensity_profile(images)["mean"] == [0.5] * 5
