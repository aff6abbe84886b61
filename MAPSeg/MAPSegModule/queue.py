"""Scans in a queue: one worker for all of them, and another one for the rest when it dies over one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAPSegLib.errors import InputError

from .job import Worker
from .parameters import Parameters

_TOLD = (0, 2, 4)
"""Exit codes of a worker that has said all there is to say of every scan."""


class Queue:
    """Segments or adapts files. Every scan ends in one event: ``scan``, or ``error`` with its ``scan``."""

    def __init__(self, files: Sequence[str | Path], parameters: Parameters, folder: str | Path):
        self.parameters = parameters
        self.folder = Path(folder)
        self.worker = Worker()
        self.running = False
        self.exit_code: int | None = None
        self.error: dict[str, str] = {}
        """Why no scan came through: kind, message, advice."""
        self._open = [str(file) for file in files]
        self._done = 0
        self._failed = 0
        self._current = ""
        self._cancelled = False

    def start(self) -> None:
        """Begin. Raises OSError where the process cannot be started, InputError for a model that is gone."""
        self._current = ""
        self.worker.start(self.parameters.to_job(self._open, self.folder), self.folder)
        self.running = True

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last call; those of the worker, and an ``error`` for a scan that it died over."""
        if not self.running:
            return []
        events = self.worker.poll()
        for event in events:
            scan = event.get("scan", "")
            if event["event"] == "progress" and scan:
                self._current = scan
            elif event["event"] == "scan":
                self._close(scan)
                self._done += 1
            elif event["event"] == "error" and scan:
                self._close(scan)
                self._failed += 1
        return events if self.worker.running else events + self._ended()

    def stop(self) -> None:
        """End an adaptation early; it keeps the best so far."""
        self.worker.stop()

    def cancel(self) -> None:
        """Begin to end the worker; poll() sees it through."""
        self._cancelled = True
        self.worker.cancel()

    def close(self) -> None:
        """Cancel, and wait for the end, at most 2 s."""
        self._cancelled = True
        self.worker.close()
        self.running = False

    def _close(self, scan: str) -> None:
        if scan in self._open:
            self._open.remove(scan)

    def _ended(self) -> list[dict[str, Any]]:
        code, error = self.worker.exit_code, self.worker.error
        told = []
        if code not in _TOLD and not self._cancelled:
            # Scans are adapted to together: there the death of the worker is everyone's.
            alone = not self.parameters.adapt and self._current in self._open
            told = self._lose([self._current] if alone else list(self._open), error)
            if self._open:
                try:
                    self.start()
                    return told
                except (OSError, InputError) as failure:  # as where a disk is full
                    reason = _("The worker cannot be started: {reason}").format(reason=failure)
                    told += self._lose(list(self._open), {"kind": "error", "message": reason, "advice": ""})
        self.running = False
        self.error = error if not self._done else {}
        self.exit_code = self._code(code)
        return told

    def _lose(self, scans: list[str], error: dict[str, str]) -> list[dict[str, Any]]:
        """Give up scans; returns what is told of them."""
        for scan in scans:
            self._close(scan)
        self._failed += len(scans)
        return [{"event": "error", "scan": scan, **error} for scan in scans]

    def _code(self, last: int | None) -> int:
        """The worker's exit codes, over all workers that were needed."""
        if self._cancelled or last == 4:
            return 4
        if not self._failed and not self._open:
            return 0
        if self._done:
            return 2
        return last if last in (1, 2, 3) else 1
