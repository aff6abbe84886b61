"""The form itself: what is offered when, what is remembered, tables, keyboard, translation and themes."""

import csv
import sys
import threading
from xml.etree import ElementTree

import numpy as np
import pytest

from Testing.host import desktop as host_desktop
from Testing.host import loadable
from Testing.host.pythonqt import dialogs

from .conftest import MODULE, Screen, add_ball

FORM = MODULE.parent / "Resources" / "UI" / "MAPSeg.ui"


def test_research_use_is_in_sight(screen):
    assert screen.ui.researchLabel._real.isVisible()
    assert screen.ui.researchLabel.enabled  # what is not has too little contrast
    assert "not for clinical use" in screen.ui.researchLabel.text


def test_without_a_volume_nothing_can_be_run_and_it_says_so(screen):
    assert not screen.ui.segmentButton.enabled and not screen.ui.adaptButton.enabled
    assert "Load a volume" in screen.ui.statusLabel.text
    assert "no volume in the scene" in screen.ui.volumeHintLabel.text
    assert not screen.ui.resultSection.enabled and screen.ui.resultSection.collapsed


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


def test_a_name_without_spaces_does_not_widen_the_panel(screen):
    """Slicer does not scroll sideways: what is said below a long name would be cut off."""
    name = "1.3.6.1.4.1.14519.5.2.1.6279.6001.298806137288633453246975630178_t1_mprage_sag"  # as of files by their UIDs
    add_ball(name)
    screen.wait(lambda: name[:20] in screen.ui.volumeHintLabel.text, 5)
    screen.panel._say("#000000", "✗", f"{name}: The volume left the scene.")
    screen.pause(0.1)
    assert screen.area.widget().minimumSizeHint().width() <= 405


def test_an_older_slicer_is_told_what_it_lacks(screen, monkeypatch):
    """Its Python or its packages would fail in odd places."""
    import slicer
    from MAPSegModule import dependencies
    from PySide6.QtWidgets import QLabel

    screen.close()
    with monkeypatch.context() as patch:
        patch.setitem(vars(slicer.app._parts[0]), "minorVersion", 8)
        loadable.open_module(MODULE)
        lines = [label.text() for label in screen.area.findChildren(QLabel)]
        assert lines == ["MAPSeg needs Slicer 5.12 or later, and this is 5.8: install a newer Slicer."]
        with pytest.raises(RuntimeError, match=r"this is 5\.8"):
            dependencies.ensure()
        screen.close()
    screen.open()
