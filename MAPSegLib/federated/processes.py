"""Who runs from a start kit on this machine: a small file that names the process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..errors import InputError
from ..reports import unwritable

_DRIFT = 5.0
"""Seconds by which the system may tell the start of a process differently after its clock was set."""


def owner(file: Path) -> psutil.Process | None:
    """The process that holds ``file``. One that was killed holds nothing, even where its number is in use again."""
    try:
        number, born = file.read_text().split()
        process = psutil.Process(int(number))
        same = abs(process.create_time() - float(born)) < _DRIFT
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return process if alive else None


def take(file: Path, patience: float = 0.0) -> None:
    """Make this process the holder of ``file``, for as long as it lives.

    Args:
        patience: seconds to wait for another holder to end.

    Raises:
        InputError: another process holds it, or the disk refuses.
    """
    end = time.monotonic() + patience
    while (other := owner(file)) is not None and other.pid != os.getpid():
        if time.monotonic() >= end:
            raise InputError(f"This start kit is in use by process {other.pid}.", "Stop that one first.")
        time.sleep(0.2)
    try:
        file.write_text(f"{os.getpid()} {psutil.Process().create_time()}")
    except OSError as error:
        raise unwritable(file, error) from error


@contextlib.contextmanager
def holding(file: Path) -> Iterator[None]:
    """Hold ``file`` for a while; see :func:`take`."""
    take(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def stop(process: psutil.Process, patience: float = 10.0) -> None:
    """End a process: asked first, killed when it does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(patience)
        except psutil.TimeoutExpired:
            process.kill()
