"""Trainings under torchrun: a killed process, an adaptation, and bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from MAPSegLib import api
from MAPSegLib.config import Architecture, Preprocessing
from MAPSegLib.models import ModelCard, load_card, save_model
from MAPSegLib.networks.segmenter import Segmenter
from Testing.ball import OPTIONS

from .test_processes import at_step

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def torchrun(*arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "-m", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank that torchrun started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    variables = {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
    return next(pid for pid, known in variables.items() if f"RANK={rank}".encode() in known)


@pytest.fixture(scope="module")
def start(trained, tmp_path_factory) -> Path:
    """A model to start from that is so small that a step is quick."""
    sizes = {"width": 4, "depth": 1, "head_width": 4, "up_channels": 4, "dilations": (1, 2, 3)}
    architecture = Architecture(**sizes, patch=16, global_size=16)
    labels = load_card(trained["model"]).labels
    card = ModelCard(
        name="start", architecture=architecture, preprocessing=Preprocessing(spacing=(2, 2, 2)), labels=labels
    )
    torch.manual_seed(0)
    model = Segmenter(architecture, labels)
    return save_model(tmp_path_factory.mktemp("start") / "start.safetensors", model.state_dict(), card)


TRAINING = OPTIONS | {"steps": 20, "checkpoint_every": 4, "reuse": 3}


@pytest.fixture(scope="module")
def alone(start, data, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Folder and events of the training in one process."""
    folder, events = tmp_path_factory.mktemp("one"), []
    job = {"images": data / "images", "labels": data / "labels", "init": start}
    api.train(folder, "x", **job, **TRAINING, accumulate=2, report=events.append)
    return folder, events


@LINUX
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_replaced_and_the_run_ends_as_if_nothing_had_been(
    killed, start, alone, data, tmp_path
):
    job = {"images": data / "images", "labels": data / "labels", "init": start}
    content = {"task": "train", "name": "x", "output": tmp_path / "two", "options": TRAINING, **job}
    (tmp_path / "job.json").write_text(json.dumps(content, default=str))
    running, events = torchrun("MAPSegLib.worker", tmp_path / "job.json", restarts=3), []
    try:
        for line in running.stdout:
            events.append(json.loads(line))
            if at_step(10)(events[-1]) and not any(event["event"] == "error" for event in events):
                os.kill(rank_of(running.pid, killed), signal.SIGKILL)
                break
        out, log = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 0, log
    before, events = events, [json.loads(line) for line in out.splitlines()]
    again = max(i for i, event in enumerate(events) if event["event"] == "started")
    assert [event["event"] for event in events].count("result") == 1
    after = [event for event in events[again:] if event.get("losses")]
    assert 5 <= after[0]["step"] <= 13 and after[-1]["step"] == 20

    one, told = alone
    expected = {event["step"]: event["losses"] for event in told if event.get("losses")}
    for event in [event for event in before if event.get("losses")] + after:
        assert event["losses"] == pytest.approx(expected[event["step"]], abs=1e-5)
    ours, theirs = (load_file(folder / "x.safetensors") for folder in (tmp_path / "two", one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)
    records = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path / "two", one)]
    steps = [[json.loads(line)["step"] for line in lines] for lines in records]
    assert steps[0] == steps[1] == [10, 20]


def test_an_adaptation_beside_a_source_is_that_of_one_process(start, data, tmp_path):
    scans = [data / "images" / "case0.nii.gz", tmp_path / "absent.nii.gz", data / "images" / "case1.nii.gz"]
    options = {"steps": 6, "warmup": 2, "check_every": 2, "preview_seconds": 0.001, "learning_rate": 0.01}
    options |= {"threads": 1, "device": "cpu", "precision": "fp32"}
    where = {"source": data / "images", "source_labels": data / "labels", "save_model": True}
    job = {"task": "adapt", "model": start, "scans": scans, "output": tmp_path / "two", "options": options}
    (tmp_path / "job.json").write_text(json.dumps(job | where, default=str))
    running = torchrun("MAPSegLib.worker", tmp_path / "job.json")
    out, log = running.communicate(timeout=120)
    assert running.returncode == 0, log
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("error") == kinds.count("result") == 1 and kinds[-1] == "result"
    assert kinds.count("scan") == 2 and "preview" in kinds
    assert [event["step"] for event in events if event.get("stage") == "adapt"] == [1, 2, 3, 4, 5, 6]

    api.adapt(start, scans, tmp_path / "one", **where, **options, accumulate=2)
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert names[0] == names[1] and "adapted_model.safetensors" in names[0]
    ours, theirs = (load_file(tmp_path / folder / "adapted_model.safetensors") for folder in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


def test_bad_input_is_told_once_and_every_process_says_so(data, tmp_path):
    arguments = ["train", "--images", data / "images", "--labels", data / "absent", "--name", "x"]
    running = torchrun("MAPSegLib.cli", *arguments, "-o", tmp_path / "out")
    _, log = running.communicate(timeout=120)
    assert log.count("Error: ") == 2  # ours, and ChildFailedError of torchrun
    assert log.count("absent") == 1 and log.count("exitcode  : 2 ") == 2
    assert not (tmp_path / "out").exists()
