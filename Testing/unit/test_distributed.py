"""Several processes: the same losses and checkpoints as one, one voice, and no one left waiting."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import shared_runs
import torch

from MAPSegLib import distributed, worker
from MAPSegLib.config import TrainingOptions
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import build_job
from MAPSegLib.tasks import resume
from MAPSegLib.training.loop import Loop, Record, Reused, seed_of

CPU = dict(device="cpu", precision="fp32")


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(processes), shared_runs.__file__, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=240)


# --- two processes against one --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders and losses: of one process that accumulates two micro-batches, and of two processes."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    done = torchrun("all", two)
    assert done.returncode == 0, done.stderr
    told = [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return one, two, shared_runs.run_all(one, 2), told


@pytest.mark.parametrize("run", ["train", "pretrain", "adapt", "plus"])
def test_two_processes_have_the_losses_of_one_with_twice_the_accumulation(both, run):
    _, _, alone, (first, second) = both
    assert len(alone[run]) == 10 and second[run] in (first[run], [])  # an adaptation tells in the first alone
    assert alone[run][0] != alone[run][1]
    for ours, theirs in zip(alone[run], first[run], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("run", ["train", "pretrain", "adapt", "plus"])
def test_record_and_checkpoint_are_those_of_one_process(both, run):
    one, two, *_ = both
    names = [sorted(path.name for path in (folder / run).iterdir()) for folder in (one, two)]
    assert names[0] == names[1] == ["checkpoint.pt", "metrics.jsonl"]
    records = [
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert [line["step"] for line in records[0]] == [line["step"] for line in records[1]]
    states = [torch.load(folder / run / "checkpoint.pt", weights_only=True) for folder in (one, two)]
    assert states[0].keys() == states[1].keys() and states[0]["step"] == states[1]["step"] == 10
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, atol=1e-5, rtol=1e-4)


def test_all_processes_skip_a_step_that_is_broken_in_one(both):
    _, _, alone, told = both
    assert alone["broken"][0]["skipped"] == [0, 0, 1, 0] and alone["broken"][0]["step"] == 4
    for one in told:
        (mine,), (other,) = alone["broken"], one["broken"]
        assert other["weight"] == pytest.approx(mine["weight"], abs=1e-5)
        assert (other["skipped"], other["step"]) == (mine["skipped"], mine["step"])


def test_memory_that_runs_out_in_one_process_ends_all_and_is_told_once(tmp_path):
    done = torchrun("memory", tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["progress", "error"], done.stderr
    assert events[1]["kind"] == "memory" and "exitcode  : 3" in done.stderr


# --- micro-batches --------------------------------------------------------------------------------------------------


def loop_of(accumulate):
    torch.manual_seed(0)
    options = TrainingOptions(learning_rate=0.01, accumulate=accumulate, **CPU)
    return Loop(torch.nn.Linear(4, 1), options, ema_decay=0.9)


def test_a_step_follows_the_mean_of_its_micro_batches():
    loop, drawn = loop_of(3), []
    start = [p.detach().clone() for p in loop.model.parameters()]

    def losses():
        x = torch.rand(5, 4, generator=loop.generator)
        drawn.append((loop.part, x))
        return {"a": loop.model(x).pow(2).mean(), "b": 0.1 * loop.model(x).mean()}

    told = loop.update(losses)
    assert [part for part, _ in drawn] == [0, 1, 2] and loop.step == 1
    assert len({float(x.sum()) for _, x in drawn}) == 3
    weight, bias = (value.requires_grad_() for value in start)
    results = [x @ weight.T + bias for _, x in drawn]
    a = sum(y.pow(2).mean() for y in results) / 3
    b = sum(0.1 * y.mean() for y in results) / 3
    assert told == pytest.approx({"a": a.item(), "b": b.item(), "loss": (a + b).item()}, abs=1e-6)
    expected = torch.autograd.grad(a + b, [weight, bias])
    norm = torch.cat([g.flatten() for g in expected]).norm().clamp(min=1)
    for ours, theirs in zip(loop.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs / norm, atol=1e-6, rtol=1e-4)


def test_what_a_micro_batch_draws_depends_on_its_place_alone():
    def draws(accumulate, steps):
        loop, seen = loop_of(accumulate), {}

        def losses():
            pair = float(torch.rand((), generator=loop.generator)), float(torch.rand(()))
            seen[loop.step, loop.part] = pair
            return {"x": loop.model(torch.ones(1, 4)).sum()}

        for _ in range(steps):
            loop.update(losses)
        return seen

    one, three = draws(1, 4), draws(3, 2)
    assert all(one[step, 0] == three[step, 0] for step in range(2))
    values = [value for seen in (one, three) for pair in seen.values() for value in pair]
    assert len(set(values)) == 2 * (4 + 6 - 2)


def test_seeds_are_spread_evenly():
    def first(step):
        generator = torch.Generator().manual_seed(seed_of(0, "step", step, 0))
        return int(torch.randint(3, (), generator=generator))

    counts = Counter(first(step) for step in range(900))
    assert all(250 < counts[value] < 350 for value in range(3))


def test_a_drawn_scan_serves_its_steps_and_is_drawn_alike_after_a_resume():
    def scans(first, steps):
        loop = loop_of(2)
        drawn = Reused(lambda generator: float(torch.rand((), generator=generator)), 3)
        loop.step, seen = first, {}
        while loop.step < steps:
            for loop.part in (0, 1):  # noqa: B020
                seen[loop.step, loop.part] = drawn(loop)
            loop.step += 1
        return seen

    whole, resumed = scans(0, 6), scans(4, 6)
    assert len(set(whole.values())) == 4
    assert whole[0, 0] == whole[2, 0] != whole[3, 0] and whole[0, 0] != whole[0, 1]
    assert all(whole[place] == value for place, value in resumed.items())


# --- as one of several ----------------------------------------------------------------------------------------------


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))


def test_variables_of_a_cluster_without_torchrun_mean_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (distributed.world(), distributed.rank()) == (1, 0)


@pytest.mark.parametrize(
    "job",
    [
        {"task": "segment", "model": "m", "scans": ["a.nii.gz"], "output": "out"},
        {"task": "adapt", "model": "m", "scans": ["a.nii.gz"], "output": "out"},
        {"task": "evaluate", "prediction": "a", "reference": "b", "output": "out"},
        {"task": "synthesise", "label_maps": "a", "output": "out"},
        {"task": "import", "checkpoint": "a.pth", "name": "x"},
        {"task": "demo", "output": "out"},
    ],
    ids=lambda job: job["task"],
)
def test_what_one_process_does_is_refused(second_of_two, job):
    with pytest.raises(InputError, match=f"task {job['task']} runs in one process") as refusal:
        worker.run_job(build_job(job), pytest.fail)
    assert "torchrun" in refusal.value.advice and "\n" not in refusal.value.message


def test_each_process_has_a_gpu_of_its_own(second_of_two, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda", 1) and chosen == [1]
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InputError, match="cannot share the device mps"):
        distributed.own_device(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"more processes here than there are GPUs \(1\)"):
        distributed.own_device(torch.device("cuda"))


def test_a_checkpoint_can_be_continued_by_another_number_of_processes(second_of_two, monkeypatch):
    def fingerprint(accumulate):
        start = {"task": "train", "output": "o", "name": "x", "images": "i"}
        return resume.fingerprint(build_job(start | {"options": {"accumulate": accumulate}}), [])

    two = fingerprint(3)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert fingerprint(6) == two != fingerprint(3)


def test_the_others_write_nothing(second_of_two, tmp_path):
    Record(tmp_path / "metrics.jsonl", 0).add(1, loss=2.0)
    loop = Loop.__new__(Loop)
    loop.save(tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []
