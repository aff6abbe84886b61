"""Curves of an adaptation in a plot view of Slicer: the share of sure voxels (η) and the loss."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

_COLORS = {"eta": (0.19, 0.55, 0.78), "loss": (0.87, 0.49, 0.09)}


class Curves:
    """A plot view inside the panel, so that the user's layout stays as it is.

    Its nodes live in the scene only while there is something to plot; they are not saved with it.
    """

    def __init__(self, frame):
        self._frame = frame
        self._view = None
        self._nodes: list = []
        self._tables: dict[str, object] = {}
        self._drawn: tuple = ()

    def show(self, eta: list[tuple[int, float]], loss: list[tuple[int, float]]) -> None:
        """Draw the curves as far as they go; hides the view while there are none."""
        histories = {"eta": eta, "loss": loss}
        drawn = tuple(tuple(each[-1:]) + (len(each),) for each in histories.values())
        if drawn == self._drawn:
            return
        enough = max(map(len, histories.values())) > 1
        if enough and (not self._nodes or any(node.GetScene() is None for node in self._nodes)):
            self._make_nodes()
        self._drawn = drawn
        self._frame.setVisible(enough)
        if not enough:
            return
        for name, history in histories.items():
            points = np.array(history or [(0, 0.0)], dtype=float)
            slicer.util.updateTableFromArray(self._tables[name], points, ["step", name])
        self._view.fitToContent()

    def clear(self) -> None:
        """Take the curves off the panel and out of the scene."""
        self._drawn = ()
        self._frame.setVisible(False)
        if self._view is not None:
            self._view.setMRMLPlotViewNode(None)
        for node in reversed(self._nodes):
            if node.GetScene() is not None:
                node.GetScene().RemoveNode(node)
        self._nodes, self._tables = [], {}

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
        self._add(chart)
        for name, title in (("eta", _("η: share of sure voxels")), ("loss", _("loss"))):
            table = scene.CreateNodeByClass("vtkMRMLTableNode")
            table.UnRegister(None)
            table.SetName(f"MAPSeg {name}")
            self._tables[name] = self._add(table)
            series = scene.CreateNodeByClass("vtkMRMLPlotSeriesNode")
            series.UnRegister(None)
            series.SetName(title)
            series.SetPlotType(series.PlotTypeScatter)
            series.SetMarkerStyle(series.MarkerStyleNone)
            series.SetLineWidth(2)
            series.SetColor(*_COLORS[name])
            slicer.util.updateTableFromArray(table, np.zeros((1, 2)), ["step", name])
            self._add(series)
            series.SetAndObserveTableNodeID(table.GetID())
            series.SetXColumnName("step")
            series.SetYColumnName(name)
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
        self._add(view)
        view.SetPlotChartNodeID(chart.GetID())
        if self._view is None:
            self._view = slicer.qMRMLPlotView(self._frame)
            self._frame.layout().addWidget(self._view)
        self._view.setMRMLScene(scene)
        self._view.setMRMLPlotViewNode(view)
