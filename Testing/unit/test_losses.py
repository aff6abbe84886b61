"""The written-out gradients against PyTorch's own, and what the losses should say in cases known by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from MAPSegLib.losses import cosine_loss, segmentation_loss


def case(classes=5, absent=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 4, 5, 6, generator=g)
    target = torch.randint(classes, (2, 4, 5, 6), generator=g)
    target[target == absent] = 0
    target[0, :2] = 0
    return logits, target


def plain(logits, target, balance=0.0):
    """The same loss from PyTorch's own operations, in float64."""
    logits = logits.double()
    classes = logits.shape[1]
    count = torch.bincount(target.flatten(), minlength=classes).double()
    weight = torch.where(count > 0, count.clamp(min=1) ** -balance, 0.0)
    entropy = F.cross_entropy(logits, target, weight=weight)
    probability = logits.softmax(1)
    hot = F.one_hot(target, classes).movedim(-1, 1).double()
    scores = []
    for k in range(1, classes):
        if count[k]:
            scores.append(2 * (probability[:, k] * hot[:, k]).sum() / (probability[:, k].sum() + count[k]))
    return entropy - (sum(scores) / len(scores) if scores else 0.0)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("absent", [3, -1])
def test_value_and_gradient_equal_the_plain_formulation(balance, absent):
    logits, target = case(absent=absent)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = segmentation_loss(ours, target, balance), plain(theirs, target, balance)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-4)


def test_balance_0_weighs_voxels_alike_and_1_classes():
    logits, target = case(absent=-1)
    voxels = F.cross_entropy(logits, target)
    classes = torch.stack([F.cross_entropy(logits, target, weight=w) for w in torch.eye(5)]).mean()
    dice = voxels - segmentation_loss(logits, target)
    assert float(segmentation_loss(logits, target, 1.0) + dice) == pytest.approx(float(classes), abs=1e-5)


def test_half_precision_logits_are_computed_in_fp32():
    logits, target = case()
    half = logits.bfloat16().requires_grad_()
    full = half.detach().float().requires_grad_()
    loss, expected = segmentation_loss(half, target), segmentation_loss(full, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert half.grad.dtype == torch.bfloat16
    assert torch.equal(half.grad, full.grad.bfloat16())


def test_a_perfect_result_scores_minus_one():
    _, target = case()
    logits = 50 * F.one_hot(target, 5).movedim(-1, 1).float()
    assert float(segmentation_loss(logits, target)) == pytest.approx(-1.0, abs=1e-6)


def test_dice_counts_every_voxel_of_a_large_structure():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 96, 96, 96, generator=g) * 0.1
    target = (torch.rand(2, 96, 96, 96, generator=g) < 0.9).long()
    found, exact = segmentation_loss(logits, target), segmentation_loss(logits.double(), target)
    assert float(found) == pytest.approx(float(exact), abs=2e-5)


def test_a_structure_of_a_single_voxel_counts_as_much_as_any():
    logits, target = case(absent=3)
    target[1, 2, 2, 2] = 3
    assert float(segmentation_loss(logits, target)) == pytest.approx(float(plain(logits, target)), abs=1e-5)


def test_absent_classes_neither_reward_nor_dilute_dice():
    _, target = case(absent=3)
    hot = F.one_hot(target, 5).movedim(-1, 1).float()
    logits, wider = 50 * hot, torch.cat([50 * hot, torch.full_like(hot, -50.0)], 1)
    assert float(segmentation_loss(wider, target)) == pytest.approx(
        float(segmentation_loss(logits, target)), abs=1e-6
    )


def test_without_foreground_only_cross_entropy_is_left():
    logits, target = case()
    target = torch.zeros_like(target)
    leaf = logits.clone().requires_grad_()
    loss = segmentation_loss(leaf, target)
    assert loss.item() == pytest.approx(float(F.cross_entropy(logits, target)), abs=1e-5)
    loss.backward()
    assert leaf.grad.isfinite().all()


def test_the_batch_is_one_volume():
    logits, target = case(absent=-1)
    joined = logits.movedim(0, 1).reshape(1, 5, 8, 5, 6), target.reshape(1, 8, 5, 6)
    assert float(segmentation_loss(logits, target)) == pytest.approx(
        float(segmentation_loss(*joined)), abs=1e-5
    )


def test_extreme_logits_stay_finite():
    logits, target = case()
    leaf = (1e4 * logits).requires_grad_()
    loss = segmentation_loss(leaf, target)
    loss.backward()
    assert math.isfinite(loss.item()) and leaf.grad.isfinite().all()


def test_an_absent_class_that_nothing_is_left_of_has_a_gradient():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[0, 0] = 1
    logits = torch.zeros(1, 3, 4, 4, 4)
    logits[:, 2] = -60.0
    logits.requires_grad_()
    segmentation_loss(logits, target).backward()
    assert bool(logits.grad.isfinite().all()) and bool(logits.grad.any())


def test_cosine_of_like_opposite_and_scaled_features():
    a = torch.randn(2, 8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert float(cosine_loss(a, 3 * a)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine_loss(a, -a)) == pytest.approx(2.0, abs=1e-6)
    assert cosine_loss(a.bfloat16(), a.bfloat16()).dtype == torch.float32


def test_cosine_compares_cells_at_the_same_place():
    a = torch.zeros(1, 2, 2, 1, 1)
    a[0, 0, 0], a[0, 1, 1] = 1, 1
    assert float(cosine_loss(a, a.flip(2))) == pytest.approx(1.0)
