"""Source training: what is drawn, masked and validated, and a training that is killed and goes on."""

import copy
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from model_cases import PAIRED, ignore, records, same, tiny_model

from MAPSegLib.config import TrainingOptions
from MAPSegLib.datasets import cut_patches
from MAPSegLib.errors import Cancelled
from MAPSegLib.reports import CHECKPOINT
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.source import source_losses, train

CPU = dict(device="cpu", precision="fp32")


class Boxes:
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


@pytest.mark.parametrize("ended", [4, 5])
@pytest.mark.parametrize("how", [Cancelled("cancelled"), ZeroDivisionError("as if killed")])
def test_interrupted_training_ends_as_if_it_had_not_been(tmp_path, ended, how):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    validation = [Boxes().draw(torch.Generator().manual_seed(9))]
    model = {"dropout": 0.2}
    straight, *_ = train(tiny_model(**model), Boxes(), options(), tmp_path / "a", ignore, validation)

    def stop(event, **fields):
        if fields["step"] == ended:
            raise how

    with pytest.raises(type(how)):
        train(tiny_model(**model), Boxes(), options(), tmp_path / "b", stop, validation)
    state = torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)
    assert state["step"] == (ended if isinstance(how, Cancelled) else 4) and state["extra"]["seconds"] > 0
    resumed, *_ = train(tiny_model(seed=5, **model), Boxes(), options(), tmp_path / "b", ignore, validation)
    assert same(straight, resumed)
    one, other = ([{**line, "seconds": 0} for line in records(tmp_path / f / "metrics.jsonl")] for f in "ab")
    assert one == other


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("MAPSegLib.training.source.cut_patches", 2),
        ("MAPSegLib.training.optimizer.Optimizer.step", None),
        ("MAPSegLib.training.source.validation_dice", None),
    ],
)
def test_a_training_that_is_cancelled_keeps_whole_steps_only(tmp_path, monkeypatch, place, kept):
    """The third step is begun, moves the weights, or is not yet validated: of the last two nothing can be kept."""
    own = options(checkpoint_every=100, validate_every=3)
    arguments = own, tmp_path, ignore, [Boxes().draw(torch.Generator().manual_seed(9))]
    work, calls = pkgutil.resolve_name(place), []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == (1 if "validation" in place else 3):
            raise KeyboardInterrupt
        return work(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, interrupted)
        train(tiny_model(), Boxes(), *arguments)
    checkpoint = tmp_path / CHECKPOINT
    assert (torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else None) == kept
    resumed, *_ = train(tiny_model(), Boxes(), *arguments)
    (tmp_path / "straight").mkdir()
    straight, *_ = train(tiny_model(), Boxes(), own, tmp_path / "straight", *arguments[2:])
    assert same(straight, resumed)


def test_training_learns(tmp_path):
    losses = []
    train(
        tiny_model(),
        Boxes(),
        options(steps=30, learning_rate=0.01, checkpoint_every=1000, reuse=1),
        tmp_path,
        lambda event, **fields: losses.append(fields["losses"]["segmentation"]),
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_progress_is_told_at_every_step_and_scans_are_reused(tmp_path):
    events, source = [], Boxes()
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
    result, step, dice = train(
        tiny_model(),
        Boxes(),
        options(steps=50, patience=2, validate_every=3),
        tmp_path,
        ignore,
        [(None, None)],
    )
    assert step == 6 and dice == 0.7  # of the second validation
    assert len(kept) == 4 and same(result, kept[1]) and not same(result, kept[3])


def test_patches_are_cut_about_structures_as_often_as_asked(tmp_path, monkeypatch):
    asked = []

    def watch(image, count, patch, size, generator, target, share):
        asked.append((share, target.shape == image.shape))
        return cut_patches(image, count, patch, size, generator, target, share)

    monkeypatch.setattr("MAPSegLib.training.source.cut_patches", watch)
    train(tiny_model(), Boxes(), options(steps=1, foreground_share=0.75), tmp_path, ignore)
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
    train(tiny_model(), Boxes(), options(steps=5, validate_every=3), tmp_path, ignore, [(None, None)])
    assert len(seen) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_stated_share_of_patches_is_masked(share, monkeypatch):
    model = tiny_model()
    own = options(masked_share=share, patches=4, mask_ratio=0.5)
    loop = Loop(model, own, ema_decay=0.9)
    image, target = Boxes().draw(loop.generator)
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
    image, target = Boxes().draw(loop.generator)
    batch = cut_patches(image, 2, 16, 16, loop.generator, target)
    assert set(source_losses(loop, batch, own)) == {"segmentation"}
