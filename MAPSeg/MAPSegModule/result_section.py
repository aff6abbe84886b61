"""The panel's results: verdict, table, which result is shown, exports."""

from __future__ import annotations

import re
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from . import overlay, result_table, result_texts, texts
from . import run as runs
from .result_texts import is_kept
from .signal import Signal


class ResultSection:
    """Shows one result at a time; ``model_saved(name)`` tells that an adapted model was kept."""

    def __init__(self, ui):
        self.ui = ui
        self.model_saved = Signal()
        self._results: dict[str, tuple[runs.Item, runs.Run]] = {}
        """By segmentation node: a volume may have several, of several models."""
        self._runs: list[runs.Run] = []
        self._in_slices: runs.Item | None = None
        """The volume that was brought into the slices last; users may have put others there since."""
        self._labels_shown: runs.Item | None = None
        """The volume whose labels were shown last; users may have hidden them since."""
        self._overlaid: runs.Item | None = None
        """The volume whose uncertainty map was put over it."""
        self._entered = False
        self._to_show: runs.Item | None = None
        self._to_hide: set[runs.Item] = set()
        """What is left to be arranged when the module is shown: until then the views are another module's."""
        self._preview: runs.Item | None = None
        """What is in the slices in the place of the result that verdict and table are of."""
        self._previews: list[runs.Item] = []
        """The volumes of the run that goes on whose previews there are."""
        self._passed_over = False
        """Whether the user has left these for a result."""
        result_table.prepare(ui.resultTable)
        for signal in ("currentIndexChanged(int)", "activated(int)"):  # also the one that is chosen again
            ui.resultComboBox.connect(signal, self._pick)
        ui.sourceButton.connect("clicked()", lambda: self._show_side("source"))
        ui.adaptedButton.connect("clicked()", lambda: self._show_side("adapted"))
        ui.overlayCheckBox.connect("toggled(bool)", self._overlay)
        ui.copyTableButton.connect("clicked()", self.copy_table)
        ui.exportTableButton.connect("clicked()", self.export_table)
        ui.exportSegmentationButton.connect("clicked()", self.export_segmentation)
        ui.saveModelButton.connect("clicked()", self.save_model)

    @property
    def item(self) -> runs.Item | None:
        """The volume whose result is shown."""
        return self._pair[0] if self._pair else None

    @property
    def _pair(self) -> tuple[runs.Item, runs.Run] | None:
        box = self.ui.resultComboBox
        return self._results.get(box.itemData(box.currentIndex)) if box.currentIndex >= 0 else None

    def add(self, item: runs.Item, run: runs.Run) -> None:
        """Take in the result of a volume; the first one of a run is shown at once."""
        first = not any(other is run for _each, other in self._results.values())
        self._results[item.segmentation_id] = (item, run)
        if first:  # also where the user has hidden its preview
            self._labels_shown = None
        self._let_go()
        self._fill(item.segmentation_id if first or self.item is None else self.item.segmentation_id)

    def enter(self) -> None:
        """Look again at what users may have done in other modules, and arrange what came meanwhile."""
        self._entered = True
        for index, title in enumerate(self._titles()):
            self.ui.resultComboBox.setItemText(index, title)
        if self.item is not None:  # segments may have other colours
            result_table.fill(self.ui.resultTable, self.item)
        self.judge()
        self._arrange()

    def exit(self) -> None:
        """Leave views and visibility alone while another module is shown."""
        self._entered = False

    def refresh(self) -> None:
        """Show what has become known of the result by the end of its run."""
        self._previews, self._passed_over = [], False
        self._let_go()
        self._choose()

    def uncover(self, node_id: str) -> None:
        """Take away the uncertainty map before it, its volume or its result leaves the scene.

        Also while another module is shown: it is there that users delete nodes, and what the map covers is theirs.
        """
        item = self._overlaid
        if item is not None and node_id in (item.volume_id, item.segmentation_id, item.uncertainty_id):
            self._overlaid = None
            overlay.show_overlay(None, None)

    def prune(self) -> None:
        """Forget results whose nodes left the scene."""
        node = slicer.mrmlScene.GetNodeByID
        self._to_hide = {item for item in self._to_hide if node(item.segmentation_id) is not None}
        if self._to_show is not None and node(self._to_show.segmentation_id) is None:
            self._to_show = None
        self._previews = [item for item in self._previews if node(item.segmentation_id) is not None]
        lost = self._preview is not None and self._preview not in self._previews
        if lost:
            self._preview = None
        if self._overlaid is not None and node(self._overlaid.uncertainty_id) is None:
            self._overlaid = None
        self.ui.overlayCheckBox.enabled = self._map is not None
        kept = {
            segmentation_id: (item, run)
            for segmentation_id, (item, run) in self._results.items()
            if node(item.volume_id) is not None and node(segmentation_id) is not None
        }
        if len(kept) != len(self._results):
            shown = self.item.segmentation_id if self.item else ""
            self._results = kept
            self._let_go()
            self._fill(shown)
        elif lost and self.item is not None:  # the result that had made room for it is in view again
            self._choose()

    def close(self) -> None:
        """Delete the working files of all runs."""
        for run in self._runs:
            run.clean()
        self._results, self._runs = {}, []

    def _let_go(self) -> None:
        """Delete the working files of runs that no result needs any more; the last adapted model can still be saved."""
        needed = [run for _item, run in self._results.values()]
        for run in needed:
            if run not in self._runs:
                self._runs.append(run)
        needed.append(self._last_adapted)
        for run in self._runs:
            if run not in needed and not run.running:
                run.clean()
        self._runs = [run for run in self._runs if run in needed or run.running]

    @property
    def _last_adapted(self) -> runs.Run | None:
        return next((run for run in reversed(self._runs) if run.has_model), None)

    @property
    def _savable(self) -> tuple[runs.Item, runs.Run] | None:
        """Whose model can be saved: that of the result shown, or the last one if it has lost its results."""
        pair, last = self._pair, self._last_adapted
        if pair is not None and pair[1].has_model:
            return pair
        lost = last is not None and all(run is not last for _item, run in self._results.values())
        return (last.items[0], last) if lost else None

    def show_previews(self, run: runs.Run, item: runs.Item) -> None:
        """Show one volume of a run in the slices, and only its labels, unless the user has left them for a result.

        Once: when the preview is renewed, what is shown and what is hidden by then is the user's choice.
        """
        there = slicer.mrmlScene.GetNodeByID
        before, self._previews = self._previews, [each for each in run.items if there(each.segmentation_id)]
        if self._passed_over and self.item is not None:
            self._to_hide.update(self._previews)
            self._arrange()
        elif item is self._preview or item not in self._previews:  # deleted: the next one will be shown
            self._to_hide.update(each for each in self._previews if each not in before)
            self._arrange()
        else:
            self._preview = item
            self._show_nodes(item)
            self.judge()

    def _fill(self, segmentation_id: str) -> None:
        box = self.ui.resultComboBox
        box.blockSignals(True)
        box.clear()
        for each, title in zip(self._results, self._titles(), strict=True):
            box.addItem(title, each)
        known = list(self._results)
        box.setCurrentIndex(known.index(segmentation_id) if segmentation_id in known else 0)
        box.blockSignals(False)
        there = bool(self._results) or self._savable is not None
        if there != self.ui.resultSection.enabled:  # a user who closes it while results come wants it closed
            self.ui.resultSection.enabled = there
            self.ui.resultSection.collapsed = not there
        self._choose()

    def _titles(self) -> list[str]:
        """What the list of results says of each; the second one of a volume and a model has a number."""
        plain = [result_texts.title(item) for item, _run in self._results.values()]
        numbers = [plain[: index + 1].count(title) for index, title in enumerate(plain)]
        return [title if n == 1 else f"{title} ({n})" for title, n in zip(plain, numbers, strict=True)]

    def _pick(self, _index: int = 0) -> None:
        """The user wants to see a result: previews that go on leave it in view."""
        self._passed_over = bool(self._previews)
        self._labels_shown = None
        self._choose()

    def _choose(self) -> None:
        pair, ui = self._pair, self.ui
        self._preview = None
        for widget in (
            ui.resultComboBox,
            ui.adaptedButton,
            ui.sourceButton,
            ui.exportSegmentationButton,
            ui.copyTableButton,
            ui.exportTableButton,
        ):
            widget.enabled = pair is not None
        ui.overlayCheckBox.enabled = self._map is not None
        ui.saveModelButton.enabled = self._savable is not None
        if pair is None:
            self._in_slices = self._labels_shown = None
            self._arrange()
            result_table.clear(self.ui.resultTable)
            self.judge()
            self.ui.show3DButton.setSegmentationNode(None)
            return
        item = pair[0]
        both = "chosen" in item.result
        for widget in (self.ui.adaptedButton, self.ui.sourceButton):
            widget.setVisible(both)
        (self.ui.adaptedButton if item.shown == "adapted" else self.ui.sourceButton).checked = True
        self.judge()
        self.ui.show3DButton.setSegmentationNode(slicer.mrmlScene.GetNodeByID(item.segmentation_id))
        result_table.fill(self.ui.resultTable, item)
        self._show_nodes(item)

    def judge(self) -> None:
        """Say what is to be thought of the result by now."""
        if self.item is not None:
            self.ui.verdictLabel.text = result_texts.verdict(self.item, self._preview)
        elif self._savable is not None:
            gone = _("The results left the scene. The adapted model can still be saved.")
            self.ui.verdictLabel.text = texts.marked(texts.QUIET, "–", gone)
        else:
            self.ui.verdictLabel.text = ""

    def _show_nodes(self, item: runs.Item) -> None:
        """Show the labels of a volume; previews of the others, and the other results, would lie over it."""
        if item is not self._labels_shown:
            self._to_show = self._labels_shown = item
        self._to_hide.update(self._previews, (result for result, _run in self._results.values()))
        self._to_hide.discard(item)
        self._arrange()

    def _arrange(self) -> None:
        """Bring views and visibility up to date, where the module is shown."""
        if not self._entered:
            return
        for each in self._to_hide:
            if not each.worked_on:
                _set_visible(each.segmentation_id, False)
        item = self._to_show
        self._to_show, self._to_hide = None, set()
        if item is not None:
            _set_visible(item.segmentation_id, True)
            self._bring_into_slices(item)
        self._overlay()

    def _bring_into_slices(self, item: runs.Item) -> None:
        """Show a volume in the slices once: from then on their volumes, zoom and position are the user's."""
        if item is self._in_slices:
            return
        self._in_slices = item
        composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if any(node.GetBackgroundVolumeID() != item.volume_id for node in composites):
            volume = slicer.mrmlScene.GetNodeByID(item.volume_id)
            if volume is not None:
                slicer.util.setSliceViewerLayers(background=volume, fit=True)

    def _show_side(self, which: str) -> None:
        item = self.item
        try:
            if item is not None and item.shown != which and _may_replace(item):
                with slicer.util.tryWithErrorDisplay(
                    _("The other result could not be shown."), waitCursor=True
                ):
                    item.show(which)
        finally:  # what is told as an error goes on as one, and the buttons have to say what is shown
            self._pick()

    def _overlay(self, _on: bool = False) -> None:
        """Show the uncertainty map over its volume, or take it away."""
        if not self._entered:
            return
        shown = self._map if self.ui.overlayCheckBox.checked else None
        item = self.item if shown is not None else None
        if item is not self._overlaid:
            self._overlaid = item
            volume = slicer.mrmlScene.GetNodeByID(item.volume_id) if item is not None else None
            overlay.show_overlay(volume, shown)

    @property
    def _map(self):
        """The uncertainty map of the result that was kept, where that is the one shown; there is no other."""
        item = self.item
        there = item is not None and is_kept(item)
        return slicer.mrmlScene.GetNodeByID(item.uncertainty_id) if there else None

    def copy_table(self) -> None:
        """Put the table into the clipboard, with the verdict."""
        if self.item is not None:
            self.judge()
            slicer.app.clipboard().setText(result_texts.as_text(self.item))
            slicer.util.showStatusMessage(_("Table copied."), 3000)

    def export_table(self) -> None:
        """Write the tables of all results as one CSV file."""
        path = self._ask_path(_("Export the tables of all results"), "volumes", {".csv": "CSV"})
        if path:
            with slicer.util.tryWithErrorDisplay(_("The table could not be written.")):
                self.judge()
                text = result_texts.as_csv(item for item, _run in self._results.values())
                Path(path).write_text(text, encoding="utf-8", newline="")

    def export_segmentation(self) -> None:
        """Write the segmentation shown, in the format that its name asks for."""
        item = self.item
        if item is None:
            return
        name = re.sub(r"[^\w+-]+", "_", item.present_name) + "_seg"  # not the scan's own
        kinds = {
            ".seg.nrrd": _("Segmentation"),
            ".nii.gz": _("NIfTI label map"),
            ".nii": _("NIfTI label map, uncompressed"),
            ".nrrd": _("NRRD label map"),
        }
        path = self._ask_path(_("Save the labels"), name, kinds)
        if path and Path(path) == _file_of(item.volume_id):
            told = _("{path} is the scan itself. Choose another name for the labels.")
            slicer.util.errorDisplay(texts.literal(told.format(path=path)))
        elif path:
            self.judge()
            with slicer.util.tryWithErrorDisplay(_("The labels could not be written."), waitCursor=True):
                item.save_labels(path)

    def save_model(self) -> None:
        """Keep the adapted model among the user's models, under a name that the user gives."""
        if self._savable is None:
            return
        item, run = self._savable
        if not any(each.result.get("chosen") == "adapted" for each in run.items):
            question = _(
                "The adapted result was kept for no volume: the model may be no better than {model}, which it "
                "started from. Save it all the same?"
            )
            if not slicer.util.confirmOkCancelDisplay(texts.literal(question.format(model=item.model))):
                return
        # A lost volume's ID may be another one's by now.
        volume = item.present_name if item is self.item else item.name
        suggested = re.sub(r"[^\w.+-]+", "-", f"{item.model}-{volume}").strip("-")
        name = qt.QInputDialog.getText(
            self.ui.resultSection,
            _("Save the adapted model"),
            texts.literal(_("Name of the model that was adapted to {volume}:").format(volume=volume)),
            qt.QLineEdit.Normal,
            suggested,
        )
        if name:
            with slicer.util.tryWithErrorDisplay(_("The model could not be saved.")):
                self.model_saved.emit(run.save_model(name).name)

    def _ask_path(self, title: str, name: str, kinds: dict[str, str]) -> str:
        """Ask where to save; empty when the user thinks better of it.

        Args:
            name: to suggest, without an ending: the kind of file chosen gives it, unless the user types one.
            kinds: what files are called, by their endings.
        """
        filters = [f"{kind} (*{ending})" for ending, kind in kinds.items()]
        dialog = qt.QFileDialog(
            self.ui.resultSection, title, slicer.util.settingsValue("MAPSeg/Folder", ""), ";;".join(filters)
        )
        dialog.setAcceptMode(qt.QFileDialog.AcceptSave)
        dialog.selectFile(name)
        path = dialog.selectedFiles()[0] if dialog.exec() else ""
        chosen = dialog.selectedNameFilter()
        ending = next((ending for ending in kinds if f"(*{ending})" in chosen), next(iter(kinds)))
        dialog.deleteLater()
        if not path:
            return ""
        qt.QSettings().setValue("MAPSeg/Folder", str(Path(path).parent))
        if path.endswith(tuple(kinds)):
            return path
        path += ending  # the dialog has asked about the name without it
        question = texts.literal(_("{path} exists already. Replace it?").format(path=path))
        return path if not Path(path).exists() or slicer.util.confirmOkCancelDisplay(question) else ""


def _file_of(volume_id: str) -> Path | None:
    """Where a volume was loaded from."""
    node = slicer.mrmlScene.GetNodeByID(volume_id)
    storage = node.GetStorageNode() if node is not None else None
    name = storage.GetFullNameFromFileName() if storage is not None else ""
    return Path(name) if name else None


def _may_replace(item: runs.Item) -> bool:
    """Ask, where the labels shown were edited: the edits are in no file that could be shown again."""
    question = _(
        "The labels of {name} were edited. If the other result takes their place, the edits are lost."
    )
    question = texts.literal(question.format(name=item.present_name))
    return not item.edited or slicer.util.confirmOkCancelDisplay(question)


def _set_visible(segmentation_id: str, visible: bool) -> None:
    node = slicer.mrmlScene.GetNodeByID(segmentation_id) if segmentation_id else None
    display = node.GetDisplayNode() if node is not None else None
    if display is not None and bool(display.GetVisibility()) != visible:
        display.SetVisibility(visible)
