"""The same segmentation again: after it was cancelled, and once it is through."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from MAPSegLib import __version__, api
from MAPSegLib.errors import Cancelled, InputError

from .calls import CPU, files, labels_of, mapseg, refused


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
        events = []
        result = api.segment(model, scans, out, report=events.append, **given)
        assert [Path(entry["file"]).name for entry in result["scans"]] == ["case1.nii.gz", "case2.nii.gz"]
        logged = [event["message"] for event in events if event["event"] == "log"]
        assert "Scans that have their results: 1; to do: 1." in logged
        (failure,) = result["failed"]
        assert failure["message"] == f"{scans / 'case0.nii.gz'} has changed since it was segmented."
        return
    if changed == "options":
        told = refused("segment", model, scans, "-o", out, *CPU, "--overlap", 0.2)
        assert "already there, by a job with other overlap." in told
        told = refused("segment", "brain-t1", scans, "-o", out, *CPU, "--uncertainty")
        assert "already there, by a job with other uncertainty and another model file." in told
        report = (out / "report.json").read_text(encoding="utf-8")
        report = report.replace(f'"version": "{__version__}"', '"version": "0.0.1"')
        (out / "report.json").write_text(report, encoding="utf-8")
        told = refused("segment", model, scans, "-o", out, *CPU)
        assert "already there, by a job with another version of MAPSeg (0.0.1)." in told
        return
    if changed == "result":
        (out / "case1_seg.nii.gz").unlink()
    if changed == "part":
        result = api.segment(model, scans / "case2.nii.gz", out, **given)
        assert [Path(entry["file"]).name for entry in result["scans"]] == ["case2.nii.gz"]
        assert [Path(file).name for file in result["files"]] == [
            "case2_seg.nii.gz",
            "report.json",
            "volumes.csv",
        ]
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
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


@pytest.mark.parametrize("named", [False, True])
def test_a_job_that_is_through_takes_up_scans_that_failed_or_came_since(named, model, data, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    shutil.copy(data / "images" / "case0.nii.gz", scans)
    (scans / "case1.nii.gz").write_text("no scan")

    def again(code):
        given = sorted(scans.iterdir()) if named else [scans]
        told = mapseg("segment", model, *given, "-o", out, *CPU, code=code)[1]
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert "unfinished" not in report
        failed = [Path(entry["scan"]).name for entry in report["failed"]]
        return told, sorted(Path(entry["file"]).name for entry in report["scans"]), failed

    assert again(code=2)[1:] == (["case0.nii.gz"], ["case1.nii.gz"])
    first = (out / "case0_seg.nii.gz").stat().st_mtime_ns
    told, done, failed = again(code=2)
    assert "Scans that have their results: 1; to do: 1." in told and failed == ["case1.nii.gz"]
    for case in ("case1", "case2"):
        shutil.copy(data / "images" / f"{case}.nii.gz", scans)
    assert again(code=0)[1:] == ([f"case{i}.nii.gz" for i in range(3)], [])
    (scans / "case0.nii.gz").unlink()  # put away, its result is still told of
    told, done, failed = again(code=0)
    assert "Scans that have their results: 2; to do: 0." in told and len(done) == 3 and not failed
    assert (out / "case0_seg.nii.gz").stat().st_mtime_ns == first
    rows = csv.DictReader((out / "volumes.csv").open())
    assert {row["scan"] for row in rows} == set(done)


def test_calls_into_one_folder_tell_of_their_own_scans_and_its_report_of_all(model, data, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no scan")
    given = {"device": "cpu", "threads": 1, "overwrite": True}  # which a later call may leave out
    for i in range(2):
        result = api.segment(model, data / "images" / f"case{i}.nii.gz", tmp_path, **given)
        assert [Path(entry["file"]).name for entry in result["scans"]] == [f"case{i}.nii.gz"]
        given["overwrite"] = False
    for _ in range(2):
        with pytest.raises(InputError, match="bad"):
            api.segment(model, bad, tmp_path, **given)
    assert api.segment(model, data / "images" / "case2.nii.gz", tmp_path, **given)["failed"] == []
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(report["scans"]) == 3 and [entry["scan"] for entry in report["failed"]] == [str(bad)]


@pytest.mark.parametrize("changed", ["scan", "options"])
def test_a_job_that_is_through_keeps_its_results(changed, model, data, tmp_path):
    scans, out, options = tmp_path / "scans", tmp_path / "out", []
    scans.mkdir()
    shutil.copy(data / "images" / "case0.nii.gz", scans)
    mapseg("segment", model, scans, "-o", out, *CPU)
    if changed == "scan":
        shutil.copy(data / "images" / "case1.nii.gz", scans / "case0.nii.gz")
    if changed == "options":
        options = ["--overlap", 0.2]
    written = (out / "case0_seg.nii.gz").stat().st_mtime_ns
    for _ in range(2):
        told = refused("segment", model, scans, "-o", out, *CPU, *options)
        why = (
            "has changed since it was segmented. To have that done again, remove"
            if changed == "scan"
            else "already there, by a job with other overlap."
        )
        assert "case0_seg.nii.gz" in told and why in told
        assert (out / "case0_seg.nii.gz").stat().st_mtime_ns == written
    if changed == "scan":
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert len(report["scans"]) == len(report["failed"]) == 1
        assert not list(csv.DictReader((out / "volumes.csv").open()))  # the file's volumes are others now
        (out / "case0_seg.nii.gz").unlink()
        mapseg("segment", model, scans, "-o", out, *CPU)
        assert json.loads((out / "report.json").read_text(encoding="utf-8"))["failed"] == []
        written = (out / "case0_seg.nii.gz").stat().st_mtime_ns
    mapseg("segment", model, scans, "-o", out, *CPU, *options, "--overwrite")
    assert (out / "case0_seg.nii.gz").stat().st_mtime_ns > written


def test_a_job_that_is_through_reads_no_weights(model, data, tmp_path, monkeypatch):
    first = api.segment(model, data / "images", tmp_path, device="cpu", threads=1)
    read = []
    monkeypatch.setattr("MAPSegLib.tasks.scans.load_candidates", lambda *given: read.append(given))
    again = api.segment(model, data / "images", tmp_path, device="cpu", threads=1)
    assert again["scans"] == first["scans"] and not read
