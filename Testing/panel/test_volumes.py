"""What the list of volumes says of each, and the line below it."""

from types import SimpleNamespace

import slicer
import vtk

from Testing.host.scene import add_hollow

from .conftest import add_ball


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
