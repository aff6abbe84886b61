"""What Windows does otherwise, as if this were it."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from MAPSegLib import windows, worker
from MAPSegLib.config import TrainingOptions
from MAPSegLib.errors import Cancelled, InputError
from MAPSegLib.jobs import ImportJob
from MAPSegLib.models import load_card, save_model
from MAPSegLib.reports import reason, write_text
from MAPSegLib.tasks import earlier, outputs
from MAPSegLib.tasks.findings import Findings
from MAPSegLib.training.loop import Loop
from MAPSegLib.volumes import Volume, read_image, write_volume


@pytest.fixture
def on(monkeypatch):
    monkeypatch.setattr(windows, "ON", True)
    monkeypatch.setattr(windows, "_PAUSE", 0.001)


def test_no_read_waits_at_a_pipe(on, monkeypatch):
    """While one does, NumPy cannot be imported there."""
    looks, read = iter([(0, 0), (0, 0), (7, 0), (0, 0)]), []

    def look(handle):
        assert handle == 44
        try:
            return next(looks)
        except StopIteration:
            raise BrokenPipeError from None

    def take(descriptor, size):
        read.append(list(looks))
        return b"" if len(read) > 1 else b"cancel\n"

    monkeypatch.setitem(sys.modules, "_winapi", SimpleNamespace(PeekNamedPipe=look))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(get_osfhandle=lambda descriptor: 44))
    monkeypatch.setattr(os, "read", take)
    assert list(worker._lines()) == [b"cancel"]
    assert read == [[(0, 0)], []]  # the first one only when there was something, the last one at the end


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=["open", "other"])
def test_a_table_that_is_open_in_a_spreadsheet_costs_no_scan_its_result(on, monkeypatch, tmp_path, number):
    found = object.__new__(Findings)
    found.scans, found.written = [], True
    found.outputs = SimpleNamespace(beside=lambda name: tmp_path / name)
    reports = []
    monkeypatch.setattr(Findings, "_write_report", lambda self: reports.append(self))
    monkeypatch.setattr(windows, "_PATIENCE", 0.0)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    if number == errno.EACCES:
        found.write()
        assert reports
    with pytest.raises(InputError, match="cannot be written"):
        found.write(last=number == errno.EACCES)


@pytest.fixture
def held(monkeypatch):
    """Refuse the removal of files so named, a number of times each."""

    def use(**refusals):
        def refused(unlink):
            def tried(path, *arguments, **options):
                name = Path(path).stem
                refusals[name] = refusals.get(name, 0) - 1
                if refusals[name] >= 0:
                    raise PermissionError(errno.EACCES, "Access is denied", str(path))
                return unlink(path, *arguments, **options)

            return tried

        monkeypatch.setattr(os, "unlink", refused(os.unlink))

    return use


def test_a_folder_goes_when_its_files_are_let_go_and_without_those_that_are_not(
    on, held, monkeypatch, tmp_path
):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in (f"{folder}1.nrrd", f"{folder}2.nrrd", f"{folder}3.nrrd"):
            (tmp_path / folder / name).touch()
    monkeypatch.setattr(windows, "_PATIENCE", 0.2)
    held(a1=3, b2=10_000)
    for folder in ("a", "b", "not there"):
        windows.remove_folder(tmp_path / folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "b2.nrrd"]


def test_a_map_that_another_program_looks_at_is_removed_with_its_scan(on, held, tmp_path):
    """A virus scanner does, as soon as it is written; the other scans must go on."""
    found = object.__new__(Findings)
    found.scans, found.files, found.failed, found.first_error = [], [], [], None
    found.begun, found.report = SimpleNamespace(earlier=()), lambda *_, **__: None
    found.outputs, found.written = SimpleNamespace(beside=lambda name: tmp_path / name), False
    held(scan_seg=3)
    with found.isolated(tmp_path / "scan.nii"):
        (tmp_path / "scan_seg.nii").touch()
        found.files.append(str(tmp_path / "scan_seg.nii"))
        raise InputError("It is damaged.")
    assert found.failed and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL])
def test_a_worker_whose_events_nobody_reads_is_cancelled(monkeypatch, number):
    """Of a pipe whose other end has gone, Windows may say that an argument is invalid."""

    def refuse(descriptor, data):
        raise OSError(number, os.strerror(number))

    emit = []
    monkeypatch.setattr(worker, "execute", lambda load, tell, stopped: emit.append(tell))
    monkeypatch.setattr(os, "dup", lambda descriptor: descriptor)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    worker.main(["job.json"])
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(Cancelled):
        emit[0]({"event": "log"})


@pytest.mark.parametrize("refusals", [0, 3])
def test_a_file_that_another_program_holds_for_a_moment_is_replaced_and_removed(
    on, monkeypatch, tmp_path, refusals
):
    left = [refusals] * 2
    replace, unlink = os.replace, Path.unlink

    def held(index, action):
        def tried(*arguments, **options):
            left[index] -= 1
            if left[index] >= 0:
                raise PermissionError(errno.EACCES, "Access is denied")
            return action(*arguments, **options)

        return tried

    monkeypatch.setattr(os, "replace", held(0, replace))
    write_text(tmp_path / "a.txt", "x")
    monkeypatch.setattr(Path, "unlink", held(1, unlink))
    windows.remove(tmp_path / "a.txt")
    assert left == [-1, -1] and not list(tmp_path.iterdir())


@pytest.fixture
def cut_short(monkeypatch):
    """Let the system cut files at a length, as a full disk does, and remove none that is open."""
    resource = pytest.importorskip("resource")
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    unlink, before = Path.unlink, resource.getrlimit(resource.RLIMIT_FSIZE)

    def refused_where_open(path, missing_ok=False):
        if str(path) in {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}:
            raise PermissionError(errno.EACCES, "Access is denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused_where_open)
    yield lambda length: resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("length", [300, 20_000])
def test_a_checkpoint_that_a_full_disk_cuts_short_is_closed_before_it_is_removed(cut_short, tmp_path, length):
    loop = Loop(torch.nn.Linear(64, 1024), TrainingOptions(device="cpu"), None)
    cut_short(length)
    with pytest.raises(InputError, match="could not be written"):
        loop.save(tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_map_that_a_full_disk_cuts_short_is_closed_before_it_is_removed(cut_short, tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 1 << 16, (64, 64, 32), np.uint16)
    cut_short(50_000)
    with pytest.raises(InputError, match="cannot be written"):
        write_volume(tmp_path / f"scan{suffix}", array, Volume(array, np.eye(4)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("here", [True, False])
def test_a_file_that_stays_held_is_told(monkeypatch, tmp_path, here):
    tried = []

    def refuse(*_):
        tried.append(1)
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(windows, "ON", here)
    monkeypatch.setattr(windows, "_PATIENCE", 0.1)
    monkeypatch.setattr(os, "replace", refuse)
    told = "permission denied, or another program has it open" if here else "permission denied"
    with pytest.raises(InputError, match=rf"a\.txt cannot be written: {told}\."):
        write_text(tmp_path / "a.txt", "x")
    assert (len(tried) > 1) is here


def test_a_path_that_is_too_long_is_told_so(on):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "C:\\" + "x" * 260)
    assert reason(missing) == "the path is too long"
    assert reason(FileNotFoundError(errno.ENOENT, "No such file", "C:\\x")) == "it does not exist"


class Kernel:
    """Windows' short names, and its code page."""

    def __init__(self, names, page=1252):
        self.names, self.page = names, page

    def GetACP(self):
        return self.page

    def GetShortPathNameW(self, name, found, size):
        found.value = self.names.get(name, "")
        return len(found.value)


@pytest.fixture
def kernel(on, monkeypatch):
    def use(names, page=1252):
        monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel(names, page), raising=False)

    return use


def test_itk_gets_names_of_plain_letters(kernel, tmp_path):
    jürgen = tmp_path / "Jürgen" / "scan.nrrd"
    kernel({str(jürgen): "C:/JRGEN~1/SCAN~1.NRR"})
    assert windows.itk_name(jürgen) == "C:/JRGEN~1/SCAN~1.NRR"
    assert windows.itk_name(tmp_path) == str(tmp_path)
    kernel({str(jürgen): str(jürgen)})  # where a disk keeps no short names
    with pytest.raises(InputError, match="Jürgen.*has letters in it"):
        windows.itk_name(jürgen)
    kernel({}, page=65001)
    assert windows.itk_name(jürgen) == str(jürgen)


def test_itk_reads_and_writes_where_a_path_has_other_letters(kernel, monkeypatch, tmp_path):
    import SimpleITK as sitk

    plain, folder = tmp_path / "JRGEN~1", tmp_path / "Jürgen"
    folder.mkdir()
    plain.symlink_to(folder)
    (plain / "SCH_DE~1.NRR").symlink_to(folder / "Schädel.nrrd")
    kernel({str(folder): str(plain), str(folder / "Schädel.nrrd"): str(plain / "SCH_DE~1.NRR")})
    names = []

    def noting(inner):
        def call(*arguments, **options):
            names.extend(argument for argument in arguments if isinstance(argument, str))
            return inner(*arguments, **options)

        return call

    monkeypatch.setattr(sitk.ImageFileReader, "SetFileName", noting(sitk.ImageFileReader.SetFileName))
    monkeypatch.setattr(sitk, "WriteImage", noting(sitk.WriteImage))
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    write_volume(folder / "Schädel.nrrd", array, Volume(array, np.eye(4)))
    assert np.array_equal(read_image(folder / "Schädel.nrrd").array, array)
    assert len(names) == 3 and all(map(str.isascii, names))
    assert not list(folder.glob(".*"))


def test_names_of_devices_are_no_names_of_models():
    job = {"task": "import", "checkpoint": "a.pth"}
    for name in ("con", "NUL", "aux.old", "com1"):
        with pytest.raises(ValidationError, match="a device"):
            ImportJob(**job, name=name)
    assert ImportJob(**job, name="contrast").name == "contrast"


def test_on_a_mac_scans_whose_names_differ_by_case_share_a_result(monkeypatch, tmp_path):
    scans = [tmp_path / "a" / "Scan.nii.gz", tmp_path / "b" / "scan.nii.gz"]
    assert outputs.ScanOutputs.plan(tmp_path / "out", scans)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="share a result's name"):
        outputs.ScanOutputs.plan(tmp_path / "out", scans)
    again = [tmp_path / "a" / "scan.nii.gz", *scans]
    assert outputs.collect_scans(again) == [again[0], scans[1]]
    assert earlier._among([tmp_path / "a" / "SCAN.nii.gz", tmp_path / "other.nii.gz"], scans)


def test_models_are_told_of_where_not_all_letters_can_be(tmp_path):
    """As in the code page of most Windows, where output goes to a file or to another program."""
    start = Path(__file__).parents[2] / "Resources" / "Models" / "brain-t1.safetensors"
    card = load_card(start).model_copy(update={"description": "кора"})
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models" / "Жук.safetensors", load_file(start), card)
    environment = os.environ | {"MAPSEG_HOME": str(tmp_path), "PYTHONIOENCODING": "cp1252"}
    for name, told in (([], b"???"), (["Жук"], rb"\u043a\u043e\u0440\u0430")):
        command = [sys.executable, "-m", "MAPSegLib.cli", "models", *name]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0 and told in done.stdout, done.stderr
