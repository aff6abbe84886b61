"""The list of models: search, card, import, and what becomes of a user's own."""

import shutil

from Testing.host.pythonqt import dialogs

BRAIN = ["brain", "brain-mr", "brain-t1"]


def models_shown(screen):
    widget = screen.ui.modelList
    return [widget.item(row).text().splitlines()[0].partition(" ")[0] for row in range(widget.count)]


def test_models_are_found_by_what_they_label(screen):
    assert models_shown(screen) == [*BRAIN, "ball"] and screen.panel.models.entry.name == "ball"
    screen.ui.modelSearch.text = "hippocampus MR"
    assert models_shown(screen) == BRAIN
    assert "brain" in screen.ui.modelCardLabel.text
    screen.ui.modelSearch.text = "no such thing"
    assert models_shown(screen) == [] and "No model matches" in screen.ui.modelCardLabel.text
    assert not screen.ui.segmentButton.enabled and not screen.ui.removeModelButton.enabled
    screen.ui.modelSearch.text = ""
    assert models_shown(screen) == [*BRAIN, "ball"] and screen.panel.models.entry.name == "ball"


def test_a_click_keeps_the_model_that_a_search_found(screen):
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    screen.ui.modelSearch.text = "hippocampus MR"
    widget = screen.ui.modelList._real
    QTest.mouseClick(
        widget.viewport(), Qt.LeftButton, Qt.NoModifier, widget.visualItemRect(widget.item(0)).center()
    )
    screen.ui.modelSearch.text = ""
    assert screen.panel.models.entry.name == BRAIN[0]


def test_the_card_tells_what_is_known(screen):
    screen.panel.models.refresh("brain-t1")
    assert "adult brain" in screen.ui.modelCardLabel.text and "SynthSeg" in screen.ui.modelCardLabel.text
    for word in ("SynthSeg", "Apache-2.0", "oasis_t1, 8 scans", "left thalamus", "right amygdala"):
        assert word in screen.ui.modelCardLabel.toolTip, word
    assert (
        "31 structures" in screen.ui.modelList.item(2).text() and "MR" in screen.ui.modelList.item(2).text()
    )
    assert not screen.ui.removeModelButton.enabled
    screen.panel.models.refresh("ball")
    assert "none measured" in screen.ui.modelCardLabel.toolTip and screen.ui.removeModelButton.enabled


def test_a_model_is_imported_revealed_and_removed(screen, model, tmp_path):
    path = shutil.copy(model, tmp_path / "other.safetensors")
    dialogs.expect("getOpenFileName", str(path))
    screen.click("importModelButton")
    assert screen.panel.models.entry.name == "other" and "other" in models_shown(screen)
    screen.click("revealModelButton")
    assert dialogs.asked[-1] == ("openUrl", (f"file://{tmp_path / 'home' / 'models'}",))
    import qt

    dialogs.expect("message", qt.QMessageBox.Cancel)
    screen.click("removeModelButton")
    assert "other" in models_shown(screen)
    dialogs.expect("message", qt.QMessageBox.Ok)
    screen.click("removeModelButton")
    assert (
        "other" not in models_shown(screen)
        and not (tmp_path / "home" / "models" / "other.safetensors").exists()
    )


def test_a_file_that_is_no_model_is_refused_with_a_reason(screen, tmp_path, problems):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing of the kind")
    import qt

    dialogs.expect("getOpenFileName", str(path))
    dialogs.expect("message", qt.QMessageBox.Ok)
    screen.click("importModelButton")
    assert "not a MAPSeg model" in dialogs.asked[-1][1][0]
    assert "InputError" in problems.pop()  # tryWithErrorDisplay shows it and raises it on


def test_a_checkpoint_is_imported_by_a_worker(screen, tmp_path):
    path = tmp_path / "their checkpoint.pth"
    path.write_bytes(b"not really")
    dialogs.expect("getOpenFileName", str(path))
    screen.click("importModelButton")
    assert not screen.ui.importModelButton.enabled
    screen.wait(lambda: screen.ui.importModelButton.enabled, 60)
    assert "✗" in screen.ui.modelCardLabel.text and "their checkpoint" in screen.ui.modelCardLabel.text
    assert screen.panel.models.entry.name == "ball"  # as before
