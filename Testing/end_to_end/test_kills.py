"""Jobs that are killed while they write, and the same command again."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from .calls import CPU, files, mapseg, refused

DYING = """
import os, signal, sys
from pathlib import Path

replace, name = os.replace, sys.argv[1]

def dying(source, target):
    if Path(target).name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
from MAPSegLib.cli import app
app(sys.argv[2:])
"""


def killed(name, *arguments):
    """Run a command up to where a file is complete and would get its name: power cuts end it like this."""
    command = [sys.executable, "-c", DYING, name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def mapped(folder, *cases, kinds=("seg", "uncertainty")):
    """The files of a segmentation that is complete."""
    maps = [f"{case}_{kind}.nii.gz" for case in cases for kind in kinds]
    assert "unfinished" not in (folder / "report.json").read_text(encoding="utf-8")
    return sorted([*maps, "report.json", "volumes.csv"])


@pytest.mark.parametrize(
    "last", ["report.json", "case0_uncertainty.nii.gz", "volumes.csv", "case1_seg.nii.gz"]
)
def test_a_segmentation_that_was_killed_while_it_wrote_goes_on(last, model, data, tmp_path):
    scans = [data / "images" / f"case{i}.nii.gz" for i in (0, 1)]
    command = ["segment", model, *scans, "-o", tmp_path, "--uncertainty", *CPU]
    killed(last, *command)
    assert any(name.endswith(f"-{last}") for name in files(tmp_path))
    mapseg(*command)
    assert files(tmp_path) == mapped(tmp_path, "case0", "case1")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [scan["file"] for scan in report["scans"]] == list(map(str, scans))


def test_half_results_beside_the_scans_are_no_scans(model, data, tmp_path):
    for case in ("case0", "case1"):
        shutil.copy(data / "images" / f"{case}.nii.gz", tmp_path)
    command = ["segment", model, tmp_path, "-o", tmp_path, *CPU]
    killed("volumes.csv", *command)
    assert "case0_seg.nii.gz" in files(tmp_path)
    mapseg(*command)
    scans = ["case0.nii.gz", "case1.nii.gz"]
    assert files(tmp_path) == sorted([*scans, *mapped(tmp_path, "case0", "case1", kinds=["seg"])])


@pytest.mark.parametrize("last", ["case0_seg_source.nii.gz", "adapted_model.safetensors", "report.json"])
def test_an_adaptation_that_was_killed_while_it_wrote_goes_on(last, model, data, tmp_path):
    command = ["adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path, "--steps", 2, "--save-model"]
    killed(last, *command, *CPU)
    assert "adaptation/checkpoint.pt" in files(tmp_path)
    _, told = mapseg(*command, *CPU)
    assert "Continuing an adaptation that was interrupted." in told
    sides = mapped(tmp_path, "case0", kinds=["seg", "seg_source", "seg_adapted"])
    assert files(tmp_path) == sorted([*sides, "adaptation/metrics.jsonl", "adapted_model.safetensors"])


def test_after_a_kill_what_is_not_the_jobs_own_stays(model, data, tmp_path):
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    killed("volumes.csv", "segment", model, scan, "-o", out, *CPU)
    there = [name for name in files(out) if name != ".mapseg.lock"]
    told = refused("segment", model, scan, "-o", out, "--overlap", 0.2, *CPU)
    assert "case0_seg.nii.gz and 1 more are already there" in told and files(out) == there
    mine = [out / name for name in ("case0_uncertainty.nii.gz", "case1_seg.nii.gz", ".12345678-notes.txt")]
    for path in mine:
        path.write_text("precious")
    mapseg("segment", model, scan, "-o", out, *CPU)
    own = mapped(out, "case0", kinds=["seg"])
    assert files(out) == sorted([*own, *(path.name for path in mine)])


def test_a_training_that_was_killed_while_it_wrote_leaves_no_parts(data, tmp_path):
    command = ["train", "--images", data / "images", "--labels", data / "labels", "--name", "x"]
    command += ["--preset", "tiny", "--spacing", 4, "--steps", 1, "-o", tmp_path, *CPU]
    killed("x.safetensors", *command)
    assert any(name.endswith("-x.safetensors") for name in files(tmp_path))
    mapseg(*command)
    assert files(tmp_path) == ["metrics.jsonl", "x.safetensors"]
