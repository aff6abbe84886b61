"""A run: volumes of the scene go to the worker, segmentations come back, one state per volume.

What takes long happens elsewhere: the segmenting in the worker process, reading and writing of files in a thread. What
is left for the event loop is a few milliseconds per call of :meth:`Run.poll`.
"""

from __future__ import annotations

import logging
import tempfile
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAPSegLib.errors import InputError
from MAPSegLib.windows import remove_folder

from . import images, scene, workfiles
from .item import CANCELLED, DONE, FAILED, RUNNING, WAITING, Item
from .models import ModelEntry, add_model, find_entry
from .parameters import Parameters
from .queue import Queue
from .signal import Signal

ADAPTING = ("search", "adapt")
"""Stages in which all volumes are adapted to; they can be ended with what they have reached."""
_FOLDER = "MAPSeg"
"""What the names of working folders begin with."""
_MODEL_NAME = 24
"""Of a model's name, as many characters are in those of its segmentations."""


class Run:
    """Segments or adapts. Call :meth:`start`, then :meth:`poll` from a timer every 50 ms, or :meth:`wait`.

    Signals: ``changed()`` whenever something below changed, ``item_changed(item)``, ``finished(run)`` once at the end.
    """

    def __init__(self, volumeNodes: Sequence, parameters: Parameters):
        self.parameters = parameters
        self.items = [Item(node.GetID(), node.GetName()) for node in volumeNodes]
        self.stage = ""
        """``export``, ``start``, then the worker's: ``read``, ``adapt``, ``segment``; ``load`` and ``done``."""
        self.step = 0
        self.steps = 0
        self.seconds_left: float | None = None
        self.eta_history: list[tuple[int, float]] = []
        self.error = ""
        """Why the run as a whole failed; empty when it did not."""
        self.exit_code: int | None = None
        """The worker's: 0 done, 1 failure, 2 bad input or some volumes failed, 3 out of memory, 4 cancelled."""
        self.changed = Signal()
        self.item_changed = Signal()
        self.finished = Signal()
        self._folder: Path | None = None
        self._delete: weakref.finalize | None = None
        """Deletes the working files; by itself when nobody holds the run any more, and when the application quits."""
        self._thread: ThreadPoolExecutor | None = None
        self._exports: list[tuple[Item, Future]] = []
        self._loads: dict[tuple[Item, str], Future] = {}
        self._queue: Queue | None = None
        self._model_file = ""
        self.cancelled = False
        """Whether it was told to end, by the user or because the scene closed."""
        self._observer: int | None = None

    @property
    def running(self) -> bool:
        return self.stage not in ("", "done")

    @property
    def segmentations(self) -> list:
        """The segmentation nodes of the volumes that came through."""
        nodes = [
            slicer.mrmlScene.GetNodeByID(item.segmentation_id) for item in self.items if item.state == DONE
        ]
        return [node for node in nodes if node is not None]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What the reports say of the volumes that came through."""
        return [item.result for item in self.items if item.state == DONE]

    def start(self) -> None:
        """Begin. Volumes that cannot be exported fail on their own.

        Raises:
            InputError: nothing can be run as asked.
        """
        problem = self.parameters.problem() or ("" if self.items else _("There is no volume to segment."))
        if problem:
            raise InputError(problem)
        entry = find_entry(self.parameters.model)
        try:
            workfiles.remove_abandoned(slicer.app.temporaryPath, _FOLDER)
            prefix = f"{workfiles.own(_FOLDER)}-"
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=slicer.app.temporaryPath))
        except OSError as error:
            told = _("{folder} cannot be written: {reason}.")
            raise InputError(told.format(folder=slicer.app.temporaryPath, reason=error.strerror)) from error
        self._delete = weakref.finalize(self, remove_folder, self._folder)
        self._thread = ThreadPoolExecutor(1, "MAPSeg")
        closing = slicer.vtkMRMLScene.StartCloseEvent
        self._observer = slicer.mrmlScene.AddObserver(closing, lambda *_: self._forget_nodes())
        self.stage = "export"
        for index, item in enumerate(self.items):
            item.model, item.card = entry.name, entry.card
            name = workfiles.file_stem(item.name)  # as the volume: the worker's messages speak of the file
            name = f"{name}_{index + 1}" if len(self.items) > 1 else name
            item.file = str(self._folder / f"{name}.nrrd")
            volume = slicer.mrmlScene.GetNodeByID(item.volume_id)
            try:
                snapshot = images.Snapshot.of(volume)
            except (ValueError, AttributeError) as error:
                text = str(error) if isinstance(error, ValueError) else _("It left the scene.")
                self._set(item, FAILED, text)
            else:
                item.affine, item.voxel_state = images.affine_of(volume), scene.voxel_state(volume)
                self._exports.append((item, self._thread.submit(snapshot.write, item.file)))
        self.changed.emit()

    def poll(self) -> bool:
        """Take in what happened since the last call; true while the run goes on."""
        if not self.running:
            return False
        time.sleep(0.001)  # Slicer's event loop keeps threads waiting: let them run
        before = self._state()
        if self.stage == "export":
            self._exported()
        elif self._queue is not None:
            for event in self._queue.poll():
                self._take(event)
            self._load_next()
            if not self._queue.running and not self._loads:
                self._end(self._queue.exit_code, _told(self._queue.error))
            elif not self._queue.running:
                self.stage = "load"
        if self._state() != before:
            self.changed.emit()
        return self.running

    def stop(self) -> None:
        """End an adaptation early and keep the best so far."""
        if self._queue is not None:
            self._queue.stop()

    def cancel(self) -> None:
        """End at once; results that are complete stay.

        Returns at once. poll() sees the end within 2 s, or when the volume is written that is being handed over.
        """
        if self.running and not self.cancelled:
            self.cancelled = True
            for _item, future in self._exports:
                future.cancel()
            self._loads.clear()
            if self._queue is not None:
                self._queue.cancel()

    def wait(self) -> None:
        """Poll to the end, processing the application's events.

        The run is cancelled when the application's last window closes: it could not quit meanwhile.
        """
        cancel = self.cancel  # the same object for both: PythonQt tells receivers apart by it
        slicer.app.connect("lastWindowClosed()", cancel)
        try:
            while self.poll():
                slicer.app.processEvents()
                time.sleep(0.02)
        except BaseException:
            self.clean()
            raise
        finally:
            slicer.app.disconnect("lastWindowClosed()", cancel)

    def save_model(self, name: str) -> ModelEntry:
        """Keep the adapted model among the user's models.

        Raises:
            InputError: there is none, the name is taken, or the disk refuses.
        """
        if not self._model_file or not Path(self._model_file).is_file():
            raise InputError(_("There is no adapted model to keep."))
        return add_model(self._model_file, name)

    @property
    def has_model(self) -> bool:
        """Whether there is an adapted model to keep."""
        return bool(self._model_file)

    def clean(self) -> None:
        """Cancel if running, wait for the worker's end (at most 2 s) and delete the working files."""
        if self.running:
            self.cancel()
            if self._queue is not None:
                self._queue.close()
            self._end(4, "")
        if self._delete is not None:
            self._delete()
            self._model_file = ""

    def _forget_nodes(self) -> None:
        """The scene closes: forget its nodes before those of the next scene get the same IDs, and end."""
        for item in self.items:
            item.volume_id = item.segmentation_id = item.uncertainty_id = ""
        self.cancel()

    def _exported(self) -> None:
        if not all(future.done() for _, future in self._exports):
            return
        if self.cancelled:
            self._end(4, "")
            return
        files = []
        for item, future in self._exports:
            if error := future.exception():
                told = _("The volume cannot be written to {folder}: {reason}")
                self._set(item, FAILED, told.format(folder=self._folder, reason=error))
            else:
                files.append(item.file)
        if not files:
            self._end(2, next(item.message for item in self.items if item.message))
            return
        self._queue = Queue(files, self.parameters, self._folder)
        try:
            self._queue.start()
        except (OSError, InputError) as error:
            for item in self.items:
                if item.state == WAITING:
                    self._set(item, FAILED, str(error))
            self._end(1, _("The worker cannot be started: {reason}").format(reason=error))
            return
        self.stage = "start"

    def _take(self, event: dict[str, Any]) -> None:
        """One event of the worker (MAPSegLib/jobs.py)."""
        kind = event["event"]
        item = next((one for one in self.items if one.file == event.get("scan")), None)
        if kind == "progress":
            self.stage, self.step, self.steps = event["stage"], event["step"], event["steps"]
            self.seconds_left = event.get("seconds_left")
            if event.get("eta") is not None:
                self.eta_history.append((self.step, event["eta"]))
            self._now_running(item)
        elif kind == "log":  # what is to know of a result, its notes tell as well
            logging.getLogger(__name__).info("%s", event["message"])
        elif kind == "result":
            self._model_file = event.get("model_file", "")
        elif kind == "error" and item is not None:
            self._set(item, FAILED, _told(event))
        elif kind == "preview" and item is not None and not self.cancelled:
            self._loads[item, "preview"] = self._thread.submit(_read, {"output": event["file"]})
        elif kind == "scan" and item is not None and not self.cancelled:
            self._loads.pop((item, "preview"), None)
            item.result = event["entry"]
            self._loads[item, "result"] = self._thread.submit(_read, event["entry"])

    def _now_running(self, item: Item | None) -> None:
        """Scans are segmented one by one, and adapted to together."""
        for one in self.items:
            if one.state == WAITING and (one is item or self.stage in ADAPTING):
                self._set(one, RUNNING, "")

    def _load_next(self) -> None:
        """Put one map that was read into the scene."""
        ready = next((key for key, future in self._loads.items() if future.done()), None)
        if ready is None:
            return
        (item, what), future = ready, self._loads.pop(ready)
        if future.exception() is not None:
            if what == "result":  # a preview may have gone by now
                told = _("The result cannot be read: {reason}")
                self._set(item, FAILED, told.format(reason=future.exception()))
            return
        volume = slicer.mrmlScene.GetNodeByID(item.volume_id)
        if volume is None:
            self._set(item, FAILED, _("The volume left the scene."))
            return
        if volume.GetImageData() is None:
            told = _("The voxels of {name} were taken away during the run.")
            self._set(item, FAILED, told.format(name=item.name))
            return
        labels, uncertainty = future.result()
        if item.edited:
            item.segmentation_id = ""  # left to the user, as it is
        try:
            name = f"{volume.GetName()} MAPSeg {item.model[:_MODEL_NAME].strip()}"
            item.put(labels, volume, name, preview=what == "preview")
            if uncertainty is not None:
                item.uncertainty_id = scene.load_uncertainty(uncertainty, volume).GetID()
        except ValueError:  # exported from this very node, the map lay on its grid
            told = _("{name} was resampled during the run.")
            self._set(item, FAILED, told.format(name=item.name))
            return
        except Exception as error:  # a slot would swallow it, and the volume would fail without a word
            logging.getLogger(__name__).warning("%s", item.name, exc_info=True)
            if what == "result":
                told = _("The result cannot be shown: {reason}")
                self._set(item, FAILED, told.format(reason=str(error) or type(error).__name__))
            return
        if what == "preview":
            item.shown = "preview"
            item.describe()
            self.item_changed.emit(item)
        else:
            item.shown = item.result.get("chosen", "source")
            if item.volume_changed or item.resized:
                _distrust(
                    item.result,
                    _("The volume changed during the run, and the labels are of what it was before."),
                )
                item.voxel_state = scene.voxel_state(volume)
            item.describe()
            told = (item.result.get("gate"), item.result.get("reason"))
            self._set(item, DONE, " ".join(filter(None, told)))

    def _end(self, code: int | None, error: str) -> None:
        self.exit_code, self.error = code, error
        for item in self.items:
            if item.state != DONE:
                item.withdraw()
            if item.state in (WAITING, RUNNING):
                cancelled = self.cancelled or code == 4
                self._set(item, CANCELLED if cancelled else FAILED, "" if cancelled else error)
        slicer.mrmlScene.RemoveObserver(self._observer)
        self._thread.shutdown(cancel_futures=True)  # what it still wrote or read would be left behind
        self._loads.clear()
        for item, _future in self._exports:
            with suppress(OSError):
                Path(item.file).unlink()
        self.stage, self.seconds_left = "done", None
        if not any(item.state == DONE for item in self.items):
            self.clean()
        self.changed.emit()
        self.finished.emit(self)

    def _set(self, item: Item, state: str, message: str) -> None:
        item.state, item.message = state, message
        self.item_changed.emit(item)

    def _state(self) -> tuple:
        return self.stage, self.step, self.seconds_left, [(item.state, item.shown) for item in self.items]


def _told(error: dict[str, Any]) -> str:
    """What happened, and what helps against it."""
    return " ".join(filter(None, (error.get("message"), error.get("advice"))))


def _distrust(result: dict[str, Any], why: str) -> None:
    """Take back the trust in a result, or in both of an adaptation."""
    for side in (result, *(result[name] for name in ("source", "adapted") if name in result)):
        side.update(trusted=False, reason=f"{why} {side.get('reason', '')}".strip())


def _read(entry: dict[str, Any]) -> tuple[images.Labels, Any]:
    """The files of a result, in the thread: the label map and, where there is one, the uncertainty map."""
    uncertainty = images.read_array(entry["uncertainty"]) if entry.get("uncertainty") else None
    return images.read_labels(entry["output"]), uncertainty
