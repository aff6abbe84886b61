"""The worker process: started, followed line by line, stopped, and ended with everything it started. No Qt.

Slicer's own ``launchConsoleProcess`` mixes a process's log into its output, where lines may break, and gives it
neither an input, by which it hears of a cancel, nor a session of its own, to be ended as a whole.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAPSegLib.reports import STOP
from MAPSegLib.windows import short_name

from . import backend_folder

TERMINATE_AFTER, KILL_AFTER = 0.8, 1.3
"""Seconds that a cancelled worker gets to end by itself, and until its process tree is killed."""
_LAUNCHER = "exit abnormally - Report the problem"
"""What the launcher of Slicer's Python writes when its child was ended; it ends with exit code 1 itself."""


class Worker:
    """One process at a time. Threads read its output; :meth:`poll`, called from a timer, hands the events over."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.pid: int | None = None
        """Of the worker itself, which a launcher may have started."""
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._log: deque[str] = deque(maxlen=60)
        self._readers: list[threading.Thread] = []
        self._last_error: dict[str, Any] = {}
        self._cancelled_at: float | None = None
        self._signals_sent = 0

    def start(self, job: dict[str, Any], folder: str | Path) -> None:
        """Write the job into ``folder`` and run it.

        Raises:
            OSError: the folder cannot be written, or the process not be started.
        """
        if self.running:
            raise RuntimeError("The worker is at work.")
        self.__init__()
        self._folder = Path(folder)
        (self._folder / STOP).unlink(missing_ok=True)
        path = self._folder / "job-file.json"
        path.write_text(json.dumps(job, default=str), encoding="utf-8")
        hidden = (
            {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {"start_new_session": True}
        )
        self._process = subprocess.Popen(
            # The launcher of Slicer's Python may lose letters that are not ASCII's.
            [sys.executable, "-m", "MAPSegLib.worker", "--attached", short_name(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(),
            cwd=backend_folder(),
            **hidden,
        )
        for read, stream in (
            (self._read_events, self._process.stdout),
            (self._read_log, self._process.stderr),
        ):
            self._readers.append(threading.Thread(target=read, args=(stream,), daemon=True))
            self._readers[-1].start()

    @property
    def running(self) -> bool:
        """Whether the process lives or has left something to read."""
        return self._process is not None

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call; notices the end, and drives a cancel on."""
        if self._process is None:
            return []
        time.sleep(0.001)  # Slicer's event loop keeps other threads waiting: let the readers run
        self._escalate()
        ended = self._process.poll() is not None and not self._reading()
        events = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        for event in events:
            if event["event"] == "started":
                self.pid = event["pid"]
            elif event["event"] == "error" and not event.get("scan"):
                self._last_error = event
        if ended:
            self._finish()
        return events

    def stop(self) -> None:
        """End an adaptation early; it keeps the best so far and goes on to segmenting."""
        if self.running:
            (self._folder / STOP).touch()

    def cancel(self) -> None:
        """Begin to end the process tree; poll() sees it through within 2 s."""
        if self._process is not None and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            with suppress(OSError, ValueError):  # where it is ending by itself
                self._process.stdin.write(b"cancel\n")
                self._process.stdin.flush()

    def close(self) -> None:
        """Cancel and wait for the end, at most 2 s."""
        self.cancel()
        limit = time.monotonic() + 2
        while self._process is not None and time.monotonic() < limit:
            self.poll()
            time.sleep(0.02)

    @property
    def error(self) -> dict[str, str]:
        """Why it failed: kind, message and advice. Empty while it runs, and when it did not fail as a whole."""
        if self.exit_code in (None, 0) or (self.exit_code == 2 and not self._last_error and not self._log):
            return {}
        if self._last_error:
            return {key: str(self._last_error.get(key) or "") for key in ("kind", "message", "advice")}
        if self._cancelled_at is not None:
            return {"kind": "cancelled", "message": _("Cancelled."), "advice": ""}
        told = (line for line in reversed(self._log) if line.strip() and _LAUNCHER not in line)
        last = next(told, "")
        reason, memory = self._reason()
        return {
            "kind": "memory" if memory else "error",
            "message": f"{reason} {last.strip()}".strip(),
            "advice": _("Close other programs, or crop the volume.") if memory else "",
        }

    @property
    def log(self) -> str:
        """The end of what the worker wrote to its log."""
        return "\n".join(self._log)

    def _reason(self) -> tuple[str, bool]:
        """Why it ended, and whether that was for want of memory."""
        code = self.exit_code
        behind_launcher = code == 1 and any(_LAUNCHER in line for line in self._log)
        if code in (-9, 137) or behind_launcher:
            return _("The worker was ended by the system, probably because memory ran out."), True
        if code is not None and code < 0:
            return _("The worker was ended by signal {number}.").format(number=-code), False
        reasons = {
            1: _("The worker failed unexpectedly."),
            2: _("The worker refused its input."),
            3: _("Memory ran out."),
            4: _("Cancelled."),
        }
        unknown = _("The worker ended with exit code {code}.").format(code=code)
        return reasons.get(code, unknown), code == 3

    def _read_events(self, stream) -> None:
        for line in stream:
            try:
                event = json.loads(line)
                event["event"]
            except (ValueError, KeyError, TypeError):
                self._log.append(line.decode(errors="replace").rstrip())
            else:
                self._events.put(event)

    def _read_log(self, stream) -> None:
        for line in stream:
            self._log.append(line.decode(errors="replace").rstrip())

    def _reading(self) -> bool:
        """Whether output may still come; a cancelled worker's children could keep the pipes open for ever."""
        return self._cancelled_at is None and any(thread.is_alive() for thread in self._readers)

    def _finish(self) -> None:
        process, self._process = self._process, None
        if self._cancelled_at is not None:
            _end_tree(process, self.pid, force=True)  # what the launcher left
        self.exit_code = 4 if self._cancelled_at is not None else process.returncode
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError, ValueError):
                stream.close()
        if self.exit_code not in (0, 4):
            logging.getLogger(__name__).info("worker's log:\n%s", self.log)

    def _escalate(self) -> None:
        if self._cancelled_at is None:
            return
        waited = time.monotonic() - self._cancelled_at
        if waited > TERMINATE_AFTER and self._signals_sent < 1:
            self._signals_sent = 1
            _end_tree(self._process, self.pid, force=False)
        if waited > KILL_AFTER and self._signals_sent < 2:
            self._signals_sent = 2
            _end_tree(self._process, self.pid, force=True)


def worker_environment() -> dict[str, str]:
    """The environment that Slicer was started in (its own libraries confuse others), with the backend's folder."""
    import slicer

    environment = dict(slicer.util.startupEnvironment())
    path = [str(backend_folder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}  # UTF-8: as its output is read
    return environment


def _end_tree(process: subprocess.Popen, pid: int | None, force: bool) -> None:
    """End a process with all it started: a launcher's death alone would leave the worker alive."""
    if os.name == "nt":
        # A request would go to windows, and it has none.
        for one in filter(None, (pid, process.pid)) if force else ():
            command = ["taskkill", "/PID", str(one), "/T", "/F"]
            hidden = {"stdin": subprocess.DEVNULL, "creationflags": subprocess.CREATE_NO_WINDOW}
            subprocess.run(command, capture_output=True, check=False, **hidden)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
