"""The module uses nothing that the running application does not offer, and these tests would notice if it did."""

from pathlib import Path

import pytest

from Testing.host import record, uses

MODULE = Path(__file__).resolve().parents[2] / "MAPSeg"
FORM = MODULE / "Resources" / "UI" / "MAPSeg.ui"
SOURCES = sorted(path for path in MODULE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources_use_what_is_on_record(path):
    assert uses.faults(path, uses.form_classes(FORM)) == []


def test_the_form_sets_properties_on_record():
    assert uses.form_faults(FORM) == []
    assert len(uses.form_classes(FORM)) > 30


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import qt\nqt.QLabel.shout", "qt.QLabel.shout is not on record"),
        ("import qt\nqt.QFancyLabel()", "qt.QFancyLabel is not on record"),
        ("import qt\nqt.QLabel(text='x')", "takes no keywords"),
        ("ui.segmentButton.shout()", "qt.QPushButton.shout is not on record"),
        ("self.ui.noSuchWidget.text", "ui.noSuchWidget is not on record"),
        ("ui.segmentButton.isEnabled = True", "is no property"),
        ("ui.segmentButton.connect('pushed()', f)", "has no signal pushed()"),
        ("button.connect('exploded()', f)", "no class on record has a signal exploded()"),
        ("button.connect('clicked', f)", "is no signal's signature"),
        ("slicer.util.loadEverything()", "slicer.util.loadEverything is not on record"),
        ("slicer.util.tryWithErrorDisplay('x', wait=True)", "takes no wait"),
        ("slicer.packaging.pip_ensure([], quiet=True)", "takes no quiet"),
        ("from slicer.util import nothing", "slicer.util.nothing is not on record"),
        ("from slicer.packaging import pip_ensure\npip_ensure([], quiet=1)", "takes no quiet"),
        ("slicer.app.explode()", "slicer.app.explode is not on record"),
        ("slicer.app.connect('exploded()', f)", "no signal exploded()"),
        ("slicer.modules.nosuchmodule", "slicer.modules.nosuchmodule is not on record"),
        ("slicer.qMRMLNoSuchWidget()", "slicer.qMRMLNoSuchWidget is not on record"),
    ],
)
def test_what_is_not_on_record_is_noticed(tmp_path, code, fault):
    path = tmp_path / "module.py"
    path.write_text(code)
    (found,) = uses.faults(path, uses.form_classes(FORM))
    assert fault in found


def test_what_is_on_record_is_let_through(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import qt, slicer\nui.segmentButton.text = qt.QLabel('x').text\n"
        "ui.segmentButton.connect('clicked(bool)', f)\nslicer.util.tryWithErrorDisplay('x', waitCursor=True)\n"
        "slicer.app.processEvents()\nslicer.modules.mapseg.path\nslicer.util.infoDisplay('x', anything=1)\n"
    )
    assert uses.faults(path, uses.form_classes(FORM)) == []


def test_a_form_with_a_wrong_property_is_noticed(tmp_path):
    path = tmp_path / "form.ui"
    path.write_text(
        FORM.read_text(encoding="utf-8").replace('name="placeholderText"', 'name="placeHolder"', 1),
        encoding="utf-8",
    )
    assert uses.form_faults(path) == ["form.ui: ctk.ctkSearchBox modelSearch has no placeHolder"]


class TestStandIns:
    """The stand-ins are no kinder than the application."""

    @pytest.fixture(autouse=True)
    def _desktop(self, desktop):
        import ctk
        import qt

        self.qt, self.ctk = qt, ctk

    def test_properties_are_attributes(self):
        label = self.qt.QLabel("before")
        label.text = "after"
        assert label.text == "after"
        with pytest.raises(TypeError):
            label.text()

    def test_no_new_attributes(self):
        with pytest.raises(AttributeError):
            self.qt.QLabel("x").note = 1
        with pytest.raises(AttributeError):
            self.qt.QLabel("x").setText = 1

    def test_wrong_values_are_refused(self):
        with pytest.raises(AttributeError):
            self.qt.QProgressBar().value = object()

    def test_names_of_pyside_alone_are_not_there(self):
        with pytest.raises(AttributeError):
            self.qt.Signal  # noqa: B018
        with pytest.raises(AttributeError):
            self.qt.QLabel("x").objectNameChanged2  # noqa: B018
        with pytest.raises(AttributeError):
            self.qt.QGraphicsView  # noqa: B018

    def test_no_keywords(self):
        with pytest.raises(TypeError):
            self.qt.QLabel(text="x")

    def test_signals_connect_by_signature(self):
        heard = []
        box = self.qt.QCheckBox("x")
        box.connect("toggled(bool)", heard.append)
        none = lambda: heard.append("none")  # noqa: E731
        box.connect("toggled(bool)", none)
        box.checked = True
        assert heard == [True, "none"]
        assert box.disconnect("toggled(bool)", none)
        box.checked = False
        assert heard == [True, "none", False]
        with pytest.raises(AttributeError):
            box.connect("toggled(int)", heard.append)

    def test_exceptions_in_slots_are_kept_for_the_test(self, problems):
        button = self.qt.QPushButton("x")
        button.connect("clicked()", lambda: 1 / 0)
        button.click()
        assert "ZeroDivisionError" in problems.pop()

    def test_a_dialog_that_nobody_expects_is_an_error(self):
        with pytest.raises(AssertionError):
            self.qt.QFileDialog.getOpenFileName(None, "x", "", "")

    def test_stand_ins_have_what_is_on_record_of_them(self):
        """Of the members that the stand-ins define themselves, none is invented."""
        from Testing.host import widgets

        for prefix, group in (("ctk", widgets.CTK), ("slicer", widgets.MRML)):
            for name, real in group.items():
                own = {n for n in vars(real) if not n.startswith("_") and not n.endswith("Event")}
                own -= {"staticMetaObject", "eventFilter", "sizeHint", "minimumSizeHint", "exec_"}
                own -= {"title_height", "series"}  # of the drawing, for tests
                assert own <= record.members(f"{prefix}.{name}"), name
