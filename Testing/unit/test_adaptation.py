"""Test-time adaptation: exact resume, which step and which result are kept."""

import copy
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_cases import PAIRED, card_of, ignore, same, tiny_model

from MAPSegLib.config import AdaptationOptions
from MAPSegLib.datasets import cut_patches
from MAPSegLib.errors import Cancelled, Stopped
from MAPSegLib.preprocessing import prepare
from MAPSegLib.quality import Assessment, better, needed_gain
from MAPSegLib.training import adaptation, terms
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.training.terms import with_curve
from MAPSegLib.volumes import Volume


def volume(shape=(20, 18, 22), seed=0):
    array = np.random.default_rng(seed).random(shape, dtype=np.float32) * 100
    array[:, :, :2] = 0
    return Volume(array, np.diag([-1.0, 1.0, 1.0, 1.0]))


def options(**changes):
    sizes = dict(
        steps=4, minutes=1000.0, mask_cube=4, check_every=2, patience=100, search=False, curve_knots=4
    )
    return AdaptationOptions(**dict(device="cpu", precision="fp32", preview_seconds=0.0) | sizes | changes)


def run(folder, *, model=None, volumes=None, report=ignore, preview=None, uncertainty=False, **changes):
    model = model or tiny_model(dropout=0.3)
    card = card_of(model)
    scans = [prepare(each, card.preprocessing) for each in volumes or [volume()]]
    folder.mkdir(exist_ok=True)
    return adapt(model, card, scans, options(**changes), folder, report, preview, uncertainty)


@pytest.fixture
def scripted(monkeypatch):
    """Scores that the label-free checks give, in order, with whether they are trusted; and the models judged."""

    def install(*scores):
        left, judged = list(scores), []

        def assess(model, card, scan, inference, classes=None):
            judged.append(copy.deepcopy(model))
            told = left.pop(0) if len(left) > 1 else left[0]
            score, trusted = told if isinstance(told, tuple) else (told, True)
            verdict = Assessment(trusted, "", {"agreement": score, "score": score})
            return verdict, torch.zeros(tuple(scan.image.shape), dtype=torch.int64)

        monkeypatch.setattr(adaptation, "assess_scan", assess)
        return judged

    return install


# --- resume, and what stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [False, True])
def test_interrupted_adaptation_ends_as_if_it_had_not_been(tmp_path, search):
    straight = run(tmp_path / "a", steps=6, search=search)

    def stop(event, **fields):
        if fields.get("step") == 5 and fields["stage"] == "adapt":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(tmp_path / "b", steps=6, search=search, report=stop)
    torch.rand(5)
    resumed = run(tmp_path / "b", steps=6, search=search)
    assert same(straight.model, resumed.model)
    assert (straight.steps, straight.best_step) == (resumed.steps, resumed.best_step) and straight.steps == 6
    assert straight.history == resumed.history and len(straight.history) == 4 + search
    records = [(tmp_path / f / "metrics.jsonl").read_text(encoding="utf-8") for f in "ab"]
    assert records[0] == records[1]
    assert np.array_equal(straight.results[0].adapted.labels, resumed.results[0].adapted.labels)
    assert straight.results[0].reason == resumed.results[0].reason


def test_a_resumed_adaptation_does_not_get_its_minutes_again(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("MAPSegLib.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))

    def ten_seconds(event, stage, **fields):
        now[0] += 10 * (stage == "adapt")
        if now[0] == 50:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(tmp_path, steps=100, minutes=1.0, report=ten_seconds)
    adapted = run(tmp_path, steps=100, minutes=1.0, report=ten_seconds)
    assert adapted.steps == 7  # the checkpoint of step 4 knows of 30 seconds


def test_the_source_model_is_left_as_it_was(tmp_path):
    model = tiny_model(dropout=0.3)
    before = copy.deepcopy(model)
    adapted = run(tmp_path, model=model, learning_rate=0.01)
    assert same(model, before) and model.architecture == before.architecture
    assert all(p.requires_grad for p in model.parameters())
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert any(not torch.equal(last[name], value) for name, value in before.state_dict().items())
    assert adapted.model is not model


def test_every_weight_may_adapt(tmp_path):
    model = tiny_model()
    run(tmp_path, model=model, learning_rate=0.01)
    ema = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["ema"]
    start = with_curve(model, 4).state_dict()
    still = [name for name, value in start.items() if torch.equal(ema[name], value)]
    assert not still


@pytest.mark.parametrize("knots", [0, 8])
def test_a_curve_is_put_before_a_model_without_one(knots):
    model = tiny_model()
    curved = with_curve(model, knots)
    assert curved is not model and curved.architecture.curve_knots == knots
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(curved.features(x), model.features(x), atol=1e-5, rtol=1e-4)
    assert with_curve(curved, 16).architecture.curve_knots == (knots or 16)


def test_several_scans_are_adapted_to_together(tmp_path, monkeypatch):
    cut = []

    def watch(image, count, patch, size, generator, guess, share):
        cut.append((image.shape, guess.shape))
        return cut_patches(image, count, patch, size, generator, guess, share)

    monkeypatch.setattr(terms, "cut_patches", watch)
    volumes = [volume(), volume((18, 24, 17), seed=1), volume((20, 18, 23), seed=2)]
    adapted = run(tmp_path, volumes=volumes, steps=8, seed=1)
    assert [r.segmentation.labels.shape for r in adapted.results] == [v.shape for v in volumes]
    assert all(image == guess for image, guess in cut) and len(set(cut)) == 3


# --- the best step, the gate, the end -------------------------------------------------------------------------------


def test_the_best_step_is_kept(tmp_path, scripted):
    judged = scripted(0.1, 0.9, 0.3, 0.5)
    adapted = run(tmp_path, steps=6, learning_rate=0.01)
    assert adapted.best_step == 2 and adapted.steps == 6
    assert same(adapted.model, judged[1]) and not same(adapted.model, judged[3])
    assert [entry["score"] for entry in adapted.history] == [0.1, 0.9, 0.3, 0.5]
    assert [entry["step"] for entry in adapted.history] == [0, 2, 4, 6]


def test_a_curve_that_was_tried_in_vain_leaves_nothing(tmp_path, scripted, monkeypatch):
    scripted(0.5, 0.4, 0.1)
    tried, draw = [], adaptation._Run.draw
    monkeypatch.setattr(
        adaptation._Run,
        "_find_contrast",
        lambda self, *told, find=adaptation._Run._find_contrast: (
            self.loop.extra.update(guess=[torch.ones_like(g) for g in self.loop.extra["guess"]]),
            find(self, *told),
        ),
    )
    monkeypatch.setattr(
        adaptation._Run, "draw", lambda self, g: tried.append(self.loop.extra["guess"]) or draw(self, g)
    )
    adapted = run(tmp_path, steps=4, search=True, patience=1)
    assert [entry["step"] for entry in adapted.history] == [0, 0, 2] and adapted.steps == 2
    assert all(bool(guess.bool().all()) for guess in tried[0])


@pytest.mark.parametrize(
    ("before", "after", "gate", "chosen"),
    [
        (0.5, 0.7, True, "adapted"),
        (0.7, 0.5, True, "source"),
        (0.5, 0.504, True, "source"),
        (0.7, 0.5, False, "adapted"),
    ],
)
def test_the_gate_keeps_the_source_unless_adaptation_is_better_supported(
    tmp_path, scripted, before, after, gate, chosen
):
    scripted(0.1, 0.2, 0.3, before, after)
    adapted = run(tmp_path, gate=gate, gate_margin=0.005)
    result = adapted.results[0]
    assert result.chosen == chosen and result.reason.endswith(".")
    assert (
        result.segmentation.confidence
        == (result.adapted if chosen == "adapted" else result.source).confidence
    )
    assert result.assessment.measures["score"] == (after if chosen == "adapted" else before)


def test_the_gate_decides_for_every_scan(tmp_path, scripted):
    scripted(*[0.1] * 3, *[0.2] * 3, 0.5, 0.9, 0.9, 0.5, (0.5, True), (0.9, False))
    volumes = [volume(seed=seed) for seed in range(3)]
    gains, loses, doubtful = run(tmp_path, volumes=volumes, steps=1, check_every=100).results
    assert [result.chosen for result in (gains, loses, doubtful)] == ["adapted", "source", "source"]
    assert "is better supported (" in gains.reason and "not better supported (" in loses.reason
    assert "better supported, but unlike the source's result not to be trusted (" in doubtful.reason


@pytest.mark.parametrize(
    ("before", "after", "kept"), [(True, False, False), (False, False, True), (False, True, True)]
)
def test_a_gain_does_not_pay_for_lost_trust(before, after, kept):
    start = Assessment(before, "", {"score": 0.75})
    assert better(start, Assessment(after, "", {"score": 0.82}), 0.03) is kept
    assert not better(start, Assessment(after, "", {"score": 0.77}), 0.03)
    assert better(start, start, 0.0)  # where all scans gain together, one that does not lose


def test_what_is_kept_lies_halfway_to_the_source_but_for_its_curve(tmp_path, scripted):
    judged, model = scripted(0.1, 0.2), tiny_model()
    adapted = run(tmp_path, model=model, steps=2, learning_rate=0.01, curve_rate=0.05)
    ema = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["ema"]
    start = with_curve(model, 4).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in judged[0].state_dict().items())
    for name, value in judged[1].state_dict().items():
        expected = ema[name] if name == "curve.values" else (ema[name] + start[name]) / 2
        torch.testing.assert_close(value, expected)
    assert same(adapted.model, judged[1]) and not torch.equal(ema["curve.values"], start["curve.values"])
    student = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert (student["curve.values"] - start["curve.values"]).abs().max() > 0.04  # at its own rate


def test_verdicts_are_on_the_results_themselves(tmp_path, monkeypatch):
    """And not on quick looks, which have other borders."""
    judged, assess_scan = [], adaptation.assess_scan

    def assess(model, card, scan, inference, classes=None):
        judged.append((scan, classes))
        return assess_scan(model, card, scan, inference, classes)

    monkeypatch.setattr(adaptation, "assess_scan", assess)
    (result,) = run(tmp_path, steps=1).results
    values = np.array([0, *(label.value for label in PAIRED)])
    for (scan, classes), side in zip(judged[-2:], (result.source, result.adapted), strict=True):
        assert np.array_equal(values[classes], scan.grid.boxed(side.labels))


def test_maps_that_wait_for_those_of_other_scans_take_little_memory(tmp_path, monkeypatch):
    made, real = [], adaptation.segment_scan

    def watched(*arguments, **named):
        found = real(*arguments, **named)
        kept = {name: getattr(found, name).copy() for name in ("labels", "uncertainty")}
        made.append((kept, [weakref.ref(getattr(found, name)) for name in kept]))
        return found

    monkeypatch.setattr(adaptation, "segment_scan", watched)
    (result,) = run(tmp_path, steps=1, uncertainty=True).results
    for side, (kept, held) in zip((result.source, result.adapted), made, strict=True):
        assert [which() for which in held] == [None, None]
        for name, array in kept.items():
            found = getattr(side, name)
            assert found.dtype == array.dtype and np.array_equal(found, array)
    assert result.source.notes is not result.source.notes  # a caller may add some


def test_scans_that_gain_together_need_no_gain_of_their_own():
    assert needed_gain([0.012, 0.008, 0.011, 0.009, 0.010], 0.03) == 0.0
    assert needed_gain([0.012, 0.008, 0.011, 0.009], 0.03) == 0.03  # too few to tell
    assert needed_gain([0.2, -0.01, 0.0, 0.01, -0.02], 0.03) == 0.03  # one of them alone
    uneven = [0.04, 0.0, 0.02, 0.04, 0.0]  # the mean is 1.0 deviations, and two standard errors are 0.9
    assert needed_gain(uneven, 0.03) == 0.0
    assert needed_gain([gain - 0.004 for gain in uneven], 0.03) == 0.03
    assert needed_gain([0.0] * 8, 0.03) == 0.03 and needed_gain([-0.01, -0.012] * 4, 0.03) == 0.03


def test_the_gate_keeps_small_gains_that_all_scans_show(tmp_path, scripted):
    pairs = [(0.5, 0.51), (0.6, 0.612), (0.55, 0.558), (0.5, 0.511), (0.7, 0.699), (0.5, 0.512)]
    scripted(*[0.1] * 6, *[0.2] * 6, *(score for pair in pairs for score in pair))
    volumes = [volume(seed=seed) for seed in range(6)]
    adapted = run(tmp_path, volumes=volumes, steps=1, check_every=100)
    assert [r.chosen for r in adapted.results] == ["adapted"] * 4 + ["source", "adapted"]
    assert "by all scans together" in adapted.results[0].reason
    assert "not better supported (" in adapted.results[4].reason


def test_without_a_gain_adaptation_ends_early(tmp_path, scripted):
    scripted(0.5, 0.4)
    adapted = run(tmp_path, steps=100, patience=3)
    assert (adapted.steps, adapted.best_step) == (6, 0)


def test_with_every_gain_adaptation_has_its_patience_again(tmp_path, scripted):
    scripted(0.5, 0.4, 0.6, 0.5, 0.4)
    adapted = run(tmp_path, steps=100, patience=2)
    assert (adapted.steps, adapted.best_step) == (8, 4)


def test_without_a_curve_none_is_looked_for(tmp_path):
    adapted = run(tmp_path, steps=1, curve_knots=0, search=True)
    assert adapted.model.architecture.curve_knots == 0
    assert not any("curve" in entry for entry in adapted.history)


def test_stopping_keeps_the_best_so_far(tmp_path, scripted):
    judged = scripted(0.1, 0.9, 0.3)

    def stop(event, **fields):
        if fields["stage"] == "adapt" and fields["step"] == 5:
            raise Stopped

    adapted = run(tmp_path, steps=100, report=stop)
    assert (adapted.steps, adapted.best_step) == (5, 2) and len(adapted.results) == 1
    assert same(adapted.model, judged[1])


def test_what_a_report_does_to_the_losses_it_is_told_is_not_recorded(tmp_path):
    def take(event, **fields):
        fields.get("losses", {}).clear()

    adapted = run(tmp_path, steps=1, report=take)
    assert "loss" in adapted.history[-1]["losses"]


def test_the_time_budget_ends_it_too(tmp_path):
    adapted = run(tmp_path, steps=10_000, minutes=1e-9)
    assert adapted.steps < 10 and len(adapted.results) == 1


@pytest.mark.parametrize("scans", [1, 2])
def test_the_time_budget_is_that_of_each_scan(tmp_path, monkeypatch, scans):
    now = [0.0]
    monkeypatch.setattr("MAPSegLib.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))

    def ten_seconds(event, stage, **fields):
        now[0] += 10 * (stage == "adapt")

    given = [volume(seed=seed) for seed in range(scans)]
    adapted = run(tmp_path, volumes=given, steps=100, patience=100, minutes=0.5, report=ten_seconds)
    assert adapted.steps == 3 * scans


def test_previews_show_label_values_on_the_scans_own_grid(tmp_path):
    shown = []
    volumes = [volume(), volume((18, 24, 17), seed=1)]
    run(tmp_path, volumes=volumes, preview_seconds=1e-9, preview=lambda *call: shown.append(call))
    assert [(index, step) for index, _, step in shown] == [(i, s) for s in (0, 2, 4) for i in (0, 1)]
    for index, labels, _ in shown:
        assert labels.shape == volumes[index].shape
        assert set(np.unique(labels)) <= {0, *(label.value for label in PAIRED)}


def test_no_previews_are_made_when_not_wanted(tmp_path):
    run(tmp_path, steps=2, preview_seconds=0.0, preview=lambda *_: pytest.fail("a preview was made"))


def test_progress_and_record_tell_losses_and_eta(tmp_path):
    events = []
    run(tmp_path, report=lambda event, **fields: events.append((event, fields)))
    steps = [fields for _, fields in events if fields["stage"] == "adapt"]
    assert [f["step"] for f in steps] == [1, 2, 3, 4] and all(
        f["steps"] == 4 and 0 <= f["eta"] <= 1 for f in steps
    )
    assert all({"masked", "plain", "loss"} <= set(f["losses"]) for f in steps)
    assert any(fields["stage"] == "segment" for _, fields in events)
    record = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["step"] for line in record] == [0, 2, 4]
    assert {"score", "agreement", "losses", "eta", "eta_per_class"} <= set(record[-1])
    shares = record[-1]["eta_per_class"].values()
    assert shares and all(0 <= share <= 1 for share in shares)


def test_the_search_starts_from_the_curve_it_found_when_that_is_better(tmp_path, monkeypatch, scripted):
    falling = torch.linspace(1, 0, 5)
    monkeypatch.setattr(adaptation, "search_curve", lambda *_: falling)
    for scores, gains in (((0.2, 0.6), True), ((0.6, 0.2), False)):
        scripted(*scores)
        folder = tmp_path / str(gains)
        run(folder, search=True, steps=2, curve_rate=1e-9)
        expected = falling if gains else torch.linspace(0, 1, 5)
        for network in ("model", "ema"):  # student and teacher
            start = torch.load(folder / "checkpoint.pt", weights_only=True)[network]["curve.values"]
            torch.testing.assert_close(start, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("found", "kept"), [(0.51, False), (0.54, True)])
def test_a_curve_has_to_gain_what_the_gate_asks_for(tmp_path, scripted, found, kept):
    scripted(0.50, found, 0.4)
    adapted = run(tmp_path, search=True, steps=2, gate_margin=0.03)
    assert [entry["kept"] for entry in adapted.history] == [True, kept, False]


@pytest.mark.parametrize(
    ("gains", "kept"), [([1.2, 0.8, 1.1, 0.9, 1.0], True), ([6.0, -1.0, 0.5, 0, 0], False)]
)
def test_of_several_scans_a_curve_may_gain_little_when_all_gain(tmp_path, scripted, gains, kept):
    scripted(*[0.5] * 5, *[0.5 + gain / 100 for gain in gains], 0.4)
    scans = [volume(seed=seed) for seed in range(5)]
    adapted = run(tmp_path, volumes=scans, search=True, steps=2, gate_margin=0.03)
    assert [entry["kept"] for entry in adapted.history] == [True, kept, False]


@pytest.mark.parametrize("ended", ["stop", "time"])
def test_a_search_tells_how_far_it_is_and_can_be_ended(tmp_path, ended):
    """It takes half a minute with a large model, and minutes and stop are promises."""
    rounds = []

    def report(event, **told):
        if told.get("stage") == "search":
            rounds.append(told["step"])
            if ended == "stop" and told["step"] == 1:
                raise Stopped

    minutes = 1e-9 if ended == "time" else 1.0
    adapted = run(tmp_path, report=report, search=True, steps=4, minutes=minutes)
    assert rounds == [0, 1] and adapted.steps == 0 and len(adapted.results) == 1
    assert [entry.get("curve") for entry in adapted.history] == [None, "found"]
