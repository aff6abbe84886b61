"""The headless script, as the application runs it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from MAPSegModule.cases import find_cases
from MAPSegModule.selftest import make_ball

from MAPSegLib.levels import LIKE_CT
from MAPSegLib.metrics import dice_scores
from MAPSegLib.models import load_card, save_model
from MAPSegLib.volumes import Volume, check_same_grid, read_image, read_labels, write_volume
from Testing.host import batch as host

from .conftest import LEFT_HANDED, eventually, left_handed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path, model):
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"threads": 1, "precision": "fp32"}))
    return [
        "--model",
        str(model),
        "--device",
        "cpu",
        "--options",
        str(options),
        "--output",
        str(tmp_path / "out"),
    ]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_and_dicom_in_segmentations_and_tables_out(inputs, tmp_path, arguments):
    output = tmp_path / "out"
    assert host.run_script([*arguments, "--input", str(inputs), "--uncertainty"]) == 2
    done = ["dicom", "dicom_2", "head", "second_head"]
    expected = [f"{name}.seg.nrrd" for name in done] + [f"{name}_seg.nii.gz" for name in done]
    expected += ["head_uncertainty.nii.gz", "second_head_uncertainty.nrrd"]
    expected += ["dicom_uncertainty.nii.gz", "dicom_2_uncertainty.nii.gz"]
    expected += [f"cases/{name}.json" for name in [*done, "bad"]] + ["report.json", "volumes.csv"]
    assert names(output) == sorted(expected)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert {one["case"]: one["state"] for one in report["scans"]} == {
        **dict.fromkeys(done, "done"),
        "bad": "failed",
    }
    rows = list(csv.DictReader((output / "volumes.csv").open()))
    assert len(rows) == 8 and {row["scan"] for row in rows} == set(done) and float(rows[0]["volume_ml"]) > 0

    # The label map lies on the scan's own voxels; the segmentation file says the same in space.
    scan, labels = nib.load(inputs / "head.nii.gz"), nib.load(output / "head_seg.nii.gz")
    assert scan.shape == labels.shape and np.array_equal(scan.affine, labels.affine)
    truth = left_handed(make_ball(6, 0)[1])
    values = np.asarray(labels.dataobj)
    assert min(dice_scores(values, truth, (1, 2)).values()) > 0.6  # mirrored, the core has at most half
    other = sitk.ReadImage(str(output / "head.seg.nrrd"))
    resampled = sitk.Resample(
        other, sitk.ReadImage(str(output / "head_seg.nii.gz")), sitk.Transform(), sitk.sitkNearestNeighbor
    )
    assert np.array_equal(sitk.GetArrayFromImage(resampled), values.transpose(2, 1, 0))
    assert other.GetMetaData("Segment0_Name") == "structure 1"


def save(path: Path, affine, kind=nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = make_ball(6, 0)[0].transpose(2, 1, 0)
    if path.name.endswith(".nii.gz") or path.suffix == ".nii":
        nib.save(kind(array, affine), path)
        return path
    return write_volume(path, array, Volume(array, np.array(affine)))


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_label_maps_lie_on_left_handed_grids_as_they_are(tmp_path, arguments, suffix):
    """Slicer's own reader would turn the slices round."""
    scan = save(tmp_path / "in" / f"a{suffix}", LEFT_HANDED)
    assert np.linalg.det(read_image(scan).affine) < 0
    assert host.run_script([*arguments, "--input", str(scan)]) == 0
    labels = read_labels(tmp_path / "out" / "a_seg.nii.gz")
    check_same_grid(read_image(scan), labels)
    whole = read_labels(tmp_path / "out" / "a.seg.nrrd").affine
    assert labels.array.any() and np.linalg.det(whole) > 0


def test_a_grid_that_slicer_cannot_hold_ends_no_other_scan(tmp_path, arguments, capfd):
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 0.5
    save(tmp_path / "in" / "a.nii.gz", sheared)
    save(tmp_path / "in" / "b.nii.gz", LEFT_HANDED, nib.Nifti2Image)
    save(tmp_path / "in" / "c.nii.gz", LEFT_HANDED)
    assert host.run_script([*arguments, "--input", str(tmp_path / "in")]) == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    states = {one["case"]: one["state"] for one in report["scans"]}
    assert states == {"a": "failed", "b": "failed", "c": "done"}
    told = capfd.readouterr().err
    assert "not at right angles" in told and "Slicer cannot read b_seg.nii.gz" in told
    assert told.count("Segment it with `mapseg segment`") == 2
    assert not [name for name in names(tmp_path / "out") if name.startswith(("a", "b"))]


def test_the_terminal_tells_what_is_to_know_of_a_scan(tmp_path, arguments, capfd):
    (tmp_path / "in").mkdir()
    scan = nib.Nifti1Image(10 * make_ball()[0] - 1024, np.diag([2.0, 2, 2, 1]))
    nib.save(scan, tmp_path / "in" / "ct.nii.gz")
    assert host.run_script([*arguments, "--input", str(tmp_path / "in")]) == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  ct: ")]
    assert line.endswith(LIKE_CT)


def test_a_scan_that_cannot_be_opened_ends_no_other(tmp_path, arguments, capfd):
    """As a link whose file was not fetched, of which there are many in some data sets."""
    save(tmp_path / "in" / "a.nii.gz", LEFT_HANDED)
    (tmp_path / "in" / "b.nii.gz").symlink_to("absent")
    assert host.run_script([*arguments, "--input", str(tmp_path / "in")]) == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {one["case"]: one["state"] for one in report["scans"]} == {"a": "done", "b": "failed"}
    assert "b.nii.gz cannot be used: " in capfd.readouterr().err


def test_headers_with_their_voxels_elsewhere_and_links(tmp_path, arguments):
    image = sitk.GetImageFromArray(make_ball(6, 0)[0])
    image.SetSpacing((2, 2, 2))
    (tmp_path / "in").mkdir()
    for name in ("meta.mhd", "nrrd.nhdr"):
        sitk.WriteImage(image, str(tmp_path / "in" / name))
    (tmp_path / "in" / "link.nii.gz").symlink_to(
        Path("..") / save(tmp_path / "real.nii.gz", LEFT_HANDED).name
    )
    found = {case.name: case for case in find_cases([tmp_path / "in"], tmp_path / "out")}
    assert {name: len(case.files) for name, case in found.items()} == {"meta": 2, "nrrd": 2, "link": 1}
    assert host.run_script([*arguments, "--input", str(tmp_path / "in")]) == 0
    for name in ("meta.mhd", "nrrd.nhdr", "link.nii.gz"):
        labels = read_labels(tmp_path / "out" / f"{name.partition('.')[0]}_seg.nii.gz")
        check_same_grid(read_image(tmp_path / "in" / name), labels)
        assert labels.array.any()


def test_a_table_that_is_open_elsewhere_meanwhile_ends_no_batch(tmp_path, arguments, monkeypatch):
    held = [1]

    def replace(source, target):
        if target.name == "volumes.csv" and held:
            held.pop()
            raise PermissionError
        os.replace(source, target)

    monkeypatch.setattr("MAPSegLib.windows.replace", replace)
    scan = save(tmp_path / "scan.nii.gz", [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    assert host.run_script([*arguments, "--input", str(scan)]) == 0
    assert not held and (tmp_path / "out" / "volumes.csv").read_text(encoding="utf-8").count("scan") > 1


def test_a_batch_continues_where_it_was(inputs, tmp_path, arguments, capfd):
    output = tmp_path / "out"
    two = ["--input", str(inputs / "head.nii.gz"), str(inputs / "second")]
    assert host.run_script([*arguments, *two]) == 0
    before = {name: (output / name).stat().st_mtime_ns for name in names(output) if "seg" in name}
    (output / "head_2.seg.nrrd").unlink()
    capfd.readouterr()
    assert host.run_script([*arguments, *two]) == 0
    assert "2 scans, 1 done before." in capfd.readouterr().out
    after = {name: (output / name).stat().st_mtime_ns for name in before}
    assert {name for name in before if before[name] != after[name]} == {
        "head_2.seg.nrrd",
        "head_2_seg.nii.gz",
    }
    os.utime(inputs / "head.nii.gz")
    assert host.run_script([*arguments, *two]) == 0
    assert "2 scans, 1 done before." in capfd.readouterr().out
    assert host.run_script([*arguments, *two, "--device", "auto"]) == 0
    assert "2 scans, 2 done before." in capfd.readouterr().out
    assert host.run_script([*arguments, *two, "--overwrite"]) == 0
    assert "2 scans, 0 done before." in capfd.readouterr().out


@pytest.mark.parametrize(
    "name", ["head_seg.nii.gz", "head.seg.nrrd", "report.json", "head_uncertainty.nii.gz", "cases/head.json"]
)
def test_a_batch_replaces_no_file_of_others(inputs, tmp_path, arguments, name, capfd):
    """Nor is it anybody's word that a batch has been there that a folder has the name of that for reports."""
    file = tmp_path / "out" / name
    (tmp_path / "out" / "cases").mkdir(parents=True)
    file.write_text('["mine"]')
    assert host.run_script([*arguments, "--input", str(inputs / "head.nii.gz")]) == 2
    assert f"{file} is there already, and is no result of a batch." in capfd.readouterr().err
    assert file.read_text() == '["mine"]'
    assert names(tmp_path / "out") == [name]


def test_a_batch_replaces_no_file_that_has_the_name_of_a_failed_cases_result(
    inputs, tmp_path, arguments, capfd
):
    """Which may have been made otherwise meanwhile."""
    file = tmp_path / "out" / "bad_seg.nii.gz"
    for told in ("bad.nii.gz", f"{file} is there already, and is no result of a batch."):
        assert host.run_script([*arguments, "--input", str(inputs / "bad.nii.gz")]) == 2
        assert told in capfd.readouterr().err
        file.write_text("mine")
    assert file.read_text() == "mine"


def test_a_batch_goes_on_where_it_was_ended_within_a_case(inputs, tmp_path, arguments, monkeypatch):
    from MAPSegModule.batch import Batch  # here: other tests load the module anew

    scan = ["--input", str(inputs / "head.nii.gz")]
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "_report", lambda *_: 1 / 0)
        assert host.run_script([*arguments, *scan]) == 1
    assert (tmp_path / "out" / "head_seg.nii.gz").exists()
    left = [tmp_path / "out" / name for name in (".01234567-volumes.csv", "cases/.01234567-head.json")]
    for file in left:  # as by a process that was killed
        file.touch()
    assert host.run_script([*arguments, *scan]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [one["state"] for one in report["scans"]] == ["done"]
    assert not any(file.exists() for file in left)


def test_a_batch_replaces_no_results_of_another_scan_or_model(inputs, tmp_path, arguments, model, capfd):
    """Also where name, size and time are those of before."""
    head, elsewhere = inputs / "head.nii.gz", tmp_path / "elsewhere" / "head.nii.gz"
    elsewhere.parent.mkdir()
    shutil.copy2(head, elsewhere)
    other = shutil.copy(model, tmp_path / model.name)
    assert host.run_script([*arguments, "--input", str(head)]) == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    for further, why in (
        (["--input", str(elsewhere)], f"head.seg.nrrd is of another scan, {head}."),
        (["--input", str(head), "--model", str(other)], "made with other settings: the model's file."),
        (["--input", str(head), "--uncertainty"], "made with other settings: uncertainty."),
    ):
        capfd.readouterr()
        assert host.run_script([*arguments, *further]) == 2
        assert why in (told := capfd.readouterr().err) and "--overwrite" in told
        assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == before
    assert host.run_script([*arguments, "--input", str(elsewhere), "--overwrite"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [one["file"] for one in report["scans"]] == [str(elsewhere)]


def test_a_case_is_not_done_by_a_choice_of_which_a_network_is_another_by_now(
    inputs, tmp_path, arguments, model
):
    from MAPSegModule.batch import Batch, parse

    host.scene.install()
    card = load_card(model).model_copy(update={"kind": "choice", "name": "either", "members": (model.stem,)})
    save_model(tmp_path / "either.safetensors", {}, card)
    shutil.copy2(model, tmp_path / model.name)
    chosen = parse([*arguments, "--input", str(inputs), "--model", str(tmp_path / "either.safetensors")])
    before = Batch(chosen).settings
    assert Batch(chosen).settings == before
    os.utime(tmp_path / model.name)
    assert Batch(chosen).settings != before


def test_batches_into_one_folder_share_the_tables(inputs, tmp_path, arguments):
    """The one that ends last leaves tables of all cases that lie beside them; none of these is a scan to the next."""
    for scan in (inputs / "head.nii.gz", inputs / "bad.nii.gz", inputs / "second" / "head.nrrd"):
        other = [shutil.copy(scan, tmp_path / "other.nrrd")] if scan.suffix == ".nrrd" else [scan]
        assert host.run_script([*arguments, "--input", *map(str, other)]) == (2 if "bad" in scan.name else 0)
    shutil.copytree(tmp_path / "out", inputs / "results")
    assert not [case.name for case in find_cases([inputs], tmp_path / "new") if "results" in case.name]
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {one["case"]: one["state"] for one in report["scans"]} == {
        "other": "done",
        "bad": "failed",
        "head": "done",
    }
    assert report["waiting"] == 0
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    assert {row["scan"] for row in rows} == {"other", "head"}


@pytest.mark.parametrize("together", [False, True])
def test_adapting_in_a_batch(inputs, tmp_path, arguments, together):
    options = json.loads((tmp_path / "options.json").read_text(encoding="utf-8")) | {
        "steps": 2,
        "check_every": 2,
        "search": False,
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    two = ["--input", str(inputs / "head.nii.gz"), str(inputs / "second"), "--minutes", "0.5"]
    flag = "--together" if together else "--adapt"
    assert host.run_script([*arguments, *two, flag]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {one["chosen"] for one in report["scans"]} <= {"source", "adapted"}
    assert [one["state"] for one in report["scans"]] == ["done", "done"]
    assert {one["file"] for one in report["scans"]} == {
        str(inputs / "head.nii.gz"),
        str(inputs / "second" / "head.nrrd"),
    }
    assert {"measures", "trusted", "reason", "structures"} <= set(report["scans"][0]["source"])
    assert len(host.draw_results(tmp_path / "out")) == 2
    assert len([name for name in names(tmp_path / "out") if name.endswith(".seg.nrrd")]) == 2


def test_bad_input_is_told_with_its_exit_code(tmp_path, arguments, inputs, capfd):
    assert host.run_script([*arguments, "--input", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capfd.readouterr().err
    assert (
        host.run_script(["--model", "brian-t1", "--input", str(inputs), "--output", str(tmp_path / "out")])
        == 2
    )
    assert "Unknown model brian-t1" in capfd.readouterr().err
    assert host.run_script([*arguments, "--input", str(inputs / "bad.nii.gz")]) == 2
    assert "bad" in capfd.readouterr().err
    assert host.run_script(["--nonsense"]) == 2
    same = str(inputs)
    assert host.run_script(["--model", "brain-t1", "--input", same, "--output", same]) == 2
    assert "Input and output are the same folder" in capfd.readouterr().err


def test_options_have_to_be_an_object(tmp_path, arguments, inputs, capfd):
    (tmp_path / "options.json").write_text('["threads"]')
    assert host.run_script([*arguments, "--input", str(inputs)]) == 2
    assert "options.json has to hold options by their names" in capfd.readouterr().err
    (tmp_path / "options.json").write_text('{"threads": 1,\n}')
    assert host.run_script([*arguments, "--input", str(inputs)]) == 2
    assert "options.json is not a JSON file with options: " in (told := capfd.readouterr().err)
    assert "(line 2, column 1)" in told or "(line 1, column 14)" in told  # since Python 3.13


def test_missing_packages_are_told_before_anything_starts(tmp_path, arguments, inputs, capfd, monkeypatch):
    # by name: the module's file, run anew by other tests, has imported its parts again
    monkeypatch.setattr("MAPSegModule.dependencies.missing", lambda: ["torch>=2.9", "nibabel>=5.2"])
    assert host.run_script([*arguments, "--input", str(inputs)]) == 2
    told = capfd.readouterr().err
    assert "Missing packages: torch>=2.9, nibabel>=5.2." in told and "installDependencies()" in told
    assert not (tmp_path / "out").exists()


def test_what_nobody_foresaw_ends_the_script_too(arguments, inputs, capfd, monkeypatch):
    monkeypatch.setattr("MAPSegModule.batch.find_cases", lambda *_: 1 / 0)
    assert host.run_script([*arguments, "--input", str(inputs)]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_leaves_no_process_and_nothing_half_written(inputs, tmp_path, arguments, how):
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from Testing.host import batch\n"
        f"sys.exit(batch.run_script({[*arguments, '--input', str(inputs), '--adapt', '--minutes', '5']!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8")
    try:
        for line in process.stdout:
            if "adapt" in line:
                break
        children = [
            int(p)
            for p in Path(f"/proc/{process.pid}/task/{process.pid}/children")
            .read_text(encoding="utf-8")
            .split()
        ]
        assert children
        process.send_signal(how)
        assert process.wait(30) == 4
    finally:
        process.kill()
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    left = [name for name in names(tmp_path / "out") if not name.startswith("cases/")]
    assert not any(name.startswith(".") for name in left)
