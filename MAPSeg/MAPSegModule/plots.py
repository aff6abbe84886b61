"""The curve of an adaptation in a plot view of Slicer: the share of voxels that the model is sure of."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

_COLOR = (0.19, 0.55, 0.78)
_COLUMNS = ("step", "share")
_TEXT, _NUMBERS = 9, 8
"""Sizes in the small view of a panel; Slicer's own are made for a view of the whole window."""


class Curves:
    """A plot view inside the panel, so that the user's layout stays as it is.

    Its nodes live in the scene only while there is something to plot; they are not saved with it.
    """

    def __init__(self, frame):
        self._frame = frame
        self._view = None
        self._nodes: list = []
        self._table = None
        self._drawn: tuple = ()

    def show(self, eta: list[tuple[int, float]]) -> None:
        """Draw the curve as far as it goes; hides the view while there is none."""
        drawn = (*eta[-1:], len(eta))
        if drawn == self._drawn:
            return
        enough = len(eta) > 1
        if enough and (not self._nodes or any(node.GetScene() is None for node in self._nodes)):
            self._make_nodes()
        self._drawn = drawn
        self._frame.setVisible(enough)
        if not enough:
            return
        slicer.util.updateTableFromArray(self._table, np.array(eta, dtype=float), _COLUMNS)
        self._view.fitToContent()

    def clear(self) -> None:
        """Take the curve off the panel and out of the scene."""
        self._drawn = ()
        self._frame.setVisible(False)
        if self._view is not None:
            self._view.setMRMLPlotViewNode(None)
        for node in reversed(self._nodes):
            if node.GetScene() is not None:
                node.GetScene().RemoveNode(node)
        self._nodes, self._table = [], None

    def _add(self, node):
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        slicer.mrmlScene.AddNode(node)
        self._nodes.append(node)
        return node

    def _make_nodes(self) -> None:
        self.clear()  # of an earlier set, users may have deleted a part
        scene = slicer.mrmlScene
        chart = scene.CreateNodeByClass("vtkMRMLPlotChartNode")
        chart.UnRegister(None)
        chart.SetName(_("MAPSeg adaptation"))
        chart.SetXAxisTitle(_("step"))
        chart.SetYAxisTitle("")
        chart.SetTitleVisibility(False)
        chart.SetLegendVisibility(True)
        chart.SetLegendFontSize(_TEXT)
        chart.SetAxisTitleFontSize(_TEXT)
        chart.SetAxisLabelFontSize(_NUMBERS)
        self._add(chart)
        table = scene.CreateNodeByClass("vtkMRMLTableNode")
        table.UnRegister(None)
        table.SetName("MAPSeg adaptation")
        self._table = self._add(table)
        series = scene.CreateNodeByClass("vtkMRMLPlotSeriesNode")
        series.UnRegister(None)
        series.SetName(_("share of sure voxels"))  # in words: VTK's font has no Greek letters
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleNone)
        series.SetLineWidth(2)
        series.SetColor(*_COLOR)
        slicer.util.updateTableFromArray(table, np.zeros((1, 2)), _COLUMNS)
        self._add(series)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(_COLUMNS[0])
        series.SetYColumnName(_COLUMNS[1])
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
        # A view node with an owner of its own is left alone by the application's layout.
        owner = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        owner.UnRegister(None)
        self._add(owner)
        view = scene.CreateNodeByClass("vtkMRMLPlotViewNode")
        view.UnRegister(None)
        view.SetName("MAPSeg")
        view.SetLayoutName("MAPSegCurves")
        view.SetLayoutLabel("MAPSeg")
        view.SetAndObserveParentLayoutNodeID(owner.GetID())
        view.SetDoPropagatePlotChartSelection(False)  # of charts of other modules, shown in every view
        self._add(view)
        view.SetPlotChartNodeID(chart.GetID())
        if self._view is None:
            self._view = slicer.qMRMLPlotView(self._frame)
            self._frame.layout().addWidget(self._view)
        self._view.setMRMLScene(scene)
        self._view.setMRMLPlotViewNode(view)
