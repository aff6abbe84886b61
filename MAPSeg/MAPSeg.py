"""MAPSeg: segmentation that adapts itself to new scanners and contrasts. The module as Slicer sees it.

``MAPSeg`` names the module, ``MAPSegWidget`` shows its panel, ``MAPSegLogic`` is the way in from the Python console
and from scripts, ``MAPSegTest`` runs the whole path on a tiny model. The work is done in MAPSegModule/: a ``Run``
writes the volumes to files, starts a worker process (MAPSegLib, PyTorch), follows its events and loads the results.
"""

import sys
import unittest

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

_MANUAL = "https://github.com/MAPSeg/MAPSeg/blob/main/Docs/slicer.md"


class MAPSeg(ScriptedLoadableModule):
    """Name, category and texts of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MAPSeg"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The MAPSeg contributors"]
        about = _(
            "Segments 3D medical scans, and adapts the model to scans of a scanner or contrast that it was not trained "
            "for, without labels. Everything runs on this computer. Research software: not for clinical use."
        )
        parent.helpText = f'{about}<p><a href="{_MANUAL}">{_("How to use it")}</a></p>'
        parent.acknowledgementText = _(
            "An independent implementation of MAPSeg (Zhang et al., CVPR 2024, arXiv 2303.09373)."
        )
        slicer.app.connect("startupCompleted()", self._registerSampleData)

    @staticmethod
    def _registerSampleData():
        from MAPSegModule.samples import registerSampleData

        registerSampleData()


class MAPSegWidget(ScriptedLoadableModuleWidget):
    """The panel; everything in it is in MAPSegModule/panel.py."""

    panel = None  # in an old Slicer, or as setup() failed: Slicer enters and reloads the module all the same

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from MAPSegModule import dependencies

        if told := dependencies.unsuited():
            import qt

            line = qt.QLabel(told)
            line.wordWrap = True
            self.layout.addWidget(line)
            self.layout.addStretch(1)
            return
        from MAPSegModule.panel import Panel

        self.panel = Panel(self)
        # Slicer reloads a module that is shown without entering it anew.
        if getattr(self.parent, "isEntered", False):
            self.enter()

    def enter(self):
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        if self.panel is not None:
            self.panel.exit()

    def cleanup(self):
        if self.panel is not None:
            self.panel.cleanup()

    def onReload(self):
        # Slicer reloads this file alone: without its parts, nothing that was edited in them would be seen.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("MAPSegModule", "MAPSegLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class MAPSegLogic(ScriptedLoadableModuleLogic):
    """Segment and adapt without the panel.

    ::

        run = MAPSegLogic().segment(slicer.util.getNode("MRHead"))
        for result in run.results:
            print(result["trusted"], result["reason"])
    """

    def segment(self, volumeNodes, model="brain", wait=True, onProgress=None, onFinished=None, **options):
        """Segment volumes with a model.

        Args:
            volumeNodes: a scalar volume node, or several.
            model: name or file of a model.
            wait: come back when it is done; without, come back at once, with the run going on behind the window.
            onProgress, onFinished: called with the run, at every change and once at the end.
            options: ``device``, ``uncertainty``, and options of the backend (MAPSegLib/config.py).

        Returns:
            a ``Run``: ``segmentations`` are nodes, ``results`` hold volumes, confidence and verdicts.

        Raises:
            MAPSegLib.errors.InputError: it cannot be run as asked.
            RuntimeError: packages are missing, or (with ``wait``) no volume came through.
        """
        from MAPSegModule import console

        parameters = console.parameters_of(model, False, options)
        return console.begin(volumeNodes, parameters, wait, onProgress, onFinished)

    def adapt(self, volumeNodes, model="brain", wait=True, onProgress=None, onFinished=None, **options):
        """Adapt a model to volumes of one domain, then segment them; as ``segment``, and ``minutes`` in all."""
        from MAPSegModule import console

        parameters = console.parameters_of(model, True, options)
        return console.begin(volumeNodes, parameters, wait, onProgress, onFinished)

    def installDependencies(self, wheelFolder=""):
        """Install what the worker needs, after asking; True when everything is there.

        Args:
            wheelFolder: folder of wheel files, for sites without internet.
        """
        from MAPSegModule import dependencies

        return dependencies.ensure(wheelFolder)


class MAPSegTest(ScriptedLoadableModuleTest):
    """The whole path on a tiny model, in a real Slicer; the steps are in MAPSegModule/selftest.py."""

    def setUp(self):
        from MAPSegModule import dependencies

        slicer.mrmlScene.Clear()
        if missing := dependencies.missing():
            self.skipTest(f"Call MAPSegLogic().installDependencies() first: {', '.join(missing)} missing.")

    def runTest(self):
        try:
            for step in (self.test_path, self.test_cancel):
                self.setUp()
                self.delayDisplay(step.__doc__)
                step()
        except unittest.SkipTest as reason:  # "Reload and Test" calls this alone, and would show an error
            self.delayDisplay(str(reason))

    def test_path(self):
        """Train a tiny model, segment, adapt and export."""
        from MAPSegModule import selftest

        selftest.check_path(self, MAPSegLogic())

    def test_cancel(self):
        """Cancel a run."""
        from MAPSegModule import selftest

        selftest.check_cancel(self)
