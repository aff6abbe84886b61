"""The training loop: exact resume, averaged weights, broken steps, the record."""

import copy
import errno
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_cases import records, same, tiny_model
from torch import nn

from MAPSegLib.config import TrainingOptions
from MAPSegLib.errors import InputError, MAPSegError, MemoryExhausted
from MAPSegLib.training.loop import CLIP_NORM, MOST_SKIPPED, Clock, Loop, Record, Reused, warmup_cosine

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


@pytest.mark.skipif(sys.platform != "linux" or "MALLOC_MMAP_MAX_" in os.environ, reason="of glibc's heap")
def test_with_a_checkpoint_goes_memory_that_nothing_uses(tmp_path):
    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    loop = small_loop()
    held = [torch.ones(2**20) for _ in range(60)]  # 4 MB each, as images of a draw
    held = held[::2]  # between two that are held lies one that is not
    before = resident()
    loop.save(tmp_path / "checkpoint.pt")  # as adaptations and federated sites do, too
    assert before - resident() > 80
    assert all(bool(image.all()) for image in held)


def test_nothing_is_left_beside_a_checkpoint(tmp_path):
    loop = small_loop()
    for _ in range(2):
        loop.save(tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_is_written_through_no_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "checkpoint.pt.part").symlink_to(tmp_path / "mine")
    small_loop().save(tmp_path / "checkpoint.pt")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "checkpoint.pt").is_symlink()


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match="could not be written"):
        small_loop().save(tmp_path / "missing" / "checkpoint.pt")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError(28, "No space left on device"), "written: no space left on the disk."),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "written."),
    ],
)
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(failure, told, tmp_path, monkeypatch):
    loop = small_loop()
    loop.save(tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError) as refusal:
        loop.save(tmp_path / "checkpoint.pt")
    assert refusal.value.message == f"The checkpoint {tmp_path / 'checkpoint.pt'} could not be {told}"
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


def test_a_checkpoint_that_may_not_be_read_is_not_told_as_damaged(tmp_path, monkeypatch):
    def locked(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = tmp_path / "checkpoint.pt"
    small_loop().save(path)
    monkeypatch.setattr(torch, "load", locked)
    with pytest.raises(InputError, match=f"{re.escape(str(path))} cannot be read: permission denied"):
        small_loop().load(path)


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
    rest, matrices = loop.optimizer.param_groups
    assert matrices["weight_decay"] == rest["weight_decay"] > 0
    large = {n: p for n, p in model.named_parameters() if p.ndim == 5 and p[0].numel() > 64}
    assert "encoder.0.conv2.conv.weight" in large and "encoder.0.conv1.conv.weight" not in large
    assert [m.shape for m in matrices["params"]] == [(len(p), p[0].numel()) for p in large.values()]
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(1, 1, 16, 16, 16, generator=loop.generator)
    loop.update(lambda: {"fit": model.features(x).pow(2).mean()})
    change = (model.encoder[0].conv2.conv.weight - before["encoder.0.conv2.conv.weight"]).flatten(1).detach()
    loop.model.zero_grad()
    assert all(matrix.grad is None for matrix in matrices["params"])  # or their memory would stay taken
    values = torch.linalg.svdvals(change)  # an orthogonal update: no direction is left behind
    assert values.min() > 0.3 * values.max() > 0


def test_a_training_does_not_wait_for_pytorchs_compiler(tmp_path, monkeypatch):
    """Which is longer in coming than PyTorch itself."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # whoever imports it fails
    loop = Loop(tiny_model(width=8), TrainingOptions(**CPU), ema_decay=0.9, muon_rate=0.02)
    x = torch.rand(1, 1, 16, 16, 16)
    loop.update(lambda: {"fit": loop.model.features(x).pow(2).mean()})
    loop.save(tmp_path / "c.pt")
    loop.load(tmp_path / "c.pt")


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


def test_a_step_that_does_not_fit_is_told_as_such():
    loop = small_loop()

    def too_much():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryExhausted) as caught:
        loop.update(too_much)
    assert caught.value.exit_code == 3 and caught.value.advice

    def broken():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        loop.update(broken)


# --- the record ---------------------------------------------------------------------------------------------------


def test_while_a_gpu_computes_the_next_scan_is_drawn():
    def numbers(device, steps):
        asked, seen = [], []

        def draw(generator):
            asked.append(float(torch.rand((), generator=generator)))
            return asked[-1]

        drawn = Reused(draw, 2)
        for step in steps:
            for part in (0, 1):
                loop = SimpleNamespace(step=step, part=part, seed=5, device=torch.device(device))
                seen.append(drawn(loop))
        drawn.aside.shutdown()
        return seen, asked

    alone, asked = numbers("cpu", range(4))
    assert len(set(alone)) == len(asked) == 4  # two blocks of two steps, two parts
    ahead, asked = numbers("cuda", range(4))
    assert ahead == alone and len(asked) == 6  # the next block's, too
    assert numbers("cuda", [0, 2, 3])[0] == [*alone[:2], *alone[4:]]
    assert numbers("cuda", [2, 3])[0] == alone[4:]  # as a run that is resumed


def test_a_draw_that_fails_ahead_fails_where_it_is_needed():
    asked = []

    def draw(generator):
        asked.append(generator)
        if len(asked) > 1:
            raise InputError("no scan")
        return "scan"

    drawn = Reused(draw, 1)
    first, second = (SimpleNamespace(step=s, part=0, seed=0, device=torch.device("cuda")) for s in (0, 1))
    assert drawn(first) == drawn(first) == "scan"
    with pytest.raises(InputError, match="no scan"):
        drawn(second)


def test_the_record_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = Record(path, 0)
    for step in (1, 2, 3, 4):
        record.add(step, loss=0.5 * step)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    Record(path, 2).add(3, loss=9.0)
    assert records(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


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
