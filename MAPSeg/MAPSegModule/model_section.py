"""The panel's list of models: search, card, import, remove."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from . import models, texts
from .job import Worker
from .signal import Signal


class ModelSection:
    """Chooses the model; ``changed`` tells that another one is chosen, or none.

    ``ensure()`` makes sure that a worker can run; false when the user declines.
    """

    def __init__(self, ui, ensure: Callable[[], bool]):
        self.ui = ui
        self._ensure = ensure
        self.changed = Signal()
        self.busy = False
        """Whether a checkpoint is being turned into a model."""
        self._entries: list[models.ModelEntry] = []
        self._shown: list[models.ModelEntry] = []
        self._wanted = ""
        """Name of the model to come back to when a search that hides it is over."""
        self._worker: Worker | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(100)
        self._timer.connect("timeout()", self._follow_import)
        ui.modelSearch.connect("textChanged(QString)", self._fill)
        ui.modelList.connect("currentRowChanged(int)", self._choose)
        # A click on the row that a search has made the current one changes no row.
        ui.modelList.connect("itemClicked(QListWidgetItem*)", self.keep)
        ui.importModelButton.connect("clicked()", self.import_model)
        ui.revealModelButton.connect("clicked()", self.reveal)
        ui.removeModelButton.connect("clicked()", self.remove)

    @property
    def entry(self) -> models.ModelEntry | None:
        """The model chosen."""
        row = self.ui.modelList.currentRow
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def refresh(self, choose: str = "") -> None:
        """Read the list of models anew, and choose one by its name; by default the one that was."""
        self._entries = models.list_entries()
        names = [entry.name for entry in self._entries]
        wanted = choose or self._wanted
        self._wanted = wanted if wanted in names else names[0] if names else ""
        self._fill()

    def keep(self, _item=None) -> None:
        """Stay with the model chosen, also where a search has chosen it."""
        if self.entry is not None:
            self._wanted = self.entry.name

    def close(self) -> None:
        """End what goes on."""
        self._timer.stop()
        if self._worker is not None:
            self._worker.close()

    def _fill(self, _text: str = "") -> None:
        words = self.ui.modelSearch.text.casefold().split()
        self._shown = [
            entry
            for entry in self._entries
            if all(word in texts.searchable(entry.name, entry.card) for word in words)
        ]
        widget = self.ui.modelList
        widget.blockSignals(True)
        widget.clear()
        for entry in self._shown:
            own = "" if entry.embedded else "  ·  " + _("your own")
            advice = "  ·  " + _("take this one, if in doubt") if entry.card.get("kind") == "choice" else ""
            item = qt.QListWidgetItem(f"{entry.name}{advice}\n{texts.model_line(entry.card)}{own}")
            item.setToolTip(texts.model_details(entry.card))
            widget.addItem(item)
        row = max(30, widget.sizeHintForRow(0))
        widget.setFixedHeight(row * min(3, max(1, len(self._entries))) + 4)
        names = [entry.name for entry in self._shown]
        widget.setCurrentRow(names.index(self._wanted) if self._wanted in names else 0 if names else -1)
        widget.blockSignals(False)
        self._show_card()

    def _choose(self, _row: int) -> None:
        self.keep()
        self._show_card()

    def _show_card(self) -> None:
        entry = self.entry
        if entry is not None:
            text = texts.model_card(entry.card)
        elif self._entries:
            text = texts.marked(texts.WARNING, "!", _("No model matches the search."))
        else:
            text = texts.marked(texts.WARNING, "!", _("No model is installed. Import one."))
        self.ui.modelCardLabel.text = text
        self.ui.modelCardLabel.toolTip = texts.model_details(entry.card) if entry is not None else ""
        self.ui.revealModelButton.enabled = entry is not None
        self.ui.removeModelButton.enabled = entry is not None and not entry.embedded
        self.changed.emit()

    def reveal(self) -> None:
        """Open the folder of the model's file."""
        if self.entry:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.entry.path.parent)))

    def remove(self) -> None:
        """Delete a model of the user's, after asking."""
        entry = self.entry
        question = _("Delete the model {name}? Its file is removed from this computer.")
        if entry and slicer.util.confirmOkCancelDisplay(texts.literal(question.format(name=entry.name))):
            with slicer.util.tryWithErrorDisplay(_("The model could not be removed.")):
                models.remove(entry)
                self.refresh()

    def import_model(self) -> None:
        """Add a model file; a checkpoint in the published layout is turned into one by a worker."""
        chosen = qt.QFileDialog.getOpenFileName(
            self.ui.modelSection,
            _("Import a model"),
            "",
            _("Models and checkpoints") + " (*.safetensors *.pth *.pt *.ckpt)",
        )
        if not chosen:
            return
        path = Path(chosen)
        with slicer.util.tryWithErrorDisplay(_("The model could not be imported.")):
            if path.suffix == ".safetensors":
                self.ui.modelSearch.text = ""
                self.refresh(models.add_model(path).name)
            elif self._ensure():
                self._start_import(path)

    def _start_import(self, path: Path) -> None:
        name = re.sub(r"[^\w.+-]+", "-", path.stem).strip("-._") or "imported"
        self._folder = tempfile.TemporaryDirectory(prefix="mapseg-import-", ignore_cleanup_errors=True)
        self._imported = name
        self._worker = Worker()
        job = {"task": "import", "checkpoint": str(path), "name": name}
        self._worker.start(job, self._folder.name)
        self.busy = True
        self.ui.importModelButton.enabled = False
        self.ui.modelCardLabel.text = texts.rich(_("Importing {name}…").format(name=path.name))
        self._timer.start()

    def _follow_import(self) -> None:
        self._worker.poll()
        if self._worker.running:
            return
        self._timer.stop()
        worker, self._worker = self._worker, None
        self._folder.cleanup()
        self.busy = False
        self.ui.importModelButton.enabled = True
        self.ui.modelSearch.text = ""
        self.refresh(self._imported if worker.exit_code == 0 else "")
        if worker.exit_code != 0:
            told = " ".join(filter(None, (worker.error.get("message"), worker.error.get("advice"))))
            self.ui.modelCardLabel.text = texts.marked(texts.BAD, "✗", told)
