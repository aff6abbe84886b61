"""Working folders that others may have, too, and names that no system refuses."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import slicer
from MAPSegModule import batch, workfiles

from .conftest import add_ball


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_folder(parent, prefix, number, ending=""):
    """A working folder of another process, with a file in it."""
    folder = parent / (workfiles.own(prefix).removesuffix(str(os.getpid())) + f"{number}{ending}")
    folder.mkdir()
    (folder / "patient.nrrd").touch()
    return folder


def test_only_folders_of_processes_that_are_gone_are_removed(tmp_path, gone):
    ended, alive = (make_folder(tmp_path, "MAPSeg", number, "-x7") for number in (gone, os.getppid()))
    elsewhere = tmp_path / f"MAPSeg-another_machine-{gone}-x7"
    elsewhere.mkdir()
    (tmp_path / "MAPSeg-notes").mkdir()
    workfiles.remove_abandoned(tmp_path, "MAPSeg")
    assert (
        not ended.exists() and alive.exists() and elsewhere.exists() and (tmp_path / "MAPSeg-notes").exists()
    )


def test_a_batch_leaves_the_work_of_another_one_in_the_same_folder_alone(scene, tmp_path, model, gone):
    scan, output = tmp_path / "head.nii.gz", tmp_path / "out"
    scan.touch()
    one = batch.Batch(batch.parse(["--model", str(model), "--input", str(scan), "--output", str(output)]))
    prefix = one.work.name.removesuffix(workfiles.own(""))
    ended, alive = (make_folder(output, prefix, number) for number in (gone, os.getppid()))
    one.work.mkdir()
    one.clean()
    assert alive.exists() and not ended.exists() and not one.work.exists()


def test_copies_of_scans_that_a_crash_left_go_when_the_next_run_begins(start, tmp_path, monkeypatch, gone):
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    left = make_folder(tmp_path, "MAPSeg", gone, "-x7")
    run = start([add_ball()])
    folder = Path(run.items[0].file).parent
    assert not left.exists() and folder.name.startswith(f"{workfiles.own('MAPSeg')}-")
    workfiles.remove_abandoned(tmp_path, "MAPSeg")
    assert folder.exists()


@pytest.mark.parametrize(
    ("handle", "error", "lives"),
    [(12, 0, True), (0, 87, False), (0, 5, True)],
    ids=["there", "gone", "denied"],
)
def test_on_windows_no_process_is_ended_to_see_whether_it_lives(monkeypatch, handle, error, lives):
    """There, os.kill() ends it, whatever the signal."""
    kernel = SimpleNamespace(OpenProcess=lambda *_: handle, CloseHandle=lambda _: None)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert workfiles._lives_on_windows(1234) is lives


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("T1 [3] Schädel", "T1_3_Sch_del"),
        ("❤", "volume"),
        ("x" * 250, "x" * 80),
        ("x" * 79 + ". more", "x" * 79),
        ("CON", "volume_CON"),
        ("aux.old", "volume_aux.old"),
        ("com1", "volume_com1"),
        ("contrast", "contrast"),
        ("com10", "com10"),
    ],
)
def test_names_of_volumes_become_names_of_files(name, stem):
    assert workfiles.file_stem(name) == stem


def test_a_volume_of_a_very_long_name_is_segmented(start):
    run = start([add_ball("a" * 250)])
    run.wait()
    assert run.items[0].state == "done", run.items[0].message
