"""The desktop part of the stand-in application: ``qt``, ``ctk``, the qMRML widgets and the application's look."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
from PySide6.QtCore import QFile, QSettings
from PySide6.QtGui import QColor, QFont, QPalette
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QApplication, QMainWindow

from . import loadable, pythonqt, record, widgets


class UiLoader(QUiLoader):
    """Knows the application's widgets, and refuses a class that it does not know."""

    def __init__(self, parent=None):
        super().__init__(parent)
        for each in (*widgets.CTK.values(), *widgets.MRML.values()):
            self.registerCustomWidget(each)

    def load(self, device, parent=None):
        text = Path(device.fileName()).read_text(encoding="utf-8")
        known = set(self.availableWidgets()) | {"Line"}
        for line in text.splitlines():
            if '<widget class="' in line:
                name = line.split('"')[1]
                if name not in known:
                    raise RuntimeError(f"the .ui file uses {name}, which does not exist")
        return super().load(device, parent)


class Application:
    """``slicer.app``: what the scene's stand-in offers, and the desktop's share; names on record only."""

    def __init__(self, scene_part, desktop: QApplication):
        self.__dict__["_parts"] = (scene_part, desktop)

    def __getattr__(self, name):
        scene_part, desktop = self._parts
        if name not in record.members("slicer.app"):
            raise AttributeError(f"slicer.app.{name} is not on record")
        if name == "connect":
            return self._connect
        own = {
            "settings": lambda: pythonqt.wrap(QSettings()),
            "userSettings": lambda: pythonqt.wrap(QSettings()),
            "applicationName": "Slicer",
            "temporaryPath": tempfile.gettempdir(),
        }
        if name in ("palette", "style", "clipboard", "processEvents", "font", "setOverrideCursor"):
            return pythonqt.wrap(getattr(desktop, name))
        if name == "restoreOverrideCursor":
            return desktop.restoreOverrideCursor
        if name == "testingEnabled":
            return lambda: False  # message boxes are shown, and answered by the test
        if name in own:
            return own[name]
        if hasattr(scene_part, name):
            return getattr(scene_part, name)
        raise AttributeError(f"slicer.app.{name} has no stand-in")

    def __setattr__(self, name, value):
        setattr(self._parts[0], name, value)

    def _connect(self, signature, target):
        if signature.partition("(")[0] not in record.members("slicer.app"):
            raise AttributeError(f"slicer.app has no signal {signature} on record")
        return self._parts[0].connect(signature, target)


def install() -> QApplication:
    """Make the desktop once for this process."""
    desktop = QApplication.instance()
    if desktop is None:
        desktop = QApplication(["Slicer"])
        desktop.setOrganizationName("MAPSegTests")
        desktop.setApplicationName("Slicer")
        QSettings.setDefaultFormat(QSettings.IniFormat)
        QSettings.setPath(
            QSettings.IniFormat, QSettings.UserScope, tempfile.mkdtemp(prefix="mapseg-settings-")
        )
        set_theme(dark=False)
    own = {"QUiLoader": UiLoader, "QFile": QFile, "QFileDialog": widgets.FileDialog}
    sys.modules["qt"] = qt = pythonqt.QtModule("qt", own)
    sys.modules["ctk"] = ctk = pythonqt.QtModule("ctk", widgets.CTK)
    slicer.qt, slicer.ctk = qt, ctk
    for name, real in widgets.MRML.items():
        setattr(slicer, name, pythonqt.face(f"slicer.{name}", real))
    for name, real in widgets.CTK.items():
        pythonqt.face(f"ctk.{name}", real)
    if not isinstance(getattr(slicer, "app", None), Application):
        slicer.app = Application(getattr(slicer, "app", None), desktop)
    window = QMainWindow()
    slicer.util.mainWindow = lambda: pythonqt.wrap(window)
    loadable.install()
    return desktop


def set_theme(dark: bool) -> None:
    """The colours of the application's light or dark style, at its size of text."""
    desktop = QApplication.instance()
    desktop.setStyle("fusion")
    desktop.setFont(QFont("DejaVu Sans", 9))
    desktop.setPalette(_palette(dark))


def _palette(dark: bool) -> QPalette:
    window, base, other, text, button = (
        ("#323232", "#242424", "#2b2b2b", "#e6e6e6", "#3c3c3c")
        if dark
        else ("#efefef", "#ffffff", "#f7f7f7", "#000000", "#efefef")
    )
    palette = QPalette(QColor(button), QColor(window))
    faint = QColor("#808080") if dark else QColor("#8c8c8c")
    for role, value in (
        (QPalette.Base, base),
        (QPalette.AlternateBase, other),
        (QPalette.Text, text),
        (QPalette.WindowText, text),
        (QPalette.ButtonText, text),
        (QPalette.ToolTipBase, base),
        (QPalette.ToolTipText, text),
        (QPalette.Highlight, "#308cc6"),
        (QPalette.HighlightedText, "#ffffff"),
        (QPalette.Link, "#4aa3df" if dark else "#0064b4"),
    ):
        palette.setColor(role, QColor(value))
    for role in (QPalette.Text, QPalette.WindowText, QPalette.ButtonText):
        palette.setColor(QPalette.Disabled, role, faint)
    palette.setColor(QPalette.PlaceholderText, faint)
    return palette
