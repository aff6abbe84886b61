"""Centralised adaptation: its losses against the published equations, the warm-up, the teacher, exact resume."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from model_cases import Blobs, card_of, ignore, tiny_model
from test_adaptation import same, volume

from MAPSegLib.augmentation import PUBLISHED_CHANCE, published_geometry, published_source
from MAPSegLib.config import CentralisedOptions
from MAPSegLib.datasets import Matched, cut_patches
from MAPSegLib.errors import Cancelled
from MAPSegLib.masking import cube_mask
from MAPSegLib.networks.segmenter import sample_global
from MAPSegLib.preprocessing import prepare
from MAPSegLib.quality import Assessment
from MAPSegLib.training import adaptation, terms
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import Centralised, ema_decay, with_curve

GAMMA, DELTA, BETA = 0.05, 0.025, 0.5


def options(**changes):
    own = dict(steps=6, warmup=2, minutes=1000.0, mask_cube=4, check_every=2, patience=100)
    own |= dict(device="cpu", precision="fp32", preview_seconds=0.0)
    return CentralisedOptions(**own | changes)


def run(folder, *, model=None, source=None, report=ignore, **changes):
    model = model or tiny_model(dropout=0.3)
    folder.mkdir(exist_ok=True)
    card = card_of(model)
    scans = [prepare(each, card.preprocessing) for each in (volume(), volume((18, 24, 17), seed=1))]
    return adapt(model, card, scans, options(**changes), folder, report, source=source or Blobs())


# --- the equations --------------------------------------------------------------------------------------------------


def literal_l_seg(logits, target):
    probability = logits.softmax(1)
    hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = 2 * (probability * hot).sum(axes) / (probability.sum(axes) + hot.sum(axes))
    present = hot.sum(axes) > 0
    return F.cross_entropy(logits, target) - dice[1:][present[1:]].mean()


class Literal:
    """One view of a domain, every term from passes of its own."""

    def __init__(self, network, batch, x, whole):
        self.f, self.batch, self.x, self.X = network, batch, x, whole

    def features(self):
        local, glo = self.f.features(self.x), self.f.features(self.X)
        return local, sample_global(glo, self.batch.low, self.batch.high, local.shape[2:])

    def patch_logits(self):
        return self.f.decode(*self.features(), self.x)

    def whole_logits(self):
        return self.f.decode(self.f.features(self.X), self.f.features(self.X), self.X)

    def l_seg(self, y):
        return literal_l_seg(self.patch_logits(), y)

    def l_seg_whole(self, y):
        return literal_l_seg(self.whole_logits(), y)

    def l_cos(self):
        local, glo = self.features()
        dot, norms = (local * glo).sum(1), local.norm(dim=1) * glo.norm(dim=1)
        return 1 - (dot / norms.clamp(min=1e-8)).mean()


class Uncurved:
    """A network without its intensity curve."""

    def __init__(self, network):
        self.network = network

    def features(self, x):
        return self.network.encoder(x)

    def decode(self, local, glo, x):
        return self.network.head(torch.cat([local, glo], 1), x)


def hidden(batch, generator):
    """The masked views, from the masks that a step draws."""
    x = batch.patches * cube_mask(batch.patches.shape, 4, 0.7, generator)
    return x, batch.whole * cube_mask(batch.whole.shape, 2, 0.7, generator)


def one_step(preset, monkeypatch):
    """The terms of a step after the warm-up, and the views that it saw: of source and target, plain and masked."""
    own = options(preset=preset, warmup=0, patches=2)
    model = with_curve(tiny_model(dropout=0.0), 4 if preset == "plus" else 0)
    loop = Loop(model, own, ema_decay(own, 0))
    with torch.no_grad():
        if preset == "plus":
            loop.model.curve.values.copy_(torch.tensor([0.9, 0.7, 0.4, 0.3, -0.1]))
        for parameter in loop.ema.parameters():  # a teacher of its own
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=loop.generator))
    drawn = Blobs()
    batches = [
        cut_patches(pair[0], 2, 16, 16, loop.generator, pair[1])
        for pair in (drawn.draw(loop.generator), drawn.draw(loop.generator))
    ]
    left = list(batches)
    monkeypatch.setattr(terms, "draw_batch", lambda *_: left.pop(0))
    state = loop.generator.get_state()
    loop.model.train()
    computed, eta = Centralised(own, Blobs(), (1.0, 1.0, 1.0))(loop, Blobs())
    replay = torch.Generator()
    replay.set_state(state)
    source, target = batches
    student, seen = Uncurved(loop.model), target
    views = [
        Literal(student, source, source.patches, source.whole),
        Literal(student, source, *hidden(source, replay)),
    ]
    if preset == "plus":  # through the curve, where black is no outside, then in another contrast
        patches, whole = (
            torch.where(x > 0, loop.model.curve(x).clamp(min=1e-3), 0) for x in (target.patches, target.whole)
        )
        seen = terms.recoloured(replace(target, patches=patches, whole=whole), replay)
    views += [
        Literal(student, target, seen.patches, seen.whole),
        Literal(student, target, *hidden(seen, replay)),
    ]
    with torch.no_grad():
        teacher = Literal(loop.ema, target, target.patches, target.whole)
        labels = teacher.patch_logits().argmax(1), teacher.whole_logits().argmax(1)
    return loop, computed, eta, views, (source.target, source.whole_target), labels


@pytest.mark.parametrize("preset", ["paper", "v2", "plus"])
def test_a_step_minimises_the_published_loss(monkeypatch, preset):
    loop, computed, eta, (s, sm, t, tm), (y, Y), (pseudo, Pseudo) = one_step(preset, monkeypatch)
    if preset == "paper":
        glc = GAMMA * (s.l_seg_whole(Y) + sm.l_seg_whole(Y)) + DELTA * (s.l_cos() + sm.l_cos())
        glc = glc + 2 * GAMMA * tm.l_seg_whole(Pseudo) + 2 * DELTA * tm.l_cos()
        expected = BETA * s.l_seg(y) + tm.l_seg(pseudo) + BETA * sm.l_seg(y) + glc
    elif preset == "plus":  # the terms of both
        glc = GAMMA * (s.l_seg_whole(Y) + sm.l_seg_whole(Y)) + DELTA * (s.l_cos() + sm.l_cos())
        glc = (
            glc + GAMMA * (t.l_seg_whole(Pseudo) + tm.l_seg_whole(Pseudo)) + DELTA * (t.l_cos() + tm.l_cos())
        )
        expected = BETA * (s.l_seg(y) + sm.l_seg(y) + t.l_seg(pseudo) + tm.l_seg(pseudo)) + glc
    else:
        glc = GAMMA * (t.l_seg_whole(Pseudo) + tm.l_seg_whole(Pseudo)) + DELTA * (t.l_cos() + tm.l_cos())
        glc = glc + 2 * GAMMA * sm.l_seg_whole(Y) + 2 * DELTA * sm.l_cos()
        expected = sm.l_seg(y) + (t.l_seg(pseudo) + tm.l_seg(pseudo)) / 2 + glc
    total = sum(computed.values())
    assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    ours = torch.autograd.grad(total, list(loop.model.parameters()))
    theirs = torch.autograd.grad(expected, list(loop.model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)  # sums in another order
    assert 0 <= eta["total"] <= 1 and all(p.grad is None for p in loop.ema.parameters())


def test_the_presets_differ():
    totals = []
    for preset in ("paper", "v2", "plus"):
        with pytest.MonkeyPatch.context() as patch:
            totals.append(float(sum(one_step(preset, patch)[1].values()).detach()))
    assert len({round(total, 3) for total in totals}) == 3


def test_patches_and_the_whole_scan_are_recoloured_alike(monkeypatch):
    look = terms.aug.Look(torch.rand(terms.aug.CURVE_KNOTS), 0.0, 0.0)
    monkeypatch.setattr(terms.aug.Look, "draw", lambda generator: look)
    image = torch.rand(20, 18, 22, generator=torch.Generator().manual_seed(0))
    batch = cut_patches(image, 2, 16, 16, torch.Generator().manual_seed(1))
    seen = terms.recoloured(batch, torch.Generator().manual_seed(2))
    assert not torch.equal(seen.patches, batch.patches) and torch.equal(seen.low, batch.low)
    known = dict(zip(batch.patches.flatten().tolist(), seen.patches.flatten().tolist(), strict=True))
    monkeypatch.setattr(batch, "whole", batch.patches[:1, :, :16, :16, :16])
    again = terms.recoloured(batch, torch.Generator().manual_seed(2)).whole.flatten().tolist()
    assert again == [known[value] for value in batch.whole.flatten().tolist()]


def test_with_plus_the_source_is_shown_in_other_contrasts():
    plain, strong = (
        Centralised(options(preset=p), Blobs(), (1.0,) * 3).of_source.source for p in ("paper", "plus")
    )
    pairs = [tuple(s.draw(torch.Generator().manual_seed(seed)) for s in (plain, strong)) for seed in range(8)]
    assert all(torch.equal(a[1], b[1]) for a, b in pairs)
    assert any(not torch.equal(a[0], b[0]) for a, b in pairs)


def test_with_plus_the_source_wears_the_target_s_intensities(monkeypatch):
    drawn, draw_batch = [], terms.draw_batch
    monkeypatch.setattr(terms, "draw_batch", lambda *given: drawn.append(given[1]) or draw_batch(*given))
    for preset, matched in (("paper", False), ("plus", True)):
        own, target = options(preset=preset, warmup=0), Blobs()
        loop = Loop(with_curve(tiny_model(), 4), own, ema_decay(own, 0))
        central = Centralised(own, Blobs(), (1.0, 1.0, 1.0))
        drawn.clear()
        central(loop, target)
        assert isinstance(drawn[0], Matched) == matched
        assert not matched or drawn[0].target.scans is target
        drawn.clear()
        central.of_source(loop)  # a federation's labelled site has no target scans
        assert not isinstance(drawn[0], Matched)


def test_intensities_that_are_worn_are_those_that_the_encoder_sees(monkeypatch):
    drawn, draw_batch = [], terms.draw_batch
    monkeypatch.setattr(terms, "draw_batch", lambda *given: drawn.append(given[1]) or draw_batch(*given))
    own, target = options(preset="plus", warmup=0), Blobs()
    loop = Loop(with_curve(tiny_model(), 4), own, ema_decay(own, 0))
    with torch.no_grad():
        loop.model.curve.values.copy_(torch.tensor([0.9, 0.7, 0.4, 0.3, -0.5]))
    Centralised(own, Blobs(), (1.0, 1.0, 1.0))(loop, target)
    (image, classes), (seen, same) = (
        scans.draw(torch.Generator().manual_seed(0)) for scans in (target, drawn[0].target)
    )
    assert torch.equal(classes, same) and torch.equal(seen > 0, image > 0)
    assert (loop.model.curve(image) < 0).any()  # which would be outside
    torch.testing.assert_close(seen, loop.model.curve(image).detach().clamp(min=0), atol=1.1e-3, rtol=0)


def test_the_target_is_turned_and_scaled_in_millimetres(monkeypatch):
    drawn, draw_batch = [], terms.draw_batch
    monkeypatch.setattr(terms, "draw_batch", lambda *given: drawn.append(given[1]) or draw_batch(*given))
    own, changed = options(preset="paper", warmup=0), 0
    Centralised(own, Blobs(), (1.0, 1.0, 3.0))(Loop(tiny_model(), own, ema_decay(own, 0)), Blobs())
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        plain = Blobs().draw(generator)
        expected = published_geometry(*plain, torch.tensor([1.0, 1.0, 3.0]), generator)
        found = drawn[1].draw(torch.Generator().manual_seed(seed))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        changed += not torch.equal(found[1], plain[1])
    assert changed


def test_a_curve_is_looked_for_with_plus_alone_unless_none_is_wanted():
    asked = [("plus", True), ("plus", False), ("paper", True), ("v2", True)]
    found = [
        Centralised(options(preset=preset, search=search), Blobs(), (1.0,) * 3) for preset, search in asked
    ]
    assert [setting.searches for setting in found] == [True, False, False, False]
    assert [bool(setting.rates) for setting in found] == [True, True, False, False]


def test_without_knots_the_curve_of_an_adapted_model_stays_and_the_source_passes_by(tmp_path):
    curved = with_curve(tiny_model(), 4)
    with torch.no_grad():
        curved.curve.values.copy_(torch.tensor([0.9, 0.7, 0.4, 0.3, -0.1]))
    seen = []
    curved.curve.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    own = options(preset="paper", warmup=0)
    central = Centralised(own, Blobs(), (1.0, 1.0, 1.0))
    loop = Loop(central.student(curved), own, ema_decay(own, 0))
    seen.clear()
    central.of_source(loop)
    assert not seen
    for _ in range(2):
        loop.update(lambda: central(loop, Blobs())[0])
    assert torch.equal(loop.model.curve.values, curved.curve.values)


# --- the warm-up and the teacher ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "v2"])
def test_the_warmup_trains_on_the_source_only(tmp_path, monkeypatch, preset):
    told = []
    run(tmp_path, preset=preset, report=lambda event, **fields: told.append(fields))
    steps = [fields for fields in told if fields["stage"] == "adapt"]
    assert [fields["step"] for fields in steps] == [1, 2, 3, 4, 5, 6]
    for fields in steps:
        domains = {name.split("_")[0] for name in fields["losses"] if name != "loss"}
        warming = fields["step"] <= 2
        assert domains == ({"source"} if warming else {"source", "target"})
        assert (fields["eta"] is None) == warming
        if warming:
            assert {"source_plain", "source_masked"} <= set(fields["losses"])


def test_the_target_is_not_drawn_during_the_warmup():
    own = options(warmup=1)
    loop, source, target = Loop(tiny_model(), own, ema_decay(own, 1)), Blobs(), Blobs()
    central = Centralised(own, source, (1.0, 1.0, 1.0))
    loop.update(lambda: central(loop, target)[0])
    assert (source.drawn, target.drawn) == (1, 0)
    assert same(loop.model, loop.ema)  # the teacher starts as the student
    loop.update(lambda: central(loop, target)[0])
    assert (source.drawn, target.drawn) == (2, 1) and not same(loop.model, loop.ema)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("small", [0.0, 0.99, 0.99, 0.999, 0.999, 0.9999, 0.9999]),
        ("large", [0.0, 0.999, 0.999, 0.9999, 0.9999, 0.9999, 0.9999]),
        (0.5, [0.0] + 6 * [0.5]),
    ],
)
def test_the_teachers_schedule(schedule, expected):
    decay = ema_decay(options(ema_decay=schedule), warmup=7)
    assert [decay(7 + step) for step in (-1, 0, 999, 1000, 2999, 3000, 10**6)] == expected


def test_checks_begin_when_the_warmup_ends(tmp_path):
    adapted = run(tmp_path, steps=8, warmup=3)
    assert [entry["step"] for entry in adapted.history] == [0, 3, 4, 6, 8]


def test_the_best_step_is_kept_though_the_teacher_moves_on(tmp_path, monkeypatch):
    scores, judged = [0.1, 0.1, 0.9, 0.9] + 8 * [0.3], []

    def assess(model, card, scan, inference, classes=None):
        judged.append(copy.deepcopy(model))
        score = {"agreement": scores[len(judged) - 1], "score": scores[len(judged) - 1]}
        return Assessment(True, "", score), torch.zeros(tuple(scan.image.shape), dtype=torch.int64)

    monkeypatch.setattr(adaptation, "assess_scan", assess)
    adapted = run(tmp_path, preset="paper", learning_rate=0.01)
    assert adapted.best_step == 2 and adapted.steps == 6
    assert same(adapted.model, judged[2]) and not same(adapted.model, judged[6])


# --- the whole run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [2, 5])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, stop_at):
    straight = run(tmp_path / "a", warmup=3)

    def stop(event, **fields):
        if fields.get("step") == stop_at + 1 and fields["stage"] == "adapt":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(tmp_path / "b", warmup=3, report=stop)
    torch.rand(5)
    resumed = run(tmp_path / "b", warmup=3)
    assert same(straight.model, resumed.model) and straight.history == resumed.history
    records = [(tmp_path / f / "metrics.jsonl").read_text(encoding="utf-8") for f in "ab"]
    assert records[0] == records[1]


@pytest.mark.parametrize("preset, knots", [("paper", 0), ("v2", 0), ("plus", 4)])
def test_the_model_is_left_as_it_was_and_gets_a_curve_with_plus_alone(tmp_path, preset, knots):
    model = tiny_model()
    before = copy.deepcopy(model)
    adapted = run(tmp_path, model=model, preset=preset, learning_rate=0.01, curve_knots=4)
    assert same(model, before) and adapted.model.architecture.curve_knots == knots
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    still = [name for name, value in before.state_dict().items() if torch.equal(last[name], value)]
    still += ["curve"] if knots and torch.equal(last["curve.values"], torch.linspace(0, 1, knots + 1)) else []
    assert not still


# --- the published augmentation -------------------------------------------------------------------------------------


def test_the_published_changes_are_drawn_as_often_as_they_say():
    generator, one = torch.Generator().manual_seed(0), torch.ones(3)
    image = torch.rand(12, 12, 12, generator=generator)
    target = (image > 0.5).long()
    moved, changed = 0, 0
    for _ in range(400):
        new, labels = published_geometry(image, target, one, generator)
        moved += not torch.equal(labels, target)
        assert labels.dtype == target.dtype and new.shape == image.shape
        new, _ = published_source(image, target, one, generator)
        assert float(new.min()) >= 0 and float(new.max()) <= 1
        changed += not torch.equal(new, image)
    assert moved / 400 == pytest.approx(PUBLISHED_CHANCE, abs=0.08)
    assert changed / 400 == pytest.approx(1 - (1 - PUBLISHED_CHANCE) ** 3, abs=0.08)


def test_anisotropic_scans_are_turned_without_shear():
    """A ball in millimetres stays one."""
    spacing = torch.tensor([1.0, 1.0, 4.0])
    axes = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (48, 48, 12)), indexing="ij")
    ball = (sum((a * s) ** 2 for a, s in zip(axes, spacing, strict=True)).sqrt() < 12).long()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        _, moved = published_geometry(ball.float(), ball, spacing, generator)
        extent = [
            float(v.float().var()) * float(s) ** 2 for v, s in zip(moved.nonzero().T, spacing, strict=True)
        ]
        assert max(extent) / min(extent) < 1.5
