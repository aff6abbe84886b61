"""Base classes of scripted modules, and the part of the application that makes and reloads their panels.

They follow ``Base/Python/slicer/ScriptedLoadableModule.py`` and ``qSlicerScriptedLoadableModuleWidget``.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from pathlib import Path

import slicer
import slicer.util
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QScrollArea

from . import pythonqt


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, filename):
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return ""

    def runTest(self, msec=100, **kwargs):
        getattr(sys.modules[self.__module__], f"{self.moduleName}Test")().runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        import qt

        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue(
            "Developer/DeveloperMode", False, converter=slicer.util.toBool
        )
        if parent:
            self.parent = parent
        else:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if not parent:
            self.setup()
            self.parent.show()

    def resourcePath(self, filename):
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self):
        self.setupDeveloperSection()

    def setupDeveloperSection(self):
        import qt

        if self.developerMode:
            self.reloadButton = qt.QPushButton("Reload")
            self.reloadButton.connect("clicked()", self.onReload)
            self.layout.addWidget(self.reloadButton)

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message, requestedDelay=None, msec=None):
        print(message)

    def setUp(self):
        pass

    def runTest(self):
        pass


class PanelParent:
    """The widget that holds a module's panel, in the application's scroll area, with the application's ``reload``."""

    def __init__(self, name: str, path: Path):
        import qt

        self.widget = slicer.qMRMLWidget()
        self.widget.setLayout(qt.QVBoxLayout())
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.area = QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setFrameShape(QScrollArea.NoFrame)
        self.area.setHorizontalScrollBarPolicy(Qt.ScrollBarAlwaysOff)  # what is too wide is cut off
        self.area.setWidget(self.widget._real)
        self._name, self._path = name, path
        self.isEntered = False

    def __getattr__(self, attribute):
        return getattr(self.widget, attribute)

    def reload(self) -> None:
        """Make the panel anew from the module's class. It is not entered then: where it is shown, it was before."""
        made = getattr(sys.modules[self._name], f"{self._name}Widget")(self)
        setattr(slicer.modules, f"{self._name}Widget", made)
        made.setup()

    def enter(self) -> None:
        """Show the panel, as when a user selects the module."""
        self.isEntered = True
        getattr(slicer.modules, f"{self._name}Widget").enter()

    def exit(self) -> None:
        """Show another module."""
        self.isEntered = False
        getattr(slicer.modules, f"{self._name}Widget").exit()


def _modules():
    if not isinstance(getattr(slicer, "modules", None), types.SimpleNamespace):
        slicer.modules = getattr(slicer, "modules", None) or types.SimpleNamespace()
    return slicer.modules


def open_module(path: Path):
    """Load a module file and show its panel, as the application does when a user selects it.

    Returns:
        the module's widget object, at ``slicer.modules.NAMEWidget`` as well.
    """
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parent = PanelParent(name, path)
    about = types.SimpleNamespace(path=str(path), widgetRepresentation=lambda: parent)
    setattr(_modules(), name.lower(), about)
    setattr(_modules(), f"{name}Instance", getattr(module, name)(about))
    parent.reload()
    parent.enter()
    return getattr(slicer.modules, f"{name}Widget")


def close_module(name: str) -> None:
    """Unload a module as the application does when it ends."""
    widget = getattr(slicer.modules, f"{name}Widget", None)
    if widget is not None:
        widget.cleanup()
        parent = getattr(slicer.modules, name.lower()).widgetRepresentation()
        parent.area.deleteLater()
        delattr(slicer.modules, f"{name}Widget")


def install() -> None:
    """Put the base classes where modules import them from."""
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    names = [
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ]
    module.__all__ = [each.__name__ for each in names]
    for each in names:
        setattr(module, each.__name__, each)
    sys.modules[module.__name__] = slicer.ScriptedLoadableModule = module
    translation = types.ModuleType("slicer.i18n")
    translation.tr = lambda text: text
    translation.translate = lambda context, text: text
    translation.getContext = lambda sourceFile: Path(sourceFile).stem
    sys.modules[translation.__name__] = slicer.i18n = translation
    pythonqt.problems.clear()
