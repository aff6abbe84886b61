"""What a full disk, a closed terminal or too little memory leaves behind."""

import errno
import io
import os
import resource

import pytest
from rich.console import Console

from MAPSegLib import api, console
from MAPSegLib.errors import InputError

from .calls import CPU, files, mapseg, refused


def test_outputs_that_cannot_be_written(model, data, tmp_path):
    scan = data / "images" / "case0.nii.gz"
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("segment", model, scan, "-o", tmp_path / "file" / "out", *CPU)
    assert "cannot be written" in refused("segment", model, scan, "-o", "/proc/mapseg", *CPU)
    assert files(tmp_path) == ["file"]


def test_memory_that_runs_out_is_told(model, data, tmp_path, monkeypatch):
    from MAPSegLib import inference

    def no_memory(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr(inference, "class_logits", no_memory)
    scan = data / "images" / "case0.nii.gz"
    assert "Not enough memory" in refused("segment", model, scan, "-o", tmp_path / "out", *CPU, code=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["segment", "adapt", "train"])
def test_a_full_disk(task, model, data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "out"
    if task == "train":
        pairs = ["--images", data / "images", "--labels", data / "labels", "--name", "x", "--preset", "tiny"]
        text = refused("train", *pairs, "--steps", 1, "-o", out, *CPU)
    else:
        steps = ["--steps", 1] if task == "adapt" else []
        text = refused(task, model, data / "images", "-o", out, *steps, *CPU)
    assert "no space left" in text.lower()
    assert not out.exists()


def test_a_log_that_cannot_be_written_ends_no_job(model, data, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("_out", "_err"):
        monkeypatch.setattr(console, name, Console(file=Closed()))
    monkeypatch.setattr(console, "LOG_SECONDS", 0)
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", *CPU)
    assert files(tmp_path / "out") == ["case0_seg.nii.gz", "report.json", "volumes.csv"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_that_is_closed_meanwhile_hides_no_result_and_no_failure(fails, monkeypatch):
    class Terminal(io.StringIO):
        closed_meanwhile = False

        def write(self, text):
            if self.closed_meanwhile:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(text)

    terminal, told = Terminal(), []
    monkeypatch.setattr(console, "_err", Console(file=terminal, force_terminal=True))
    monkeypatch.setattr(console, "show_result", told.append)
    with console._Display() as display:
        terminal.closed_meanwhile = True
        event = {"event": "error", "kind": "input", "message": "No.", "advice": ""}
        display.emit(event if fails else {"event": "result"})
    assert len(told) == (not fails)


def test_no_empty_lines_go_to_a_log(monkeypatch, capsys):
    """With any version of rich: before 14.3, stopping a bar that is not shown writes one."""
    monkeypatch.setattr(console.Progress, "stop", lambda self: self.console.print())
    monkeypatch.setattr(console, "show_result", lambda event: None)
    with console._Display() as display:
        display.emit({"event": "result"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("limit", [300, 20_000])
def test_files_that_the_system_cuts_short(limit, model, data, tmp_path):
    pairs = {"images": data / "images", "labels": data / "labels", "preset": "tiny"}
    options = {"steps": 1, "patches": 1, "threads": 1}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(InputError, match="written"):
            api.train(tmp_path / "t", "x", **pairs, **options)
        if limit < 1000:
            with pytest.raises(InputError, match="written"):
                api.segment(model, data / "images", tmp_path / "s", threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert files(tmp_path) == []
