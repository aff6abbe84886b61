"""What ``--overwrite`` replaces and removes, and what it leaves alone."""

import json
import shutil

import pytest

from .calls import CPU, files, mapseg, refused

MODEL = "adapted_model.safetensors"


@pytest.fixture
def adapted(model, data, tmp_path):
    """The command of an adaptation whose model was kept."""
    command = ["adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path, "--steps", 1, *CPU]
    mapseg(*command, "--save-model")
    assert MODEL in files(tmp_path)
    return command


def test_an_adapted_model_does_not_pass_for_that_of_the_next_run(adapted, model, data, tmp_path):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(model, mine)
    mapseg(*adapted, "--overwrite")
    assert MODEL not in files(tmp_path) and mine.exists()


def test_an_adapted_model_stays_where_it_is_in_use_or_other_scans_are_segmented(adapted, data, tmp_path):
    own = tmp_path / MODEL
    mapseg("segment", own, data / "images" / "case0.nii.gz", "-o", tmp_path, "--overwrite", *CPU)
    assert own.exists()
    report = tmp_path / "report.json"
    told = json.loads(report.read_text(encoding="utf-8")) | {"model_file": str(own)}
    report.write_text(json.dumps(told))
    mapseg("segment", adapted[1], data / "images" / "case1.nii.gz", "-o", tmp_path, "--overwrite", *CPU)
    assert own.exists()


def test_a_map_that_no_report_names_stays(model, data, tmp_path):
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", tmp_path, *CPU)
    mine = tmp_path / "case0_uncertainty.nii.gz"
    mine.write_text("precious")
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", tmp_path, "--overwrite", *CPU)
    assert mine.read_text() == "precious"


def test_a_scan_that_is_an_earlier_runs_map_stays(model, data, tmp_path):
    """However it is spelled."""
    (tmp_path / "d").mkdir()
    scan = data / "images" / "case0.nii.gz"
    mapseg("segment", model, scan, "-o", tmp_path, "--uncertainty", *CPU)
    before = (tmp_path / "case0_uncertainty.nii.gz").read_bytes()
    given = [scan, tmp_path / "d" / ".." / "case0_uncertainty.nii.gz"]
    mapseg("segment", model, *given, "-o", tmp_path, "--overwrite", *CPU)
    assert (tmp_path / "case0_uncertainty.nii.gz").read_bytes() == before


def test_a_label_map_of_the_source_is_not_replaced(model, data, tmp_path):
    """By the result of a target scan that is called like the source's."""
    mine = shutil.copy(data / "labels" / "case0.nii.gz", tmp_path / "case0_seg.nii.gz")
    before = mine.read_bytes()
    source = ["--source", shutil.copytree(data / "images", tmp_path / "images") / "case0.nii.gz"]
    command = ["adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path, *source, *CPU]
    told = refused(*command, "--source-labels", tmp_path, "--overwrite")
    assert "case0_seg.nii.gz, which this job reads" in told and mine.read_bytes() == before


@pytest.mark.parametrize("task", ["segment", "adapt"])
def test_one_result_that_is_there_refuses_all_before_a_model_is_loaded(
    task, model, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("MAPSegLib.tasks.scans.load_candidates", pytest.fail)
    (tmp_path / "case1_seg.nii.gz").write_text("precious")
    told = refused(task, model, data / "images", "-o", tmp_path, *CPU)
    assert "case1_seg.nii.gz is already there" in told
