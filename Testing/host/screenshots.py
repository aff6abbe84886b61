"""Pictures of the panel at work: ``python -m Testing.host.screenshots`` (about four minutes on two cores).

They show real runs of the embedded model on the head that the nilearn package carries (``pip install '.[test]'``), and
on the same head in a foreign contrast. The icon is drawn anew from its SVG file as well.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "Resources" / "Screenshots"
ICON = ROOT / "MAPSeg" / "Resources" / "Icons" / "MAPSeg.svg"
WIDTH = 420
"""Of the application's module panel, in pixels."""


class Stage:
    """The panel in an application with the head, and what is done to it."""

    def __init__(self, dark: bool):
        from PySide6.QtTest import QTest

        from . import desktop, loadable, scene

        self._wait, self._loadable = QTest.qWait, loadable
        scene.install()
        desktop.install()
        desktop.set_theme(dark)
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

    def picture(self, name: str) -> None:
        """The whole panel, as high as it needs to be."""
        self.area.widget().layout().activate()
        self.pause(0.2)
        height = self.area.widget().heightForWidth(WIDTH)
        self.area.resize(WIDTH, max(height, self.area.widget().minimumSizeHint().height()) + 2)
        self.pause(0.3)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.area.grab().save(str(SCREENSHOTS / f"{name}.png"))
        print(SCREENSHOTS / f"{name}.png")

    def close(self) -> None:
        from . import pythonqt

        self._loadable.close_module("MAPSeg")
        self.pause(0.2)
        print(*pythonqt.problems, sep="\n", file=sys.stderr, end="")


def draw_icon() -> None:
    """128 × 128 pixels from the SVG file."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(128, 128, QImage.Format_ARGB32)
    image.fill(Qt.transparent)
    painter = QPainter(image)
    QSvgRenderer(str(ICON)).render(painter)
    painter.end()
    image.save(str(ICON.with_suffix(".png")))


def main() -> None:
    """All pictures: ready and running in light, finished in both, and a failure."""
    from MAPSegLib.demo import foreign_contrast, load_head

    head = load_head()[0]
    foreign = foreign_contrast(head)
    stage = Stage(dark=False)
    draw_icon()
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
    ui.minutesSpinBox.value = 5
    ui.adaptButton.click()
    stage.until(lambda: len(stage.panel.run.eta_history) > 12 or not stage.panel.running)
    stage.picture("running")
    ui.stopButton.click()
    stage.until(lambda: not stage.panel.running)
    stage.picture("finished")
    from . import desktop

    desktop.set_theme(dark=True)
    stage.picture("dark")
    stage.close()

    stage = Stage(dark=False)
    ui = stage.panel.ui
    stage.add("Head T1", head.array, head.affine)
    ui.segmentButton.click()
    stage.until(lambda: stage.panel.run._queue and stage.panel.run._queue.worker.pid)
    stage.until(lambda: stage.panel.run.stage == "segment")
    import os
    import signal

    os.kill(stage.panel.run._queue.worker.pid, signal.SIGKILL)
    stage.until(lambda: not stage.panel.running)
    stage.picture("error")
    stage.close()


if __name__ == "__main__":
    from . import desktop as _desktop

    _desktop.install()
    main()
