"""Another scene in the place of the one that the panel knows: its nodes get the same IDs, and are none of its own."""

import pytest
import slicer

from Testing.processes import alive

from .conftest import adapt, add_ball
from .scenes import load_scene, save_scene


def test_a_scene_loaded_during_an_adaptation_stays_whole(screen, tmp_path):
    path = save_scene(tmp_path / "saved")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)
    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    screen.wait(lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    screen.wait(lambda: len(screen.panel.run.eta_history) > 2)
    [item] = screen.panel.run.items
    ids = (item.volume_id, item.segmentation_id)
    load_scene(path)
    labels = slicer.util.getNode("saved labels")
    assert ids == (slicer.util.getNode("saved").GetID(), labels.GetID())  # the danger
    screen.finish()
    screen.pause(0.2)
    assert labels.GetScene() is not None and labels.GetSegmentation().GetNumberOfSegments() == 2
    assert not alive(pid)
    assert "Cancelled." in screen.ui.statusLabel.text and "✗" not in screen.ui.statusLabel.text
    assert "cancelled" not in screen.state("saved") and screen.panel.volumes.checked_nodes() == []
    assert not slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    assert screen.ui.plotFrame._real.isHidden()


def test_checks_and_states_do_not_pass_to_another_scene(screen, tmp_path):
    from MAPSegModule import run

    path = save_scene(tmp_path / "saved")
    first, second = add_ball("first"), add_ball("second")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    for node in (first, second):
        screen.check(node.GetName())
        screen.panel.volumes.set_state(run.Item(node.GetID(), node.GetName(), run.DONE))
    assert "done" in screen.state("first")
    load_scene(path)
    assert screen.panel.volumes.checked_nodes() == []
    screen.wait(lambda: screen.ui.volumeTable.item(0, 0).text() == "saved", 5)
    assert "done" not in screen.state("saved") + screen.state("other")
    assert screen.panel.volumes.checked_nodes() == []


def test_the_curve_leaves_with_its_scene(screen):
    screen.panel.curves.show([(1, 0.1), (2, 0.2)])
    assert not screen.ui.plotFrame._real.isHidden()
    slicer.mrmlScene.Clear(False)
    assert screen.ui.plotFrame._real.isHidden()


KINDS = ("vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode", "vtkMRMLPlotViewNode")


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_drawn_anew_where_users_delete_a_part_of_it(screen, kind):
    curves = screen.panel.curves
    curves.show([(1, 0.1), (2, 0.2)])
    before = {kind: slicer.util.getNodesByClass(kind) for kind in KINDS}
    assert all(node.GetHideFromEditors() for kind in KINDS[:3] for node in before[kind])
    slicer.mrmlScene.RemoveNode(before[kind][0])
    curves.show([(1, 0.1), (2, 0.2), (3, 0.3)])
    after = {kind: slicer.util.getNodesByClass(kind) for kind in KINDS}
    assert {kind: len(nodes) for kind, nodes in after.items()} == {kind: len(before[kind]) for kind in KINDS}
    (view,) = [each for each in screen.ui.plotFrame.children() if hasattr(each, "setMRMLPlotViewNode")]
    assert [len(points) for _name, _color, points in view._real.series()] == [3]
    assert not screen.ui.plotFrame._real.isHidden()
    curves.clear()
    assert not any(slicer.util.getNodesByClass(kind) for kind in KINDS)


def test_the_curve_can_be_read_in_a_view_as_small_as_the_panels(screen):
    """The application's sizes are 12 to 16, and its font has no Greek letters: they would be boxes."""
    screen.panel.curves.show([(1, 0.1), (2, 0.2)])
    (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    sizes = (chart.GetLegendFontSize(), chart.GetAxisTitleFontSize(), chart.GetAxisLabelFontSize())
    assert sizes == (9, 9, 8)
    (series,) = slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode")
    assert series.GetName() == "share of sure voxels"


def test_the_chart_of_another_module_takes_no_place_in_the_panel(screen):
    """The application shows the chart that was chosen last in every view that takes it."""
    screen.panel.curves.show([(1, 0.1), (2, 0.2)])
    (view,) = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    (own,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", "other")
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActivePlotChartID(other.GetID())
    logic.PropagatePlotChartSelection()
    assert view.GetPlotChartNodeID() == own.GetID()
