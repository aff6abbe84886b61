"""The training loop and source training: exact resume, averaged weights, broken steps, the record."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from model_cases import PAIRED, tiny_model
from torch import nn

from MAPSegLib.config import TrainingOptions
from MAPSegLib.datasets import cut_patches
from MAPSegLib.errors import Cancelled, InputError, MAPSegError, MemoryExhausted
from MAPSegLib.training.loop import CLIP_NORM, MOST_SKIPPED, Clock, Loop, Record, warmup_cosine
from MAPSegLib.training.source import source_losses, train

CPU = dict(device="cpu", precision="fp32")


def small_loop(seed=3, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    options = TrainingOptions(learning_rate=0.01, seed=seed, **CPU)
    return Loop(model, options, **{"ema_decay": 0.9} | changes)


def advance(loop, steps):
    def losses():
        x = torch.rand(16, 4, generator=loop.generator)
        return {"fit": (loop.model(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    return [loop.update(losses)["loss"] for _ in range(steps)]


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# --- resume -------------------------------------------------------------------------------------------------------


def test_a_resumed_loop_ends_where_an_uninterrupted_one_does(tmp_path):
    straight = small_loop()
    losses = advance(straight, 10)
    first = small_loop()
    advance(first, 5)
    first.extra["best"] = {"w": torch.ones(2)}
    first.save(tmp_path / "checkpoint.pt")
    advance(first, 2)  # what a killed process did after its checkpoint
    torch.rand(17)
    second = small_loop(seed=99)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 5 and torch.equal(second.extra["best"]["w"], torch.ones(2))
    assert advance(second, 5) == losses[5:]
    assert same(straight.model, second.model) and same(straight.ema, second.ema) and second.step == 10


def test_the_seed_decides():
    first, again, other = (advance(small_loop(seed=seed), 3) for seed in (1, 1, 2))
    assert first == again != other


def test_nothing_is_left_beside_a_checkpoint(tmp_path):
    loop = small_loop()
    for _ in range(2):
        loop.save(tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match="could not be written"):
        small_loop().save(tmp_path / "missing" / "checkpoint.pt")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    loop = small_loop()
    loop.save(tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        loop.save(tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "text", "other architecture"])
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    small_loop().save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("hello")
    else:
        Loop(nn.Linear(2, 2), TrainingOptions(**CPU), ema_decay=0.9).save(path)
    with pytest.raises(InputError, match="cannot be resumed") as refusal:
        small_loop().load(path)
    assert refusal.value.advice


def test_checkpoints_are_never_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (pytest.fail, ("code from the checkpoint ran",))

    torch.save({"step": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError):
        small_loop().load(tmp_path / "checkpoint.pt")


# --- one step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    loop, other = small_loop(), small_loop()
    advance(loop, 2)
    advance(other, 2)
    before = copy.deepcopy(loop.model), copy.deepcopy(loop.ema), copy.deepcopy(loop.optimizer.state_dict())
    loop.update(lambda: {"bad": bad * loop.model(torch.ones(1, 4)).sum()})
    assert (loop.step, loop.skipped) == (3, 1)
    assert same(before[0], loop.model) and same(before[1], loop.ema)
    assert str(before[2]) == str(loop.optimizer.state_dict())
    assert all(math.isfinite(v) for v in advance(loop, 2)) and loop.skipped == 0


def test_a_training_that_cannot_learn_ends():
    loop = small_loop()

    def bad():
        return {"bad": math.nan * loop.model(torch.ones(1, 4)).sum()}

    for _ in range(MOST_SKIPPED - 1):
        loop.update(bad)
    advance(loop, 1)
    for _ in range(MOST_SKIPPED - 1):
        loop.update(bad)
    with pytest.raises(MAPSegError, match="no finite gradient"):
        loop.update(bad)


def test_the_count_of_skipped_steps_is_kept(tmp_path):
    loop = small_loop()
    loop.update(lambda: {"bad": math.nan * loop.model(torch.ones(1, 4)).sum()})
    loop.save(tmp_path / "c.pt")
    again = small_loop()
    again.load(tmp_path / "c.pt")
    assert again.skipped == 1


@pytest.mark.parametrize(("young", "share"), [(False, 0.9), (True, 0.1)])
def test_the_average_moves_by_its_share(young, share):
    loop = small_loop(young=young)
    start = copy.deepcopy(loop.ema)
    advance(loop, 1)
    for old, new, own in zip(start.parameters(), loop.ema.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(new, share * old + (1 - share) * own)


def test_a_young_average_ages():
    loop = small_loop(young=True, ema_decay=0.5)
    advance(loop, 30)
    start = copy.deepcopy(loop.ema)
    advance(loop, 1)
    for old, new, own in zip(start.parameters(), loop.ema.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * own)


def test_only_the_model_trains():
    loop = small_loop()
    advance(loop, 1)
    assert loop.model.training and not loop.ema.training
    assert not any(p.requires_grad or p.grad is not None for p in loop.ema.parameters())


def test_gradients_are_clipped():
    loop = small_loop()
    loop.update(lambda: {"steep": 1e6 * loop.model(torch.ones(1, 4)).sum()})
    norm = torch.stack([p.grad.norm() for p in loop.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(CLIP_NORM, rel=1e-3)


def test_terms_are_reported_and_summed():
    loop = small_loop()

    def losses():
        y = loop.model(torch.ones(1, 4)).sum()
        return {"a": 0 * y + 2, "b": 0 * y + 3}

    assert loop.update(losses) == {"a": 2.0, "b": 3.0, "loss": 5.0}


def test_named_parameters_have_their_own_rate_and_no_decay():
    loop = small_loop(rates={"3.": 0.5}, rate=lambda step: 0.1)
    named = dict(loop.model.named_parameters())
    rest, own = loop.optimizer.param_groups
    assert {id(p) for p in own["params"]} == {id(named["3.weight"]), id(named["3.bias"])}
    assert len(rest["params"]) == 2 and rest["weight_decay"] > 0 and own["weight_decay"] == 0
    advance(loop, 1)
    assert (rest["lr"], own["lr"]) == (pytest.approx(0.001), pytest.approx(0.05))


def test_muon_takes_the_large_convolutions_and_moves_the_models_own_weights():
    model = tiny_model(width=8)
    loop = Loop(model, TrainingOptions(**CPU), ema_decay=0.9, muon_rate=0.02)
    _, matrices = loop.optimizer.param_groups
    large = {n: p for n, p in model.named_parameters() if p.ndim == 5 and p[0].numel() > 64}
    assert "encoder.0.conv2.conv.weight" in large and "encoder.0.conv1.conv.weight" not in large
    assert [m.shape for m in matrices["params"]] == [(len(p), p[0].numel()) for p in large.values()]
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(1, 1, 16, 16, 16, generator=loop.generator)
    loop.update(lambda: {"fit": model.features(x).pow(2).mean()})
    change = (model.encoder[0].conv2.conv.weight - before["encoder.0.conv2.conv.weight"]).flatten(1).detach()
    values = torch.linalg.svdvals(change)  # an orthogonal update: no direction is left behind
    assert values.min() > 0.3 * values.max() > 0


def test_muon_resumes_exactly(tmp_path):
    def steps(loop, count):
        x = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        return [
            loop.update(lambda: {"fit": loop.model.features(x).pow(2).mean()})["loss"] for _ in range(count)
        ]

    def fresh():
        return Loop(tiny_model(width=8), TrainingOptions(**CPU), ema_decay=0.9, muon_rate=0.02)

    straight = fresh()
    losses = steps(straight, 6)
    first = fresh()
    steps(first, 3)
    first.save(tmp_path / "c.pt")
    second = fresh()
    second.load(tmp_path / "c.pt")
    assert steps(second, 3) == losses[3:] and same(straight.model, second.model)


def test_the_rate_warms_up_and_falls_to_its_floor():
    rate = warmup_cosine(10, 100)
    values = [rate(step) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0 == max(values)
    assert all(a < b for a, b in zip(values[:9], values[1:10], strict=True))
    assert all(a >= b for a, b in zip(values[10:], values[11:], strict=False))
    assert rate(100) == rate(1000) == pytest.approx(0.02)
    assert warmup_cosine(0, 1)(0) == 1.0


# --- the record ---------------------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_record_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = Record(path, 0)
    for step in (1, 2, 3, 4):
        record.add(step, loss=0.5 * step)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    Record(path, 2).add(3, loss=9.0)
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_a_fresh_run_starts_a_fresh_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Record(path, 0).add(7, loss=1.0)
    Record(path, 0)
    assert path.read_text(encoding="utf-8") == ""


def test_the_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(10, {})
    assert clock.left(10, 50) is None
    now[0] = 108.0
    assert clock.elapsed() == 8.0 and clock.left(14, 50) == pytest.approx(72.0)


def test_a_clock_goes_on_where_a_killed_process_left_it(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    extra = {"seconds": 7.0}
    clock = Clock(10, extra)
    now[0] += 5
    assert (clock.elapsed(), clock.total(), extra["seconds"]) == (5.0, 12.0, 12.0)


# --- source training ----------------------------------------------------------------------------------------------


class Blobs:
    """Scans of two structures, one brighter on the left."""

    def __init__(self):
        self.drawn = 0

    def draw(self, generator):
        self.drawn += 1
        image = 0.1 * torch.rand(20, 18, 22, generator=generator)
        target = torch.zeros(20, 18, 22, dtype=torch.int64)
        target[2:8, 4:12, 4:14], target[12:18, 4:12, 4:14], target[8:12, 4:12, 4:9] = 1, 3, 2
        return image + 0.3 * target, target


def options(**changes):
    sizes = dict(steps=6, patches=2, mask_cube=4, warmup=2, checkpoint_every=2, reuse=2, validate_every=2)
    return TrainingOptions(**CPU | sizes | changes)


def ignore(event, **fields):
    pass


@pytest.mark.parametrize("killed", [4, 5])
def test_interrupted_training_ends_as_if_it_had_not_been(tmp_path, killed):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    validation = [Blobs().draw(torch.Generator().manual_seed(9))]
    model = {"dropout": 0.2}
    straight = train(tiny_model(**model), Blobs(), options(), tmp_path / "a", ignore, validation)

    def stop(event, **fields):
        if fields["step"] == killed:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        train(tiny_model(**model), Blobs(), options(), tmp_path / "b", stop, validation)
    resumed = train(tiny_model(seed=5, **model), Blobs(), options(), tmp_path / "b", ignore, validation)
    assert same(straight, resumed)
    records = [[{**line, "seconds": 0} for line in lines(tmp_path / f / "metrics.jsonl")] for f in "ab"]
    assert records[0] == records[1]


def test_training_learns(tmp_path):
    losses = []
    train(
        tiny_model(),
        Blobs(),
        options(steps=30, learning_rate=0.01, checkpoint_every=1000, reuse=1),
        tmp_path,
        lambda event, **fields: losses.append(fields["losses"]["segmentation"]),
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_progress_is_told_at_every_step_and_scans_are_reused(tmp_path):
    events, source = [], Blobs()
    train(tiny_model(), source, options(), tmp_path, lambda event, **fields: events.append((event, fields)))
    assert [f["step"] for _, f in events] == [1, 2, 3, 4, 5, 6] and source.drawn == 3
    assert all(e == "progress" and f["steps"] == 6 and f["seconds_left"] is not None for e, f in events)
    assert set(events[0][1]["losses"]) == {"segmentation", "global", "cosine", "loss"}


def test_the_best_validated_average_is_returned_and_patience_ends(tmp_path, monkeypatch):
    kept, scores = [], iter([0.2, 0.7, 0.5, 0.4, 0.9])

    def score(model, *_):
        kept.append(copy.deepcopy(model))
        return next(scores)

    monkeypatch.setattr("MAPSegLib.training.source.validation_dice", score)
    result = train(tiny_model(), Blobs(), options(steps=50, patience=2), tmp_path, ignore, [(None, None)])
    assert len(kept) == 4 and same(result, kept[1]) and not same(result, kept[3])


def test_patches_are_cut_about_structures_as_often_as_asked(tmp_path, monkeypatch):
    asked = []

    def watch(image, count, patch, size, generator, target, share):
        asked.append((share, target.shape == image.shape))
        return cut_patches(image, count, patch, size, generator, target, share)

    monkeypatch.setattr("MAPSegLib.training.source.cut_patches", watch)
    train(tiny_model(), Blobs(), options(steps=1, foreground_share=0.75), tmp_path, ignore)
    assert asked == [(0.75, True)]


@pytest.mark.parametrize(("patches", "share"), [(1, 0.5), (3, 0.5), (3, 0.9)])
def test_a_share_of_no_whole_patches_is_met_on_average(patches, share, monkeypatch):
    loop = Loop(tiny_model(), options(), ema_decay=0.9)
    asked = []

    def watch(loop, batch, plain, masked, options):
        assert plain + masked == patches
        asked.append(masked)
        raise Cancelled("")

    monkeypatch.setattr("MAPSegLib.training.source.show", watch)
    for _ in range(400):
        with pytest.raises(Cancelled):
            source_losses(loop, SimpleNamespace(patches=range(patches)), options(masked_share=share))
    assert sum(asked) / 400 == pytest.approx(share * patches, abs=0.1)
    assert set(asked) == {int(share * patches), int(share * patches) + 1}


def test_the_last_step_is_validated(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("MAPSegLib.training.source.validation_dice", lambda *_: seen.append(0) or 0.5)
    train(tiny_model(), Blobs(), options(steps=5, validate_every=3), tmp_path, ignore, [(None, None)])
    assert len(seen) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_stated_share_of_patches_is_masked(share, monkeypatch):
    model = tiny_model()
    own = options(masked_share=share, patches=4, mask_ratio=0.5)
    loop = Loop(model, own, ema_decay=0.9)
    image, target = Blobs().draw(loop.generator)
    batch = cut_patches(image + 0.01, 4, 16, 16, loop.generator, target)
    seen = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda patches, whole: seen.append(patches) or encode(patches, whole)
    )
    source_losses(loop, batch, own)
    hidden = (seen[0] == 0).float().mean((1, 2, 3, 4)).tolist()
    masked = round(4 * share)
    assert hidden == [0.0] * (4 - masked) + [0.5] * masked


def test_terms_without_weight_are_not_computed():
    model = tiny_model(PAIRED)
    own = options(global_weight=0.0, cosine_weight=0.0)
    loop = Loop(model, own, ema_decay=0.9)
    image, target = Blobs().draw(loop.generator)
    batch = cut_patches(image, 2, 16, 16, loop.generator, target)
    assert set(source_losses(loop, batch, own)) == {"segmentation"}


def test_a_step_that_does_not_fit_is_told_as_such():
    loop = Loop(tiny_model(), options(), ema_decay=0.9)

    def too_much():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryExhausted) as caught:
        loop.update(too_much)
    assert caught.value.exit_code == 3 and caught.value.advice

    def broken():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        loop.update(broken)
