"""What teacher and student see of a target scan, and what is learnt from it."""

from dataclasses import replace

import pytest
import torch
from model_cases import tiny_model
from test_adaptation import options
from test_centralised import Literal, hidden

from MAPSegLib.datasets import cut_patches
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import pseudo_label, target_losses, with_curve
from MAPSegLib.training.views import show


def watched_losses(**changes):
    """One evaluation of the losses: terms, eta, the batch, and what either network was shown, in which mode."""
    own = options(patches=3, mask_ratio=0.5, **changes)
    loop = Loop(with_curve(tiny_model(dropout=0.5), own.curve_knots), own, ema_decay=0.9)
    loop.model.train()
    batch = cut_patches(torch.rand(24, 24, 24) * 0.9 + 0.05, 3, 16, 16, loop.generator)
    seen = {}
    for name, network in (("student", loop.model), ("teacher", loop.ema)):
        encode = network.encode

        def watch(patches, whole, name=name, network=network, encode=encode):
            dropout = [m.training for m in network.modules() if isinstance(m, torch.nn.Dropout)]
            seen[name] = patches, whole, dropout
            return encode(patches, whole)

        network.encode = watch
    terms, eta = target_losses(loop, batch, own)
    return loop, terms, eta, batch, seen


def test_the_teacher_labels_plain_patches_without_dropout():
    _, _, _, batch, seen = watched_losses()
    patches, whole, dropout = seen["teacher"]
    assert torch.equal(patches, batch.patches) and torch.equal(whole, batch.whole)
    assert dropout and not any(dropout)


def test_the_student_learns_from_masked_patches_and_half_of_them_plain():
    _, _, _, batch, seen = watched_losses()
    views, whole, dropout = seen["student"]
    assert all(dropout)
    hidden = (views == 0).float().mean((1, 2, 3, 4)).tolist()
    assert hidden == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert torch.equal(views[:2], batch.patches[:2])
    kept = views[2:] != 0
    assert torch.equal(views[2:][kept], batch.patches[kept])
    assert torch.equal(whole[:1], batch.whole)
    assert float((whole[1] == 0).float().mean()) == 0.5


def test_a_masked_patch_meets_the_masked_whole():
    loop, *_, batch, _ = watched_losses()
    own = options(patches=3, mask_ratio=0.5)
    views = show(loop, batch, 3, 3, own)
    plain = show(loop, batch, 3, 0, own)
    torch.testing.assert_close(views.global_features[:3], plain.global_features)
    assert not torch.allclose(views.global_features[3:], plain.global_features)
    assert len(views.whole_logits) == 2 and len(plain.whole_logits) == 1


def test_a_step_minimises_the_published_loss():
    beta, gamma, delta = 0.3, 0.07, 0.04
    own = options(patches=3, plain_weight=beta, global_weight=gamma, cosine_weight=delta)
    loop = Loop(with_curve(tiny_model(dropout=0.0), own.curve_knots), own, ema_decay=0.9)
    with torch.no_grad():
        for parameter in loop.ema.parameters():  # a teacher of its own
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=loop.generator))
    batch = cut_patches(torch.rand(24, 24, 24) * 0.9 + 0.05, 3, 16, 16, loop.generator)
    replay = torch.Generator()
    replay.set_state(loop.generator.get_state())
    found = sum(target_losses(loop, batch, own)[0].values())
    teacher = Literal(loop.ema, batch, batch.patches, batch.whole)
    labels, whole_labels = teacher.patch_logits().argmax(1), teacher.whole_logits().argmax(1)
    masked = Literal(loop.model, batch, *hidden(batch, replay))
    half = replace(batch, patches=batch.patches[:2], low=batch.low[:2], high=batch.high[:2])
    plain = Literal(loop.model, half, half.patches, batch.whole)
    expected = masked.l_seg(labels) + beta * plain.l_seg(labels[:2])
    expected = expected + 2 * gamma * masked.l_seg_whole(whole_labels) + 2 * delta * masked.l_cos()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_reach_the_student_only():
    loop, terms, _, _, _ = watched_losses()
    assert set(terms) == {"masked", "plain", "global", "cosine"}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loop.model.parameters())
    assert all(p.grad is None for p in loop.ema.parameters())


def test_terms_without_weight_are_left_out():
    *_, seen = watched_losses(plain_weight=0.0, global_weight=0.0, cosine_weight=0.0)
    assert len(seen["student"][0]) == 3
    _, terms, _, _, _ = watched_losses(plain_weight=0.0, global_weight=0.0, cosine_weight=0.0)
    assert set(terms) == {"masked"}


def test_eta_is_the_share_of_voxels_the_teacher_is_sure_of():
    loop, _, eta, batch, _ = watched_losses(confidence=0.3)
    with torch.no_grad():
        probability, label = loop.ema(batch.patches, batch.whole, batch.low, batch.high).softmax(1).max(1)
    sure = probability >= 0.3
    assert eta["total"] == pytest.approx(float(sure.float().mean()), abs=1e-3)
    assert set(eta["per_class"]) == set(label.unique().tolist())
    for c, share in eta["per_class"].items():
        assert share == pytest.approx(float(sure[label == c].float().mean()), abs=2e-3)


def test_the_teacher_chooses_no_label_by_the_order_of_classes():
    """As it would where logits that bf16 has rounded are equal."""
    own = options(precision="bf16", patches=3)
    loop = Loop(tiny_model(), own, ema_decay=0.9)
    batch = cut_patches(torch.rand(24, 24, 24) * 0.9 + 0.05, 3, 16, 16, loop.generator)
    with torch.inference_mode(), loop.autocast():
        rounded = loop.ema(batch.patches, batch.whole, batch.low, batch.high)
    tied = rounded.topk(2, 1).values.diff(dim=1)[:, 0] == 0
    found = pseudo_label(loop, batch, 0.9)[0].target
    assert (found[tied] != rounded.argmax(1)[tied]).any()
    assert (found == rounded.argmax(1)).float().mean() > 0.95
