"""The one process behind every front end: ``python -m MAPSegLib.worker job.json``.

Events go to standard output as JSON lines (:mod:`MAPSegLib.jobs`), text to standard error, and the exit code says how
it ended (:mod:`MAPSegLib.errors`; 2 also when some scans failed and others did not). SIGINT and SIGTERM cancel: what
is complete stays, nothing half-written does, and a training or an adaptation keeps a checkpoint, if it has one. A line
``cancel`` on standard input does, too (Windows has no signals for it); with ``--attached`` the worker also ends when
its standard input does: whoever started it has died. A file ``stop`` beside the job file ends an adaptation with the
best step so far: not every launcher that a worker may be started by hands lines on.

``torchrun`` in the place of ``python`` shares a training out to several processes (:mod:`MAPSegLib.distributed`).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, distributed, windows
from .errors import Cancelled, InputError, MAPSegError, MemoryExhausted, Stopped
from .reports import STOP, plain, unusable

if TYPE_CHECKING:
    from .jobs import Emit, Job

_TASKS = {
    "segment": ("tasks.scans", "segment"),
    "adapt": ("tasks.scans", "adapt"),
    "train": ("tasks.training", "train"),
    "pretrain": ("tasks.pretraining", "pretrain"),
    "evaluate": ("tasks.evaluation", "evaluate"),
    "review": ("tasks.review", "review"),
    "manifest": ("tasks.material", "manifest"),
    "synthesise": ("tasks.material", "synthesise"),
    "import": ("tasks.material", "import_model"),
    "simulate": ("federated.simulation", "simulate"),
    "demo": ("tasks.material", "demo"),
}
_PATIENCE = 10.0
"""Seconds that a worker without its caller takes to end in good order."""
_log = logging.getLogger(__name__)
_signalled = threading.Event()


def run_job(job: Job, emit: Emit, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run a job of :mod:`MAPSegLib.jobs` in this process.

    Args:
        emit: receives every event; the last one is ``result``.
        stopped: asked between the steps of an adaptation; true keeps the best step so far.

    Returns:
        the result event.

    Raises:
        MAPSegError: the job failed as a whole. Scans that failed among others are in the result's ``failed``.
    """
    if distributed.world() > 1 and not _shared(job):
        raise InputError(
            f"The task {job.task} runs in one process; what several share is pretrain, train, and adapt with a source.",
            "Start it without torchrun.",
        )

    def report(event: str, **fields: Any) -> None:
        if _signalled.is_set():
            raise Cancelled("Cancelled.")
        emit({"event": event, **fields})
        if fields.get("stage") in ("search", "adapt") and stopped():
            raise Stopped

    module, function = _TASKS[job.task]
    run = getattr(import_module(f".{module}", __package__), function)
    result = {"event": "result", "task": job.task, **run(job, report)}
    emit(result)
    return result


def execute(load_job: Callable[[], Job], emit: Emit, stopped: Callable[[], bool] = lambda: False) -> int:
    """Run a job to its exit code: failures become ``error`` events, signals cancel.

    Of several processes (:mod:`MAPSegLib.distributed`), the first one tells the events.

    Args:
        load_job: gives the job; what it raises is told like any other failure.
    """
    with _cancelling():
        try:
            distributed.join()

            def tell(event: dict[str, Any]) -> None:
                if event["event"] == "result":  # all is done and written: too late to cancel
                    _signalled.set()
                if distributed.rank() == 0:
                    emit(event)

            result = run_job(load_job(), tell, stopped)
            distributed.leave()
            # torchrun would take a 2 for a process that died, and start again what has its result
            return 2 if result["failed"] and distributed.world() == 1 else 0
        except (KeyboardInterrupt, Cancelled) as failure:
            error: MAPSegError = Cancelled("Cancelled.", getattr(failure, "advice", ""))
            # CPython notes an interrupt inside a library's exec() of a text as unhandled, and would end the process
            # by SIGINT instead of our exit code; the next exec() of a text clears the note.
            exec("")
        except Exception as failure:
            error = explained(failure)
        _signalled.set()  # what is left is quick, and is not interrupted
        with suppress(Cancelled):  # raised where nobody reads any more
            distributed.tell_once(lambda: emit({"event": "error", **error.record()}))
        return error.exit_code


def explained(failure: Exception) -> MAPSegError:
    """A failure as one that is told in a sentence: itself, or what stands for one that nobody on the way expected."""
    if isinstance(failure, MAPSegError):
        return failure
    if distributed.is_lost(failure):
        _log.warning("%s", failure)
        return MAPSegError(
            "Another process of this run has ended, or cannot be reached.", "See the output of torchrun."
        )
    if isinstance(failure, OSError) and failure.filename:
        _log.info("%s", failure, exc_info=failure)
        return unusable(failure)
    exhausted = isinstance(failure, MemoryError)
    if not exhausted and "torch" in sys.modules:
        from .devices import is_out_of_memory

        exhausted = is_out_of_memory(failure)
    if exhausted:
        _log.info("%s", failure, exc_info=failure)
        return MemoryExhausted("Memory ran out.", "Close other programs.")
    _log.exception("unforeseen failure", exc_info=failure)
    text = f"Unforeseen failure, {type(failure).__name__}: {failure}".rstrip(".") + "."
    return MAPSegError(text, "Please report it with the log above.")


def _shared(job: Job) -> bool:
    """Whether several processes can do a job together."""
    return job.task in ("pretrain", "train") or (job.task == "adapt" and job.has_source)


@contextmanager
def _cancelling() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt, which no ``except Exception`` on the way can swallow."""
    cancelled = False

    def interrupt(*_: object) -> None:
        nonlocal cancelled
        cancelled = True
        if not _signalled.is_set():  # once: cleaning up must not be interrupted
            _signalled.set()
            raise KeyboardInterrupt

    _signalled.clear()
    in_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            # This process ends now with an exit code of its own, which a second Ctrl-C would change, and so would
            # torchrun, which ends all processes when the first one has.
            ending = cancelled or distributed.world() > 1
            signal.signal(number, signal.SIG_IGN if ending else handler)
        _signalled.clear()  # for what runs in this process later


def listen_for_stop() -> Callable[[], bool]:
    """Watch standard input for an empty line in the background; the result tells whether it came."""
    heard = threading.Event()

    def listen() -> None:
        for line in _lines():
            if not line:
                heard.set()
                return

    _allow_background()
    threading.Thread(target=listen, daemon=True).start()
    return heard.is_set


def listen_for_cancel(attached: bool) -> None:
    """Obey the line ``cancel`` of standard input.

    Args:
        attached: whether its end cancels, too.
    """

    def listen() -> None:
        for line in _lines():
            if line == b"cancel":
                interrupt_main()
        if attached:
            interrupt_main()
            time.sleep(_PATIENCE)
            os._exit(Cancelled.exit_code)

    _allow_background()
    threading.Thread(target=listen, daemon=True).start()


def _lines() -> Iterator[bytes]:
    """The lines of standard input. Not sys.stdin's: a thread that waits there keeps the interpreter from ending."""
    text = b""
    with suppress(OSError):
        while more := _read():
            *lines, text = (text + more).replace(b"\r", b"").split(b"\n")
            yield from lines


def _read() -> bytes:
    windows.wait_for_input()
    return os.read(0, 4096)


def _allow_background() -> None:
    """Let reading fail in a background job of a shell, where it would stop the process as if by Ctrl-Z."""
    if hasattr(signal, "SIGTTIN"):
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """Run the job file named on the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    files = [argument for argument in arguments if argument != "--attached"]
    if len(files) != 1:
        print("usage: python -m MAPSegLib.worker [--attached] job.json", file=sys.stderr)
        return 2
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Only events go to the caller: what any library prints joins the log.
    lines = os.dup(1)
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        line = json.dumps(plain(event), ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(lines, line) :]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # the second one is what Windows may say
                raise
            raise Cancelled("Nobody reads the events any more.") from error

    def load():
        # Only now: an order that came before execute() is ready for it would end in a traceback.
        if distributed.rank() == 0:  # all processes of torchrun read the same input
            emit({"event": "started", "pid": os.getpid(), "version": __version__})
            listen_for_cancel(len(files) < len(arguments))
        from .jobs import parse_job

        return parse_job(files[0])

    return execute(load, emit, Path(files[0]).with_name(STOP).exists)


if __name__ == "__main__":
    distributed.end(main())
