"""The scene's part of the stand-in application: real MRML (slicer-core), and ``slicer.app`` as far as scenes need it.

Subject hierarchy items, which the application's Qt part adds for every node, are left for the code under test to make.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from collections.abc import Callable

import slicer
import slicer.util
import vtk


class Environment:
    """``QProcessEnvironment``, as far as ``slicer.util.startupEnvironment`` asks."""

    def keys(self):
        return list(os.environ)

    def value(self, name):
        return os.environ[name]


class Application:
    """``slicer.app`` without a desktop."""

    def __init__(self, logic):
        self._logic = logic
        self._started: list[Callable] = []
        self._closed: list[Callable] = []
        self.mrmlScene = slicer.mrmlScene
        self.majorVersion, self.minorVersion = 5, 12
        self.temporaryPath = tempfile.gettempdir()
        self.returnCode: int | None = None

    def applicationLogic(self):
        return self._logic

    def startupEnvironment(self):
        return Environment()

    def testingEnabled(self):
        return True

    def processEvents(self):
        pass

    def connect(self, signal, receiver):
        if signal == "startupCompleted()":
            self._started.append(receiver)
        elif signal == "lastWindowClosed()":
            self._closed.append(receiver)

    def disconnect(self, signal, receiver):
        assert signal == "lastWindowClosed()"
        self._closed.remove(receiver)

    def startupCompleted(self):
        """What the application tells when its window is there."""
        for receiver in self._started:
            receiver()

    def lastWindowClosed(self):
        """What the application tells when a user has closed its window; it quits as soon as it can."""
        for receiver in list(self._closed):
            receiver()

    def layoutManager(self):
        return None

    def exit(self, code):
        self.returnCode = code


def install():
    """Make an empty scene with the nodes and logics that every Slicer has; returns the scene."""
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    application = slicer.vtkMRMLApplicationLogic()
    application.SetMRMLScene(scene)
    slicer.app = Application(application)
    slicer.modules = types.SimpleNamespace()
    logics = {
        "colors": slicer.vtkMRMLColorLogic,
        "subjecthierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic,
        "segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
        "volumes": slicer.vtkSlicerVolumesLogic,
    }
    for name, kind in logics.items():
        logic = kind()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        module = types.SimpleNamespace(logic=lambda logic=logic: logic)
        setattr(slicer.modules, name, module)
    slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(scene)
    return scene


def add_hollow(name: str):
    """A volume whose image has dimensions and no values, as a file that was read by half leaves it."""
    node, image = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name), vtk.vtkImageData()
    image.SetDimensions(20, 20, 20)
    node.SetAndObserveImageData(image)
    return node


def offer_module_base_classes() -> None:
    """Where a module file imports its base classes and translations from, without a desktop."""
    if "slicer.ScriptedLoadableModule" not in sys.modules:
        from . import loadable

        loadable.install()
