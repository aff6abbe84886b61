"""The panel: the form of ``Resources/UI/MAPSeg.ui``, its sections, and the run that its buttons start and end."""

from __future__ import annotations

import logging
import threading
import time

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MAPSegLib.errors import InputError

from . import dependencies, remember, texts
from . import run as runs
from .job import worker_environment
from .model_section import ModelSection
from .parameters import MINUTES, Parameters
from .plots import Curves
from .result_section import ResultSection
from .volume_section import VolumeSection

POLL_MS = 50
"""How often events of the worker are taken in; one of these takes less than that."""
LONG = 60.0
"""Seconds of adapting that are not thrown away without asking."""
DOUBLE_CLICK = 0.5
"""Seconds after a start in which its button, which then cancels, takes no press: that of a double click."""


class Panel:
    """Built by the module's widget, which forwards ``enter``, ``exit`` and ``cleanup``."""

    def __init__(self, owner):
        root = slicer.util.loadUI(owner.resourcePath("UI/MAPSeg.ui"))
        root.setMRMLScene(slicer.mrmlScene)
        owner.layout.addWidget(root)
        self.ui = ui = slicer.util.childWidgetVariables(root)
        self.run: runs.Run | None = None
        self._told = ""
        """How the last press of a button ended."""
        self._installing = False
        self._cancelling = False
        self._stopping = False
        self._started = 0.0
        self._previewed = ""
        self._tried: dict[str, str] | None = None
        """The environment in which the devices have been tried."""
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        self._device_timer = qt.QTimer()
        self._device_timer.setInterval(200)
        self._device_timer.connect("timeout()", self._show_device)

        for text, device in (
            (_("Automatic"), "auto"),
            (_("Processor (CPU)"), "cpu"),
            (_("Graphics card (CUDA)"), "cuda"),
            (_("Graphics card (Apple)"), "mps"),
        ):
            ui.deviceComboBox.addItem(text, device)
        for minutes in MINUTES:
            ui.minutesComboBox.addItem(_("{minutes} min").format(minutes=f"{minutes:g}"), minutes)
        # The wheel over them is to scroll the panel. Spin boxes cannot be told so: every one would turn its number.
        for box in (ui.minutesComboBox, ui.deviceComboBox, ui.resultComboBox):
            box.scrollWheelEffect = ctk.ctkComboBox.NeverScroll
        self._offer_wheels()
        self.models = ModelSection(ui, self._ensure)
        self.volumes = VolumeSection(ui)
        self.results = ResultSection(ui)
        self.curves = Curves(ui.plotFrame)
        model = remember.recall(ui)

        self.models.changed.connect(self._model_changed)
        self.volumes.changed.connect(self._update)
        self.volumes.changed.connect(self.results.judge)
        self.results.model_saved.connect(self.models.refresh)
        scene = slicer.mrmlScene
        for event, take in (
            (scene.NodeAboutToBeRemovedEvent, self._node_leaves),
            (scene.NodeRemovedEvent, self._node_left),
            (scene.EndCloseEvent, self._scene_closed),
        ):
            self.volumes.addObserver(scene, event, take)
        ui.segmentButton.connect("clicked()", lambda: self._pressed(adapt=False))
        ui.adaptButton.connect("clicked()", lambda: self._pressed(adapt=True))
        ui.stopButton.connect("clicked()", self._stop)
        source, wheels = _("Folder of source scans"), _("Folder of wheel files")
        ui.sourceFolderButton.connect("clicked()", lambda: self._choose_folder(source, ui.sourceFolderEdit))
        ui.wheelFolderButton.connect("clicked()", lambda: self._choose_folder(wheels, ui.wheelFolderEdit))
        ui.minutesComboBox.connect("currentIndexChanged(int)", self._options_changed)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._device_changed)
        for widget in (ui.sourceFolderEdit, ui.wheelFolderEdit):
            widget.connect("textChanged(QString)", self._options_changed)
        for widget in (ui.uncertaintyCheckBox, ui.previewCheckBox):
            widget.connect("toggled(bool)", self._options_changed)
        # A section that opens shows what was hidden while it was closed.
        ui.optionsSection.connect("contentsCollapsed(bool)", self._offer_wheels)
        ui.optionsSection.connect("contentsCollapsed(bool)", self._options_changed)
        ui.resultSection.collapsed = True
        self.models.refresh(model)
        self._device_changed()

    def enter(self) -> None:
        """Look again at what may have changed while another module was shown."""
        if not self.models.busy:
            self.models.refresh()
        self.volumes.refresh()
        self.results.enter()

    def exit(self) -> None:
        """Another module is shown."""
        self.results.exit()

    def cleanup(self) -> None:
        """End everything: the panel is about to go, and Qt may have taken its widgets. Results stay in the scene."""
        steps = [self._timer.stop, self._device_timer.stop]
        if self.run is not None:
            self.run.changed.disconnect(self._show_progress)
            self.run.item_changed.disconnect(self._show_item)
            self.run.finished.disconnect(self._finished)
            steps.append(self.run.clean)
        steps += [self.results.close, self.models.close, self.volumes.close, self.curves.clear]
        for step in steps:
            try:
                step()
            except Exception:  # the others are to end all the same
                logging.getLogger(__name__).info("while the panel was closed", exc_info=True)

    # What would be run

    def parameters(self, adapt: bool) -> Parameters:
        """What the form says."""
        ui, entry = self.ui, self.models.entry
        return Parameters(
            model=str(entry.path) if entry else "",
            adapt=adapt,
            minutes=ui.minutesComboBox.itemData(ui.minutesComboBox.currentIndex),
            device=self._device,
            uncertainty=ui.uncertaintyCheckBox.checked,
            source_folder=ui.sourceFolderEdit.text.strip(),
            preview_seconds=10.0 if ui.previewCheckBox.checked else 0.0,
        )

    @property
    def _device(self) -> str:
        return self.ui.deviceComboBox.itemData(self.ui.deviceComboBox.currentIndex)

    def _problem(self) -> str:
        if self._installing:
            return _("What MAPSeg needs is being installed; this takes minutes.")
        checked = self.volumes.checked_nodes()
        if self.models.entry is None:
            return _("Choose a model.")
        if not self.volumes.nodes():
            return self.volumes.unsuited() or _("Load a volume.")
        if not checked:
            return _("Check at least one volume.")
        problems = self.volumes.problems()
        if len(problems) == len(checked):
            return next(iter(problems.values()))
        return ""

    def _model_changed(self) -> None:
        self.volumes.set_model(self.models.entry, self.running)
        self._options_changed()

    def _options_changed(self, *_value) -> None:
        remember.remember(self.ui, self.models.entry.name if self.models.entry else "")
        self._update()

    def _choose_folder(self, title: str, edit) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.ui.runSection, title, edit.text)
        if folder:
            edit.text = folder

    def _offer_wheels(self, *_collapsed: bool) -> None:
        """Ask where packages come from as long as there are packages to install."""
        self._lacking = bool(dependencies.missing())
        for widget in (self.ui.wheelFolderLabel, self.ui.wheelFolderEdit, self.ui.wheelFolderButton):
            widget.setVisible(self._lacking)

    def _device_changed(self, *_value) -> None:
        """Ask a thread which device it will be: asking starts a process, which takes seconds."""
        environment, self._tried = worker_environment(), None

        def ask() -> None:
            # What is found is kept. Words for it are Qt's to translate, and no thread may call Qt.
            if not dependencies.missing():
                dependencies.try_devices(frozenset(environment.items()))
            self._tried = environment

        threading.Thread(target=ask, daemon=True).start()
        self._device_timer.start()
        self._options_changed()

    def _show_device(self) -> None:
        time.sleep(0.001)  # Slicer's event loop keeps threads waiting: let the trial run
        if self._tried is None:
            return
        self._device_timer.stop()
        if dependencies.missing():
            line = _("PyTorch is installed when you first segment, after asking you.")
        else:
            line = dependencies.describe_device(self._device, self._tried)
        self.ui.deviceInfoLabel.text = line

    def _ensure(self) -> bool:
        """Install what is missing; Slicer takes events meanwhile, and nothing may be started a second time."""
        self._installing, self._told = True, ""
        self._update()
        try:
            there = dependencies.ensure()
        finally:
            self._installing = False
            self._update()
        if there and self._lacking:
            self._offer_wheels()
            self._device_changed()
        return there

    # The run

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self.run is not None and self._timer.active

    def _pressed(self, adapt: bool) -> None:
        if not self.running:
            self.start(adapt)
        elif time.monotonic() - self._started > DOUBLE_CLICK and self._may_discard():
            self.cancel()

    def _may_discard(self) -> bool:
        """Ask, where an adaptation has gone on for a while; it may end while the question stands."""
        run = self.run
        if not run.parameters.adapt or time.monotonic() - self._started < LONG:
            return True
        question = _("Discard what the adaptation has reached?")
        if run.stage in runs.ADAPTING:
            told = _("‘Stop and keep the best’ would go on to the results.")
        else:
            told = _("Left to itself, it goes on to the results.")
        question = f"{question} {told}"
        return slicer.util.confirmOkCancelDisplay(question) and self.running and self.run is run

    def start(self, adapt: bool) -> None:
        """Segment the checked volumes, after adapting to them or not."""
        parameters = self.parameters(adapt)
        problem = self._problem() or parameters.problem()
        if problem:
            self._say(texts.BAD, "✗", problem)
            return
        with slicer.util.tryWithErrorDisplay(_("What MAPSeg needs could not be installed.")):
            if not self._ensure():
                self._say(texts.WARNING, "!", _("Nothing was installed, so nothing can be segmented."))
                return
        self.models.keep()
        self.curves.clear()
        self.run = runs.Run(self.volumes.checked_nodes(), parameters)
        self.run.changed.connect(self._show_progress)
        self.run.item_changed.connect(self._show_item)
        self.run.finished.connect(self._finished)
        self._cancelling, self._stopping, self._previewed = False, False, ""
        try:
            self.run.start()
        except (InputError, ValueError, OSError) as error:
            self.run.clean()
            self._say(texts.BAD, "✗", getattr(error, "message", "") or str(error))
            return
        for item in self.run.items:
            self._show_item(item)
        self.volumes.point_at(self.run.items[0].volume_id)
        self._started = time.monotonic()
        self._timer.start()
        self._update()
        self._show_progress()

    def cancel(self) -> None:
        """End the run at once."""
        self._cancelling = True
        self.run.cancel()
        self._update()

    def _stop(self) -> None:
        self._stopping = True
        self.run.stop()
        self._update()
        self._show_progress()

    def _offer_stop(self) -> None:
        """Beside *Cancel* to the end of an adaptation: where it went, *Cancel* would take its place under the mouse."""
        adapting = self.running and self.run.parameters.adapt
        now = adapting and self.run.stage in runs.ADAPTING and not (self._cancelling or self._stopping)
        self.ui.stopButton.setVisible(adapting)
        self.ui.stopButton.enabled = now

    def _poll(self) -> None:
        if not self.run.poll():
            self._timer.stop()
            self._update()

    def _show_item(self, item: runs.Item) -> None:
        self.volumes.set_state(item, explain=len(self.run.items) > 1)
        if item.state == runs.DONE and item.result:
            self.results.add(item, self.run)
        elif item.segmentation_id and item.state == runs.RUNNING:
            # Of several volumes, the first previewed one stays in view, unless it leaves the scene.
            there = (each for each in self.run.items if each.state != runs.FAILED)
            shown = next((each for each in there if each.volume_id == self._previewed), item)
            self._previewed = shown.volume_id
            self.results.show_previews(self.run, shown)

    def _show_progress(self) -> None:
        ui, run = self.ui, self.run
        busy = run.steps <= 1 and not run.step
        ui.progressBar.setRange(0, 0 if busy else run.steps)
        ui.progressBar.setValue(0 if busy else run.step)
        ui.progressBar.setTextVisible(not busy)
        ui.timeLabel.text = (
            _("about {time} left").format(time=texts.duration(run.seconds_left)) if run.seconds_left else ""
        )
        if not self._cancelling:
            stopping = self._stopping and run.stage in runs.ADAPTING
            ui.stageLabel.text = _("Stopping after this step…") if stopping else _stage(run)
        self._offer_stop()
        if not run.cancelled:  # the scene that the curve is drawn in may have closed
            self.curves.show(run.eta_history)

    def _finished(self, run: runs.Run) -> None:
        self._timer.stop()
        done, failed, cancelled = (
            [item for item in run.items if item.state == state]
            for state in (runs.DONE, runs.FAILED, runs.CANCELLED)
        )
        took = texts.duration(time.monotonic() - self._started)
        volumes = texts.counted(len(run.items), _("{n} volume"), _("{n} volumes"))
        kept = _("{n} of {volumes} done.").format(n=len(done), volumes=volumes)
        if run.exit_code == 4 or cancelled or self._cancelling:
            self._say(texts.QUIET, "–", _("Cancelled.") + (f" {kept}" if done else ""))
        elif run.error:
            self._say(texts.BAD, "✗", f"{run.error} {kept if done else ''}")
        elif failed:
            reasons = " ".join(f"{item.name}: {item.message}" for item in failed[:3])
            self._say(texts.WARNING, "!", f"{kept} {reasons}")
        else:
            doubtful = [item.present_name for item in done if item.result.get("trusted") is False]
            told = _("Done in {time}.").format(time=took)
            if doubtful:
                told += " " + _("Do not rely on the result of {names}.").format(names=", ".join(doubtful))
            self._say(*((texts.WARNING, "!") if doubtful else (texts.GOOD, "✓")), told)
        self.results.refresh()
        self._update()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_leaves(self, caller, event, node=None) -> None:
        self.results.uncover(node.GetID() if node is not None else "")

    def _node_left(self, caller, event) -> None:
        self.results.prune()

    def _scene_closed(self, caller, event) -> None:
        self.results.prune()
        self.curves.clear()
        if not self.running:
            self._told = ""

    def _say(self, color: str, mark: str, text: str) -> None:
        self._told = texts.marked(color, mark, text.strip())
        slicer.util.showStatusMessage(f"MAPSeg: {text.strip()}", 10_000)  # another module may be shown by now
        self._update()

    def _update(self, *_value) -> None:
        """Enable what can be done now, and say why the rest cannot."""
        ui, running = self.ui, self.running
        adapting = running and self.run.parameters.adapt
        problem = "" if running else self._problem()
        ui.segmentButton.setVisible(not adapting)
        ui.adaptButton.setVisible(adapting or not running)
        for button, text, tip in (
            (ui.segmentButton, _("Segment"), _("Segment the checked volumes with the model as it is.")),
            (
                ui.adaptButton,
                _("Adapt and segment"),
                _("Adapt the model to the checked volumes, then keep whichever result is better supported."),
            ),
        ):
            button.text = (_("Cancelling…") if self._cancelling else _("Cancel")) if running else text
            end = _("End now. What is complete stays.")
            button.toolTip = end if running else texts.literal(problem) or tip
            button.enabled = not (self._cancelling if running else problem)
        self._offer_stop()
        if self._cancelling and running:
            ui.stageLabel.text = _("Cancelling…")
        ui.progressFrame.setVisible(running)
        for section in (ui.modelSection, ui.optionsSection):
            section.enabled = not (running or self._installing)
        # Why nothing can be started belongs below what the last start came to.
        now = texts.marked(texts.QUIET, "–", problem) if problem else ""
        ui.statusLabel.text = "<br>".join(filter(None, (self._told, now)))
        ui.statusLabel.setVisible(bool(ui.statusLabel.text))


def _stage(run: runs.Run) -> str:
    steps = f" {run.step} / {run.steps}"
    words = {
        "export": _("Handing over the volumes"),
        "start": _("Starting"),
        "read": _("Looking at the volumes"),
        "search": _("Looking for the contrast"),
        "adapt": _("Adapting, step"),
        "segment": _("Segmenting and judging"),
        "load": _("Loading the results"),
    }
    if run.stage == "adapt":
        return words["adapt"] + steps if run.step else words["read"] + "…"
    return words.get(run.stage, run.stage) + ("…" if run.stage in words else "")
