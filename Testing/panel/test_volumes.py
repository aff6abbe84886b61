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
