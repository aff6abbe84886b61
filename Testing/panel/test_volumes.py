"""The list of volumes: which are in it and checked, what is said of each, and the line below it."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import slicer
import vtk

from Testing.host.scene import add_hollow

from .conftest import add_ball


@pytest.mark.parametrize("kind", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode"])
def test_where_no_volume_is_a_scan_it_says_so(screen, kind):
    told = "The volumes in the scene are colour, vector or label volumes"
    node = slicer.mrmlScene.AddNewNodeByClass(kind, "other")
    screen.wait(lambda: told in screen.ui.volumeHintLabel.text, 5)
    assert told in screen.ui.statusLabel.text and told in screen.ui.segmentButton.toolTip
    node.SetHideFromEditors(True)
    screen.panel.enter()
    assert "no volume in the scene" in screen.ui.volumeHintLabel.text
    assert "Load a volume" in screen.ui.statusLabel.text
    node.SetHideFromEditors(False)
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    assert told not in screen.ui.volumeHintLabel.text + screen.ui.statusLabel.text


def test_an_uncertainty_map_is_no_volume_in_the_scene(screen):
    from MAPSegModule import scene

    volume = add_ball()
    scene.load_uncertainty(np.zeros((32, 38, 34), np.float32), volume)
    slicer.mrmlScene.RemoveNode(volume)
    screen.panel.enter()
    assert "no volume in the scene" in screen.ui.volumeHintLabel.text


@pytest.mark.parametrize("touched", [False, True])
def test_the_only_volume_is_checked_until_there_are_several(screen, touched):
    """Of series that are loaded one after the other, the first one is a localizer as likely as not."""
    add_ball("one")
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    if touched:
        screen.check("one", False)
        screen.check("one")
    add_ball("two")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    assert [node.GetName() for node in screen.panel.volumes.checked_nodes()] == (["one"] if touched else [])
    screen.check("one", False)
    assert not screen.ui.segmentButton.enabled and "at least one" in screen.ui.segmentButton.toolTip
    screen.check("two")
    assert screen.ui.segmentButton.enabled


@pytest.mark.parametrize("way", ["RemoveNode", "Clear"])
def test_volumes_that_are_gone_take_no_memory(screen, way):
    volume, kept = add_ball("gone"), vtk.vtkWeakReference()
    kept.Set(volume)
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    slicer.mrmlScene.RemoveNode(volume) if way == "RemoveNode" else slicer.mrmlScene.Clear(False)
    del volume
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)
    gc.collect()
    assert kept.Get() is None


def test_only_scans_are_listed_and_names_follow(screen):
    volume = add_ball("scan")
    for kind in ("vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode"):
        slicer.mrmlScene.AddNewNodeByClass(kind, "other")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 1, 5)
    volume.SetName("renamed")
    screen.wait(lambda: screen.ui.volumeTable.item(0, 0).text() == "renamed", 5)
    slicer.mrmlScene.RemoveNode(volume)
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)


def test_every_volume_is_looked_at(screen):
    for index in range(3):
        add_ball(f"ball {index}", seed=index)
    table = screen.ui.volumeTable
    screen.wait(lambda: table.rowCount == 3 and all(table.item(row, 1).text() for row in range(3)), 5)
    assert "2 mm" in table.item(0, 1).text()
    assert "GB" in table.item(0, 1).toolTip()
    assert screen.ui.volumeHintLabel.text


def test_a_transform_that_comes_later_is_told(screen):
    volume = add_ball("ball")
    screen.wait(lambda: "2 mm" in screen.ui.volumeHintLabel.text, 5)
    assert "harden" not in screen.ui.volumeHintLabel.text
    mirror, matrix = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
    matrix.SetElement(0, 0, -1)
    mirror.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(mirror.GetID())
    screen.wait(lambda: "harden it first" in screen.ui.volumeHintLabel.text, 5)
    volume.SetAndObserveTransformNodeID(None)
    screen.wait(
        lambda: "2 mm" in screen.ui.volumeHintLabel.text and "harden" not in screen.ui.volumeHintLabel.text, 5
    )


def test_states_are_of_the_model_chosen(screen):
    from MAPSegModule import run

    slicer.util.addVolumeFromArray(np.zeros((20, 20, 20), np.float32), name="flat")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 1, 5)
    screen.wait(lambda: "unusable" in screen.state("flat"), 5)
    volume = slicer.util.getNode("flat")
    screen.panel.volumes.set_state(run.Item(volume.GetID(), "flat", run.DONE))
    screen.panel.models.refresh()
    assert "done" in screen.state("flat")
    screen.panel.models.refresh("brain-t1")
    screen.wait(lambda: "unusable" in screen.state("flat"), 5)


def test_a_volume_that_plays_a_sequence_is_looked_at_when_it_rests(screen):
    volume, table, told = add_ball(), screen.ui.volumeTable, []
    screen.wait(lambda: table.rowCount == 1 and table.item(0, 1).text(), 5)
    screen.panel.volumes.changed.connect(lambda: told.append(screen.state("ball")))
    settled = screen.panel.volumes._settled
    settled.setInterval(600_000)
    for _ in range(10):
        slicer.util.arrayFromVolumeModified(volume)
        screen.pause(0.01)
    assert told == [] and settled.active
    settled.setInterval(0)
    slicer.util.arrayFromVolumeModified(volume)
    screen.wait(lambda: told and told[-1], 5)
    assert len(screen.panel.volumes._flights) == 1


def test_done_are_the_voxels_that_the_run_had(screen):
    from MAPSegModule import run

    volume = add_ball()
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 1, 5)
    item = run.Item(volume.GetID(), "ball", run.DONE)
    screen.panel.volumes.set_state(item)
    assert "done" in screen.state("ball")
    slicer.util.arrayFromVolumeModified(volume)
    screen.wait(lambda: "done" not in screen.state("ball"), 5)
    for item.state in (run.WAITING, run.RUNNING):
        screen.panel.volumes.set_state(item)
        assert item.state in screen.state("ball")
    slicer.util.arrayFromVolumeModified(volume)
    item.state = run.DONE
    screen.panel.volumes.set_state(item)
    assert "done" not in screen.state("ball")


def test_a_volume_without_voxels_has_none_of_0_mm(screen):
    add_hollow("hollow")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 1, 5)
    screen.wait(lambda: "unusable" in screen.state("hollow"), 5)
    assert screen.ui.volumeTable.item(0, 1).text() == ""


def test_a_broken_volume_keeps_no_other_from_being_looked_at(screen):
    add_hollow("hollow")
    add_ball()
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    screen.wait(lambda: "unusable" in screen.state("hollow") and screen.state("ball") == "ready", 5)


def test_advice_on_what_to_do_first_ends_with_the_run(screen):
    """What the estimate is of is said: during an adaptation it stands beside the time that is left."""
    from MAPSegModule import run

    volume = add_ball()
    mirror, matrix = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
    matrix.SetElement(0, 0, -1)
    mirror.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(mirror.GetID())
    told = screen.ui.volumeHintLabel
    screen.wait(lambda: "harden it first" in told.text and "segmenting takes about" in told.text, 5)
    screen.panel.volumes.set_state(run.Item(volume.GetID(), "ball", run.DONE))
    assert "harden" not in told.text and "segmenting takes about" in told.text
    slicer.util.arrayFromVolumeModified(volume)  # it is another one by now
    screen.wait(lambda: "harden it first" in told.text, 5)


def test_of_one_volume_there_is_no_plural(screen):
    from MAPSegModule import run

    failed = run.Item("", "bad", run.FAILED, "It holds no voxels.")
    screen.panel._finished(SimpleNamespace(items=[failed], exit_code=2, error=""))
    assert "0 of 1 volume done. bad: It holds no voxels." in screen.ui.statusLabel.text


def press(widget, key=None, where=None):
    """A click, or a key where there is one, as Qt takes it from the user."""
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    if key is None:
        QTest.mouseClick(widget, Qt.LeftButton, Qt.NoModifier, where or widget.rect().center())
    else:
        QTest.keyClick(widget, key)


def test_all_volumes_are_checked_at_once(screen):
    """By the box at the head of the list, which says whether all are checked, some, or none."""
    from MAPSegModule import run
    from PySide6.QtCore import Qt

    names = [f"ball {number}" for number in range(3)]
    volumes, section = [add_ball(names[0])], screen.panel.volumes
    box = section._all._real
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 1, 5)
    assert not box.isVisible()  # there is nothing to choose
    volumes += [add_ball(name) for name in names[1:]]
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 3, 5)
    assert box.isVisible() and box.checkState() == Qt.Unchecked and section._all.toolTip

    def checked():
        return [node.GetName() for node in section.checked_nodes()]

    section.set_state(run.Item(volumes[0].GetID(), names[0], run.DONE))
    screen.check(names[0])
    section.set_state(run.Item(volumes[0].GetID(), names[0], run.DONE))
    assert box.checkState() == Qt.PartiallyChecked
    press(box)
    assert checked() == names and box.checkState() == Qt.Checked and screen.ui.segmentButton.enabled
    assert screen.state(names[0]) == "✓ done"  # it was checked before
    press(box, Qt.Key_Space)
    assert checked() == [] and box.checkState() == Qt.Unchecked and not screen.ui.segmentButton.enabled
    screen.wait(lambda: screen.state(names[0]) == "ready", 5)
    press(box)
    screen.check(names[1], False)
    assert checked() == [names[0], names[2]] and box.checkState() == Qt.PartiallyChecked
    slicer.mrmlScene.RemoveNode(volumes[1])
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    assert box.checkState() == Qt.Checked
    slicer.mrmlScene.Clear(False)
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)
    assert not box.isVisible()


def test_a_run_that_goes_on_is_told_whatever_happens_to_the_boxes(screen):
    from MAPSegModule import run

    volumes, section = [add_ball(name) for name in ("one", "two")], screen.panel.volumes
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    for volume in volumes:
        section.set_state(run.Item(volume.GetID(), "", run.RUNNING))
    for _ in range(2):
        press(section._all._real)
        assert screen.state("one") == screen.state("two") == "● running"
    section.set_state(run.Item(volumes[0].GetID(), "", run.DONE))
    press(section._all._real)
    screen.wait(lambda: (screen.state("one"), screen.state("two")) == ("ready", "● running"), 5)


def test_the_box_for_all_is_above_those_of_the_volumes_and_reached_before_them(screen):
    from PySide6.QtCore import QPoint

    for name in ("one", "two"):
        add_ball(name)
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    box, table = screen.panel.volumes._all._real, screen.ui.volumeTable._real
    place, header = box.mapTo(table, QPoint(0, 0)), table.horizontalHeader()
    assert place.y() >= 0 and place.y() + box.height() <= header.y() + header.height() + 1
    widget = screen.ui.removeModelButton._real.nextInFocusChain()
    while widget not in (box, table):
        widget = widget.nextInFocusChain()
    assert widget is box


def test_the_space_bar_checks_the_row_whichever_cell_was_clicked(screen):
    from PySide6.QtCore import Qt

    for name in ("one", "two"):
        add_ball(name)
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)
    screen.wait(lambda: screen.state("two") == "ready", 5)
    table = screen.ui.volumeTable._real
    for column in (2, 1, 0):
        press(table.viewport(), where=table.visualItemRect(table.item(1, column)).center())
        assert not screen.panel.volumes.checked_nodes() and "two" in screen.ui.volumeHintLabel.text
        press(table, Qt.Key_Space)
        assert [node.GetName() for node in screen.panel.volumes.checked_nodes()] == ["two"]
        press(table, Qt.Key_Right)
        press(table, Qt.Key_Space)


def test_volumes_are_let_go_when_they_leave_and_when_the_panel_closes(screen):
    """One that is hidden by then, too: what observes it would be called in a panel that is gone."""
    kept, hidden = add_ball("kept"), add_ball("hidden")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 2, 5)

    def observed(node):
        return [
            node.HasObserver(event) for event in (vtk.vtkCommand.ModifiedEvent, node.TransformModifiedEvent)
        ]

    before = add_ball("new"), add_ball("newer")
    free = observed(before[0])
    assert observed(kept) != free
    slicer.mrmlScene.RemoveNode(kept)
    assert observed(kept) == free
    hidden.SetHideFromEditors(True)
    screen.panel.volumes.close()
    assert observed(hidden) == free


def test_six_volumes_fit_whatever_the_size_of_the_letters(screen):
    from PySide6.QtGui import QFont

    table = screen.ui.volumeTable._real
    table.setFont(QFont("DejaVu Sans", 18))
    for number in range(6):
        add_ball(f"ball {number}")
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 6, 5)
    screen.pause(0.1)
    assert table.rowHeight(0) >= table.fontMetrics().height() and not table.verticalScrollBar().isVisible()
    box = screen.panel.volumes._all._real
    assert abs(box.geometry().center().y() - table.horizontalHeader().rect().center().y()) <= 1


def test_the_end_of_a_run_is_told_in_the_window_too(screen):
    """A run lasts minutes: users are in another module, and see the window's last line."""
    from MAPSegModule import run

    failed = run.Item("", "bad", run.FAILED, "It holds no voxels.")
    screen.panel._finished(SimpleNamespace(items=[failed], exit_code=2, error=""))
    told = slicer.util.mainWindow().statusBar().currentMessage()
    assert told == "MAPSeg: 0 of 1 volume done. bad: It holds no voxels."
