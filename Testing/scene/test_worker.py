"""The worker process by itself: one that hangs, and one that is killed behind a launcher."""

import ctypes
import subprocess
from types import SimpleNamespace

import pytest
from MAPSegModule import job, queue
from MAPSegModule.parameters import Parameters

from MAPSegLib import windows
from Testing.processes import alive

from .conftest import eventually


def start_other(folder, monkeypatch, code) -> job.Worker:
    """A worker that runs other code than the backend's."""
    package = folder / "MAPSegLib"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(job, "backend_folder", lambda: folder)
    worker = job.Worker()
    worker.start({}, folder)
    return worker


def test_a_worker_that_hangs_is_killed(tmp_path, monkeypatch, scene):
    """With a child of its own, deaf to everything but SIGKILL."""
    code = (
        "import json, os, signal, subprocess, sys, time\n"
        "for one in (signal.SIGTERM, signal.SIGINT): signal.signal(one, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'event': 'started', 'pid': os.getpid(), 'child': child.pid}), flush=True)\n"
        "time.sleep(600)\n"
    )
    worker, events = start_other(tmp_path, monkeypatch, code), []
    while not events:
        events = worker.poll()
    processes = [events[0]["pid"], events[0]["child"]]
    worker.cancel()
    assert all(map(alive, processes))
    eventually(lambda: not (worker.poll() or worker.running))
    assert worker.exit_code == 4 and worker.error["message"] == "Cancelled."
    eventually(lambda: not any(map(alive, processes)))


def test_a_stop_is_for_one_job_alone(tmp_path, monkeypatch, scene):
    worker = start_other(tmp_path, monkeypatch, "import time\ntime.sleep(600)\n")
    worker.stop()
    assert (tmp_path / "stop").exists()
    worker.close()
    worker.start({}, tmp_path)
    assert not (tmp_path / "stop").exists()
    worker.close()


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (
            "error: [/opt/Slicer/bin/python-real] exit abnormally - Report the problem.",
            {
                "kind": "memory",
                "message": "The worker was ended by the system, probably because memory ran out. Segmenting scan 3",
                "advice": "Close other programs, or crop the volume.",
            },
        ),
        (
            "ValueError: what",
            {
                "kind": "error",
                "message": "The worker failed unexpectedly. ValueError: what",
                "advice": "",
            },
        ),
    ],
)
def test_a_worker_that_is_killed_behind_its_launcher_is_told_so(tmp_path, monkeypatch, scene, last, told):
    """The installed application's Python is a launcher, which ends with 1 whatever ended its child."""
    code = f"import sys\nprint('Segmenting scan 3', {last!r}, sep='\\n', file=sys.stderr)\nsys.exit(1)\n"
    worker = start_other(tmp_path, monkeypatch, code)
    while worker.running:
        worker.poll()
    assert worker.error == told


def test_a_worker_that_cannot_be_started_again_is_told(tmp_path, scene):
    """As where a disk is full: of the rest of the scans that is the reason."""
    starts = [None, OSError("No space left on device")]

    def start(job, folder):
        if failure := starts.pop(0):
            raise failure

    waiting = queue.Queue(["a", "b"], Parameters("brain"), tmp_path)
    waiting.worker = SimpleNamespace(
        start=start,
        poll=lambda: [{"event": "progress", "scan": "a"}],
        running=False,
        exit_code=-9,
        error={"kind": "memory", "message": "Killed.", "advice": ""},
    )
    waiting.start()
    told = {event["scan"]: event["message"] for event in waiting.poll() if event["event"] == "error"}
    assert told == {"a": "Killed.", "b": "The worker cannot be started: No space left on device"}
    assert not waiting.running and waiting.exit_code == 1 and not waiting.poll()


def test_on_windows_the_tree_is_ended_by_force_alone(monkeypatch):
    """Without force, taskkill asks windows to close."""
    commands = []
    monkeypatch.setattr(job, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    launcher = SimpleNamespace(pid=7)
    job._end_tree(launcher, 8, force=False)
    assert not commands
    job._end_tree(launcher, 8, force=True)
    assert commands == [["taskkill", "/PID", pid, "/T", "/F"] for pid in ("8", "7")]


def test_on_windows_the_launcher_gets_plain_letters_and_the_worker_speaks_utf_8(tmp_path, monkeypatch, scene):
    code = "import json, sys\nprint(json.dumps({'event': 'log', 'file': sys.argv[-1]}))\nprint('η', file=sys.stderr)\n"
    folder, plain = tmp_path / "Jürgen", tmp_path / "JRGEN~1"
    folder.mkdir()
    plain.symlink_to(folder)

    def shorten(name, found, size):
        found.value = name.replace(str(folder), str(plain))

    kernel = SimpleNamespace(GetShortPathNameW=shorten)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: kernel, raising=False)
    monkeypatch.setattr(windows, "ON", True)
    worker, events = start_other(folder, monkeypatch, code), []
    while worker.running:
        events += worker.poll()
    assert [event["file"] for event in events] == [str(plain / "job-file.json")]
    assert worker.log == "η" and job.worker_environment()["PYTHONUTF8"] == "1"
