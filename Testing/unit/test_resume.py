"""What a job that was ended leaves, and which job goes on with it."""

import contextlib
import errno
import os

import pytest

from MAPSegLib.errors import InputError
from MAPSegLib.jobs import AdaptJob
from MAPSegLib.reports import CHECKPOINT, RECORD, write_json
from MAPSegLib.tasks import resume
from MAPSegLib.tasks.earlier import _left_by_the_same, stamps_of
from MAPSegLib.tasks.outputs import ScanOutputs


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
    job = adaptation(tmp_path, steps=5)
    for left in ("", '{"settings": []}', '{"settings": {}}'):  # as a power cut leaves it, or somebody else
        (tmp_path / resume.OWNER).write_text(left)
        with pytest.raises(InputError, match="other settings"), resume.claim(tmp_path, job, [scan]):
            pass
    with interrupted(tmp_path, job.model_copy(update={"overwrite": True}), [scan]) as resumed:
        assert not resumed
    with interrupted(tmp_path, adaptation(tmp_path, steps=5, threads=3), [scan]) as resumed:
        assert resumed
    other = adaptation(tmp_path, steps=6)
    with pytest.raises(InputError, match=r"with other steps\."), resume.claim(tmp_path, other, [scan]):
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
        with pytest.raises(InputError, match=f"with {what}\\."), resume.claim(tmp_path, other, [scan]):
            pass

    refused(adaptation(tmp_path, steps=6, seed=1), "other seed, steps")
    with monkeypatch.context() as other:
        other.setattr(resume, "__version__", "99")
        refused(job, r"another version of MAPSeg \(.*\)")
    with interrupted(tmp_path, job, [scan]) as resumed:
        assert resumed
    scan.write_text("nacs")
    os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1_000_000_000))
    refused(job, "other files")


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


def test_a_report_from_elsewhere_claims_no_file_of_others(tmp_path):
    """What a job takes for its results, it removes when it fails."""
    (tmp_path / "mine").touch()
    (tmp_path / "scan.nii.gz").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg.nii.gz").touch()
    scan, outputs = tmp_path / "scan.nii.gz", ScanOutputs(tmp_path / "out")
    for file, done in ((outputs.label_map(scan), 1), (tmp_path / "mine", 0)):
        mark = {"job": {}, "overwrite": False}
        then = mark | {"scans": stamps_of([scan]), "files": []}
        report = {"unfinished": then, "scans": [{"file": str(scan), "output": str(file)}]}
        write_json(outputs.beside("report.json"), report, overwrite=True)
        assert len(_left_by_the_same(outputs, mark, stamps_of([scan])).done) == done
