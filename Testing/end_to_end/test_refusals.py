"""How the commands refuse bad input."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click import unstyle
from rich.console import Console
from typer.testing import CliRunner

from MAPSegLib import api, cli, console
from MAPSegLib.errors import InputError
from MAPSegLib.tasks import findings

from .calls import CPU, files, labels_of, mapseg, refused


def test_models_that_cannot_be_used(model, data, tmp_path):
    import torch

    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    assert "Unknown model nobody; known: " in refused("segment", "nobody", scan, "-o", out)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"a": torch.zeros(1)}, pickled)
    assert "pickled checkpoint" in refused("segment", pickled, scan, "-o", out)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(model.read_bytes()[:-100])
    assert "damaged" in refused("adapt", damaged, scan, "-o", out)
    newer = tmp_path / "newer.safetensors"
    newer.write_bytes(model.read_bytes().replace(rb"\"format_version\":1", rb"\"format_version\":9", 1))
    assert "model format 9" in refused("segment", newer, scan, "-o", out)
    assert not out.exists()


def test_options_out_of_bounds(model, data, tmp_path):
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    assert "options.overlap" in refused("segment", model, scan, "-o", out, "--overlap", 1)
    assert "options.device" in refused("segment", model, scan, "-o", out, "--device", "tpu")
    options = tmp_path / "options.json"
    options.write_text('{"step": 3}')
    assert "options.step" in refused("adapt", model, scan, "-o", out, "--options", options)
    assert "not exist" in refused("adapt", model, scan, "-o", out, "--options", tmp_path / "absent.json")
    assert not out.exists()


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"abc"', "[" * 3000])
def test_option_files_that_hold_no_options(model, data, tmp_path, content):
    options = tmp_path / "options.json"
    options.write_text(content)
    scan = data / "images" / "case0.nii.gz"
    told = refused("segment", model, scan, "-o", tmp_path / "out", "--options", options)
    assert "options.json is not a JSON file with options" in told


@pytest.mark.parametrize("content", ['{"batch": 2,\n}', '{"batch": 2,\n// two\n"overlap": 0.5}', "batch:\n2"])
def test_where_a_file_is_no_json_is_told(content, model, data, tmp_path):
    options = tmp_path / "options.json"
    options.write_text(content)
    scan = data / "images" / "case0.nii.gz"
    told = refused("segment", model, scan, "-o", tmp_path / "out", "--options", options)
    # Python 3.13 points at a last comma, the others at what follows it.
    assert re.search(r"\(line [12], column (1|12)\)", told) and "no comments" in told


def test_a_seed_that_no_generator_takes(model, data, tmp_path):
    with pytest.raises(InputError, match="seed"):
        api.adapt(model, data / "images", tmp_path / "out", seed=2**63)


@pytest.mark.skipif(os.name != "posix", reason="needs names that are any bytes")
def test_a_name_that_is_not_utf8_stops_nothing(model, data, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a.nii.gz", b"x\xff.nii.gz", b"z.nii.gz"):
        shutil.copy(data / "images" / "case0.nii.gz", os.fsencode(folder) + b"/" + name)
    result = api.segment(model, folder, tmp_path / "out", threads=1)
    assert len(result["scans"]) == 3 and not result["failed"]
    assert b"x\xff_seg.nii.gz" in os.listdir(os.fsencode(tmp_path / "out"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are any bytes")
def test_a_model_whose_name_is_not_utf8_is_not_told_to_be_damaged(model, data, tmp_path):
    named = shutil.copy(model, tmp_path / os.fsdecode(b"\xe4.safetensors"))
    with pytest.raises(InputError, match="is not UTF-8"):
        api.segment(named, data / "images" / "case0.nii.gz", tmp_path / "out", threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are any bytes")
def test_a_name_that_is_not_utf8_and_that_itk_cannot_take_stops_no_other(model, data, tmp_path):
    folder, latin = tmp_path / "in", tmp_path / os.fsdecode(b"\xe4")
    folder.mkdir()
    scan = sitk.ReadImage(str(data / "images" / "case0.nii.gz"))
    for name in ("a.mha", "c.nrrd"):
        sitk.WriteImage(scan, str(folder / name))
    (folder / "a.mha").rename(folder / f"a{latin.name}.mha")
    shutil.copy(data / "images" / "case0.nii.gz", folder / "b.nii.gz")
    result = api.segment(model, folder, tmp_path / "out", threads=1)
    assert [Path(scan["file"]).name for scan in result["scans"]] == ["b.nii.gz", "c.nrrd"]
    assert "letters in it with which such files cannot be read" in result["failed"][0]["message"]
    result = api.segment(model, folder, latin, threads=1)  # results are written as the scans came
    assert [Path(scan["file"]).name for scan in result["scans"]] == ["b.nii.gz"]
    assert len(result["failed"]) == 2 and not list(latin.glob("*.nrrd"))


def test_a_result_that_cannot_be_written_stops_no_other(model, data, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "x" * 240, "z"):
        shutil.copy(data / "images" / "case0.nii.gz", folder / f"{name}.nii.gz")
    _, errors = mapseg("segment", model, folder, "-o", tmp_path / "out", *CPU, code=2)
    assert "the name is too long" in errors
    assert files(tmp_path / "out") == ["a_seg.nii.gz", "report.json", "volumes.csv", "z_seg.nii.gz"]
    assert "too long for results" in refused("adapt", model, folder, "-o", tmp_path / "adapted", *CPU)
    assert not (tmp_path / "adapted").exists()


def test_a_scan_whose_second_map_cannot_be_written_leaves_no_first(model, data, tmp_path, monkeypatch):
    write = findings.write_volume

    def full(path, *arguments, **options):
        if "uncertainty" in path.name:
            raise InputError(f"{path} cannot be written: no space left.")
        return write(path, *arguments, **options)

    monkeypatch.setattr(findings, "write_volume", full)
    scan = data / "images" / "case0.nii.gz"
    assert "no space left" in refused("segment", model, scan, "-o", tmp_path / "out", "--uncertainty", *CPU)
    assert not (tmp_path / "out").exists()


def test_results_beside_the_scans_are_no_scans(model, data, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(data / "images", folder)
    count = len(list(folder.iterdir()))
    for flags in ([], ["--overwrite"]):
        mapseg("segment", model, folder, "-o", folder, "--uncertainty", *flags, *CPU)
        assert len(json.loads((folder / "report.json").read_text(encoding="utf-8"))["scans"]) == count


def test_an_empty_argument_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mapseg", "segment", "brain", "a.nii", "-o", ""])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "an argument is empty" in capsys.readouterr().err


def test_scans_named_alike_go_together_where_one_is_linked_by_another_name(model, data, tmp_path):
    other = shutil.copytree(data / "images", tmp_path / "other") / "case0.nii.gz"
    told = refused("adapt", model, data / "images" / "case0.nii.gz", other, "-o", tmp_path / "out")
    assert "Link one by another name" in told
    (tmp_path / "b0.nii.gz").symlink_to(other)
    scans = [data / "images" / "case0.nii.gz", tmp_path / "b0.nii.gz"]
    mapseg("segment", model, *scans, "-o", tmp_path / "out", *CPU)
    assert {"b0_seg.nii.gz", "case0_seg.nii.gz"} < set(files(tmp_path / "out"))


@pytest.mark.parametrize(
    ("command", "flag", "advice"),
    [
        (("adapt", "brain", "scan.nii.gz"), "--source", "`mapseg manifest` makes one"),
        (("train", "--name", "x"), "--images", "`mapseg manifest` makes one"),
        (("train", "--name", "x", "--images", "i"), "--labels", "Put the label maps into one"),
        (("pretrain", "--name", "x"), "--from-labels", "Put the label maps into one"),
    ],
)
def test_data_that_are_given_twice_are_refused(command, flag, advice, tmp_path):
    result = CliRunner().invoke(cli.app, [*command, "-o", str(tmp_path / "out"), flag, "a", f"{flag}=b"])
    told = " ".join(unstyle(result.stderr).replace("│", " ").split())
    assert result.exit_code == 2 and f"{flag} can be given once. {advice}" in told


def test_names_with_brackets_are_shown_as_they_are(data, tmp_path):
    table = tmp_path / "table.json"
    table.write_text('{"1": "head [left]", "2": "body [/mm]"}', encoding="utf-8")
    arguments = ["--images", data / "images", "--labels", data / "labels", "--label-table", table]
    arguments += ["--preset", "tiny", "--spacing", 2, "--steps", 1]
    mapseg("train", *arguments, "--name", "m", "-o", tmp_path / "m", *CPU)
    own = tmp_path / "m" / "m.safetensors"
    told, _ = mapseg("segment", own, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", *CPU)
    assert "head [left]" in told and "body [/mm]" in told


def test_a_failure_is_told_once(model, tmp_path):
    for given in (["none.nii"], ["none.nii", "nowhere.nii"]):
        text = refused("segment", model, *(tmp_path / s for s in given), "-o", tmp_path / "out", *CPU)
        assert text.count("Error: ") == len(given) and all(text.count(s) == 1 for s in given)


def test_a_path_that_is_too_long_stops_no_other(model, data, tmp_path):
    scan, long = data / "images" / "case0.nii.gz", tmp_path / f"{'x' * 300}.nii.gz"
    (tmp_path / "out").mkdir()
    _, errors = mapseg("segment", model, long, scan, "-o", tmp_path / "out", *CPU, code=2)
    assert "does not exist or cannot be reached" in errors
    assert "case0_seg.nii.gz" in files(tmp_path / "out")
    assert "too long" in refused("segment", model, scan, "-o", tmp_path / ("y" * 300), *CPU)


def test_folders_without_scans(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    assert "holds no scans" in refused("segment", model, tmp_path / "empty", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


RESULTS = {
    "segment": [
        "case0_seg.nii.gz",
        "case0_uncertainty.nii.gz",
        "case0_probabilities.nii.gz",
        "report.json",
        "volumes.csv",
    ],
    "adapt": ["case0_seg.nii.gz", "case0_seg_source.nii.gz", "report.json", "adapted_model.safetensors"],
    "train": ["x.safetensors"],
    "evaluate": ["metrics.json", "metrics.csv"],
}


@pytest.mark.parametrize(("task", "there"), [(task, name) for task in RESULTS for name in RESULTS[task]])
def test_results_are_not_replaced_unasked(task, there, model, data, tmp_path):
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    given = {
        "segment": [model, scan, "--uncertainty", "--probabilities"],
        "adapt": [model, scan, "--steps", 1, "--save-model"],
        "train": ["--images", data / "images", "--labels", data / "labels", "--name", "x", "--steps", 1],
        "evaluate": [data / "labels", data / "labels"],
    }
    out.mkdir()
    (out / there).write_text("precious")
    assert "already there" in refused(task, *given[task], "-o", out)
    assert files(out) == [there] and (out / there).read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("task", ["segment", "adapt"])
def test_results_are_replaced_where_that_is_asked_for(task, model, data, tmp_path):
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    steps = ["--steps", 1] if task == "adapt" else []
    out.mkdir()
    (out / "case0_seg.nii.gz").write_text("worthless")
    mapseg(task, model, scan, "-o", out, "--overwrite", *steps, *CPU)
    assert labels_of(out / "case0_seg.nii.gz").max() == 2


def test_reports_of_other_scans_are_not_replaced_and_how_to_go_on_is_told(model, data, tmp_path):
    out, other = tmp_path / "out", ["--overlap", 0.2]
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", out, *CPU)
    told = refused("segment", model, data / "images" / "case1.nii.gz", "-o", out, *CPU, *other)
    assert "already there, of other scans. Give all scans to one command, or name the result" in told
    (out / "case0_seg.nii.gz").unlink()  # the report is of this very scan
    told_again = refused("segment", model, data / "images" / "case0.nii.gz", "-o", out, *CPU, *other)
    assert "of other scans" not in told_again and "--overwrite" in told_again
    named = out / "case1_seg.nii.gz"
    assert str(named) in told
    mapseg("segment", model, data / "images" / "case1.nii.gz", "-o", named, *CPU)
    assert labels_of(named).max() == 2


@pytest.mark.parametrize("task", ["segment", "adapt"])
def test_an_earlier_runs_results_do_not_pass_for_those_of_the_next(task, model, data, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(data / "images", scans)
    (out / "mine").mkdir(parents=True)
    mine = [out / "mine" / "case0_seg.nii.gz", out / "notes_seg.nii.gz"]
    for path in mine:
        path.write_text("precious")
    more = ["--steps", 1] if task == "adapt" else []
    mapseg(task, model, scans, "-o", out, "--uncertainty", *more, *CPU)
    (scans / "case0.nii.gz").write_text("damaged")
    mapseg("segment", model, scans, "-o", out, "--overwrite", *CPU, code=2)
    kept = {name for name in files(out) if name.endswith(".nii.gz")}
    own = {str(path.relative_to(out)) for path in mine}
    assert kept == own | {"case1_seg.nii.gz", "case2_seg.nii.gz"}
    for case in ("case1", "case2"):
        (scans / f"{case}.nii.gz").write_text("damaged")
    mapseg("segment", model, scans, "-o", out, "--overwrite", *CPU, code=2)  # now none comes through
    assert {name for name in files(out) if name.endswith(".nii.gz")} == own
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["scans"] == [] and len(report["failed"]) == 3


def test_what_no_report_tells_of_is_not_removed(model, data, tmp_path):
    for name in ("x.nii.gz", "x_uncertainty.nii.gz"):
        shutil.copy(data / "images" / "case0.nii.gz", tmp_path / name)
    mine = tmp_path / "x_seg_source.nii.gz"
    mine.write_text("precious")
    scans = [tmp_path / "x.nii.gz", tmp_path / "x_uncertainty.nii.gz"]
    for more in ([], ["--overwrite"]):
        mapseg("segment", model, *scans, "-o", tmp_path, *more, *CPU)
    assert mine.read_text() == "precious" and all(scan.exists() for scan in scans)


def test_a_result_never_replaces_the_scan(model, data, tmp_path):
    scan = shutil.copy(data / "images" / "case0.nii.gz", tmp_path / "scan.nii.gz")
    before = (tmp_path / "scan.nii.gz").read_bytes()
    assert "would replace the scan" in refused("segment", model, scan, "-o", scan, "--overwrite")
    assert (tmp_path / "scan.nii.gz").read_bytes() == before


def test_one_bad_scan_among_many(model, data, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(data / "images", folder)
    (folder / "case1.nii.gz").write_bytes((folder / "case1.nii.gz").read_bytes()[:2000])
    for task, more in (("segment", []), ("adapt", ["--steps", 1])):
        out = tmp_path / task
        text, errors = mapseg(task, model, folder, "-o", out, *more, *CPU, code=2)
        assert "case2.nii.gz" in text and errors.endswith("1 failed: case1.nii.gz")
        assert "case1_seg.nii.gz" not in files(out) and "case2_seg.nii.gz" in files(out)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert len(report["scans"]) == 2 and report["failed"][0]["kind"] == "input"
        assert "case1.nii.gz" in report["failed"][0]["message"]


def test_a_scan_that_can_be_read_and_not_prepared_stops_no_other(model, data, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(data / "images", folder)
    huge = np.random.default_rng(0).random((60, 60, 60), dtype=np.float32)
    nib.save(nib.Nifti1Image(huge, np.diag([45.0, 45.0, 45.0, 1.0])), folder / "case1.nii.gz")
    for task, more in (("segment", []), ("adapt", ["--steps", 1])):
        text, errors = mapseg(task, model, folder, "-o", tmp_path / task, *more, *CPU, code=2)
        assert "case2.nii.gz" in text and errors.endswith("1 failed: case1.nii.gz")
        assert "case1.nii.gz is 2700 x 2700 x 2700 mm large, too much for this model" in errors


def test_nothing_is_left_when_every_scan_is_bad(model, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no image")
    for task in ("segment", "adapt"):
        assert "bad.nii.gz" in refused(
            task, model, bad, tmp_path / "absent.nii.gz", "-o", tmp_path / "out", *CPU
        )
    assert files(tmp_path) == ["bad.nii.gz"] and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="does not exist"):
        api.segment(model, tmp_path / "absent.nii.gz", tmp_path / "out")


def test_unforeseen_failures_of_one_scan_stop_no_other(model, data, tmp_path, monkeypatch):
    from MAPSegLib import inference

    real, calls = inference.segment_scan, []

    def fails_once(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("boom")
        return real(*arguments, **named)

    monkeypatch.setattr(inference, "segment_scan", fails_once)
    result = api.segment(model, data / "images", tmp_path, device="cpu", threads=1)
    assert len(result["scans"]) == 2
    assert result["failed"][0]["kind"] == "error" and "ZeroDivisionError" in result["failed"][0]["message"]


def test_trainings_that_cannot_start(data, tmp_path):
    out = ["-o", tmp_path / "out", "--name", "x", *CPU]
    images, labels = ["--images", data / "images"], ["--labels", data / "labels"]
    assert "has a label map" in refused("train", *images, *out)
    assert "too few to keep 3 back" in refused("train", *images, *labels, "--holdout", 3, *out)
    assert "label map" in refused("train", "--images", data / "labels", *labels, *out)
    table = tmp_path / "table.json"
    table.write_text('{"7": "nothing"}')
    assert "No label map holds any of the structures' values [7]" in refused(
        "train", *images, *labels, "--label-table", table, *out
    )
    assert files(tmp_path) == ["table.json"] and not (tmp_path / "out").exists()


def test_every_command_explains_itself():
    listed, _ = mapseg("--help")
    for command in (
        "segment",
        "adapt",
        "train",
        "pretrain",
        "evaluate",
        "manifest",
        "models",
        "import",
        "synthesise",
        "demo",
    ):
        assert command in listed
        assert "Usage" in mapseg(command, "--help")[0]
    assert mapseg("--version")[0].startswith("mapseg ")


def test_errors_are_one_line_each(monkeypatch, capsys):
    screen = Console(stderr=True, width=40)
    monkeypatch.setattr(console, "_err", screen)
    assert console.show_models("nobody") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", '{"1": 70000}'])
def test_a_mapping_that_is_none_is_told_with_its_file(content, data, tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(content)
    told = refused("evaluate", data / "labels", data / "labels", "-o", tmp_path / "o", "--mapping", mapping)
    assert f"{mapping} is not a mapping: " in told and 'It should hold {"10": 1}' in told


def test_of_files_named_alike_the_folder_is_told(data, tmp_path):
    damaged = shutil.copytree(data / "labels", tmp_path / "damaged")
    whole = nib.load(damaged / "case1.nii.gz")
    halves = np.asarray(whole.dataobj, np.float32) / 2
    nib.save(nib.Nifti1Image(halves, whole.affine), damaged / "case1.nii.gz")
    told = f"{damaged / 'case1.nii.gz'} is not a label map"
    arguments = ["--images", data / "images", "--labels", damaged, "--name", "x", "--preset", "tiny"]
    assert told in refused("train", *arguments, "-o", tmp_path / "out")
    assert told in refused("train", *arguments, "-o", tmp_path / "out", "--label-table", _table(tmp_path))
    assert told in mapseg("evaluate", data / "labels", damaged, "-o", tmp_path / "scores", code=2)[1]
    arguments[1:4:2] = [damaged, data / "labels"]
    assert f"{damaged / 'case0.nii.gz'} looks like a label map" in refused(
        "train", *arguments, "-o", tmp_path / "out"
    )


def _table(folder):
    (folder / "table.json").write_text('{"1": "shell", "2": "core"}')
    return folder / "table.json"


def test_references_without_structures_are_told_with_their_place(data, tmp_path):
    empty = tmp_path / "r0"
    empty.mkdir()
    for path in (data / "labels").iterdir():
        whole = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(whole.shape, np.uint8), whole.affine), empty / path.name)
    told = refused("evaluate", data / "labels", empty, "-o", tmp_path / "o")
    assert f"{empty} holds no structures to score. Check the references" in told


def test_a_report_that_another_job_wrote_meanwhile_stays(model, data, tmp_path):
    def meanwhile(event):
        if event.get("stage") == "segment":
            (tmp_path / "report.json").write_text("another's")

    with pytest.raises(InputError, match=r"report.json already exists"):
        api.segment(model, data / "images" / "case0.nii.gz", tmp_path, report=meanwhile, threads=1)
    assert (tmp_path / "report.json").read_text() == "another's"
    assert files(tmp_path) == ["report.json"]
