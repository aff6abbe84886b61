"""The commands that segment, adapt and list models, on tiny scans, in process."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from MAPSegLib import api, console, inference
from MAPSegLib.errors import Cancelled
from MAPSegLib.jobs import build_job
from MAPSegLib.models import load_card, load_model, save_model
from MAPSegLib.volumes import read_image, read_labels, write_volume
from MAPSegLib.worker import run_job

from .calls import CPU, card_on_a_terminal, files, labels_of, mapseg, refused


def test_segment_then_evaluate(model, data, tmp_path):
    text, _ = mapseg("segment", model, data / "images", "-o", tmp_path / "out", "--uncertainty", *CPU)
    assert "case0.nii.gz: Consistent" in text
    expected = [f"case{i}_{kind}.nii.gz" for i in range(3) for kind in ("seg", "uncertainty")]
    assert files(tmp_path / "out") == sorted([*expected, "report.json", "volumes.csv"])

    scan = nib.load(data / "images" / "case1.nii.gz")
    result = nib.load(tmp_path / "out" / "case1_seg.nii.gz")
    assert result.shape == scan.shape and np.array_equal(result.affine, scan.affine)
    assert result.get_data_dtype() == np.uint8
    doubt = labels_of(tmp_path / "out" / "case1_uncertainty.nii.gz")
    assert (
        doubt.min() >= 0
        and doubt.max() <= 1
        and doubt[labels_of(data / "labels" / "case1.nii.gz") == 1].any()
    )

    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    entry = report["scans"][1]
    assert entry["trusted"] is True and entry["seconds"] > 0 and report["failed"] == []
    voxels = np.count_nonzero(labels_of(tmp_path / "out" / "case1_seg.nii.gz") == 2)
    assert entry["structures"][1]["volume_ml"] == pytest.approx(voxels * 8 / 1000)
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    assert {row["trusted"] for row in rows} == {"True"}
    assert len(rows) == 6 and float(rows[3]["volume_ml"]) == pytest.approx(voxels * 8 / 1000, rel=1e-4)

    text, _ = mapseg(
        "evaluate", tmp_path / "out", data / "labels", "-o", tmp_path / "scores", "--model", model
    )
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    assert [row["scans"] for row in scores["summary"]] == [3, 3]
    assert all(row["dice"] > 0.6 for row in scores["scans"])  # the core of a mirrored map has less than 0.5
    assert files(tmp_path / "scores") == ["metrics.csv", "metrics.json"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_probabilities_lie_on_the_scan_and_are_no_scan(suffix, model, data, tmp_path):
    scan = read_image(data / "images" / "case1.nii.gz")
    write_volume(tmp_path / f"a{suffix}", scan.array, scan)
    for flags in ([], ["--overwrite"]):
        mapseg("segment", model, tmp_path, "-o", tmp_path, "--probabilities", *flags, *CPU)
        report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        (entry,) = report["scans"]
        assert entry["probabilities"] == str(tmp_path / f"a_probabilities{suffix}")
    values = [0, *(label["value"] for label in report["labels"])]
    labels = read_labels(tmp_path / f"a_seg{suffix}")
    if suffix == ".nii.gz":
        image = nib.load(entry["probabilities"])
        found, corner = np.asarray(image.dataobj), image.affine[:3, 3]
    else:
        image = sitk.ReadImage(entry["probabilities"])
        found = sitk.GetArrayFromImage(image).swapaxes(0, 2)
        corner = np.array(image.GetOrigin()) * (-1, -1, 1)
    assert found.shape == (*scan.shape, 2) and found.dtype == np.uint8
    assert np.allclose(corner, scan.affine[:3, 3])
    sure = found.max(-1) > 128  # more than all others together
    assert sure.any() and np.array_equal(np.take(values, found.argmax(-1) + 1)[sure], labels.array[sure])
    assert not labels.array[found.sum(-1) < 84].any()  # less than a third of three: the background has more
    mapseg("segment", model, tmp_path, "-o", tmp_path, "--overwrite", *CPU)
    assert not Path(entry["probabilities"]).exists()  # it would be taken for one of the new labels


def test_evaluation_maps_the_codes_of_another_protocol(data, tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text('{"1": 2, "2": 1}')
    reference = data / "labels" / "case0.nii.gz"
    swapped = nib.load(reference)
    values = labels_of(reference)
    swapped = nib.Nifti1Image(np.array([0, 2, 1], np.uint8)[values], swapped.affine)
    nib.save(swapped, tmp_path / "swapped.nii.gz")
    mapseg("evaluate", tmp_path / "swapped.nii.gz", reference, "-o", tmp_path / "s", "--mapping", mapping)
    scores = json.loads((tmp_path / "s" / "metrics.json").read_text(encoding="utf-8"))
    assert [row["dice"] for row in scores["summary"]] == [1, 1]


def test_what_is_mapped_to_the_background_is_not_scored(data, tmp_path):
    labels = data / "labels" / "case0.nii.gz"
    scores = api.evaluate(labels, labels, tmp_path / "s", mapping={1: 1, 2: 0})
    assert [row["name"] for row in scores["summary"]] == ["structure 1"]


def test_structures_that_no_reference_holds_are_no_errors(model, data, tmp_path):
    """References of another protocol: what they do not draw cannot be scored."""
    references = tmp_path / "references"
    references.mkdir()
    for case in ("case0", "case1"):
        image = nib.load(data / "labels" / f"{case}.nii.gz")
        shell = (labels_of(data / "labels" / f"{case}.nii.gz") > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(shell, image.affine), references / f"{case}.nii.gz")
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    shutil.copy(data / "labels" / "case0.nii.gz", predictions)
    _, told = mapseg("evaluate", predictions, references, "-o", tmp_path / "out", "--model", model)
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    names = [label.name for label in load_card(model).labels]
    assert [row["name"] for row in scores["summary"]] == [row["name"] for row in scores["scans"]] == names[:1]
    assert scores["not_in_references"] == names[1:] and f"no reference holds them: {names[1]}" in told
    assert [Path(path).name for path in scores["unpaired"]] == ["case1.nii.gz"]


def test_label_maps_are_scored_against_a_data_set_and_where_they_were_made(model, data, tmp_path):
    task = tmp_path / "nnunet"
    for kind in ("images", "labels"):
        (task / f"{kind}Tr").mkdir(parents=True)
        for path in (data / kind).iterdir():
            channel = "_0000" if kind == "images" else ""
            shutil.copy(path, task / f"{kind}Tr" / path.name.replace(".nii", f"{channel}.nii"))
    (task / "dataset.json").write_text('{"labels": {"shell": 1}}')
    images = task / "imagesTr"
    mapseg("segment", model, images, "-o", images, *CPU)  # beside the scans
    mapseg("evaluate", images, task / "labelsTr", "-o", tmp_path / "a", "--model", model)
    mapseg("segment", model, data / "images", "-o", tmp_path / "out", *CPU)
    mapseg("evaluate", tmp_path / "out", task, "-o", tmp_path / "b")
    rows = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))["scans"]
    assert {row["name"] for row in rows} == {"shell", "structure 2"}
    out = tmp_path / "out"
    (out / "case0_seg.nii.gz").rename(out / "case0_label.nii.gz")  # looked through, and renamed
    mapseg("evaluate", out, task / "labelsTr", "-o", tmp_path / "c", "--model", model)
    shutil.copy(images / "case0_0000_seg.nii.gz", images / "case0_0000_label.nii.gz")
    told = refused("evaluate", images, task / "labelsTr", "-o", tmp_path / "d", "--model", model)
    assert "are named alike" in told  # which of them is meant, nobody can know
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in "ab")
    assert [row["dice"] for row in one["scans"]] == [row["dice"] for row in other["scans"]]
    assert len(one["scans"]) == 6


def test_what_one_model_of_an_adaptation_found_is_scored_in_a_folder_of_its_own(data, tmp_path):
    adapted = tmp_path / "adapted"
    adapted.mkdir()
    for case in ("case0", "case1"):
        shutil.copy(data / "labels" / f"{case}.nii.gz", adapted / f"{case}_0000_seg_adapted.nii.gz")
    mapseg("evaluate", adapted, data / "labels", "-o", tmp_path / "a")
    scores = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert len(scores["scans"]) == 4 and {row["dice"] for row in scores["scans"]} == {1}
    shutil.copy(adapted / "case0_0000_seg_adapted.nii.gz", adapted / "case0_0000_seg_source.nii.gz")
    refused(
        "evaluate", adapted, data / "labels", "-o", tmp_path / "b"
    )  # which of them is meant, nobody can know
    shutil.copy(adapted / "case0_0000_seg_source.nii.gz", adapted / "case0_seg.nii.gz")
    shutil.copy(adapted / "case0_0000_seg_source.nii.gz", adapted / "other_seg.nii.gz")
    told = refused("evaluate", adapted, data / "labels", "-o", tmp_path / "b")
    assert "for other_seg.nii.gz" in told and "put them into a folder of their own" in told


def test_progress_goes_to_a_file_a_line_at_a_time(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "LOG_SECONDS", 0.0)
    _, told = mapseg("adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path, "--steps", 2, *CPU)
    assert "Adapting 1/2, " in told and "loss" in told and "Adapting 2/2" in told


def test_one_scan_to_one_file(model, data, tmp_path):
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "mine.nrrd", *CPU)
    assert files(tmp_path) == ["mine.nrrd", "mine_report.json", "mine_volumes.csv"]


@pytest.mark.parametrize("task", ["segment", "adapt"])
def test_the_report_tells_where_a_file_leaves_left_and_right_open(task, model, data, tmp_path):
    scan = nib.load(data / "images" / "case0.nii.gz")
    scan.set_sform(None, code=0)
    scan.set_qform(None, code=0)
    nib.save(scan, tmp_path / "open.nii.gz")
    steps = ["--steps", 1] if task == "adapt" else []
    mapseg(task, model, tmp_path / "open.nii.gz", "-o", tmp_path / "out", *steps, *CPU)
    (entry,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["scans"]
    told = "The file states no orientation: left and right are assumed, and may be swapped."
    assert entry["notes"] == [told]


def test_progress_counts_judging_as_well(model, data, tmp_path, monkeypatch):
    events, looked, segment = [], [], inference.segment_scan

    def watched(*given, **named):
        looked.append(events[-1])
        return segment(*given, **named)

    monkeypatch.setattr(inference, "segment_scan", watched)
    scan = data / "images" / "case0.nii.gz"
    api.segment(model, scan, tmp_path, report=events.append, device="cpu", threads=1)
    told = [event for event in events if event.get("stage") == "segment"]
    steps = [event["step"] for event in told]
    assert steps == sorted(steps) and {event["steps"] for event in told} == {steps[-1]}
    assert 0 < looked[0]["step"] < steps[-1] and told[-1]["seconds_left"] == 0


def test_the_time_left_is_unknown_before_a_hundredth_is_done(model, tmp_path):
    """Of many windows, the first ones are none."""
    voxels = np.random.default_rng(0).integers(1, 100, (70, 70, 70)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "large.nii.gz")
    events, options = [], {"device": "cpu", "threads": 1, "batch": 1}
    report = api.segment(model, tmp_path / "large.nii.gz", tmp_path / "out", report=events.append, **options)
    assert not report["failed"]
    steps = [event for event in events if event.get("stage") == "segment"]
    assert steps[0]["step"] == 0 and steps[0]["seconds_left"] is None and steps[-1]["seconds_left"] == 0


@pytest.mark.parametrize(("told", "case"), [("scan", "case0"), ("segment", "case1")])
def test_a_segmentation_that_is_cancelled_keeps_what_is_complete(told, case, model, data, tmp_path):
    """As the first scan's result is told, and while the second is segmented."""

    def cancel(event):
        if told in (event["event"], event.get("stage")) and case in event["scan"]:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        api.segment(model, data / "images", tmp_path, report=cancel, device="cpu", threads=1)
    assert files(tmp_path) == ["case0_seg.nii.gz", "report.json", "volumes.csv"]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [Path(entry["output"]).name for entry in report["scans"]] == ["case0_seg.nii.gz"]


@pytest.mark.parametrize("changed", ["nothing", "scan", "result", "options", "part", "overwrite"])
def test_the_same_command_continues_a_job_of_many_scans(changed, model, data, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(data / "images", scans)

    def cancel(event):
        if event.get("stage") == "segment" and "case2" in event["scan"]:
            raise Cancelled("Cancelled.")

    given = {"device": "cpu", "threads": 1, "precision": "fp32"}
    with pytest.raises(Cancelled):
        api.segment(model, scans, out, report=cancel, **given)
    if changed == "scan":
        shutil.copy(data / "images" / "case2.nii.gz", scans / "case0.nii.gz")
        assert "case0_seg.nii.gz is already there" in refused("segment", model, scans, "-o", out, *CPU)
        return
    if changed == "options":
        assert "already there" in refused("segment", model, scans, "-o", out, *CPU, "--overlap", 0.2)
        return
    if changed == "result":
        (out / "case1_seg.nii.gz").unlink()
    if changed == "part":
        report = api.segment(model, scans / "case2.nii.gz", out, **given)
        assert len(report["scans"]) == 3  # what the folder holds stays told
        return
    if changed == "overwrite":
        shutil.copy(data / "labels" / "case1.nii.gz", out / "case0_seg.nii.gz")
        api.segment(model, scans, out, overwrite=True, **given)
        assert not np.array_equal(
            labels_of(out / "case0_seg.nii.gz"), labels_of(data / "labels" / "case1.nii.gz")
        )
        return
    first, read = (out / "case0_seg.nii.gz").stat().st_mtime_ns, []
    report = api.segment(
        model,
        scans,
        out,
        report=lambda event: read.append(event) if event.get("stage") == "read" else None,
        **given,
    )
    expected = ["case1", "case2"] if changed == "result" else ["case2"]
    assert [Path(event["scan"]).name.split(".")[0] for event in read] == expected
    assert (out / "case0_seg.nii.gz").stat().st_mtime_ns == first
    assert sorted(Path(entry["file"]).name for entry in report["scans"]) == [
        f"case{i}.nii.gz" for i in range(3)
    ]
    assert sorted(map(Path, report["files"])) == [out / name for name in files(out)]
    assert "unfinished" not in (out / "report.json").read_text(encoding="utf-8")
    assert len(list(csv.DictReader((out / "volumes.csv").open()))) == 6
    assert "already there" in refused("segment", model, scans, "-o", out, *CPU)  # it is done


def test_adapt(model, data, tmp_path):
    scans = [data / "images" / f"case{i}.nii.gz" for i in (0, 1)]
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"check_every": 2, "preview_seconds": 0.001, "steps": 99}))
    events = []
    content = {"check_every": 2, "preview_seconds": 0.001, "steps": 4, "threads": 1, "precision": "fp32"}
    result = api.adapt(model, scans, tmp_path / "api", save_model=True, report=events.append, **content)
    mapseg(
        "adapt",
        model,
        *scans,
        "-o",
        tmp_path / "cli",
        "--steps",
        4,
        "--options",
        options,
        "--save-model",
        *CPU,
    )

    kinds = [event["event"] for event in events]
    assert "preview" in kinds and kinds[-1] == "result"
    steps = [e for e in events if e["event"] == "progress" and e["stage"] == "adapt"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4] and {"losses", "eta", "seconds_left"} <= set(steps[0])
    assert result["adaptation"]["steps"] == 4
    assert {scan["chosen"] for scan in result["scans"]} <= {"source", "adapted"}
    expected = [f"case{i}_seg{side}.nii.gz" for i in (0, 1) for side in ("", "_adapted", "_source")]
    expected += ["adapted_model.safetensors", "adaptation/metrics.jsonl", "report.json", "volumes.csv"]
    for folder in (tmp_path / "api", tmp_path / "cli"):
        assert files(folder) == sorted(expected)
        for entry in result["scans"]:
            chosen, name = labels_of(entry["output"]), Path(entry[entry["chosen"]]["output"]).name
            assert np.array_equal(chosen, labels_of(tmp_path / "cli" / name))
    card = load_model(tmp_path / "api" / "adapted_model.safetensors")[1]
    known = load_model(model)[1].priors  # the source's intensities are not those of these scans
    assert "intensity" in known and card.priors == {k: v for k, v in known.items() if k != "intensity"}
    assert card.provenance["adapted_from"] == "ball"


def test_the_saved_model_segments_as_the_adaptation_did(model, data, tmp_path):
    scan = nib.load(data / "images" / "case0.nii.gz")
    values = scan.get_fdata(dtype=np.float32)
    inverted = tmp_path / "case0.nii.gz"
    nib.save(nib.Nifti1Image(np.where(values > 0, 230 - values, 0), scan.affine), inverted)
    mapseg("adapt", model, inverted, "-o", tmp_path / "out", "--steps", 2, "--save-model", *CPU)
    adapted = tmp_path / "out" / "adapted_model.safetensors"
    mapseg("segment", adapted, inverted, "-o", tmp_path / "again.nii.gz", *CPU)
    again, kept, source = (
        labels_of(tmp_path / name)
        for name in ("again.nii.gz", "out/case0_seg_adapted.nii.gz", "out/case0_seg_source.nii.gz")
    )
    assert np.array_equal(again, kept) and not np.array_equal(again, source)


def test_a_saved_model_that_no_scan_kept_is_told(model, data, tmp_path, monkeypatch):
    options = tmp_path / "options.json"
    options.write_text('{"gate_margin": 9, "search": false}')
    flags = ["--steps", 2, "--save-model", "--options", options, *CPU]
    _, told = mapseg("adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", *flags)
    assert "No scan kept the adapted result: the saved model may be no better than ball." in told
    file = tmp_path / "out" / "adapted_model.safetensors"
    assert load_card(file).provenance["kept"] == 0
    assert "ball, 0 of 1 scans kept its result" in card_on_a_terminal(file, monkeypatch)


def test_adapt_beside_a_source(model, data, tmp_path):
    """Through the command and through Python, from two folders and from a manifest: the same weights."""
    scans, options = data / "images" / "case0.nii.gz", tmp_path / "options.json"
    cases = [
        {"image": str(data / "images" / f"case{i}.nii.gz"), "label": str(data / "labels" / f"case{i}.nii.gz")}
        for i in range(3)
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
    options.write_text(json.dumps({"check_every": 2}))
    folders = ["--source", data / "images", "--source-labels", data / "labels"]
    flags = ["--steps", 4, "--warmup", 2, "--preset", "v2", "--save-model", "--options", options, *CPU]
    mapseg("adapt", model, scans, "-o", tmp_path / "cli", *folders, *flags)
    events = []
    result = api.adapt(
        model,
        scans,
        tmp_path / "api",
        source=tmp_path / "cases.json",
        save_model=True,
        report=events.append,
        **{"steps": 4, "warmup": 2, "preset": "v2", "check_every": 2},
        **{"threads": 1, "device": "cpu", "precision": "fp32"},
    )
    assert result["adaptation"]["steps"] == 4 and result["options"]["preset"] == "v2"
    assert [entry["step"] for entry in result["adaptation"]["history"]] == [0, 2, 4]
    losses = [event["losses"] for event in events if event.get("stage") == "adapt"]
    assert not any("target" in name for name in losses[1]) and any("target" in name for name in losses[2])
    assert files(tmp_path / "cli") == files(tmp_path / "api")
    ours, theirs = (load_model(tmp_path / f / "adapted_model.safetensors") for f in ("cli", "api"))
    assert ours[1].provenance["options"]["warmup"] == 2
    for a, b in zip(ours[0].state_dict().values(), theirs[0].state_dict().values(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_a_source_is_refused_with_its_file(model, data, tmp_path):
    start = ["adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out"]
    assert "No image in" in refused(*start, "--source", data / "images")
    assert "does not exist" in refused(*start, "--source", tmp_path / "absent.json")
    broken = tmp_path / "cases.json"
    broken.write_text('{"cases": [{"image": "gone.nii.gz"}]}')
    assert "gone.nii.gz, which does not exist" in refused(*start, "--source", broken)
    assert "source_labels need a source" in refused(*start, "--source-labels", data / "labels")
    assert "preset needs labelled source data" in refused(*start, "--preset", "paper")
    shutil.copy(data / "images" / "case0.nii.gz", tmp_path / "image.nii.gz")
    other = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    nib.save(other, tmp_path / "label.nii.gz")
    broken.write_text('{"cases": [{"image": "image.nii.gz", "label": "label.nii.gz"}]}')
    assert "label.nii.gz has 4 x 4 x 4 voxels" in refused(*start, "--source", broken)
    assert not (tmp_path / "out").exists()


def test_adapt_beside_a_synthesised_source(anatomy, tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text('{"10": "left thalamus", "49": "right thalamus"}')
    options = tmp_path / "options.json"
    options.write_text('{"patches": 1}')
    arguments = ["--from-labels", anatomy, "--label-table", labels, "--spacing", 4, "--name", "made"]
    arguments += ["--preset", "tiny", "--steps", 1, "--options", options, "-o", tmp_path / "m"]
    mapseg("train", *arguments, *CPU)
    mapseg("synthesise", anatomy, "-o", tmp_path / "s", "--spacing", 4, "--contrast", "t2")
    arguments = [tmp_path / "m" / "made.safetensors", tmp_path / "s" / "images", "-o", tmp_path / "out"]
    mapseg("adapt", *arguments, "--source-from-labels", anatomy, "--steps", 2, "--warmup", 1, *CPU)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["adaptation"]["steps"] == 2 and "target_masked" in str(report["adaptation"]["history"])


def test_adaptation_can_be_stopped_with_its_best_so_far(model, data, tmp_path):
    events = []
    content = {"task": "adapt", "model": str(model), "scans": [data / "images" / "case0.nii.gz"]}
    content |= {"output": tmp_path / "out", "options": {"steps": 1000, "check_every": 2, "threads": 1}}
    result = run_job(build_job(content), events.append, lambda: events[-1].get("step") == 5)
    assert result["adaptation"]["steps"] == 5
    assert result["adaptation"]["best_step"] in (0, 2, 4)
    assert "case0_seg.nii.gz" in files(tmp_path / "out")


def test_a_search_can_be_ended_too(model, data, tmp_path):
    events = []
    content = {"task": "adapt", "model": str(model), "scans": [data / "images" / "case0.nii.gz"]}
    content |= {"output": tmp_path / "out", "options": {"steps": 1000, "threads": 1, "device": "cpu"}}
    result = run_job(build_job(content), events.append, lambda: events[-1].get("stage") == "search")
    assert result["adaptation"]["steps"] == 0 and len(result["scans"]) == 1
    assert len([event for event in events if event.get("stage") == "search"]) == 2  # a round was begun


def test_no_gate_keeps_the_adapted_result(model, data, tmp_path):
    scan = data / "images" / "case0.nii.gz"
    mapseg("adapt", model, scan, "-o", tmp_path / "x.nii.gz", "--steps", 1, "--no-gate", *CPU)
    names = ["x.nii.gz", "x_adapted.nii.gz", "x_report.json", "x_source.nii.gz", "x_volumes.csv"]
    assert files(tmp_path) == sorted([*names, "x_adaptation/metrics.jsonl"])
    assert (
        json.loads((tmp_path / "x_report.json").read_text(encoding="utf-8"))["scans"][0]["chosen"]
        == "adapted"
    )


def test_models_are_listed_and_imported(model, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    weights = {
        name.replace("encoder.", "local_encoder.", 1).replace(".conv", ".basic_module.conv", 1)
        if name.startswith("encoder")
        else name.replace("head.", "seg_decoder.classifier.", 1): tensor
        for name, tensor in load_model(model)[0].state_dict().items()
    }
    torch.save({f"teacher.{name}": tensor for name, tensor in weights.items()}, tmp_path / "authors.pth")
    mapseg("import", tmp_path / "authors.pth", "--name", "theirs", "--patch", 32, "--spacing", 2)
    assert "theirs" in mapseg("models")[0]
    card = json.loads(mapseg("models", "theirs")[0])
    assert card["architecture"]["width"] == 16 and card["preprocessing"]["spacing"] == [2, 2, 2]
    refused("import", tmp_path / "authors.pth", "--name", "theirs", "--patch", 32)
    refused("models", "nobody")
    assert "is a folder" in refused("models", tmp_path)


@pytest.mark.parametrize(
    ("name", "told", "untold"),
    [
        ("brain-t1", ["left caudate (11)", "1.5 x 1.5 x 1.5 mm, MR", "agreement at least"], ["one of"]),
        ("brain", ["brain-t1, brain-mr", "inverted: mean dice of seven"], ["agreement at least"]),
    ],
)
def test_on_a_terminal_a_card_is_for_people(monkeypatch, name, told, untold):
    shown = card_on_a_terminal(name, monkeypatch)
    assert all(
        text in shown for text in [*told, f"{name}: 31 structures", "Not for clinical use", "Apache-2.0"]
    )
    assert not any(text in shown for text in untold)


def test_of_a_choice_each_scan_gets_the_better_supported_model(model, data, tmp_path):
    import torch

    trained, card = load_model(model)
    torch.manual_seed(0)
    blank = {name: torch.randn_like(tensor) for name, tensor in trained.state_dict().items()}
    save_model(tmp_path / "blank.safetensors", blank, card.model_copy(update={"name": "blank"}))
    shutil.copyfile(model, tmp_path / "ball.safetensors")
    either = card.model_copy(update={"kind": "choice", "name": "either", "members": ("blank", "ball")})
    save_model(tmp_path / "either.safetensors", {}, either)
    scan = data / "images" / "case0.nii.gz"
    text, _ = mapseg("segment", tmp_path / "either.safetensors", scan, "-o", tmp_path / "out", *CPU)
    mapseg("segment", model, scan, "-o", tmp_path / "alone", *CPU)
    assert "Segmented with ball (score: blank" in text
    one, other = (labels_of(tmp_path / place / "case0_seg.nii.gz") for place in ("out", "alone"))
    assert np.array_equal(one, other)
    _, told = mapseg(
        "adapt", tmp_path / "either.safetensors", scan, "-o", tmp_path / "adapted", "--steps", 2, *CPU
    )
    assert "Adapting ball (score: blank" in told
    [entry] = json.loads((tmp_path / "adapted" / "report.json").read_text(encoding="utf-8"))["scans"]
    assert any(note.startswith("Segmented with ball (score: blank") for note in entry["notes"])
    start = ["train", "--images", data / "images", "--labels", data / "labels", "--name", "next"]
    text = refused(*start, "--init", tmp_path / "either.safetensors", "-o", tmp_path / "next")
    assert "is a choice between models" in text and "Give one of blank, ball" in text
