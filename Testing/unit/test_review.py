"""A page of results: what it shows, in which order, and what it refuses. What it looks like is for people to judge."""

import builtins
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from MAPSegLib import api
from MAPSegLib.errors import InputError

pytest.importorskip("matplotlib.image", reason="needs the extra 'demo'")

LABELS = [
    {"value": 3, "name": "dark <core>", "color": [255, 0, 0]},
    {"value": 7, "name": "shell", "color": [0, 0, 255]},
]


def entry_of(folder, name, trusted=True, score=0.9, side=20, **more):
    """A scan, its label map, and what a report tells of them."""
    image = np.random.default_rng(0).random((side, side, side), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[5:15, 5:15, 5:15] = 3
    (folder / "out").mkdir(exist_ok=True)
    scan, output = folder / f"{name}.nii.gz", folder / "out" / f"{name}_seg.nii.gz"
    nib.save(nib.Nifti1Image(image, np.eye(4)), scan)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), output)
    structure = {"value": 3, "structure": "dark <core>", "volume_ml": 1.0, "confidence": None}
    told = {"output": str(output), "trusted": trusted, "reason": "Because.", "notes": [f"a & b of {name}"]}
    told |= {"measures": {"score": score}, "structures": [structure]}
    return {"file": str(scan), **told, **more}


def report_of(folder, entries, task="segment", name="report.json", **more):
    content = {"task": task, "model": "<mine>", "labels": LABELS, "scans": entries, "failed": [], **more}
    (folder / "out" / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / "out"


def headings(page):
    return re.findall("<h2>(.*)</h2>", page)


def test_doubtful_results_come_first_and_names_are_shown_as_they_are(tmp_path):
    entries = [entry_of(tmp_path, "fair", score=0.8), entry_of(tmp_path, "good", score=0.9)]
    entries += [
        entry_of(tmp_path, "a<b>&c #1", trusted=False, score=0.95),
        entry_of(tmp_path, "bad", score=-1),
    ]
    failed = {"kind": "input", "message": "lost.nii is empty.", "advice": "Export it.", "scan": "lost.nii"}
    out = report_of(tmp_path, entries, failed=[failed])
    result = api.review(out)
    page = (out / "review.html").read_text(encoding="utf-8")
    assert headings(page) == ["a&lt;b&gt;&amp;c #1.nii.gz", "bad.nii.gz", "fair.nii.gz", "good.nii.gz"]
    assert "<b>4</b><span>results" in page and "<b>1</b><span>not to be trusted" in page
    assert "<b>1</b><span>failed" in page and "lost.nii is empty. Export it." in page
    assert "&lt;mine&gt;" in page and "dark &lt;core&gt;" in page and "a &amp; b of good" in page
    assert "overflow-wrap: anywhere" in page  # names of scans often have no spaces
    assert "not for clinical use" in page and page.count('class="verdict warn"') == 2
    sources = re.findall('src="(.*?)"', page)
    assert sources[0] == "review/a%3Cb%3E%26c%20%231_seg.nii.gz.png"
    pictures = {
        str(out / "review" / f"{name}_seg.nii.gz.png") for name in ("a<b>&c #1", "bad", "fair", "good")
    }
    assert set(result["files"]) == {str(out / "review.html"), *pictures} and result["failed"] == []
    assert all((out / "review" / f"{name}_seg.nii.gz.png").is_file() for name in ("a<b>&c #1", "bad"))


def test_a_page_of_pictures_needs_no_pytorch(tmp_path):
    out = report_of(tmp_path, [entry_of(tmp_path, "a")])
    without = "import sys; sys.modules['torch'] = None; from MAPSegLib.cli import main; main()"
    subprocess.run([sys.executable, "-c", without, "review", str(out)], check=True)
    assert (out / "review.html").is_file()


def test_the_report_of_a_batch_in_slicer_is_refused_with_what_to_do(tmp_path):
    report = {"settings": {"model": "brain"}, "scans": [{"case": "a", "state": "done"}], "waiting": 0}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="is the report of a batch in Slicer") as refusal:
        api.review(tmp_path)
    assert "mapseg segment" in refusal.value.advice


@pytest.mark.parametrize("chosen", ["source", "adapted"])
def test_of_an_adaptation_what_was_kept_is_beside_the_other(chosen, tmp_path, monkeypatch):
    from MAPSegLib import pictures

    entry = entry_of(tmp_path, "a")
    for side in ("source", "adapted"):
        entry[side] = {**entry_of(tmp_path, f"a_seg_{side}"), "trusted": False}
    entry |= {"chosen": chosen, "gate": "Adaptation is better supported."}
    drawn = []
    overlay = pictures.overlay

    def watched(panels, *given):
        drawn.extend(panel.title for panel in panels)
        return overlay(panels, *given)

    monkeypatch.setattr(pictures, "overlay", watched)
    out = report_of(tmp_path, [entry], task="adapt")
    api.review(out)
    names = {"source": "the model as it was", "adapted": "adapted"}
    (other,) = names.keys() - {chosen}
    assert drawn == [f"kept: {names[chosen]}", names[other]]
    page = (out / "review.html").read_text(encoding="utf-8")
    assert f"<b>{int(chosen == 'adapted')}</b><span>kept the adapted result" in page
    assert "Adaptation is better supported." in page


def test_results_that_moved_are_found_and_a_lost_scan_stops_no_other(tmp_path):
    entries = [entry_of(tmp_path, "a"), entry_of(tmp_path, "b"), entry_of(tmp_path, "c")]
    report_of(tmp_path, entries)
    out = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    (tmp_path / "a.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 9)), np.eye(4)), tmp_path / "b.nii.gz")
    events = []
    result = api.review(out, report=events.append)
    page = (out / "review.html").read_text(encoding="utf-8")
    assert headings(page) == ["c.nii.gz"] and "<b>2</b><span>failed" in page
    told = [failure["message"] for failure in result["failed"]]
    assert "a.nii.gz does not exist" in told[0] and "20 x 20 x 20 voxels" in told[1]
    assert [event["stage"] for event in events if event["event"] == "progress"] == ["review"] * 3
    assert not list((out / "review").glob("[ab]_*"))


def test_scans_of_one_name_have_a_picture_each(tmp_path):
    """Two commands may segment ``a.nii.gz`` and ``a.nrrd`` into one folder."""
    entries = [entry_of(tmp_path, "a"), entry_of(tmp_path, "b")]
    for kind in ("file", "output"):
        path = Path(entries[1][kind])
        other = path.with_name(path.name.replace("b", "a").removesuffix(".gz"))
        nib.save(nib.load(path), other)
        entries[1][kind] = str(other)
    out = report_of(tmp_path, entries)
    assert api.review(out, overwrite=True)["failed"] == []
    page = (out / "review.html").read_text(encoding="utf-8")
    assert sorted(re.findall('src="(.*?)"', page)) == ["review/a_seg.nii.gz.png", "review/a_seg.nii.png"]


def test_two_results_of_one_name_are_refused(tmp_path):
    """As in a report that was put together by hand: one picture would stand for both."""
    out = report_of(tmp_path, [entry_of(tmp_path, name) for name in "aba"])
    with pytest.raises(InputError, match=r"tells of two results called a_seg\.nii\.gz"):
        api.review(out, overwrite=True)


def test_relative_paths_in_a_report_start_from_it(tmp_path):
    entry = entry_of(tmp_path, "a")
    out = report_of(tmp_path, [{**entry, "file": "../a.nii.gz", "output": "a_seg.nii.gz"}])
    assert api.review(out)["failed"] == []


def test_a_job_that_named_its_result_has_a_page_of_its_own(tmp_path):
    out = report_of(tmp_path, [entry_of(tmp_path, "a")], name="a_seg_report.json")
    api.review(out / "a_seg_report.json")
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.suffix in (".html", ".png"))
    assert found == ["a_seg_review.html", "a_seg_review/a_seg.nii.gz.png"]
    with pytest.raises(InputError, match="reports of jobs that named their results") as told:
        api.review(out)
    assert str(out / "a_seg_report.json") in told.value.advice


def test_no_page_is_replaced_unasked(tmp_path):
    out = report_of(tmp_path, [entry_of(tmp_path, "a")])
    api.review(out)
    (out / "review.html").write_text("mine")
    with pytest.raises(InputError, match="review.html and 1 more are already there"):
        api.review(out)
    assert (out / "review.html").read_text() == "mine"
    api.review(out, overwrite=True)
    assert "a.nii.gz" in (out / "review.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "report.json does not exist"),
        ("no JSON", "is not a JSON file"),
        ('{"task": "evaluate"}', "is not the report of a segmentation or an adaptation: task"),
        ("[]", "is not the report of a segmentation"),
        ('{"task": "segment", "model": "m", "labels": [], "scans": []}', "tells of no results yet"),
    ],
)
def test_what_is_no_report_of_results_is_refused(content, told, tmp_path):
    if content:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=told):
        api.review(tmp_path)
    assert not (tmp_path / "review").exists() and not (tmp_path / "review.html").exists()


def test_where_nothing_can_be_drawn_nothing_is_left(tmp_path):
    out = report_of(tmp_path, [entry_of(tmp_path, "a"), entry_of(tmp_path, "b")])
    for scan in tmp_path.glob("*.nii.gz"):
        scan.unlink()
    with pytest.raises(InputError, match="a.nii.gz does not exist"):
        api.review(out)
    assert not (out / "review").exists() and not (out / "review.html").exists()


def test_without_matplotlib_it_is_told_once(tmp_path, monkeypatch):
    out, found = report_of(tmp_path, [entry_of(tmp_path, "a"), entry_of(tmp_path, "b")]), builtins.__import__

    def lacking(name, *given, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", lacking)
    events = []
    with pytest.raises(InputError, match="Pictures need matplotlib.*pip install"):
        api.review(out, report=events.append)
    assert not events
