"""Runs, as a user sees them: from the click to the result, cancelled, failing, and with the scene closed under them."""

import os
import signal
import time

import numpy as np
import pytest

from Testing.host import loadable
from Testing.host.pythonqt import dialogs
from Testing.processes import alive

from .conftest import MODULE, Heartbeat, adapt, add_ball, workers


def test_a_click_segments(screen, record_property):
    import slicer

    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    beat = Heartbeat()
    screen.click("segmentButton")
    assert screen.ui.segmentButton.text == "Cancel" and not screen.ui.adaptButton.visible
    assert screen.ui.progressFrame.visible
    screen.finish()
    record_property("segmenting", beat.stop())
    assert screen.ui.segmentButton.text == "Segment" and not screen.ui.progressFrame.visible
    assert "Done in" in screen.ui.statusLabel.text
    assert screen.state("ball").split()[-1] in ("done", "doubtful")

    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    names = [segment[0] for segment in screen.rows()]
    segments = node.GetSegmentation()
    assert names == [segments.GetNthSegment(i).GetName() for i in range(segments.GetNumberOfSegments())]
    volume = slicer.util.getNode("ball")
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(node, segments.GetNthSegmentID(0), volume)
    assert float(screen.rows()[0][1]) == pytest.approx(np.count_nonzero(voxels) * 8 / 1000, rel=0.05)
    assert screen.ui.verdictLabel.text and not screen.ui.adaptedButton.visible
    assert screen.ui.resultTable.horizontalHeaderItem(1).text() == "Structure (ball)"
    assert not screen.ui.overlayCheckBox.enabled and not screen.ui.saveModelButton.enabled


def test_adapting_shows_previews_and_a_curve_and_keeps_the_best(screen, home, record_property):
    import qt
    import slicer

    add_ball()
    screen.ui.uncertaintyCheckBox.checked = True
    beat, started = Heartbeat(), time.monotonic()
    adapt(screen)
    screen.wait(lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    record_property("adapting", f"first preview after {time.monotonic() - started:.1f} s (tiny model)")
    assert screen.panel.run.items[0].shown == "preview" and screen.panel.running
    screen.wait(lambda: len(screen.panel.run.eta_history) > 3)
    assert screen.ui.plotFrame.visible
    (view,) = [w for w in screen.ui.plotFrame.children() if hasattr(w, "setMRMLPlotViewNode")]
    [(name, _color, points)] = view._real.series()
    assert name.isascii() and len(points) > 2
    assert screen.ui.stopButton.visible and "Adapting, step" in screen.ui.stageLabel.text
    screen.click("stopButton")
    for on in (False, True):
        screen.check("ball", on)
    screen.panel.run.changed.emit()  # a step is told meanwhile
    assert not screen.ui.stopButton.enabled and "Stopping" in screen.ui.stageLabel.text
    screen.finish()
    record_property("adapting", beat.stop())
    assert "Done in" in screen.ui.statusLabel.text

    item = screen.panel.results.item
    node = slicer.mrmlScene.GetNodeByID(item.segmentation_id)
    assert item.shown == item.result["chosen"]
    assert "result kept" in screen.ui.verdictLabel.text
    other = "source" if item.shown == "adapted" else "adapted"
    assert getattr(screen.ui, f"{item.shown}Button").checked
    screen.click(f"{other}Button")
    assert item.shown == other and slicer.mrmlScene.GetNodeByID(item.segmentation_id) is node
    # The table is of what is shown, not of what was kept.
    from MAPSegModule import images, result_texts

    side = item.result[other]
    assert "not kept" in screen.ui.verdictLabel.text and side["reason"] in screen.ui.verdictLabel.text
    assert [row[2] for row in screen.rows()] == [result_texts.numbers(s)[1] for s in side["structures"]]
    labels = images.read_labels(item.result[other]["output"])
    counts = [np.count_nonzero(labels.array == value) * 8 / 1000 for value in (1, 2)]
    assert [float(row[1]) for row in screen.rows()] == pytest.approx(counts, abs=0.06)

    assert not screen.ui.overlayCheckBox.enabled  # the map is of the one that was kept
    screen.click(f"{item.result['chosen']}Button")
    screen.click("overlayCheckBox")
    assert screen.ui.overlayCheckBox.checked
    assert [node.GetName() for node in screen.panel.volumes.nodes()] == ["ball"]  # the map is not one of them

    if item.result["chosen"] == "source":
        dialogs.expect("message", qt.QMessageBox.Ok)
    dialogs.expect("getText", "kept")
    screen.click("saveModelButton")
    assert (home / "kept.safetensors").exists() and screen.panel.models.entry.name == "kept"


def test_an_edited_preview_stays_in_sight(screen):
    """Beside what comes next, for as long as the user wants it."""
    import slicer

    volume = add_ball()
    adapt(screen)
    screen.wait(lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    (edited,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    corner = np.zeros((32, 38, 34), np.uint8)
    corner[:3, :3, :3] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(corner, edited, "Segment_1", volume)
    screen.wait(lambda: screen.ui.stopButton.enabled)
    screen.click("stopButton")
    screen.finish()
    item = screen.panel.results.item
    kept = slicer.mrmlScene.GetNodeByID(item.segmentation_id)
    assert kept is not edited and edited.GetScene() is not None
    for _ in range(2):  # the second result takes the place of the first
        assert edited.GetDisplayNode().GetVisibility() and kept.GetDisplayNode().GetVisibility()
        found = slicer.util.arrayFromSegmentBinaryLabelmap(edited, "Segment_1", volume)
        assert np.array_equal(found > 0, corner > 0)
        screen.click("sourceButton" if item.shown == "adapted" else "adaptedButton")
    slicer.mrmlScene.RemoveNode(kept)
    assert not screen.rows() and edited.GetScene() is not None


def test_cancelling_leaves_no_process(screen, monkeypatch, record_property):
    import qt
    import slicer

    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    screen.wait(lambda: screen.panel.run.stage == "adapt" and screen.panel.run.step > 2)
    monkeypatch.setattr("MAPSegModule.panel.LONG", 0.0)
    dialogs.expect("message", qt.QMessageBox.Cancel)
    screen.click("adaptButton")
    assert "Discard" in dialogs.asked[-1][1][0] and screen.ui.adaptButton.text == "Cancel"
    dialogs.expect("message", qt.QMessageBox.Ok)
    started = time.monotonic()
    screen.click("adaptButton")
    assert screen.ui.adaptButton.text == "Cancelling…" and not screen.ui.adaptButton.enabled
    screen.finish()
    record_property("cancelling", f"{time.monotonic() - started:.2f} s from click to idle")
    screen.wait(lambda: not alive(pid) and not workers())
    assert "Cancelled" in screen.ui.statusLabel.text and "cancelled" in screen.state("ball")
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")  # a preview is no result
    assert screen.ui.adaptButton.text == "Adapt and segment" and screen.ui.adaptButton.enabled

    screen.click("segmentButton")  # and the next run goes as if nothing had been
    screen.finish()
    assert screen.rows()


def test_cancelling_before_the_worker_has_begun(screen):
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.click("segmentButton")
    screen.finish()
    assert "Cancelled" in screen.ui.statusLabel.text and not workers()


@pytest.mark.parametrize("button", ["segmentButton", "adaptButton"])
def test_a_double_click_starts_and_does_not_cancel(screen, button, monkeypatch):
    monkeypatch.setattr("MAPSegModule.panel.DOUBLE_CLICK", 600)
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click(button)
    screen.click(button)
    assert screen.panel.running and getattr(screen.ui, button).text == "Cancel"
    monkeypatch.setattr("MAPSegModule.panel.DOUBLE_CLICK", 0)
    screen.click(button)
    screen.finish()
    assert "Cancelled" in screen.ui.statusLabel.text


def test_nothing_can_be_pressed_while_packages_are_installed(screen, tmp_path, monkeypatch):
    """Slicer goes on taking events meanwhile, and the buttons would start it all a second time."""
    told = "What MAPSeg needs is being installed; this takes minutes."
    buttons = ("segmentButton", "adaptButton", "importModelButton")
    asked = []

    def ensure():
        screen.pause(0.05)
        asked.append([getattr(screen.ui, name)._real.isEnabled() for name in buttons])
        assert told in screen.ui.statusLabel.text and screen.ui.segmentButton.toolTip == told
        return False

    monkeypatch.setattr("MAPSegModule.dependencies.ensure", ensure)
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    assert asked == [[False] * 3] and not screen.panel.running
    assert "Nothing was installed" in screen.ui.statusLabel.text
    dialogs.expect("getOpenFileName", str(tmp_path / "their.pth"))
    screen.click("importModelButton")
    assert asked == [[False] * 3] * 2 and not screen.panel.models.busy
    assert told not in screen.ui.statusLabel.text
    assert all(getattr(screen.ui, name)._real.isEnabled() for name in buttons)


def test_an_installation_that_fails_is_told_and_can_be_tried_again(screen, monkeypatch, problems):
    import qt

    def fail():
        raise RuntimeError("no route to host")

    monkeypatch.setattr("MAPSegModule.dependencies.ensure", fail)
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    dialogs.expect("message", qt.QMessageBox.Ok)
    screen.click("segmentButton")
    assert "no route to host" in dialogs.asked[-1][1][0] and "RuntimeError" in problems.pop()
    assert screen.ui.segmentButton.enabled and "installed" not in screen.ui.statusLabel.text


def test_a_killed_worker_is_told(screen):
    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    screen.wait(lambda: screen.panel.run.stage == "adapt" and screen.panel.run.step > 2)
    os.kill(pid, signal.SIGKILL)
    screen.finish()
    assert "ended by the system" in screen.ui.statusLabel.text
    assert "failed" in screen.state("ball") and screen.ui.adaptButton.enabled


def sabotage(folder, monkeypatch, code):
    """Let the worker's Python run something at its start, as a site's own customisation does."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


OUT_OF_MEMORY = """
import importlib.abc, importlib.machinery, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "MAPSegLib.inference":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.segment_scan = lambda *a, **k: bytearray(1 << 62)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hook())
"""


def test_a_worker_out_of_memory_is_told(screen, tmp_path, monkeypatch):
    sabotage(tmp_path, monkeypatch, OUT_OF_MEMORY)
    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.finish()
    told = screen.ui.statusLabel.text.lower()
    assert "memory. close other programs" in told and "failed" in screen.state("ball")
    assert "Traceback" not in screen.ui.statusLabel.text


def test_a_bad_volume_stops_no_other(screen):
    import slicer

    add_ball("good")
    slicer.util.addVolumeFromArray(np.zeros((20, 20, 20), np.float32), name="bad")
    screen.pause(0.2)
    for name in ("good", "bad"):
        screen.check(name)
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    assert "waiting" in screen.state("good") and "waiting" in screen.state("bad")
    screen.finish()
    assert screen.state("good").split()[-1] in ("done", "doubtful") and "failed" in screen.state("bad")
    assert "1 of 2" in screen.ui.statusLabel.text and "bad" in screen.ui.statusLabel.text
    assert screen.rows() and screen.ui.resultComboBox.count == 1


def test_closing_the_scene_ends_the_run(screen):
    import slicer

    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    screen.wait(lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    slicer.mrmlScene.Clear(False)
    screen.finish()
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)
    assert not alive(pid)
    assert not screen.ui.resultSection.enabled and not screen.ui.plotFrame.visible
    assert not screen.ui.segmentButton.enabled
    add_ball("next")  # and the panel goes on with the next scene
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.finish()
    assert screen.rows()


def test_closing_the_scene_takes_results_away(screen):
    import slicer

    add_ball()
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.finish()
    assert screen.ui.resultSection.enabled
    slicer.mrmlScene.Clear(False)
    screen.wait(lambda: not screen.ui.resultSection.enabled, 5)
    assert screen.rows() == []
    screen.wait(lambda: "Load a volume" in screen.ui.statusLabel.text, 5)
    assert "Done" not in screen.ui.statusLabel.text


def test_reloading_ends_the_run_and_makes_the_panel_anew(screen):
    import sys

    import slicer

    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    before, part = screen.panel, sys.modules["MAPSegModule.panel"]
    slicer.modules.MAPSegWidget.onReload()
    assert not alive(pid) and not workers()
    assert screen.panel is not before and sys.modules["MAPSegModule.panel"] is not part
    screen.pause(0.2)
    assert screen.ui.volumeTable.rowCount == 1
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.finish()
    assert screen.rows()


def test_a_panel_that_could_not_be_made_can_be_reloaded(screen, monkeypatch):
    """Once what was wrong with it is put right: the application closes the one before, whatever became of it."""
    import slicer

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no form"):
        patch.setattr(slicer.util, "loadUI", lambda path: (_ for _ in ()).throw(RuntimeError("no form")))
        slicer.modules.MAPSegWidget.onReload()
    parent = slicer.modules.mapseg.widgetRepresentation()
    parent.exit()
    parent.enter()
    slicer.modules.MAPSegWidget.onReload()
    screen.wait(lambda: screen.ui.segmentButton.visible, 5)


def test_ending_the_application_ends_the_run(screen):
    add_ball()
    adapt(screen)
    pid = screen.worker_pid()
    screen.close()
    assert not alive(pid) and not workers()
    loadable.open_module(MODULE)


def test_of_several_volumes_only_one_is_shown(screen):
    import slicer

    for index in range(3):
        add_ball(f"ball {index - 1}", seed=index)
    screen.pause(0.2)
    for index in range(2):
        screen.check(f"ball {index}")
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    table = screen.ui.volumeTable
    assert table.item(table.currentRow(), 0).text() == "ball 0"  # not the one that is left out
    screen.finish()
    nodes = {n.GetName(): n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}

    def seen():
        return sorted(name for name, node in nodes.items() if node.GetDisplayNode().GetVisibility())

    assert len(nodes) == 2 and seen() == [name for name in nodes if name.startswith("ball 0")]
    screen.ui.resultComboBox.setCurrentIndex(1)
    assert seen() == [name for name in nodes if name.startswith("ball 1")]
