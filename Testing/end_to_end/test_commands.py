"""The commands on tiny scans, in process: what they write, and how they refuse bad input."""

import csv
import errno
import json
import os
import resource
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from MAPSegLib import api
from MAPSegLib.cli import app
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import build_job
from MAPSegLib.models import load_card, load_model
from MAPSegLib.worker import run_job

CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


def mapseg(*arguments, code=0):
    """Run a command; returns its output and its errors, each as one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stdout.split()), " ".join(result.stderr.split())


def refused(*arguments, code=2):
    """The message of a command that must fail without a traceback."""
    _, text = mapseg(*arguments, code=code)
    assert "Traceback" not in text and "Error: " in text
    return text


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def labels_of(path):
    return np.asarray(nib.load(path).dataobj)


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
    assert len(rows) == 6 and float(rows[3]["volume_ml"]) == pytest.approx(voxels * 8 / 1000, rel=1e-4)

    text, _ = mapseg(
        "evaluate", tmp_path / "out", data / "labels", "-o", tmp_path / "scores", "--model", model
    )
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    assert [row["scans"] for row in scores["summary"]] == [3, 3]
    assert all(row["dice"] > 0.7 for row in scores["summary"])
    assert files(tmp_path / "scores") == ["metrics.csv", "metrics.json"]


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


def test_one_scan_to_one_file(model, data, tmp_path):
    mapseg("segment", model, data / "images" / "case0.nii.gz", "-o", tmp_path / "mine.nrrd", *CPU)
    assert files(tmp_path) == ["mine.nrrd", "mine_report.json", "mine_volumes.csv"]


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
    assert card.provenance["adapted_from"] == "ball"


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
    assert "options.preset" in refused(*start, "--preset", "paper")
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


def test_a_training_reads_a_data_set(data, tmp_path):
    for ours, theirs in (("images", "imagesTr"), ("labels", "labelsTr")):
        shutil.copytree(data / ours, tmp_path / "set" / theirs)
    (tmp_path / "set" / "dataset.json").write_text('{"modality": {"0": "MRI"}}')
    arguments = ["--images", tmp_path / "set", "--name", "x", "--preset", "tiny", "--steps", 1]
    mapseg("train", *arguments, "--spacing", 2, "-o", tmp_path / "out", *CPU)
    assert load_card(tmp_path / "out" / "x.safetensors").provenance["cases"] == 3


def test_adaptation_can_be_stopped_with_its_best_so_far(model, data, tmp_path):
    events = []
    content = {"task": "adapt", "model": str(model), "scans": [data / "images" / "case0.nii.gz"]}
    content |= {"output": tmp_path / "out", "options": {"steps": 1000, "check_every": 2, "threads": 1}}
    result = run_job(build_job(content), events.append, lambda: events[-1].get("step") == 5)
    assert result["adaptation"]["steps"] == 5
    assert result["adaptation"]["best_step"] in (0, 2, 4)
    assert "case0_seg.nii.gz" in files(tmp_path / "out")


def test_no_gate_keeps_the_adapted_result(model, data, tmp_path):
    scan = data / "images" / "case0.nii.gz"
    mapseg("adapt", model, scan, "-o", tmp_path / "x.nii.gz", "--steps", 1, "--no-gate", *CPU)
    names = ["x.nii.gz", "x_adapted.nii.gz", "x_report.json", "x_source.nii.gz", "x_volumes.csv"]
    assert files(tmp_path) == sorted([*names, "x_adaptation/metrics.jsonl"])
    assert (
        json.loads((tmp_path / "x_report.json").read_text(encoding="utf-8"))["scans"][0]["chosen"]
        == "adapted"
    )


def test_the_card_tells_how_a_model_came_about(trained, data):
    card = load_card(trained["model"])
    assert [label.value for label in card.labels] == [1, 2]
    assert card.provenance["cases"] == 3 and card.provenance["data"] == "images"
    assert card.provenance["steps"] == 40 and "torch" in card.provenance["versions"]
    volumes = [
        np.count_nonzero(labels_of(data / "labels" / f"case{i}.nii.gz") == 2) * 0.008 for i in range(3)
    ]
    mean, deviation = card.priors["volumes"]["2"]
    assert mean == pytest.approx(np.log(volumes).mean(), abs=1e-3)
    assert deviation == pytest.approx(np.log(volumes).std(ddof=1), abs=1e-3)


def test_training_starts_from_a_model_and_keeps_cases_back(model, data, tmp_path):
    options = tmp_path / "options.json"
    options.write_text('{"validate_every": 2, "patches": 1}')
    arguments = ["--images", data / "images", "--labels", data / "labels", "--name", "next", "--init", model]
    mapseg(
        "train", *arguments, "--holdout", 1, "--steps", 2, "--options", options, "-o", tmp_path / "t", *CPU
    )
    card = load_card(tmp_path / "t" / "next.safetensors")
    first = load_card(model)
    assert card.provenance["started_from"] == {"name": first.name, **first.provenance}
    assert card.provenance["held_out"] == 1
    assert "validation_dice" in (tmp_path / "t" / "metrics.jsonl").read_text(encoding="utf-8")
    arguments[-1] = "nobody"
    assert "Unknown model nobody" in refused("train", *arguments, "-o", tmp_path / "u", *CPU)


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory):
    """Folder with an encoder that was pretrained on two domains; its names stand in the card."""
    pytest.importorskip("matplotlib", reason="needs the extra 'demo'")
    folder = tmp_path_factory.mktemp("pretrained")
    for name in ("north", "south"):
        (folder / name).mkdir()
    shutil.copy(data / "images" / "case0.nii.gz", folder / "north")
    for name in ("case1", "case2"):
        shutil.copy(data / "images" / f"{name}.nii.gz", folder / "south")
    options = folder / "options.json"
    options.write_text('{"picture_every": 2, "scans": 1, "checkpoint_every": 2}')
    arguments = [folder / "north", folder / "south", "--name", "seen", "--preset", "tiny", "--spacing", 2]
    arguments += ["--steps", 3, "--options", options, "-o", folder / "run", *CPU]
    text, told = mapseg("pretrain", *arguments)
    assert "step_000003.png" in text and "1 scans in north, 2 scans in south" in told
    assert "already there" in refused("pretrain", *arguments)
    return folder / "run"


def test_pretraining_leaves_an_encoder_its_record_and_pictures(encoder):
    expected = ["checkpoint.pt", "job.json", "metrics.jsonl", "seen.safetensors"]
    expected += [f"pictures/step_00000{step}.png" for step in (2, 3)]
    assert files(encoder) == sorted(expected)
    card = json.loads(mapseg("models", encoder / "seen.safetensors")[0])
    assert card["kind"] == "encoder" and card["labels"] == []
    domains = [(d["data"], d["cases"], d["images"]) for d in card["provenance"]["domains"]]
    assert domains == [("north", 1, "acquired"), ("south", 2, "acquired")]


def test_training_starts_from_an_encoder_with_its_own_structures(encoder, data, tmp_path):
    from safetensors.torch import load_file

    start = encoder / "seen.safetensors"
    table = tmp_path / "table.json"
    table.write_text('{"1": "rind", "2": "core"}')
    options = tmp_path / "options.json"
    options.write_text('{"learning_rate": 1e-30, "weight_decay": 0, "patches": 1}')
    arguments = ["--images", data / "images", "--labels", data / "labels", "--options", options, *CPU]
    arguments += ["--init", start, "--steps", 1, "--label-table", table]
    mapseg("train", *arguments, "--name", "next", "-o", tmp_path / "t")
    model, card = load_model(tmp_path / "t" / "next.safetensors")
    assert [label.name for label in card.labels] == ["rind", "core"]
    assert card.architecture == load_card(start, encoder=True).architecture
    assert card.preprocessing.spacing == (2, 2, 2) and card.provenance["started_from"]["name"] == "seen"
    learnt = load_file(start)
    for name, tensor in model.encoder.state_dict().items():
        assert np.array_equal(tensor, learnt[f"encoder.{name}"])
    assert not any(name.startswith("head") for name in learnt)

    arguments[arguments.index(start)] = tmp_path / "t" / "next.safetensors"
    assert "brings its own label table" in refused("train", *arguments, "--name", "x", "-o", tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_encoders_are_listed_and_segment_nothing(encoder, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    shutil.copy(encoder / "seen.safetensors", tmp_path / "home" / "models")
    assert "seen encoder only" in mapseg("models")[0]
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    for task in ("segment", "adapt"):
        text = refused(task, "seen", scan, "-o", out)
        assert "seen.safetensors is a pretrained encoder, which cannot segment." in text
    assert "cannot segment" in refused(
        "evaluate", data / "labels", data / "labels", "-o", out, "--model", "seen"
    )
    assert not out.exists()


def test_pretraining_on_synthesised_images_without_pictures(anatomy, data, tmp_path, monkeypatch):
    from MAPSegLib.tasks import pretraining

    monkeypatch.setattr(pretraining, "find_spec", lambda name: None)
    result = api.pretrain(
        tmp_path / "p",
        "mixed",
        domains=data / "images",
        from_labels=anatomy,
        contrast="random",
        preset="tiny",
        preprocessing={"spacing": (4, 4, 4)},
        steps=2,
        threads=1,
    )
    assert files(tmp_path / "p") == ["checkpoint.pt", "job.json", "metrics.jsonl", "mixed.safetensors"]
    domains = load_card(result["model"], encoder=True).provenance["domains"]
    assert [d["images"] for d in domains] == ["acquired", "synthesised, contrast random"]


def test_pretrainings_that_cannot_start(data, tmp_path):
    out = ["-o", tmp_path / "out", "--name", "x", *CPU]
    assert "give folders of scans, or from_labels" in refused("pretrain", *out)
    assert "does not exist" in refused("pretrain", tmp_path / "absent", *out)
    assert "label map" in refused("pretrain", data / "labels", *out)
    assert "none of FreeSurfer's codes" in refused("pretrain", "--from-labels", other_codes(tmp_path), *out)
    assert not (tmp_path / "out").exists()


def other_codes(folder):
    """A folder with a label map whose values no prior knows."""
    (folder / "codes").mkdir()
    codes = np.zeros((8, 8, 8), np.int16)
    codes[2:6, 2:6, 2:6] = 20_000
    nib.save(nib.Nifti1Image(codes, np.eye(4)), folder / "codes" / "a.nii.gz")
    return folder / "codes"


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    """A folder with a rough head: cortex, white matter, a thalamus on each side, and skin."""
    folder = tmp_path_factory.mktemp("anatomy")
    axes = np.indices((40, 44, 40)) - np.reshape([20, 22, 20], (3, 1, 1, 1))
    distance, left = np.sqrt((axes**2).sum(0)), axes[0] < 0
    codes = np.zeros(distance.shape, np.int16)
    for radius, pair in ((19, (502, 502)), (16, (3, 42)), (11, (2, 41)), (5, (10, 49))):
        codes[(distance < radius) & left] = pair[0]
        codes[(distance < radius) & ~left] = pair[1]
    nib.save(nib.Nifti1Image(codes, np.diag([3.0, 3.0, 3.0, 1.0])), folder / "head.nii.gz")
    return folder


def test_images_are_drawn_from_label_maps(anatomy, tmp_path):
    arguments = ["--count", 2, "--spacing", 4, "--contrast", "t2", "--seed", 3]
    for name in ("a", "b"):
        mapseg("synthesise", anatomy, "-o", tmp_path / name, *arguments)
    drawn = [f"{kind}/head_t2_00{k}.nii.gz" for kind in ("images", "labels") for k in (0, 1)]
    assert files(tmp_path / "a") == drawn
    pairs = [labels_of(tmp_path / "a" / name) for name in drawn]
    assert pairs[0].shape == pairs[2].shape and {2, 3, 41, 42} <= set(np.unique(pairs[2])) <= {
        0,
        2,
        3,
        10,
        41,
        42,
        49,
    }
    assert not np.array_equal(pairs[0], pairs[1])
    assert np.array_equal(pairs[0], labels_of(tmp_path / "b" / drawn[0]))
    refused("synthesise", anatomy, "-o", tmp_path / "a", *arguments)


def test_training_on_synthesised_images(anatomy, tmp_path):
    arguments = ["--from-labels", anatomy, "--contrast", "random", "--preset", "tiny", "--spacing", 4]
    mapseg("train", *arguments, "--name", "head", "--steps", 2, "-o", tmp_path / "t", *CPU)
    card = load_card(tmp_path / "t" / "head.safetensors")
    assert 17 in [label.value for label in card.labels] and set(card.priors["volumes"]) >= {"2", "41", "49"}
    assert card.provenance["images"] == "synthesised, contrast random"


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


# --- bad input --------------------------------------------------------------------------------------------------


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


def test_folders_without_scans(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    assert "holds no scans" in refused("segment", model, tmp_path / "empty", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["segment", "adapt"])
def test_results_are_not_replaced_unasked(task, model, data, tmp_path):
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    steps = ["--steps", 1] if task == "adapt" else []
    out.mkdir()
    (out / "case0_seg.nii.gz").write_text("precious")
    assert "already there" in refused(task, model, scan, "-o", out, *steps)
    assert (
        files(out) == ["case0_seg.nii.gz"]
        and (out / "case0_seg.nii.gz").read_text(encoding="utf-8") == "precious"
    )
    mapseg(task, model, scan, "-o", out, "--overwrite", *steps, *CPU)
    assert labels_of(out / "case0_seg.nii.gz").max() == 2


def test_outputs_that_cannot_be_written(model, data, tmp_path):
    scan = data / "images" / "case0.nii.gz"
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("segment", model, scan, "-o", tmp_path / "file" / "out", *CPU)
    assert "cannot be written" in refused("segment", model, scan, "-o", "/proc/mapseg", *CPU)
    assert files(tmp_path) == ["file"]


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


def test_memory_that_runs_out_is_told(model, data, tmp_path, monkeypatch):
    from MAPSegLib import inference

    def no_memory(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr(inference, "class_probabilities", no_memory)
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


def test_trainings_that_cannot_start(data, tmp_path):
    out = ["-o", tmp_path / "out", "--name", "x", *CPU]
    images, labels = ["--images", data / "images"], ["--labels", data / "labels"]
    assert "has a label map" in refused("train", *images, *out)
    assert "too few to keep 3 back" in refused("train", *images, *labels, "--holdout", 3, *out)
    assert "label map" in refused("train", "--images", data / "labels", *labels, *out)
    table = tmp_path / "table.json"
    table.write_text('{"7": "nothing"}')
    assert "none of the model's label values" in refused(
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
        "models",
        "import",
        "synthesise",
        "demo",
    ):
        assert command in listed
        assert "Usage" in mapseg(command, "--help")[0]
    assert mapseg("--version")[0].startswith("mapseg ")
