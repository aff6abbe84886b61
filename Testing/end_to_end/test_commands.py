"""The commands that segment, score and list models, on tiny scans, in process."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from MAPSegLib import api, console, inference
from MAPSegLib.models import load_card, load_model, save_model
from MAPSegLib.segments import segment_names
from MAPSegLib.volumes import read_image, read_labels, write_volume
from Testing.model_cards import with_card

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


def test_a_result_in_nrrd_names_its_segments(model, data, tmp_path):
    mapseg("segment", model, data / "images" / "case1.nii.gz", "-o", tmp_path / "a.seg.nrrd", *CPU)
    known = {label.value: label.name for label in load_card(model).labels}
    assert segment_names(tmp_path / "a.seg.nrrd") == known
    mapseg("segment", model, data / "images" / "case1.nii.gz", "-o", tmp_path / "a.nii.gz", *CPU)
    assert np.array_equal(
        read_labels(tmp_path / "a.seg.nrrd").array, read_labels(tmp_path / "a.nii.gz").array
    )


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


def test_evaluation_takes_names_from_the_results_report(model, data, tmp_path):
    mapseg("segment", model, data / "images", "-o", tmp_path / "out", *CPU)
    report = tmp_path / "out" / "report.json"
    content = json.loads(report.read_text())
    content["labels"][1]["name"] = "core"
    report.write_text(json.dumps(content))
    told, _ = mapseg("evaluate", tmp_path / "out", data / "labels", "-o", tmp_path / "scores")
    assert " core 3 " in told and " structure 1 3 " in told
    (tmp_path / "out" / "b_report.json").write_text(report.read_text().replace("core", "rind"))
    told, _ = mapseg("evaluate", tmp_path / "out", data / "labels", "-o", tmp_path / "differ")
    assert " structure 2 3 " in told
    data_set = tmp_path / "set.json"
    data_set.write_text(json.dumps({"labels": {"2": "kernel"}, "cases": cases_of(data)}))
    told, log = mapseg("evaluate", tmp_path / "out", data_set, "-o", tmp_path / "named")
    assert " kernel 3 " in told and "The references call" not in log
    (tmp_path / "out" / "b_report.json").unlink()
    told, log = mapseg("evaluate", tmp_path / "out", data_set, "-o", tmp_path / "otherwise")
    assert " kernel 3 " in told and "The references call 2 kernel, and the results core." in log


def cases_of(data):
    pairs = zip(sorted((data / "images").iterdir()), sorted((data / "labels").iterdir()), strict=True)
    return [{"image": str(image), "label": str(label)} for image, label in pairs]


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
    assert [row["structure"] for row in scores["summary"]] == ["structure 1"]


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
    assert (
        [row["structure"] for row in scores["summary"]]
        == [row["structure"] for row in scores["scans"]]
        == names[:1]
    )
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
    assert {row["structure"] for row in rows} == {"shell", "structure 2"}
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
    # Which of them is meant, nobody can know.
    refused("evaluate", adapted, data / "labels", "-o", tmp_path / "b")
    shutil.copy(adapted / "case0_0000_seg_source.nii.gz", adapted / "case0_seg.nii.gz")
    shutil.copy(adapted / "case0_0000_seg_source.nii.gz", adapted / "other_seg.nii.gz")
    _, told = mapseg("evaluate", adapted, data / "labels", "-o", tmp_path / "b", code=2)
    assert "for other_seg.nii.gz. Name label map and reference alike" in told
    scores = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))
    assert {row["scan"] for row in scores["scans"]} == {"case0_seg.nii.gz"}
    assert [Path(failure["scan"]).name for failure in scores["failed"]] == ["other_seg.nii.gz"]
    (adapted / "case0_seg.nii.gz").write_text("no label map")
    told = refused("evaluate", adapted, data / "labels", "-o", tmp_path / "c")
    assert "case0_seg.nii.gz is not gzip-compressed" in told.rpartition("Error: ")[2]  # why nothing is scored


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


def test_a_card_with_anything_in_it_is_shown_and_orders_no_terminal(model, tmp_path, monkeypatch):
    odd = Path(shutil.copy(model, tmp_path / "odd.safetensors"))
    with_card(odd, lambda card: card.update(description="\x1b[2Jx", provenance={"domains": "abc"}))
    shown = card_on_a_terminal(str(odd), monkeypatch)
    assert "\ufffd[2Jx" in shown and "\x1b[2J" not in shown


def test_the_name_of_a_scan_orders_no_terminal(tmp_path):
    told = refused("segment", "brain-t1", tmp_path / "a\x1b[2J.nii", "-o", tmp_path / "out")
    assert "\ufffd[2J" in told and "\x1b" not in told


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
    for each in (entry, entry["source"], entry["adapted"]):
        assert any(note.startswith("Segmented with ball (score: blank") for note in each["notes"])
    start = ["train", "--images", data / "images", "--labels", data / "labels", "--name", "next"]
    text = refused(*start, "--init", tmp_path / "either.safetensors", "-o", tmp_path / "next")
    assert "is a choice between models" in text and "Give one of blank, ball" in text
