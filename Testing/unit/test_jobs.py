"""Job descriptions, output names, and who owns a checkpoint."""

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MAPSegLib import console
from MAPSegLib.config import AdaptationOptions, CentralisedOptions, Label, check_path
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import AdaptJob, SegmentJob, TrainJob, build_job, parse_job
from MAPSegLib.model_files import user_folder
from MAPSegLib.reports import CHECKPOINT, RECORD, write_csv, write_json
from MAPSegLib.tasks import resume
from MAPSegLib.tasks.earlier import _left_by_the_same, stamps_of
from MAPSegLib.tasks.evaluation import pair_cases
from MAPSegLib.tasks.label_table import infer_labels, read_label_table
from MAPSegLib.tasks.outputs import ScanOutputs, collect_scans, output_folder, refuse_embedded
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
    with pytest.raises(InputError, match="written as"):
        ScanOutputs.plan(Path("/out/x.mgz"), [Path("/s/a.nii")])


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


def adaptation(tmp_path, **options):
    return AdaptJob(model="m", scans=(tmp_path / "a.nii",), output=tmp_path, options=options)


@contextlib.contextmanager
def interrupted(folder, job, files):
    """A run that ends with a checkpoint and no result."""
    with pytest.raises(ZeroDivisionError), resume.claim(folder, job, files) as resumed:
        yield resumed
        (folder / CHECKPOINT).touch()
        raise ZeroDivisionError


def test_a_checkpoint_serves_its_own_job_only(tmp_path):
    scan, second = tmp_path / "a.nii", tmp_path / "b.nii"
    scan.write_text("scan")
    second.write_text("scan")
    with interrupted(tmp_path, adaptation(tmp_path, steps=5), [scan, second]) as resumed:
        assert not resumed
    for files in ([second, scan], [scan]):
        job = adaptation(tmp_path, steps=5)
        with pytest.raises(InputError, match="other files"), resume.claim(tmp_path, job, files):
            pass
    second.unlink()
    (tmp_path / resume.OWNER).write_text("")  # as a power cut leaves it
    job = adaptation(tmp_path, steps=5)
    with pytest.raises(InputError, match="other settings"), resume.claim(tmp_path, job, [scan]):
        pass
    with interrupted(tmp_path, job.model_copy(update={"overwrite": True}), [scan]) as resumed:
        assert not resumed
    with interrupted(tmp_path, adaptation(tmp_path, steps=5, threads=3), [scan]) as resumed:
        assert resumed
    other = adaptation(tmp_path, steps=6)
    with pytest.raises(InputError, match="other options"), resume.claim(tmp_path, other, [scan]):
        pass
    scan.write_text("another scan")
    with (
        pytest.raises(InputError, match="other files"),
        resume.claim(tmp_path, adaptation(tmp_path, steps=5), [scan]),
    ):
        pass
    forced = other.model_copy(update={"overwrite": True})
    with resume.claim(tmp_path, forced, [scan]) as resumed:
        assert not resumed
    assert list(tmp_path.iterdir()) == [scan]


def test_an_adaptation_goes_on_where_its_results_lie_beside_the_slices(tmp_path):
    series, job = tmp_path / "series", adaptation(tmp_path, steps=5)
    (series / "adaptation").mkdir(parents=True)
    for name in ("IM001", "IM002.dcm"):
        (series / name).write_text("slice")
    with interrupted(series / "adaptation", job, [series]):
        pass
    for name in (
        "report.json",
        "volumes.csv",
        "series_seg.nii.gz",
        "adapted_model.safetensors",
        ".mapseg.lock",
    ):
        (series / name).touch()
    with interrupted(series / "adaptation", job, [series]) as resumed:
        assert resumed
    for name in ("IM001", "IM003"):
        (series / name).write_text("another slice")
        with (
            pytest.raises(InputError, match="other files"),
            resume.claim(series / "adaptation", job, [series]),
        ):
            pass


def test_a_checkpoint_of_another_seed_version_or_scan_of_equal_size_is_another_runs(tmp_path, monkeypatch):
    scan, job = tmp_path / "a.nii", adaptation(tmp_path, steps=5)
    scan.write_text("scan")
    with interrupted(tmp_path, job, [scan]) as resumed:
        assert not resumed

    def refused(other, what):
        with pytest.raises(InputError, match=f"with other {what}"), resume.claim(tmp_path, other, [scan]):
            pass

    refused(adaptation(tmp_path, steps=5, seed=1), "options")
    with monkeypatch.context() as other:
        other.setattr(resume, "__version__", "99")
        refused(job, "settings")
    with interrupted(tmp_path, job, [scan]) as resumed:
        assert resumed
    scan.write_text("nacs")
    os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1_000_000_000))
    refused(job, "files")


def test_a_folder_serves_one_run_at_a_time_and_keeps_the_record_of_another(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with resume.claim(folder, adaptation(tmp_path), []):
        with (
            pytest.raises(InputError, match="in use by another run"),
            resume.claim(folder, adaptation(tmp_path), []),
        ):
            pass
        (folder / RECORD).touch()
    assert [path.name for path in folder.iterdir()] == [RECORD]
    with (
        pytest.raises(InputError, match="the record .* of another run"),
        resume.claim(folder, adaptation(tmp_path), []),
    ):
        pass
    assert [path.name for path in folder.iterdir()] == [RECORD]
    with resume.claim(folder, adaptation(tmp_path).model_copy(update={"overwrite": True}), []):
        pass


def test_where_files_cannot_be_locked_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with resume.claim(tmp_path, adaptation(tmp_path), []):
        pass
    assert "cannot be locked" in caplog.text and list(tmp_path.iterdir()) == []


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), resume.claim(tmp_path, adaptation(tmp_path), []):
        (tmp_path / RECORD).touch()
        (tmp_path / f"{CHECKPOINT}.part").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_label_tables(tmp_path):
    path = tmp_path / "table.json"
    right = {"value": 53, "name": "right hippocampus", "mirror": 17}
    path.write_text(json.dumps([{"value": 17, "name": "left hippocampus", "mirror": 53}, right]))
    label, _ = read_label_table(path)
    assert label == Label(value=17, name="left hippocampus", mirror=53, color=label.color)
    assert label.color != Label.model_fields["color"].default  # two grey structures could not be told apart
    path.write_text(json.dumps({"1": "myocardium", "2": "blood"}))
    assert [label.name for label in read_label_table(path)] == ["myocardium", "blood"]
    path.write_text(json.dumps({"background": 0, "liver": 1, "2": 2}))  # as nnU-Net has it
    assert [(label.value, label.name) for label in read_label_table(path)] == [(1, "liver"), (2, "2")]
    path.write_text(json.dumps({"liver": 1, "ignore": 2}))
    with pytest.raises(InputError, match="voxels to ignore"):
        read_label_table(path)
    assert len(read_label_table("brain")) > 20
    for wrong in (
        [],
        [{"value": 0, "name": "x"}],
        [{"value": 1}],
        {"one": "x"},
        [{"value": 1, "name": "x"}] * 2,
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="not a label table"):
            read_label_table(path)


def test_regions_of_several_values_are_refused_with_a_way_on(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": 2}}))
    with pytest.raises(InputError, match="dataset.json: regions, .* are not supported") as refusal:
        read_label_table(path)
    assert refusal.value.advice


def test_mirror_images_are_named_on_both_sides(tmp_path):
    path = tmp_path / "table.json"
    for back in (None, 3):
        row = {"value": 2, "name": "right"} | ({} if back is None else {"mirror": back})
        path.write_text(json.dumps([{"value": 1, "name": "left", "mirror": 2}, row]))
        with pytest.raises(InputError, match="1 names 2 as its mirror image, which does not name 1"):
            read_label_table(path)
    path.write_text(json.dumps([{"value": 1, "name": "left", "mirror": 2}]))
    with pytest.raises(InputError, match="1 names 2 as its mirror image, which is not in the table"):
        read_label_table(path)


def test_labels_are_made_up_for_the_values_found():
    labels = infer_labels({0, 600, 200})
    assert [label.value for label in labels] == [200, 600]
    assert labels[0].color != labels[1].color
    for wrong in ({0}, {-1, 2}, {70000}):
        with pytest.raises(InputError, match="no structures, or values outside"):
            infer_labels(wrong)


def test_predictions_and_references_that_are_named_alike_are_refused(tmp_path):
    for name in ("p/a_seg.nii.gz", "p/a_source.nii.gz", "p/a.nii.gz", "p/a_adapted.nii.gz", "r/a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="named alike"):
        pair_cases(tmp_path / "p", tmp_path / "r")
    (tmp_path / "p" / "a_seg.nii.gz").unlink()  # what is left is one adaptation to one scan
    pair = (tmp_path / "p/a.nii.gz", tmp_path / "r/a.nii.gz")
    assert pair_cases(tmp_path / "p", tmp_path / "r") == ([pair], [])
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
    pairs, left = pair_cases(predictions, references)
    assert [(p.name, r.name) for p, r in pairs] == [
        ("a_seg.nii.gz", "a_label.nii.gz"),
        ("b_seg.nrrd", "b.nii.gz"),
    ]
    assert [path.name for path in left] == ["c.nii.gz"]
    (references / "b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"No reference in .* for b_seg.nrrd"):
        pair_cases(predictions, references)


def test_references_may_lie_beside_their_images(tmp_path):
    for name in ("p/a_seg.nii.gz", "r/a_img.nii.gz", "r/a_label.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pair = (tmp_path / "p/a_seg.nii.gz", tmp_path / "r/a_label.nii.gz")
    assert pair_cases(tmp_path / "p", tmp_path / "r") == ([pair], [])


def test_label_maps_with_references_of_their_own_are_no_side_results(tmp_path):
    names = ["a.nii.gz", "a_adapted.nii.gz", "a_source.nii.gz"]
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    pairs, left = pair_cases(tmp_path / "p", tmp_path / "r")
    assert [(p.name, r.name) for p, r in pairs] == [(name, name) for name in names] and not left


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(InputError, match="A path is empty"):
        check_path("")


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


def test_a_line_on_standard_input_stops(monkeypatch):
    pieces = iter([b"st", b"op\r", b"\nmore"])
    monkeypatch.setattr(os, "read", lambda descriptor, size: next(pieces, b""))
    stopped = listen_for_stop(b"stop")
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


def test_a_report_from_elsewhere_claims_no_file_of_others(tmp_path):
    """What a job takes for its results, it removes when it fails."""
    (tmp_path / "mine").touch()
    (tmp_path / "scan.nii.gz").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg.nii.gz").touch()
    scan, outputs = tmp_path / "scan.nii.gz", ScanOutputs(tmp_path / "out")
    for file, done in ((outputs.label_map(scan), 1), (tmp_path / "mine", 0)):
        then = {"job": {}, "scans": stamps_of([scan]), "files": []}
        report = {"unfinished": then, "scans": [{"file": str(scan), "output": str(file)}]}
        write_json(outputs.beside("report.json"), report, overwrite=True)
        assert len(_left_by_the_same(outputs, {"job": {}})[1]) == done
