"""Job descriptions, output names, and who owns a checkpoint."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MAPSegLib import console
from MAPSegLib.config import AdaptationOptions, CentralisedOptions, check_path
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import SegmentJob, TrainJob, build_job, parse_job
from MAPSegLib.model_files import user_folder
from MAPSegLib.models import resolve
from MAPSegLib.reports import printable, write_csv, write_json
from MAPSegLib.tasks.evaluation import pair_cases
from MAPSegLib.tasks.outputs import ScanOutputs, collect_scans, output_folder, refuse_embedded
from MAPSegLib.volumes import scan_stem
from MAPSegLib.worker import listen_for_stop

SEGMENT = {"task": "segment", "model": "brain-t1", "scans": ["a.nii.gz"], "output": "out"}


def test_the_task_decides_the_kind_of_job(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(SEGMENT | {"options": {"batch": 2}}))
    job = parse_job(path)
    assert isinstance(job, SegmentJob)
    assert job.options.batch == 2 and job.options.overlap == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "paint"}, "task"),
        ({"scans": []}, "scans"),
        ({"options": {"overlap": 2}}, "options.overlap"),
        ({"options": {"overlpa": 0.2}}, "options.overlpa"),
        ({"colour": "red"}, "colour"),
        ({"scans": "a.nii.gz"}, "scans: a list is needed"),
        ({"task": None}, "task"),
    ],
)
def test_jobs_are_validated_whole(change, message):
    with pytest.raises(InputError, match=message) as caught:
        build_job(SEGMENT | change)
    assert "\n" not in caught.value.message


def test_a_training_has_one_kind_of_data():
    start = {"task": "train", "output": "out", "name": "x"}
    assert isinstance(build_job(start | {"images": "i", "labels": "l"}), TrainJob)
    assert isinstance(build_job(start | {"from_labels": "l"}), TrainJob)
    assert isinstance(build_job(start | {"images": "a data set"}), TrainJob)
    for wrong in ({}, {"images": "i", "labels": "l", "from_labels": "l"}, {"labels": "l"}):
        with pytest.raises(InputError, match="cannot be run: give either images and labels, or from_labels"):
            build_job(start | wrong)
    with pytest.raises(InputError, match="init brings its own"):
        build_job(start | {"from_labels": "l", "init": "brain-t1", "preset": "tiny"})
    with pytest.raises(InputError, match="name"):
        build_job(start | {"from_labels": "l", "name": "../x"})


def test_a_pretraining_has_scans_or_label_maps():
    start = {"task": "pretrain", "output": "out", "name": "x"}
    job = build_job(start | {"domains": ["a", "b"], "from_labels": "l"})
    assert len(job.domains) == 2 and job.options.learning_rate == 2e-4
    with pytest.raises(InputError, match="give folders of scans, or from_labels"):
        build_job(start)
    with pytest.raises(InputError, match="options.mask_ratio"):
        build_job(start | {"domains": ["a"], "options": {"mask_ratio": 1}})


@pytest.mark.parametrize("content", ["", "{", "[]", '"segment"', "\x00\x01"])
def test_files_that_are_no_job_are_told(tmp_path, content):
    path = tmp_path / "job.json"
    path.write_text(content)
    with pytest.raises(InputError, match="not a JSON file with a job"):
        parse_job(path)
    with pytest.raises(InputError, match="does not exist"):
        parse_job(tmp_path / "absent.json")


def test_results_are_named_after_scans():
    scans = [Path("/s/a.nii.gz"), Path("/s/b.nrrd"), Path("/s/c.mgz"), Path("/s/series")]
    plan = ScanOutputs.plan(Path("/out"), scans)
    names = [plan.label_map(scan).name for scan in scans]
    assert names == ["a_seg.nii.gz", "b_seg.nrrd", "c_seg.nii.gz", "series_seg.nii.gz"]
    assert plan.volume(scans[0], "seg_source") == Path("/out/a_seg_source.nii.gz")
    assert plan.beside("report.json") == Path("/out/report.json")

    one = ScanOutputs.plan(Path("/out/mine.nii.gz"), scans[:1])
    assert one.label_map(scans[0]) == Path("/out/mine.nii.gz")
    assert one.volume(scans[0], "seg_source") == Path("/out/mine_source.nii.gz")
    assert one.beside("report.json") == Path("/out/mine_report.json")


def test_a_model_cannot_hide_behind_an_embedded_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="brain-t1 is the name of an embedded model"):
        refuse_embedded(user_folder() / "brain-t1.safetensors")
    refuse_embedded(user_folder() / "mine.safetensors")
    refuse_embedded(tmp_path / "brain-t1.safetensors")


def test_ambiguous_outputs_are_refused():
    with pytest.raises(InputError, match="one file, but there are 2"):
        ScanOutputs.plan(Path("/out/x.nii.gz"), [Path("/s/a.nii"), Path("/s/b.nii")])
    with pytest.raises(InputError, match="share a result's name"):
        ScanOutputs.plan(Path("/out"), [Path("/s/a.nii"), Path("/t/a.nii.gz")])


@pytest.mark.parametrize("name", ["x.mgz", "x.nii.bz2", "x.nii.xz", "x.img", "X.PNG", ".nii.gz"])
def test_names_of_files_that_are_not_written_are_no_folders(name, tmp_path):
    with pytest.raises(InputError, match=r"results are written as \.nii\.gz, \.nii, \.nrrd, \.mha"):
        ScanOutputs.plan(tmp_path / name, [Path("/s/a.nii")])
    (tmp_path / name).mkdir()
    assert ScanOutputs.plan(tmp_path / name, [Path("/s/a.nii")]).folder == tmp_path / name
    assert ScanOutputs.plan(tmp_path / "v1.2", [Path("/s/a.nii")]).folder == tmp_path / "v1.2"


def test_names_that_windows_takes_for_one_are_ambiguous(tmp_path, monkeypatch):
    scans = [Path("/s/Case1.nii"), Path("/t/case1.nii.gz")]
    assert ScanOutputs.plan(Path("/out"), scans).label_map(scans[0]).name == "Case1_seg.nii"
    monkeypatch.setattr(os.path, "normcase", str.lower)
    monkeypatch.setattr(os.path, "realpath", lambda path: str(path).lower())
    with pytest.raises(InputError, match="share a result's name"):
        ScanOutputs.plan(Path("/out"), scans)
    assert collect_scans([tmp_path / "Case1.nii", tmp_path / "case1.nii"]) == [tmp_path / "Case1.nii"]


def test_folders_stand_for_their_scans(tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    found = collect_scans([tmp_path, tmp_path / "a.nii.gz"])
    assert [path.name for path in found] == ["a.nii.gz", "b.nii.gz"]


def test_a_scan_that_is_spelled_in_two_ways_is_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "b.nii.gz").symlink_to("a.nii.gz")
    (tmp_path / "here").symlink_to(tmp_path)
    given = [tmp_path / name for name in ("a.nii.gz", "d/../a.nii.gz", "here/a.nii.gz", "b.nii.gz")]
    assert collect_scans(given) == [given[0], given[3]]
    assert ScanOutputs.plan(tmp_path / "out", collect_scans(given)).label_map(given[3]).name == "b_seg.nii.gz"


def test_a_failed_job_leaves_no_empty_folders(tmp_path):
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "x" / "y"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with output_folder(tmp_path / "x" / "y"):
        pass
    assert (tmp_path / "x" / "y").is_dir()


def test_folders_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "out", Path("/proc/mapseg/out")):
        with pytest.raises(InputError, match="cannot be written"), output_folder(folder):
            pass


def test_predictions_and_references_that_are_named_alike_are_refused(tmp_path):
    for name in ("p/a_seg.nii.gz", "p/a_source.nii.gz", "p/a.nii.gz", "p/a_adapted.nii.gz", "r/a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="named alike"):
        pair_cases(tmp_path / "p", tmp_path / "r")
    (tmp_path / "p" / "a_seg.nii.gz").unlink()  # what is left is one adaptation to one scan
    pair = (tmp_path / "p/a.nii.gz", tmp_path / "r/a.nii.gz")
    assert pair_cases(tmp_path / "p", tmp_path / "r") == ([pair], [], [])
    (tmp_path / "r" / "a.nii").touch()
    with pytest.raises(InputError, match="named alike"):
        pair_cases(tmp_path / "p", tmp_path / "r")


def test_label_maps_find_their_references(tmp_path):
    predictions, references = tmp_path / "p", tmp_path / "r"
    for folder, names in (
        (predictions, ("a_seg.nii.gz", "a_seg_source.nii.gz", "a_uncertainty.nii.gz", "b_seg.nrrd")),
        (references, ("a_label.nii.gz", "b.nii.gz", "c.nii.gz")),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    pairs, alone, left = pair_cases(predictions, references)
    assert [(p.name, r.name) for p, r in pairs] == [
        ("a_seg.nii.gz", "a_label.nii.gz"),
        ("b_seg.nrrd", "b.nii.gz"),
    ]
    assert not alone and [path.name for path in left] == ["c.nii.gz"]
    (references / "b.nii.gz").unlink()
    pairs, alone, _ = pair_cases(predictions, references)
    assert [p.name for p, _ in pairs] == ["a_seg.nii.gz"] and [p.name for p in alone] == ["b_seg.nrrd"]
    (references / "a_label.nii.gz").unlink()
    with pytest.raises(InputError, match=r"No reference in .* for a_seg.nii.gz, b_seg.nrrd"):
        pair_cases(predictions, references)


def test_cases_of_nnunet_find_their_references_and_many_take_no_longer_each(tmp_path, monkeypatch):
    for name in [f"{name}.nii" for k in range(99) for name in (f"a/x_{k:04d}_0000_seg", f"b/x_{k:04d}")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = []
    monkeypatch.setattr(
        "MAPSegLib.tasks.evaluation.scan_stem", lambda path: asked.append(path) or scan_stem(path)
    )
    pairs, *left = pair_cases(tmp_path / "a", tmp_path / "b")
    assert [(a.name[:6], b.stem) for a, b in pairs] == [(f"x_{k:04d}",) * 2 for k in range(99)]
    assert left == [[], []] and len(asked) < 99 * 20


def test_references_may_lie_beside_their_images(tmp_path):
    for name in ("p/a_seg.nii.gz", "r/a_img.nii.gz", "r/a_label.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pair = (tmp_path / "p/a_seg.nii.gz", tmp_path / "r/a_label.nii.gz")
    assert pair_cases(tmp_path / "p", tmp_path / "r") == ([pair], [], [])


def test_of_a_batch_in_slicer_each_case_counts_once(tmp_path):
    for name in ("p/a.seg.nrrd", "p/a_seg.nii.gz", "p/b.seg.nrrd", "r/a.seg.nrrd", "r/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pairs, alone, left = pair_cases(tmp_path / "p", tmp_path / "r")
    assert [(p.name, r.name) for p, r in pairs] == [
        ("a_seg.nii.gz", "a.seg.nrrd"),
        ("b.seg.nrrd", "b.nii.gz"),
    ]
    assert not alone and not left


def test_one_label_map_may_have_its_reference_in_a_manifest(tmp_path):
    for name in ("a_seg.nii.gz", "a_img.nii.gz", "a_label.nii.gz"):
        (tmp_path / name).touch()
    case = {"image": "a_img.nii.gz", "label": "a_label.nii.gz"}
    write_json(tmp_path / "set.json", {"cases": [case]})
    pair = (tmp_path / "a_seg.nii.gz", tmp_path / "a_label.nii.gz")
    assert pair_cases(tmp_path / "a_seg.nii.gz", tmp_path / "set.json") == ([pair], [], [])


def test_a_result_whose_name_the_user_chose_is_no_image_of_its_own(tmp_path):
    for name in ("p/a.nii.gz", "p/a_uncertainty.nii.gz", "p/a_img.nii.gz", "r/a_label.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entry = {"output": "a.nii.gz", "uncertainty": "a_uncertainty.nii.gz"}
    write_json(tmp_path / "p" / "a_report.json", {"task": "segment", "scans": [entry]})
    pair = (tmp_path / "p/a.nii.gz", tmp_path / "r/a_label.nii.gz")
    assert pair_cases(tmp_path / "p", tmp_path / "r") == ([pair], [], [])


def test_label_maps_with_references_of_their_own_are_no_side_results(tmp_path):
    names = ["a.nii.gz", "a_adapted.nii.gz", "a_source.nii.gz"]
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    pairs, *left = pair_cases(tmp_path / "p", tmp_path / "r")
    assert [(p.name, r.name) for p, r in pairs] == [(name, name) for name in names]
    assert left == [[], []]


def test_an_empty_path_is_not_the_current_folder_and_one_with_a_null_is_none():
    with pytest.raises(InputError, match="A path is empty"):
        check_path("")
    for name, value in {"output": "", "scans": ["a", " "]}.items():
        with pytest.raises(InputError, match=rf"{name}.*: a path is empty"):
            build_job({**SEGMENT, name: value})
    for name, value in {"output": "a\0b", "scans": [Path("a\0b")]}.items():
        with pytest.raises(InputError, match=rf"{name}.*: a path holds a null character"):
            build_job({**SEGMENT, name: value})


@pytest.mark.parametrize(
    ("task", "name"),
    [("train", "init"), ("train", "label_table"), ("import", "label_table"), ("evaluate", "model")],
)
def test_an_empty_name_is_not_one_left_out(task, name):
    """As from a variable that is not set: a training would start from nothing and say nothing."""
    places = {"train": ("images",), "import": ("checkpoint",), "evaluate": ("prediction", "reference")}[task]
    job = {"task": task, "output": "out", **dict.fromkeys(places, "a")}
    if task != "evaluate":
        job["name"] = "mine"
    build_job(job)
    with pytest.raises(InputError, match=f"{name}: a path is empty"):
        build_job({**job, name: ""})


def test_without_a_current_folder_whole_paths_and_names_of_models_still_work(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        InputError, match="a.nii.gz cannot be found, as the current folder is no longer there"
    ):
        check_path("a.nii.gz")
    assert check_path(tmp_path) == tmp_path and resolve("brain-t1").is_file()
    with pytest.raises(InputError, match="does not exist"):
        resolve(tmp_path / "nobody")


def test_a_tilde_that_names_nobody_is_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_path("~nobody-of-that-name/a.nii") == tmp_path / "~nobody-of-that-name" / "a.nii"
    assert check_path("~/a.nii") == Path.home() / "a.nii"
    monkeypatch.setenv("MAPSEG_HOME", "~nobody-of-that-name")
    assert user_folder() == tmp_path / "~nobody-of-that-name" / "models"


def test_flags_win_over_the_file_of_options(tmp_path, monkeypatch):
    built, file = [], tmp_path / "options.json"
    file.write_text('{"batch": 2, "overlap": 0.25}')
    monkeypatch.setattr(console, "execute", lambda load, *_: built.append(load()) or 0)
    content = {key: value for key, value in SEGMENT.items() if key != "task"}
    assert console.run("segment", content, {"overlap": 0.0, "batch": None}, file) == 0
    assert (built[0].options.overlap, built[0].options.batch) == (0.0, 2)


def test_options_of_the_other_setting_name_what_they_need():
    job = {"task": "adapt", "model": "m", "scans": ["a"], "output": "o", "options": {"preset": "plus"}}
    with pytest.raises(InputError, match="preset needs labelled source data"):
        build_job(job)
    assert build_job(job | {"source": "s"}).options.preset == "plus"


def test_reports_are_plain(tmp_path):
    import numpy as np

    rows = [{"name": "a,b", "dice": np.float32(0.5), "hd": math.nan}, {"name": "c", "dice": 1 / 3, "hd": 2}]
    assert (
        write_csv(tmp_path / "x.csv", rows).read_text(encoding="utf-8")
        == 'name,dice,hd\n"a,b",0.5,\nc,0.333333,2\n'
    )
    write_json(tmp_path / "x.json", {"rows": rows, "path": tmp_path, 3: np.arange(2)})
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content["rows"][0]["hd"] is None and content["3"] == [0, 1]
    with pytest.raises(InputError, match="already exists"):
        write_json(tmp_path / "x.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json"]


def test_an_empty_line_on_standard_input_stops(monkeypatch):
    pieces = iter([b"st", b"op\r", b"\n\r", b"\nmore"])
    monkeypatch.setattr(os, "read", lambda descriptor, size: next(pieces, b""))
    stopped = listen_for_stop()
    for _ in range(100):
        if stopped():
            return
        time.sleep(0.01)
    pytest.fail("the line was not heard")


def test_front_ends_start_light():
    code = (
        "import sys, MAPSegLib, MAPSegLib.cli; assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    code += "; import MAPSegLib.jobs, MAPSegLib.worker, MAPSegLib.console"
    code += "; assert not {'torch', 'nibabel', 'SimpleITK', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_source_decides_which_options_an_adaptation_has():
    start = {"task": "adapt", "model": "m", "scans": ["s"], "output": "out"}
    alone = build_job(start | {"options": {"curve_knots": 0}}).options
    beside = build_job(start | {"source": "s", "options": {"warmup": 5}}).options
    assert type(alone) is AdaptationOptions and alone.ema_decay == 0.9 and alone.steps == 150
    assert type(beside) is CentralisedOptions and (beside.warmup, beside.preset) == (5, "paper")
    assert beside.ema_decay == "small" and beside.learning_rate == 1e-4
    assert type(build_job(start | {"source_from_labels": "l"}).options) is CentralisedOptions
    dumped = build_job(start | {"source": "s"}).model_dump(mode="json")
    assert dumped["options"]["preset"] == "paper" and build_job(dumped) == build_job(start | {"source": "s"})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"options": {"preset": "paper"}}, "preset needs labelled source data"),
        ({"source": "s", "options": {"plain_weight": 0.5}}, "options.plain_weight: there is no such option"),
        ({"source": "s", "options": {"preset": "v3"}}, "options.preset: Input should be"),
        ({"source": "s", "options": {"steps": 10, "warmup": 10}}, "warm-up of 10 steps leaves none"),
        ({"source": "s", "source_from_labels": "l"}, "either source or source_from_labels"),
        ({"source_labels": "l"}, "source_labels need a source"),
    ],
)
def test_a_source_that_cannot_be_used_is_told(more, told):
    with pytest.raises(InputError, match=told):
        build_job({"task": "adapt", "model": "m", "scans": ["s"], "output": "out"} | more)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "segmenting"}, "there is no such task"),
        ({"options": [1]}, "options: names and values are needed"),
        ({"scans": "a.nii.gz"}, "scans: a list is needed"),
    ],
)
def test_a_job_of_another_form_is_told_in_plain_words(changes, told):
    with pytest.raises(InputError, match=f"^The job cannot be run: {told}"):
        build_job({"task": "segment", "model": "m", "scans": ["s"], "output": "out"} | changes)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight_decay", "minutes"])
def test_options_are_finite(name, value):
    with pytest.raises(InputError, match=f"options.*{name}: Input should be a finite number"):
        build_job(dict(task="adapt", model="m", scans=["a.nii"], output="o", options={name: value}))


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (dict(task="train", images="i", labels="l", contrast="t2"), "contrast is that of images synthesised"),
        (dict(task="train", images="i", labels="l", options={"patience": 3}), "patience needs cases"),
        (dict(task="pretrain", domains=["d"], contrast="random"), "contrast is that of images synthesised"),
        (
            dict(task="adapt", model="m", scans=["s"], source="d", source_contrast="t2"),
            "source_contrast is that",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(job, told):
    named = {"name": "x"} if job["task"] != "adapt" else {}
    with pytest.raises(InputError, match=told):
        build_job({**job, **named, "output": "o"})


@pytest.mark.parametrize("mapping", [{-1: 2}, {1: 70_000}, {3_000_000_000: 1}])
def test_values_of_a_mapping_are_label_values(mapping):
    with pytest.raises(InputError, match="mapping"):
        build_job(dict(task="evaluate", prediction="p", reference="r", output="o", mapping=mapping))


@pytest.mark.parametrize("name", ["=1+1", "+C T1", "-rf", "@x", "\t=x"])
def test_a_spreadsheet_computes_nothing_of_a_name(tmp_path, name):
    table = write_csv(tmp_path / "x.csv", [{"scan": name, "ml": -1.5, "value": -2}])
    [row] = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    assert row == {"scan": f"'{name}", "ml": "-1.5", "value": "-2"}


def test_no_terminal_obeys_a_name():
    assert printable("a\x1b[2J\x9b1m\x07b\tc\nd é") == "a\ufffd[2J\ufffd1m\ufffdb\tc\nd é"
