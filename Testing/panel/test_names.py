"""Names and reasons that look like tags: every place of the panel shows them as they are."""

import numpy as np
import pytest
import slicer

from Testing.host.pythonqt import dialogs

from .conftest import add_ball
from .scenes import blocks, make_result, preview

NAME = "a<b>&c.nii.gz"


def read(text):
    """What a widget that tells rich text from plain text by its looks lets a person read."""
    from PySide6.QtGui import Qt, QTextDocument

    if not Qt.mightBeRichText(text):
        return text
    document = QTextDocument()
    document.setHtml(text)
    return document.toPlainText().replace("\u200b", "")


@pytest.fixture
def odd(screen, tmp_path):
    """A panel that shows a result whose names are odd."""
    from MAPSegModule import run

    item, its_run = make_result(tmp_path)
    slicer.mrmlScene.GetNodeByID(item.volume_id).SetName(NAME)
    item.model = NAME
    structure = {"structure": NAME, "volume_ml": 1.0, "confidence": 1.0}
    for side in (item.result, item.result["source"], item.result["adapted"]):
        side.update(notes=[f"Source scans: {NAME}: it is odd."], reason=NAME, structures=[structure])
    screen.panel.results.add(item, its_run)
    screen.item = item
    item.state, item.message = run.FAILED, f"{NAME} is odd."
    screen.panel.volumes.refresh()
    screen.panel.volumes.set_state(item)
    return screen


def test_labels_and_tool_tips_show_names_as_they_are(odd):
    ui, results = odd.ui, odd.panel.results
    assert read(ui.verdictLabel.text).count(f"Source scans: {NAME}: it is odd.") == 1
    run, mine = preview(odd.item)
    results.show_previews(run, mine)
    assert f"A preview of {NAME} is in the slices" in read(ui.verdictLabel.text)
    odd.wait(lambda: read(ui.volumeHintLabel.text) == f"{NAME}: {NAME} is odd.", 5)
    name, _scan, state = (ui.volumeTable.item(0, column) for column in range(3))
    assert name.text() == NAME and read(name.toolTip()) == NAME
    assert read(state.toolTip()) == f"{NAME} is odd."
    assert read(ui.resultTable.item(0, 1).toolTip()) == NAME
    odd.panel._say("#808080", "!", NAME)
    assert NAME in read(ui.statusLabel.text)


def test_reasons_show_names_as_they_are(screen, monkeypatch):
    from MAPSegModule import preflight, volume_section

    refused = preflight._refused(f"It cannot be looked at: {NAME}.")
    monkeypatch.setattr(volume_section, "preflight", lambda *_: refused)
    add_ball()
    screen.wait(lambda: NAME in read(screen.ui.segmentButton.toolTip), 5)
    _name, scan, state = (screen.ui.volumeTable.item(0, column) for column in range(3))
    assert read(scan.toolTip()) == read(state.toolTip()) == refused.problem
    assert NAME in read(screen.ui.volumeHintLabel.text) and NAME in read(screen.ui.statusLabel.text)
    screen.ui.deviceInfoLabel.text = NAME  # of a device, or why none could be tried
    assert screen.ui.deviceInfoLabel._real.textFormat().name == "PlainText"


def test_dialogs_show_names_as_they_are(odd, tmp_path):
    import qt
    from MAPSegModule import dependencies

    def asked():
        return read(dialogs.asked[-1][1][0])

    item = odd.item
    node, volume = map(slicer.mrmlScene.GetNodeByID, (item.segmentation_id, item.volume_id))
    edited = (blocks(1) == 1).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, node, "Segment_1", volume)
    dialogs.expect("message", qt.QMessageBox.Cancel)
    odd.click("sourceButton")
    assert f"The labels of {NAME} were edited." in asked()
    dialogs.expect("getText", "")
    odd.click("saveModelButton")
    assert read(dialogs.asked[-1][1][2]) == f"Name of the model that was adapted to {NAME}:"
    item.result["chosen"] = "source"
    dialogs.expect("message", qt.QMessageBox.Cancel)
    odd.click("saveModelButton")
    assert f"no better than {NAME}, which" in asked()
    path = tmp_path / "a<b>&c.seg.nrrd"
    path.touch()
    dialogs.expect("save", str(path.with_name("a<b>&c")))
    dialogs.expect("message", qt.QMessageBox.Cancel)
    odd.click("exportSegmentationButton")
    assert asked() == f"{path} exists already. Replace it?"
    dialogs.expect("message", qt.QMessageBox.Cancel)
    assert not dependencies._agreed(["torch"], "/a<b>&c")
    assert asked() == "MAPSeg needs torch. Install them from /a<b>&c?"
