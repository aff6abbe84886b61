"""The panel on real Qt, in a stand-in application around a real scene; its clicks start real workers."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="needs PySide6-Essentials: pip install '.[test]'")
pytest.importorskip("slicer", reason="needs slicer-core: pip install '.[test]'")

from Testing import warm
from Testing.host import desktop as host_desktop
from Testing.host import loadable, pythonqt
from Testing.host import scene as host_scene

MODULE = Path(__file__).resolve().parents[2] / "MAPSeg" / "MAPSeg.py"
answers: dict[str, subprocess.CompletedProcess] = {}
"""What small programs printed that panels have started."""


@pytest.fixture(autouse=True)
def same_backend():
    """Reloading the module purges the backend from ``sys.modules``; the tests to come go on with the one they know."""
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "MAPSegLib"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "MAPSegLib"]:
        if name not in known:
            del sys.modules[name]
    sys.modules.update(known)


@pytest.fixture(autouse=True)
def device_tried_once(monkeypatch):
    """Every panel has a process try the devices, for seconds; the first one's answer stands for all."""
    run = subprocess.run

    def answer(command, **options):
        if command[1:2] != ["-c"]:
            return run(command, **options)
        if command[2] not in answers:
            answers[command[2]] = run(command, **options)
        return answers[command[2]]

    monkeypatch.setattr(subprocess, "run", answer)


@pytest.fixture(autouse=True)
def quick_start(request, monkeypatch):
    """Workers do not import PyTorch anew, but where it is measured what users wait for."""
    if sys.platform == "linux" and "record_property" not in request.fixturenames:
        monkeypatch.setattr(subprocess, "Popen", warm.start)


@pytest.fixture
def desktop():
    """An application with an empty scene, no settings and no dialogs; slots that raise fail the test."""
    host_scene.install()
    application = host_desktop.install()
    import qt

    qt.QSettings().clear()
    pythonqt.dialogs.clear()
    pythonqt.problems.clear()
    yield application
    assert not pythonqt.dialogs.expected, "a dialog was expected and did not come"
    assert not pythonqt.problems, "\n".join(pythonqt.problems)


@pytest.fixture
def problems(desktop):
    """Exceptions of slots so far."""
    return pythonqt.problems


class Heartbeat:
    """How long the event loop was away between two beats of a timer.

    ``wall`` is what a clock says. ``blocked`` leaves out the time in which this thread was ready and another program
    had the processor (Linux tells that): on a busy machine that is not the panel's doing.
    """

    def __init__(self):
        from PySide6.QtCore import QTimer

        self.wall = self.blocked = 0.0
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)
        self._last = self._now()
        self._timer.start(5)

    @staticmethod
    def _now():
        try:
            waited = int(Path("/proc/thread-self/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            waited = 0.0
        return time.perf_counter(), waited

    def _beat(self):
        now = self._now()
        wall = now[0] - self._last[0]
        self.wall = max(self.wall, wall)
        self.blocked = max(self.blocked, wall - (now[1] - self._last[1]))
        self._last = now

    def stop(self) -> str:
        self._timer.stop()
        return f"event loop away at most {1000 * self.blocked:.0f} ms ({1000 * self.wall:.0f} ms with other programs)"


class Screen:
    """What a user does with the panel."""

    def __init__(self):
        self.open()

    def open(self):
        loadable.open_module(MODULE)
        self.area.resize(430, 900)
        self.area.show()
        self.pause(0.1)

    def close(self):
        loadable.close_module("MAPSeg")

    @property
    def panel(self):
        import slicer

        return slicer.modules.MAPSegWidget.panel

    @property
    def area(self):
        import slicer

        return slicer.modules.mapseg.widgetRepresentation().area

    @property
    def ui(self):
        return self.panel.ui

    def pause(self, seconds):
        from PySide6.QtTest import QTest

        QTest.qWait(int(1000 * seconds))

    def wait(self, condition, seconds=120):
        """Let the application go on until something is so."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, f"waited {seconds} s in vain; status: {self.ui.statusLabel.text}"
            assert not pythonqt.problems, "\n".join(pythonqt.problems)
            self.pause(0.01)

    def click(self, name):
        """Press a button with the mouse; only one that is seen and enabled can be pressed."""
        from PySide6.QtCore import QPoint, Qt
        from PySide6.QtTest import QTest

        widget = getattr(self.ui, name)._real
        assert widget.isVisible() and widget.isEnabled(), f"{name} cannot be pressed"
        # A check box reacts to its mark and text, not to the space behind them.
        where = QPoint(10, widget.height() // 2)
        QTest.mouseClick(widget, Qt.LeftButton, Qt.NoModifier, where)

    def check(self, name, on=True):
        """Check a volume in the table by its name."""
        import qt

        table = self.ui.volumeTable
        for row in range(table.rowCount):
            if table.item(row, 0).text() == name:
                table.item(row, 0).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)
                return
        raise AssertionError(f"no volume {name} in the table")

    def state(self, name):
        """What the table says of a volume."""
        table = self.ui.volumeTable
        return next(table.item(r, 2).text() for r in range(table.rowCount) if table.item(r, 0).text() == name)

    def rows(self):
        """The table of structures, as shown."""
        table = self.ui.resultTable
        return [[table.item(row, column).text() for column in (1, 2, 3)] for row in range(table.rowCount)]

    def finish(self, seconds=120):
        self.wait(lambda: not self.panel.running, seconds)

    def worker_pid(self):
        """Process number of the worker, once it has told it."""

        def pid():
            queue = self.panel.run._queue
            return queue.worker.pid if queue else None

        self.wait(pid, 60)
        return pid()


def workers() -> list[int]:
    """Processes of this one's children that run the worker."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, encoding="utf-8").stdout
    lines = (line.split(None, 3) for line in listed.splitlines()[1:])
    own = str(os.getpid())
    return [
        int(pid)
        for pid, parent, stat, args in lines
        if parent == own and ("MAPSegLib.worker" in args or int(pid) in warm.workers) and "Z" not in stat
    ]


def add_ball(name="ball", seed=5, radius=7.0):
    """What the tiny model was trained on, as a volume in the scene."""
    import slicer
    from MAPSegModule.selftest import make_ball

    return slicer.util.addVolumeFromArray(
        make_ball(radius, seed)[0], np.diag([2.0, 2.0, 2.0, 1.0]), name=name
    )


def adapt(screen):
    """Begin an adaptation that would go on for long."""
    screen.ui.minutesComboBox.setCurrentIndex(screen.ui.minutesComboBox.findData(1.0))
    screen.wait(lambda: screen.ui.adaptButton.enabled, 5)
    screen.click("adaptButton")


@pytest.fixture
def home(desktop, model, tmp_path, monkeypatch):
    """A user whose only own model is the tiny one, chosen in the settings."""
    import qt

    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "ball.safetensors")
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    qt.QSettings().setValue("MAPSeg/Model", "ball")
    return folder


@pytest.fixture
def screen(home, monkeypatch):
    """The module's panel, opened; afterwards closed, with no process left behind."""
    if sys.platform == "linux":
        warm.source()  # in its own time: it would keep the event loop waiting
    shown = Screen()
    monkeypatch.setattr("MAPSegModule.panel.DOUBLE_CLICK", 0)  # tests click as soon as they may
    yield shown
    shown.close()
    assert not workers(), "a worker was left behind"
    for name in [name for name in sys.modules if name.partition(".")[0] == "MAPSegModule"]:
        del sys.modules[name]


@pytest.fixture
def result(screen, tmp_path):
    """A panel that shows the result of an adaptation."""
    from .scenes import make_result

    screen.item, screen.run = make_result(tmp_path)
    screen.panel.results.add(screen.item, screen.run)
    screen.pause(0.1)
    return screen
