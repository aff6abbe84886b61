"""The worker as a process: its stream, signals, and continuing after a kill."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from MAPSegLib import api
from MAPSegLib.jobs import build_job
from MAPSegLib.worker import execute
from Testing.ball import OPTIONS

from .calls import CPU


def same_weights(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def at_step(step):
    return lambda event: event["event"] == "progress" and event.get("losses") and event["step"] >= step


def training(data):
    """A job that trains a tiny model; it lacks a folder."""
    folders = {"images": data / "images", "labels": data / "labels"}
    return {
        "task": "train",
        "name": "x",
        **folders,
        "preset": "tiny",
        "preprocessing": {"spacing": (2, 2, 2)},
    }


def test_a_killed_training_continues_to_the_same_weights(worker, data, tmp_path):
    options = OPTIONS | {"steps": 7, "checkpoint_every": 2, "reuse": 2}
    job = training(data)
    running = worker(job | {"output": tmp_path / "killed", "options": options})
    running.until(at_step(5))
    assert running.signal(signal.SIGKILL) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "x.safetensors").exists()

    events = []
    del job["task"], job["name"]
    api.train(tmp_path / "killed", "x", **job, **options, report=events.append)
    steps = [event["step"] for event in events if event.get("stage") == "train"]
    assert steps[0] > 1 and steps[-1] == 7
    api.train(tmp_path / "whole", "x", **job, **options)
    assert same_weights(tmp_path / "killed" / "x.safetensors", tmp_path / "whole" / "x.safetensors")


def test_a_killed_pretraining_continues_to_the_same_weights(worker, data, tmp_path):
    options = {
        "steps": 7,
        "checkpoint_every": 2,
        "scans": 2,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
    }
    options["picture_every"] = 0
    job = {"domains": [data / "images"], "preset": "tiny", "preprocessing": {"spacing": (2, 2, 2)}}
    place = {"task": "pretrain", "name": "x", "output": tmp_path / "killed"}
    running = worker(job | place | {"options": options})
    running.until(at_step(5))
    assert running.signal(signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "x.safetensors").exists()

    events = []
    api.pretrain(tmp_path / "killed", "x", **job, **options, report=events.append)
    steps = [event["step"] for event in events if event.get("stage") == "pretrain"]
    assert steps[0] > 1 and steps[-1] == 7
    api.pretrain(tmp_path / "whole", "x", **job, **options)
    assert same_weights(tmp_path / "killed" / "x.safetensors", tmp_path / "whole" / "x.safetensors")


def test_a_killed_adaptation_continues_to_the_same_weights(worker, model, data, tmp_path):
    scans = [data / "images" / "case0.nii.gz"]
    options = {"steps": 6, "check_every": 2, "threads": 1, "precision": "fp32", "device": "cpu"}
    job = {
        "task": "adapt",
        "model": str(model),
        "scans": scans,
        "output": tmp_path / "killed",
        "save_model": True,
    }
    running = worker(job | {"options": options})
    running.until(at_step(5))
    assert running.signal(signal.SIGKILL) == -signal.SIGKILL
    work = tmp_path / "killed" / "adaptation"
    assert (work / "checkpoint.pt").exists()

    events = []
    api.adapt(model, scans, tmp_path / "killed", save_model=True, report=events.append, **options)
    assert next(event["step"] for event in events if event.get("stage") == "adapt") > 1
    assert [path.name for path in work.iterdir()] == ["metrics.jsonl"]
    result = api.adapt(model, scans, tmp_path / "whole", save_model=True, **options)
    assert result["adaptation"]["steps"] == 6
    name = "adapted_model.safetensors"
    assert same_weights(tmp_path / "killed" / name, tmp_path / "whole" / name)


def test_a_killed_adaptation_beside_a_source_continues_to_the_same_weights(worker, model, data, tmp_path):
    scans = [data / "images" / "case0.nii.gz"]
    options = {"steps": 8, "warmup": 3, "check_every": 2, "threads": 1, "precision": "fp32", "device": "cpu"}
    where = {"source": data / "images", "source_labels": data / "labels", "save_model": True}
    job = {"task": "adapt", "model": str(model), "scans": scans, "output": tmp_path / "killed", **where}
    running = worker(job | {"options": options})
    running.until(at_step(7))
    assert running.signal(signal.SIGKILL) == -signal.SIGKILL

    events = []
    api.adapt(model, scans, tmp_path / "killed", report=events.append, **where, **options)
    assert next(event["step"] for event in events if event.get("stage") == "adapt") > 3
    api.adapt(model, scans, tmp_path / "whole", **where, **options)
    name = "adapted_model.safetensors"
    assert same_weights(tmp_path / "killed" / name, tmp_path / "whole" / name)


def test_sigterm_cancels_and_keeps_the_checkpoint(worker, data, tmp_path):
    job = training(data)
    options = OPTIONS | {"steps": 100_000, "checkpoint_every": 100_000}
    running = worker(job | {"output": tmp_path / "out", "options": options})
    running.until(at_step(3))
    assert running.signal(signal.SIGTERM) == 4
    assert running.events[-1]["event"] == "error" and running.events[-1]["kind"] == "cancelled"
    assert running.events[-1]["advice"] == "The same command continues."
    assert "Traceback" not in running.log
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["checkpoint.json", "checkpoint.pt", "metrics.jsonl"]


def test_ctrl_c_cancels_and_leaves_nothing_half_written(model, data, tmp_path):
    """On the command itself; an adaptation is interrupted before its first checkpoint."""
    command = [sys.executable, "-m", "MAPSegLib.cli", "adapt", model, data / "images" / "case0.nii.gz"]
    options = tmp_path / "options.json"
    options.write_text('{"check_every": 100000}')
    command += ["-o", tmp_path / "out", "--steps", "100000", "--minutes", "5", "--options", options]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    begun = tmp_path / "out" / "adaptation" / "checkpoint.json"
    try:
        while process.poll() is None and not begun.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        while process.poll() is None:  # users press more than once
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 4, errors
    assert errors.strip() == "Cancelled. Nothing was kept."
    assert not (tmp_path / "out").exists()


def test_a_signal_after_the_result_changes_nothing(model, data, tmp_path):
    command = [
        sys.executable,
        "-m",
        "MAPSegLib.cli",
        "segment",
        model,
        data / "images",
        "-o",
        tmp_path / "out",
    ]
    process = subprocess.Popen(list(map(str, [*command, *CPU])), stdout=subprocess.PIPE, encoding="utf-8")
    try:
        while not process.stdout.readline().endswith("volumes.csv\n"):
            assert process.poll() is None
        time.sleep(0.05)  # the interpreter is on its way out
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_went_away_does_not_change_what_is_done(data, tmp_path):
    command = [sys.executable, "-m", "MAPSegLib.cli", "evaluate", data / "labels", data / "labels"]
    process = subprocess.Popen(
        list(map(str, [*command, "-o", tmp_path / "out"])), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
    process.stderr.close()
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_what_is_done_is_not_cancelled(data, tmp_path):
    def emit(event):
        if event["event"] == "result":
            os.kill(os.getpid(), signal.SIGINT)

    job = {"task": "evaluate", "prediction": data / "labels", "reference": data / "labels"}
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert execute(lambda: build_job(job | {"output": tmp_path / "out"}), emit) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_only_events_reach_the_stream(worker, model, data, tmp_path):
    scans = [data / "images" / "case0.nii.gz", tmp_path / "absent.nii.gz"]
    running = worker({"task": "segment", "model": str(model), "scans": scans, "output": tmp_path / "out"})
    assert running.finish() == 2
    kinds = [event["event"] for event in running.events]
    assert kinds[:2] == ["started", "progress"] and kinds[-4:] == ["scan", "progress", "error", "result"]
    assert running.events[0]["pid"] == running.process.pid
    assert running.events[-4]["entry"] == running.events[-1]["scans"][0]
    assert running.events[-2]["scan"] == str(tmp_path / "absent.nii.gz")
    result = running.events[-1]
    assert [Path(file).name for file in result["files"]] == ["case0_seg.nii.gz", "report.json", "volumes.csv"]
    assert "does not exist" in result["failed"][0]["message"]


def test_a_reader_that_went_away_ends_the_job(worker, data, tmp_path):
    job = training(data)
    running = worker(job | {"output": tmp_path / "out", "options": OPTIONS | {"steps": 100_000}})
    running.until(at_step(1))
    running.process.stdout.close()
    assert running.process.wait(60) == 4
    assert "Traceback" not in running.process.stderr.read()


@pytest.mark.parametrize("attached", [True, False])
def test_a_line_cancels_and_so_does_the_end_of_an_attached_input(worker, data, tmp_path, attached):
    job = training(data)
    options = OPTIONS | {"steps": 100_000, "checkpoint_every": 1}
    running = worker(job | {"output": tmp_path / "out", "options": options}, *["--attached"] * attached)
    running.until(at_step(2))
    if attached:
        running.process.stdin.close()
        running.process.stdin = None
    else:
        running.process.stdin.write("nonsense\ncancel\n")
        running.process.stdin.flush()
    assert running.finish() == 4
    assert running.events[-1]["kind"] == "cancelled" and "Traceback" not in running.log
    assert (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_file_beside_the_job_ends_an_adaptation_with_its_best_step(worker, model, data, tmp_path):
    options = {"steps": 100_000, "minutes": 100, "check_every": 1, "patience": 100_000, "device": "cpu"}
    job = {
        "task": "adapt",
        "model": str(model),
        "scans": [data / "images" / "case0.nii.gz"],
        "options": options,
    }
    running = worker(job | {"output": tmp_path / "out"})
    running.until(at_step(2))
    (tmp_path / "stop").touch()
    assert running.finish() == 0
    found = running.events[-1]["adaptation"]
    assert 2 <= found["steps"] < 100 and found["best_step"] <= found["steps"]


@pytest.mark.parametrize("content", ["{", '{"task": "segment"}'])
def test_job_files_that_cannot_be_run(content, tmp_path, capfd):
    from MAPSegLib.worker import main

    (tmp_path / "job.json").write_text(content)
    code = f"from MAPSegLib.worker import main; import sys; sys.exit(main([{str(tmp_path / 'job.json')!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    started, error = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 2 and started["event"] == "started" and error["kind"] == "input"
    assert main([]) == 2 and "usage" in capfd.readouterr().err


def at_a_terminal(command):
    """Run a command line in an interactive shell with a terminal of its own; its exit code."""
    ours, theirs = os.openpty()

    def own_terminal():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    shell = subprocess.Popen(
        ["bash", "--norc", "-i", "-c", command],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=own_terminal,
    )
    try:
        return shell.wait(60)
    finally:
        shell.kill()
        os.close(ours)
        os.close(theirs)


def test_an_adaptation_runs_in_the_background_of_a_shell(model, data, tmp_path):
    arguments = [model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", "--steps", "2", *CPU]
    command = shlex.join([sys.executable, "-m", "MAPSegLib.cli", "adapt", *map(str, arguments)])
    assert at_a_terminal(f"{command} & wait $!") == 0
    assert (tmp_path / "out" / "case0_seg.nii.gz").exists()


def test_an_adaptation_needs_no_standard_input(model, data, tmp_path):
    arguments = [model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", "--steps", "2", *CPU]
    command = shlex.join([sys.executable, "-m", "MAPSegLib.cli", "adapt", *map(str, arguments)])
    assert subprocess.run(["bash", "-c", f"{command} <&-"], capture_output=True).returncode == 0
