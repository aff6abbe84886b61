"""Whether a checkpoint belongs to the job at hand: a job that was killed continues, another one does not."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .. import __version__, distributed, windows
from ..config import Options
from ..errors import Cancelled, InputError
from ..reports import CHECKPOINT, PART, RECORD, plain, read_json, remove_leftovers, write_json
from ..volumes import may_be_slice

OWNER, LOCK = "checkpoint.json", ".mapseg.lock"
# What a job may differ in, as the files are compared instead.
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
    "model",
    "init",
)
_FREE_OPTIONS = ("device", "threads")
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def claim(folder: Path, job: Options, files: Iterable[Path], results: Iterable[Path] = ()) -> Iterator[bool]:
    """Bind ``folder`` to a job and its input files; yields whether there is a checkpoint to continue from.

    A checkpoint of another job is removed where the job may overwrite. A block that ends well, or fails before its
    first checkpoint, leaves none; one that is cancelled is told (``advice``) whether it left one. Of several
    processes, the first one does all this.

    Args:
        files: all that the result depends on, in an order of their own.
        results: what the job will write, beside which a killed one may have left temporary files.

    Raises:
        InputError: the checkpoint or the record is another job's, or another run is using the folder.
    """
    with contextlib.ExitStack() as held:
        resumed = distributed.on_first(lambda: _bind(folder, job, files, results, held))
        try:
            yield resumed
            if distributed.rank() == 0:
                release(folder)
        except BaseException as error:
            if distributed.rank() == 0:
                kept = (folder / CHECKPOINT).exists()
                if not kept:
                    release(folder)
                    windows.remove(folder / RECORD)
                if isinstance(error, (KeyboardInterrupt, Cancelled)):
                    error.advice = "The same command continues." if kept else "Nothing was kept."
            raise
        finally:
            if distributed.rank() == 0:
                windows.remove(folder / f"{CHECKPOINT}{PART}")


def _bind(
    folder: Path, job: Options, files: Iterable[Path], results: Iterable[Path], held: contextlib.ExitStack
) -> bool:
    """Lock ``folder`` for as long as ``held`` lives, and check what lies in it; whether there is a checkpoint."""
    held.enter_context(alone(folder / LOCK))
    remove_leftovers([folder / OWNER, folder / RECORD, *results])
    mine = fingerprint(job, files)
    owner, checkpoint = folder / OWNER, folder / CHECKPOINT
    theirs = _owner(owner)
    differing = any(theirs.get(key) != mine[key] for key in mine)
    if differing and not job.overwrite:
        if checkpoint.exists():
            told = "other settings"  # as far as can be told of a record that is damaged
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                told = differences(theirs, mine, "other files")
            raise InputError(
                f"{folder} holds an unfinished run with {told}.",
                "Repeat that command to continue it, or start afresh with --overwrite.",
            )
        if (folder / RECORD).exists():
            raise InputError(
                f"{folder} holds the record ({RECORD}) of another run.",
                "Choose another output, or allow overwriting (--overwrite).",
            )
    if differing:
        windows.remove(checkpoint)
    write_json(owner, mine, overwrite=True)
    return checkpoint.exists()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file, to keep other runs out. The system lets them in again when this process dies.

    Raises:
        InputError: another run holds it.
    """
    file = _locked(path)
    try:
        yield
    finally:
        if os.name == "nt":  # which removes no open file
            file.close()
        with contextlib.suppress(OSError):
            path.unlink()  # elsewhere while it is held: it cannot be another run's
        file.close()


def _locked(path: Path) -> IO[bytes]:
    """The file, open and locked; not locked where the file system knows no locks, as some shared ones."""
    while True:
        file = path.open("ab")
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                file.close()
                raise InputError(
                    f"{path.parent} is in use by another run.",
                    "Wait until it has ended, or choose another output.",
                ) from error
            _log.warning("%s cannot be locked: start no second run in it.", path.parent)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # whoever held it has just removed it


def _owner(path: Path) -> dict[str, Any]:
    """What a checkpoint was made with; nothing where that cannot be read."""
    with contextlib.suppress(InputError):
        content = read_json(path, "a job")
        return content if isinstance(content, dict) else {}
    return {}


def release(folder: Path) -> None:
    """Remove a checkpoint and what says whose it is."""
    for name in (CHECKPOINT, OWNER):
        windows.remove(folder / name)


def fingerprint(job: Options, files: Iterable[Path]) -> dict[str, Any]:
    """What a job's results depend on: settings and options that count, and the files' sizes and times."""
    content = job.model_dump(mode="json", exclude=set(_FREE))
    options = content.pop("options")
    if "accumulate" in options:  # what counts is a step's number of micro-batches, whoever computes them
        options["accumulate"] *= distributed.world()
    known = {
        "settings": content | {"version": __version__},
        "options": {key: value for key, value in options.items() if key not in _FREE_OPTIONS},
        "files": [[str(path), *stamp(path)] for path in files],
    }
    return plain(known)


def differences(then: dict[str, Any], now: dict[str, Any], files: str) -> str:
    """What another job had otherwise (:func:`fingerprint`), for a message that calls other files ``files``."""
    version = then["settings"]["version"]
    others = [f"another version of MAPSeg ({version})"] if version != now["settings"]["version"] else []
    pairs = [(then[part], now[part]) for part in ("settings", "options")]
    names = {name for one, other in pairs for name in one.keys() | other if one.get(name) != other.get(name)}
    if names := sorted(names - {"version"}):
        others.append(f"other {', '.join(names)}")
    if then["files"] != now["files"]:
        others.append(files)
    return " and ".join(others)


def stamp(path: Path) -> list[int]:
    """Size, and time of the last change, of a file; of all slices in a folder. Raises OSError."""
    stats = [each.stat() for each in (filter(may_be_slice, path.iterdir()) if path.is_dir() else [path])]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]
