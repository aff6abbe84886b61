"""The form itself: what is offered when, what is remembered, models, tables, keyboard, translation and themes."""

import csv
import gc
import shutil
import sys
import threading
from xml.etree import ElementTree

import numpy as np
import pytest

from Testing.host import desktop as host_desktop
from Testing.host.pythonqt import dialogs

from .conftest import MODULE, Screen, add_ball

FORM = MODULE.parent / "Resources" / "UI" / "MAPSeg.ui"


BRAIN = ["brain", "brain-mr", "brain-t1"]


def models_shown(screen):
    widget = screen.ui.modelList
    return [widget.item(row).text().splitlines()[0].partition(" ")[0] for row in range(widget.count)]


def test_research_use_is_in_sight(screen):
    assert screen.ui.researchLabel._real.isVisible()
    assert screen.ui.researchLabel.enabled  # what is not has too little contrast
    assert "not for clinical use" in screen.ui.researchLabel.text


def test_without_a_volume_nothing_can_be_run_and_it_says_so(screen):
    assert not screen.ui.segmentButton.enabled and not screen.ui.adaptButton.enabled
    assert "Load a volume" in screen.ui.statusLabel.text
    assert "no volume in the scene" in screen.ui.volumeHintLabel.text
    assert not screen.ui.resultSection.enabled and screen.ui.resultSection.collapsed


@pytest.mark.parametrize("kind", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode"])
def test_where_no_volume_is_a_scan_it_says_so(screen, kind):
    import slicer

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
    import slicer
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
    import slicer
    import vtk

    volume, kept = add_ball("gone"), vtk.vtkWeakReference()
    kept.Set(volume)
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    slicer.mrmlScene.RemoveNode(volume) if way == "RemoveNode" else slicer.mrmlScene.Clear(False)
    del volume
    screen.wait(lambda: screen.ui.volumeTable.rowCount == 0, 5)
    gc.collect()
    assert kept.Get() is None


def test_only_scans_are_listed_and_names_follow(screen):
    import slicer

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
    import slicer
    import vtk

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
    import slicer
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
    import slicer

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
    import slicer
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


def test_choices_last(screen):
    screen.ui.minutesComboBox.setCurrentIndex(screen.ui.minutesComboBox.findData(20.0))
    screen.ui.uncertaintyCheckBox.checked = True
    screen.ui.previewCheckBox.checked = False
    screen.ui.deviceComboBox.setCurrentIndex(screen.ui.deviceComboBox.findData("cpu"))
    screen.ui.optionsSection.collapsed = False
    screen.ui.sourceFolderEdit.text = "/source"
    screen.panel.models.refresh("brain-t1")
    screen.close()
    screen.open()
    parameters = screen.panel.parameters(adapt=True)
    assert parameters.source_folder == ""  # out of sight, and of this session's model
    assert (parameters.minutes, parameters.device, parameters.uncertainty) == (20.0, "cpu", True)
    assert parameters.preview_seconds == 0 and not screen.ui.optionsSection.collapsed
    assert screen.panel.models.entry.name == "brain-t1"


@pytest.mark.parametrize("minutes", ["many", 7.5])
def test_a_broken_settings_file_does_no_harm(screen, minutes):
    import qt
    from MAPSegModule.parameters import Parameters

    screen.close()
    for name, value in (("Minutes", minutes), ("Device", "abacus"), ("Model", "gone")):
        qt.QSettings().setValue(f"MAPSeg/{name}", value)
    screen.open()
    parameters = screen.panel.parameters(adapt=True)
    assert parameters.minutes == Parameters().minutes
    assert parameters.device == "auto" and screen.panel.models.entry


def test_source_scans_are_chosen(screen):
    screen.ui.optionsSection.collapsed = False
    dialogs.expect("getExistingDirectory", "/source")
    screen.click("sourceFolderButton")
    assert dialogs.asked[-1][1][1] == "Folder of source scans"
    assert screen.panel.parameters(adapt=True).source_folder == "/source"


@pytest.fixture
def finished(screen):
    """A panel that shows a result."""
    add_ball("scan/1")
    screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
    screen.click("segmentButton")
    screen.finish()
    return screen


def test_results_are_copied_exported_and_shown_in_3d(finished, tmp_path):
    import nibabel
    import slicer

    finished.click("copyTableButton")
    lines = [line.split("\t") for line in slicer.app.clipboard().text().splitlines()]
    assert lines[:3] == [["Volume", "scan/1"], ["Model", "ball"], ["Result", "source"]]
    [name, verdict] = lines[3]
    assert name == "Verdict" and finished.panel.results.item.result["reason"] in verdict
    assert lines[4] == ["Label value", "Structure", "Volume, ml", "Confidence"]
    assert lines[5:] == [[value, *row] for value, row in zip("12", finished.rows(), strict=True)]

    table = tmp_path / "table.csv"
    dialogs.expect("save", str(table))
    finished.click("exportTableButton")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure"] for row in rows] == [row[0] for row in finished.rows()]
    assert [row["value"] for row in rows] == ["1", "2"]
    assert {(row["volume"], row["model"], row["result"]) for row in rows} == {("scan/1", "ball", "source")}
    assert {row["verdict"] for row in rows} == {verdict}

    dialogs.expect("save", str(tmp_path / "labels.nii.gz"))
    finished.click("exportSegmentationButton")
    assert dialogs.asked[-1][1][1] == str(tmp_path / "scan_1_seg")  # the folder lasts
    saved = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj)
    counts = [np.count_nonzero(saved == value) * 8 / 1000 for value in (1, 2)]
    assert counts == pytest.approx([float(row[1]) for row in finished.rows()], rel=0.05)

    dialogs.expect("save", "")  # the user thinks better of it
    finished.click("exportSegmentationButton")

    node = finished.ui.show3DButton.segmentationNode()
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    finished.click("show3DButton")
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_a_file_that_cannot_be_written_is_told(finished, tmp_path, problems):
    import qt

    dialogs.expect("save", str(tmp_path / "no" / "such" / "folder.csv"))
    dialogs.expect("message", qt.QMessageBox.Ok)
    finished.click("exportTableButton")
    assert "could not be written" in dialogs.asked[-1][1][0]
    assert "FileNotFoundError" in problems.pop()


def test_every_control_has_a_tooltip(screen):
    tree = ElementTree.parse(FORM)
    kinds = ("Button", "Edit", "Box", "Table", "List", "Combo")
    for widget in tree.iter("widget"):
        name, kind = widget.get("name"), widget.get("class")
        if any(part in kind for part in kinds) and kind != "ctkCollapsibleButton":
            assert getattr(screen.ui, name).toolTip, f"{name} has no tooltip"


def test_the_keyboard_goes_from_top_to_bottom(finished):
    from PySide6.QtCore import QPoint

    finished.ui.optionsSection.collapsed = False
    finished.pause(0.1)
    stops = [stop.text for stop in ElementTree.parse(FORM).iter("tabstop")]
    reached, widget = [], finished.ui.modelSearch._real
    for _ in range(200):
        if widget.objectName() in stops and widget.objectName() not in reached:
            reached.append(widget.objectName())
        widget = widget.nextInFocusChain()
    assert reached == stops
    form = finished.ui.researchLabel._real.parentWidget()
    seen = [getattr(finished.ui, name)._real for name in stops]
    places = [w.mapTo(form, QPoint(0, 0)) for w in seen if w.isVisible() and w.isEnabled()]
    assert len(places) > 12
    assert [p.y() // 8 for p in places] == sorted(p.y() // 8 for p in places)
    boxes = [w for w in finished.area.findChildren(type(seen[0]).__mro__[1]) if w.isVisible()]
    assert boxes


def test_texts_can_be_translated(home, monkeypatch):
    """Everything that the code says goes through the translator; the form's own texts are Qt's to translate."""
    import slicer

    monkeypatch.setattr(slicer.i18n, "tr", lambda text: f"«{text}»")
    for name in [name for name in sys.modules if name.partition(".")[0] == "MAPSegModule"]:
        del sys.modules[name]
    screen = Screen()
    try:
        add_ball()
        screen.wait(lambda: screen.ui.segmentButton.enabled, 5)
        ui = screen.ui
        said = [
            ui.segmentButton.text,
            ui.adaptButton.text,
            ui.segmentButton.toolTip,
            ui.deviceComboBox.itemText(0),
        ]
        header = [ui.volumeTable.horizontalHeaderItem(i).text() for i in range(3)]
        header += [ui.resultTable.horizontalHeaderItem(i).text() for i in range(1, 4)]
        for text in said + header:
            assert text.startswith("«"), text
    finally:
        screen.close()
        for name in [name for name in sys.modules if name.partition(".")[0] == "MAPSegModule"]:
            del sys.modules[name]


def test_scrolling_the_panel_chooses_nothing(screen):
    """The pointer passes over lists to choose from; spin boxes and sliders would take every turn of the wheel."""
    from PySide6.QtCore import QPoint, QPointF, Qt
    from PySide6.QtGui import QWheelEvent
    from PySide6.QtWidgets import QApplication

    screen.ui.optionsSection.collapsed = screen.ui.resultSection.collapsed = False
    screen.ui.resultSection.enabled = True
    for text in ("one", "two"):
        screen.ui.resultComboBox.addItem(text)
    screen.ui.resultComboBox.enabled = True
    kinds = {each.get("name"): each.get("class") for each in ElementTree.parse(FORM).iter("widget")}
    assert not [name for name, kind in kinds.items() if "Spin" in kind or "Slider" in kind]
    names = [name for name, kind in kinds.items() if "Combo" in kind]
    assert len(names) == 3
    for name in names:
        box = getattr(screen.ui, name)._real
        chosen = box.currentIndex()
        assert chosen < box.count() - 1, "the wheel would choose the next one"
        where, turn = QPointF(box.rect().center()), QPoint(0, -120)
        keys = Qt.NoButton, Qt.NoModifier, Qt.NoScrollPhase, False
        event = QWheelEvent(where, box.mapToGlobal(where), QPoint(), turn, *keys)
        QApplication.sendEvent(box, event)
        assert box.currentIndex() == chosen and not event.isAccepted(), name


def test_no_thread_asks_for_a_translation(home, monkeypatch):
    """The translator is the application's: Qt, which threads leave alone."""
    import slicer

    asked = set()
    monkeypatch.setattr(slicer.i18n, "tr", lambda text: asked.add(threading.current_thread()) or text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "MAPSegModule"]:
        del sys.modules[name]
    screen = Screen()
    try:
        screen.wait(lambda: screen.ui.deviceInfoLabel.text, 60)
        screen.ui.deviceComboBox.setCurrentIndex(1)
        screen.wait(lambda: "as chosen" in screen.ui.deviceInfoLabel.text, 60)
        assert asked == {threading.main_thread()}
    finally:
        screen.close()
        for name in [name for name in sys.modules if name.partition(".")[0] == "MAPSegModule"]:
            del sys.modules[name]


@pytest.mark.parametrize("dark", [False, True])
def test_signs_can_be_read_on_light_and_dark(screen, dark):
    from MAPSegModule import texts
    from PySide6.QtGui import QColor, QPalette

    palette = host_desktop._palette(dark)

    def luminance(color):
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.getRgbF()[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for role in (QPalette.Window, QPalette.Base):
        for color in (texts.GOOD, texts.WARNING, texts.BAD):
            pair = sorted((luminance(QColor(color)), luminance(palette.color(role))))
            # 3 is what WCAG asks of large text and signs.
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3, (color, role)


def test_nothing_is_wider_than_the_panel(finished):
    """At the usual width of the module panel, nothing is cut off and there is no scrolling sideways."""
    for collapsed in (True, False):
        finished.ui.optionsSection.collapsed = collapsed
        finished.area.resize(420, 900)
        finished.pause(0.1)
        assert finished.area.widget().width() <= finished.area.viewport().width()
        assert finished.area.widget().minimumSizeHint().width() <= 405
