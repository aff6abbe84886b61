"""Whether a checkpoint belongs to the job at hand: a job that was killed continues, another one does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__, distributed
from ..config import Options
from ..errors import InputError
from ..reports import plain, read_json, write_json

CHECKPOINT, RECORD, OWNER, LOCK = "checkpoint.pt", "metrics.jsonl", "checkpoint.json", ".mapseg.lock"
_FREE = (
    "overwrite",
    "output",
    "scans",
    "images",
    "labels",
    "from_labels",
    "source",
    "source_labels",
    "source_from_labels",
    "domains",
)  # their files are compared instead
_FREE_OPTIONS = ("device", "threads")


@contextlib.contextmanager
def claim(folder: Path, job: Options, files: Iterable[Path]) -> Iterator[bool]:
    """Bind ``folder`` to a job and its input files; yields whether there is a checkpoint to continue from.

    A checkpoint of another job is removed where the job may overwrite. A block that ends well, or fails before its
    first checkpoint, leaves none. Of several processes, the first one does all this.

    Args:
        files: all that the result depends on, in an order of their own.

    Raises:
        InputError: the checkpoint or the record is another job's, or another run is using the folder.
    """
    lock = FileLock(folder / LOCK, timeout=0)  # the system frees it when a process is killed
    resumed = distributed.on_first(lambda: _bind(folder, job, files, lock))
    try:
        yield resumed
        if distributed.rank() == 0:
            release(folder)
    except BaseException:
        if distributed.rank() == 0 and not (folder / CHECKPOINT).exists():
            release(folder)
            (folder / RECORD).unlink(missing_ok=True)
        raise
    finally:
        if distributed.rank() == 0:
            (folder / f"{CHECKPOINT}.part").unlink(missing_ok=True)
            _unlock(folder, lock)


def _unlock(folder: Path, lock: FileLock) -> None:
    lock.release()
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()


def _bind(folder: Path, job: Options, files: Iterable[Path], lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by another run.", "Wait until it has ended, or choose another output."
        ) from error
    try:
        return _take(folder, job, files)
    except BaseException:
        _unlock(folder, lock)
        raise


def _take(folder: Path, job: Options, files: Iterable[Path]) -> bool:
    mine = plain(_fingerprint(job, files))
    owner, checkpoint = folder / OWNER, folder / CHECKPOINT
    theirs = _owner(owner)
    differing = [key for key in mine if theirs.get(key) != mine[key]]
    if not checkpoint.exists():
        if differing and (folder / RECORD).exists() and not job.overwrite:
            raise InputError(
                f"{folder} holds the record ({RECORD}) of another run.",
                "Choose another output, or allow overwriting (--overwrite).",
            )
    else:
        if differing and not job.overwrite:
            raise InputError(
                f"{folder} holds an unfinished run with other {' and '.join(differing)}.",
                "Repeat that command to continue it, or start afresh with --overwrite.",
            )
        if differing:
            checkpoint.unlink()
    write_json(owner, mine, overwrite=True)
    return checkpoint.exists()


def _owner(path: Path) -> dict[str, Any]:
    """What a checkpoint was made with; nothing where that cannot be read."""
    with contextlib.suppress(InputError):
        content = read_json(path, "a job")
        return content if isinstance(content, dict) else {}
    return {}


def release(folder: Path) -> None:
    """Remove a checkpoint and what says whose it is."""
    for name in (CHECKPOINT, OWNER):
        (folder / name).unlink(missing_ok=True)


def _fingerprint(job: Options, files: Iterable[Path]) -> dict[str, Any]:
    content = job.model_dump(mode="json", exclude=set(_FREE))
    options = content.pop("options")
    if "accumulate" in options:  # what counts is a step's number of micro-batches, whoever computes them
        options["accumulate"] *= distributed.world()
    stats = [(path, path.stat()) for path in files]
    return {
        "settings": content | {"version": __version__},
        "options": {key: value for key, value in options.items() if key not in _FREE_OPTIONS},
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }
