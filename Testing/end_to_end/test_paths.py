"""Paths as people give them: links, home folders, several spellings, and names that mean something elsewhere."""

import io
import shutil

import pytest
from rich.console import Console

from MAPSegLib import console
from MAPSegLib.config import check_path

from .calls import CPU, files, mapseg, refused


@pytest.fixture
def scan(data, tmp_path):
    """A scan in a folder of its own."""
    (tmp_path / "in").mkdir()
    return shutil.copy(data / "images" / "case0.nii.gz", tmp_path / "in" / "a.nii.gz")


def test_a_link_to_itself_stops_no_other_scan(model, scan, tmp_path):
    loop = scan.with_name("z.nii.gz")
    loop.symlink_to(loop)
    for given in ([scan.parent], [loop, scan]):
        out = tmp_path / f"out{len(given)}"
        _, told = mapseg("segment", model, *given, "-o", out, *CPU, code=2)
        assert "1 failed: z.nii.gz" in told and "a_seg.nii.gz" in files(out)
    folder = tmp_path / "folder"
    folder.symlink_to(folder)
    assert "folder cannot be written" in refused("segment", model, scan, "-o", folder, *CPU)


def test_a_folder_above_is_called_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "site" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "site" / "below")
    monkeypatch.chdir(tmp_path)
    for path in ("site/below/..", "link/.."):
        assert check_path(path) == (tmp_path / "site").resolve()
    assert check_path("site/../a.nii.gz").name == "a.nii.gz"


def test_names_that_look_like_emoji_are_shown_as_they_are(model, scan, tmp_path):
    named = scan.rename(scan.with_name("sub:x:y [b].nii.gz"))
    told, _ = mapseg("segment", model, named, "-o", tmp_path / "sub:x:out", *CPU)
    assert "sub:x:y [b].nii.gz: Consistent" in told and "sub:x:out/sub:x:y [b]_seg.nii.gz" in told
    told = refused("segment", model, named, "-o", tmp_path / "sub:x:out", *CPU, "--overlap", 0.2)
    assert named.name in told.replace("_seg", "")


def test_progress_shows_names_as_they_are():
    screen = Console(force_terminal=True, width=100, file=io.StringIO())
    display = console._Display()
    event = {"stage": "read", "scan": "sub:x:y [b].nii.gz", "step": 0, "steps": 2}
    display.emit({"event": "progress", **event})
    screen.print(display.progress)
    assert "Reading sub:x:y [b].nii.gz" in screen.file.getvalue()


def test_an_output_among_the_scans_of_a_shells_pattern_is_no_scan(model, scan, tmp_path):
    """As ``segment MODEL in/* -o in/out`` has it when it is given again."""
    out = scan.parent / "out"
    given = [scan, shutil.copy(scan, scan.with_name("b.nii.gz"))]
    mapseg("segment", model, *given, "-o", out, *CPU)
    before = files(out)
    _, told = mapseg("segment", model, *given, out, "-o", out, *CPU)
    assert "Scans that have their results: 2; to do: 0." in told and files(out) == before
    shutil.copy(scan, out / "mine.nii.gz")
    mapseg("segment", model, *given, out, "-o", out, *CPU)
    assert "mine_seg.nii.gz" in files(out)
