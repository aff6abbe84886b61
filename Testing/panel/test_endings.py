"""How an adaptation is ended: by its buttons, and with the panel that they are on."""

import shiboken6

from Testing.host.pythonqt import dialogs
from Testing.processes import alive

from .conftest import adapt, add_ball, workers


def test_nothing_moves_when_adapting_gives_way_to_segmenting(screen, monkeypatch):
    """Where *Stop and keep the best* went, *Cancel* would come under the mouse."""
    import qt

    add_ball()
    adapt(screen)
    assert screen.ui.stopButton.visible and not screen.ui.stopButton.enabled
    screen.wait(lambda: screen.ui.stopButton.enabled)
    place = screen.ui.adaptButton._real.geometry()
    screen.panel.run.stage = "segment"
    screen.panel.run.changed.emit()
    assert screen.ui.stopButton.visible and not screen.ui.stopButton.enabled
    screen.ui.adaptButton._real.parentWidget().layout().activate()
    assert screen.ui.adaptButton._real.geometry() == place
    monkeypatch.setattr("MAPSegModule.panel.LONG", 0.0)
    dialogs.expect("message", qt.QMessageBox.Cancel)
    screen.click("adaptButton")
    assert "Discard" in dialogs.asked[-1][1][0] and screen.panel.running and not screen.panel.run.cancelled
    screen.panel.cancel()
    screen.finish()
    assert not screen.ui.stopButton.visible


def test_closing_ends_all_where_qt_has_taken_the_widgets(screen):
    import slicer

    add_ball()
    adapt(screen)
    pid, panel = screen.worker_pid(), screen.panel
    shiboken6.delete(screen.area.widget())
    screen.close()
    assert not alive(pid) and not workers()
    assert not panel.volumes.hasObserver(
        slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, panel._node_left
    )
