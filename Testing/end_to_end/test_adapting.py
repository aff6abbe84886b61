"""Adapting by the command and in Python, at test time and beside a source."""

import json
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from MAPSegLib import api
from MAPSegLib.jobs import build_job
from MAPSegLib.models import load_card, load_model
from MAPSegLib.worker import run_job

from .calls import CPU, card_on_a_terminal, files, labels_of, mapseg, refused


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
    text, told = mapseg("adapt", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "out", *flags)
    assert "case0.nii.gz: kept the source result; " in text
    assert " Adaptation is not better supported (score " in text
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


def test_results_are_put_on_a_page_to_look_at(model, data, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'demo'")
    out = tmp_path / "the results"
    told, _ = mapseg("adapt", model, data / "images", "-o", out, "--steps", 1, *CPU)
    assert f"To look at them: mapseg review {shlex.quote(str(out))}" in told
    told, _ = mapseg("review", out)
    assert "review.html" in told
    page = (out / "review.html").read_text(encoding="utf-8")
    assert all(f"<h2>case{i}.nii.gz</h2>" in page for i in range(3)) and "(score" in page
    assert files(out / "review") == [f"case{i}_seg.nii.gz.png" for i in range(3)]
    assert "already there" in refused("review", out)
    told, _ = mapseg("evaluate", out, data / "labels", "-o", tmp_path / "scores")
    assert "Dice" in told  # what lies beside them does not disturb the results
