"""What a batch works on: cases with names of their own, and how the worker gets them."""

import os

import pytest
from MAPSegModule.cases import find_cases

from MAPSegLib import windows
from MAPSegLib.errors import InputError


def test_cases_get_names_of_their_own(inputs, tmp_path):
    found = {case.name: case for case in find_cases([inputs], tmp_path / "out")}
    assert set(found) == {"bad", "head", "second_head", "dicom", "dicom_2"}
    assert len(found["dicom"].files) == 32 and found["dicom_2"].source == inputs / "dicom"
    twice = find_cases([inputs / "head.nii.gz", inputs / "second"], tmp_path / "out")
    assert [case.name for case in twice] == ["head", "head_2"]
    (inputs / "second" / "head.nrrd").rename(inputs / "second" / "HEAD.nrrd")  # the same name on some disks
    twice = find_cases([inputs / "head.nii.gz", inputs / "second"], tmp_path / "out")
    assert [case.name for case in twice] == ["head", "HEAD_2"]
    (inputs / "out").mkdir()
    (inputs / "head.nii.gz").rename(inputs / "out" / "head_seg.nii.gz")
    for output in (inputs / "out", inputs / "second" / ".." / "out"):
        assert not {case.name for case in find_cases([inputs], output)} & {"head", "out_head_seg"}
    with pytest.raises(InputError, match="does not exist"):
        find_cases([tmp_path / "absent"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no scans"):
        find_cases([tmp_path / "empty"], tmp_path / "out")


def test_segmentations_beside_scans_are_no_cases(tmp_path):
    for name in ("a.nrrd", "a.seg.nrrd", "b.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert [case.name for case in find_cases([tmp_path / "in"], tmp_path / "out")] == ["a", "b"]


def test_names_of_deep_folders_are_short_enough_for_files(tmp_path):
    folder = tmp_path.joinpath("in", *(f"1.2.840.113619.{number}." + "ä" * 50 for number in range(4)))
    folder.mkdir(parents=True)
    for name in ("a.nii.gz", "b.nii.gz"):
        (folder / name).touch()
    found = [case.name for case in find_cases([tmp_path / "in"], tmp_path / "out")]
    assert [name[-2:] for name in found] == ["_a", "_b"] and all(len(name.encode()) <= 200 for name in found)


def test_on_windows_scans_that_are_read_only_are_copied(tmp_path, monkeypatch):
    """A link shares that mark with its file, and Windows would not remove it: the next scan would find it there."""
    scan = tmp_path / "scan.nii.gz"
    scan.touch()
    (case,) = find_cases([scan], tmp_path / "out")
    assert case.staged(tmp_path / "linked").samefile(scan)
    monkeypatch.setattr(windows, "ON", True)
    assert case.staged(tmp_path / "linked").samefile(scan)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    staged = case.staged(tmp_path / "copied")
    assert not staged.samefile(scan) and staged.read_bytes() == scan.read_bytes()
