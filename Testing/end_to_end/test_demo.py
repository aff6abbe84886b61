"""The demo on a small random model: what it leaves behind, and what it refuses, whatever it finds."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch

from MAPSegLib.config import ARCHITECTURES, Preprocessing
from MAPSegLib.errors import Cancelled, InputError, Stopped
from MAPSegLib.jobs import build_job
from MAPSegLib.models import ModelCard, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.synthesis import brain_labels
from MAPSegLib.volumes import Volume

pytest.importorskip("nilearn", reason="needs the extra 'demo'")
pytest.importorskip("matplotlib", reason="needs the extra 'demo'")

from MAPSegLib import demo  # noqa: E402  (after what it needs is known to be there)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    architecture, labels = ARCHITECTURES["tiny"], brain_labels()
    card = ModelCard(
        name="tiny", architecture=architecture, preprocessing=Preprocessing(spacing=(6.0,) * 3), labels=labels
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(path, Segmenter(architecture, labels).state_dict(), card)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """One demo for all that look at it: folder, result, text, events."""
    folder, lines, events = tmp_path_factory.mktemp("demo") / "out", [], []
    result = demo.run_demo(
        folder,
        minutes=0.001,
        report=lambda event, **fields: events.append((event, fields)),
        model=model,
        say=lines.append,
    )
    return folder, result, "\n".join(lines), events


def test_all_files_are_there_and_nothing_else(run):
    folder, result, _, _ = run
    assert {p.name for p in folder.iterdir()} == set(demo.FILES.values())
    assert {str(p) for p in folder.iterdir()} == set(result["files"])


def test_label_maps_lie_on_the_head(run):
    folder = run[0]
    head = nib.load(folder / demo.FILES["image"])
    values = {0, *(label.value for label in brain_labels())}
    for name in ("labels", "source", "adapted", "chosen"):
        image = nib.load(folder / demo.FILES[name])
        assert image.shape == head.shape == (197, 233, 189)
        assert np.array_equal(image.affine, head.affine)
        assert set(np.unique(np.asarray(image.dataobj))) <= values


def test_the_text_tells_volumes_agreement_and_the_gates_choice(run):
    _, result, text, _ = run
    assert text.startswith("Research software: not for clinical use.")
    assert re.search(r"hippocampus +\d+\.\d +\d+\.\d\n", text)
    assert re.search(r"grey matter \d\.\d{3}, white matter \d\.\d{3}", text)
    assert re.search(rf"Kept: the .* result\. {re.escape(result['gate'])}", text)
    assert result["verdicts"][result["chosen"]]["reason"] in text
    assert text.isascii()  # consoles differ in what else they can print


def test_progress_is_reported(run):
    assert {fields["stage"] for event, fields in run[3] if event == "progress"} >= {"segment"}


def test_the_record_holds_what_was_found(run):
    folder, result, _, _ = run
    record = json.loads((folder / demo.FILES["results"]).read_text(encoding="utf-8"))
    assert record["chosen"] in ("source", "adapted")
    assert record["tissue_dice"] == pytest.approx(result["tissue_dice"])
    assert [row["step"] for row in record["history"]] == [row["step"] for row in result["history"]]
    assert {s["name"] for s in record["structures"]} >= {"thalamus", "hippocampus", "brain stem"}


def test_the_report_stands_alone(run):
    page = (run[0] / demo.FILES["report"]).read_text(encoding="utf-8")
    assert page.count("Research software: not for clinical use.") == 2
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    sources = re.findall(r'(?:src|srcset|href)="(.{0,22})', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_results_are_not_overwritten_unasked(run, model):
    with pytest.raises(InputError, match="already there"):
        demo.run_demo(run[0], model=model, say=lambda line: pytest.fail("computed before refusing"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, model):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        demo.run_demo(tmp_path / "out", model=model)


def test_a_demo_that_is_cancelled_can_be_run_again(model, tmp_path):
    def cancel(event, **fields):
        if fields["stage"] == "adapt":
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        demo.run_demo(tmp_path / "out", report=cancel, model=model, say=print)
    assert not (tmp_path / "out").exists()


def test_a_demo_that_replaces_another_and_is_cancelled_leaves_no_report_of_the_other(model, tmp_path):
    names = ("report", "results", "labels")
    for name in names:
        (tmp_path / demo.FILES[name]).write_text("of the other")

    def cancel(event, **fields):
        if fields["stage"] == "adapt":
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        demo.run_demo(tmp_path, overwrite=True, report=cancel, model=model, say=print)
    assert [(tmp_path / demo.FILES[name]).exists() for name in names] == [False, False, True]


def test_an_unknown_model_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="Unknown model"):
        demo.run_demo(tmp_path / "out", model="no-such-model")
    assert not (tmp_path / "out").exists()


def test_stopping_keeps_the_best_so_far(model, tmp_path):
    def report(event, **fields):
        if fields.get("stage") == "adapt":
            raise Stopped

    result = demo.run_demo(tmp_path, report=report, model=model, say=lambda line: None)
    assert result["best_step"] == 0
    assert (tmp_path / demo.FILES["report"]).is_file()


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_time_is_refused(tmp_path, minutes):
    with pytest.raises(InputError, match="minutes"):
        build_job({"task": "demo", "output": tmp_path, "minutes": minutes})


def test_the_head_and_its_tissues():
    head, tissue = demo.load_head()
    assert head.spacing == (1.0, 1.0, 1.0)
    assert (head.array.min(), head.array.max()) == (0.0, 1.0)
    grey, white = (np.count_nonzero(tissue == value) / 1000 for value in (1, 2))
    assert 900 < grey < 1300 and 500 < white < 800  # ml, of an average adult
    assert not tissue[head.array == 0].any()


def test_the_foreign_contrast_keeps_the_background_and_swaps_tissues():
    levels = [0, 0.0955, 0.3455, 0.8455, 1.0]
    array = np.repeat(np.array(levels, np.float32), 100).reshape(5, 10, 10)
    foreign = demo.foreign_contrast(Volume(array, np.eye(4))).array
    assert foreign[:4, 0, 0] == pytest.approx([0, 0.5, 1, 0], abs=0.001)
    assert np.ptp(foreign, axis=(1, 2)).max() == 0


def test_tissue_dice_leaves_out_what_mixes_tissues():
    labels = np.array([3, 42, 10, 2, 41, 16, 28, 0, 4]).reshape(1, 1, 9)
    tissue = np.array([1, 1, 1, 2, 2, 1, 2, 0, 0]).reshape(1, 1, 9)
    assert demo.tissue_dice(labels, tissue) == {"grey matter": 1.0, "white matter": 1.0}
    assert demo.tissue_dice(labels, 3 - tissue)["grey matter"] == 0.0
