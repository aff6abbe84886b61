"""Pictures of the panel at work: ``python -m Testing.host.screenshots`` (about four minutes on two cores).

They show real runs of the embedded model on the head that the nilearn package carries (``pip install '.[test]'``), and
on the same head in a foreign contrast. The icon is drawn anew from its SVG file as well. ``--output FOLDER`` leaves the
pictures of the documentation as they are.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "Resources" / "Screenshots"
ICON = ROOT / "MAPSeg" / "Resources" / "Icons" / "MAPSeg.svg"
WIDTH = 420
"""Of the application's module panel, in pixels."""


class Stage:
    """The panel in an application with the head, and what is done to it."""

    def __init__(self, folder: Path):
        from PySide6.QtTest import QTest

        from . import desktop, loadable, scene

        self._wait, self._loadable, self._folder = QTest.qWait, loadable, folder
        scene.install()
        desktop.install()
        desktop.set_theme(dark=False)
        import qt

        qt.QSettings().clear()
        loadable.open_module(ROOT / "MAPSeg" / "MAPSeg.py")
        import slicer

        self.panel = slicer.modules.MAPSegWidget.panel
        self.area = slicer.modules.mapseg.widgetRepresentation().area
        self.area.resize(WIDTH, 700)
        self.area.show()
        self.pause(0.3)

    def add(self, name: str, array, affine) -> None:
        import slicer

        slicer.util.addVolumeFromArray(array.transpose(2, 1, 0), affine, name=name)
        self.pause(0.5)

    def check(self, *names: str) -> None:
        import qt

        table = self.panel.ui.volumeTable
        for row in range(table.rowCount):
            on = table.item(row, 0).text() in names
            table.item(row, 0).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)
        self.pause(0.2)

    def pause(self, seconds: float) -> None:
        self._wait(int(1000 * seconds))

    def until(self, condition, seconds: float = 900) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise TimeoutError(self.panel.ui.statusLabel.text)
            self.pause(0.1)

    def reach(self, condition: Callable[[], bool]) -> None:
        """Let a run go on until something is so; it may not have ended by then."""
        self.until(lambda: condition() or not self.panel.running)
        if not self.panel.running:
            raise RuntimeError(f"The run has ended too early: {self.panel.ui.statusLabel.text}")

    def picture(self, name: str) -> None:
        """The whole panel, as high as it needs to be."""
        self.area.widget().layout().activate()
        self.pause(0.2)
        height = self.area.widget().heightForWidth(WIDTH)
        self.area.resize(WIDTH, max(height, self.area.widget().minimumSizeHint().height()) + 2)
        self.pause(0.3)
        path = self._folder / f"{name}.png"
        self.area.grab().save(str(path))
        print(path)

    def close(self) -> None:
        from . import pythonqt

        self._loadable.close_module("MAPSeg")
        self.pause(0.2)
        print(*pythonqt.problems, sep="\n", file=sys.stderr, end="")


def draw_icon(path: Path) -> None:
    """128 × 128 pixels from the SVG file."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(128, 128, QImage.Format_ARGB32)
    image.fill(Qt.transparent)
    painter = QPainter(image)
    QSvgRenderer(str(ICON)).render(painter)
    painter.end()
    image.save(str(path))


def main(arguments: Sequence[str]) -> None:
    """All pictures: ready and running in light, finished in both, and a failure."""
    folder = _folder(arguments)
    from MAPSegLib.demo import foreign_contrast, load_head

    folder.mkdir(parents=True, exist_ok=True)
    head = load_head()[0]
    foreign = foreign_contrast(head)
    stage = Stage(folder)
    draw_icon(ICON.with_suffix(".png") if folder == SCREENSHOTS else folder / "icon.png")
    ui = stage.panel.ui
    stage.add("Head T1", head.array, head.affine)
    stage.add("Head, other contrast", foreign.array, foreign.affine)
    stage.check("Head T1")
    ui.optionsSection.collapsed = False
    stage.until(lambda: ui.deviceInfoLabel.text)
    stage.picture("ready")
    ui.optionsSection.collapsed = True
    stage.check("Head, other contrast")
    ui.uncertaintyCheckBox.checked = True
    ui.minutesComboBox.setCurrentIndex(ui.minutesComboBox.findData(5.0))
    ui.adaptButton.click()
    stage.reach(lambda: len(stage.panel.run.eta_history) > 12)
    stage.picture("running")
    ui.stopButton.click()
    stage.until(lambda: not stage.panel.running)
    stage.picture("finished")
    from . import desktop

    desktop.set_theme(dark=True)
    stage.picture("dark")
    stage.close()

    stage = Stage(folder)
    ui = stage.panel.ui
    stage.add("Head T1", head.array, head.affine)
    ui.segmentButton.click()
    stage.reach(lambda: stage.panel.run._queue and stage.panel.run._queue.worker.pid)
    stage.reach(lambda: stage.panel.run.stage == "segment")
    os.kill(stage.panel.run._queue.worker.pid, signal.SIGKILL)
    stage.until(lambda: not stage.panel.running)
    stage.picture("error")
    stage.close()


def _folder(arguments: Sequence[str]) -> Path:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.host.screenshots",
        description="Take pictures of the panel at work; about four minutes on two cores.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=SCREENSHOTS,
        help="folder for the pictures, the icon among them; without it, those of the documentation are replaced",
    )
    return parser.parse_args(arguments).output


if __name__ == "__main__":
    main(sys.argv[1:])
