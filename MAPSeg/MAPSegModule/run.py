"""A run: volumes of the scene go to the worker, segmentations come back, one state per volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .parameters import Parameters
from .signal import Signal

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


@dataclass(eq=False)
class Item:
    """One volume of a run."""

    volume_id: str
    name: str
    state: str = WAITING
    message: str = ""
    """Why it failed, or the verdict on it; one sentence."""
    segmentation_id: str = ""
    uncertainty_id: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    """What the worker's report says of it: structures, trusted, reason, and for adaptations chosen and gate."""
    shown: str = ""
    """Which result the segmentation holds: ``preview``, ``source`` or ``adapted``."""

    def show(self, which: str) -> None:
        """Put the result of the model as it was (``source``) or of the ``adapted`` one into the segmentation."""
        raise NotImplementedError


class Run:
    """Segments or adapts. Call :meth:`start`, then :meth:`poll` from a timer every 50 ms, or :meth:`wait`.

    Signals: ``changed()`` whenever something below changed, ``item_changed(item)``, ``finished(run)`` once at the end.
    """

    def __init__(self, volumeNodes: Sequence, parameters: Parameters):
        self.parameters = parameters
        self.items: list[Item] = []
        self.stage = ""
        """``export``, ``start``, then the worker's: ``read``, ``adapt``, ``segment``; ``load`` and ``done``."""
        self.step = 0
        self.steps = 0
        self.seconds_left: float | None = None
        self.eta_history: list[tuple[int, float]] = []
        self.loss_history: list[tuple[int, float]] = []
        self.device = ""
        self.error = ""
        """Why the run as a whole failed; empty when it did not."""
        self.exit_code: int | None = None
        """The worker's: 0 done, 1 failure, 2 bad input or some volumes failed, 3 out of memory, 4 cancelled."""
        self.changed = Signal()
        self.item_changed = Signal()
        self.finished = Signal()

    @property
    def running(self) -> bool:
        raise NotImplementedError

    @property
    def segmentations(self) -> list:
        """The segmentation nodes of the volumes that came through."""
        raise NotImplementedError

    @property
    def results(self) -> list[dict[str, Any]]:
        """What the reports say of the volumes that came through."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin; raises InputError where nothing can be run."""
        raise NotImplementedError

    def poll(self) -> bool:
        """Take in what happened since the last call; true while the run goes on."""
        raise NotImplementedError

    def stop(self) -> None:
        """End an adaptation early and keep the best so far."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End at once; results that are complete stay. Returns at once, poll() sees the end within 2 s."""
        raise NotImplementedError

    def wait(self, callback: Callable[[Run], None] | None = None) -> None:
        """Poll to the end, processing the application's events; ``callback(run)`` is called at every change."""
        raise NotImplementedError

    def save_model(self, name: str):
        """Keep the adapted model among the user's models; returns its ModelEntry. Raises InputError."""
        raise NotImplementedError

    def clean(self) -> None:
        """Cancel if running, wait for the worker's end (at most 2 s) and delete the working files."""
        raise NotImplementedError
