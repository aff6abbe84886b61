"""Whether a checkpoint belongs to the job at hand: a job that was killed continues, another one does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import distributed
from ..config import Options
from ..errors import InputError
from ..reports import plain, read_json, write_json

CHECKPOINT, RECORD, OWNER = "checkpoint.pt", "metrics.jsonl", "job.json"
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

    A checkpoint of another job is removed where the job may overwrite. A block that fails before its first
    checkpoint leaves nothing. Of several processes, the first one does all this.

    Raises:
        InputError: the checkpoint is another job's.
    """
    checkpoint = folder / CHECKPOINT
    resumed = distributed.on_first(lambda: _bind(folder, job, files))
    try:
        yield resumed
    except BaseException:
        if distributed.rank() == 0 and not checkpoint.exists():
            release(folder)
            (folder / RECORD).unlink(missing_ok=True)
        raise
    finally:
        if distributed.rank() == 0:
            (folder / f"{CHECKPOINT}.part").unlink(missing_ok=True)


def _bind(folder: Path, job: Options, files: Iterable[Path]) -> bool:
    mine = plain(_fingerprint(job, files))
    owner, checkpoint = folder / OWNER, folder / CHECKPOINT
    if checkpoint.exists():
        theirs = read_json(owner, "a job") if owner.exists() else {}
        differing = [key for key in mine if theirs.get(key) != mine[key]]
        if differing and not job.overwrite:
            raise InputError(
                f"{folder} holds an unfinished run with other {' and '.join(differing)}.",
                "Repeat that command to continue it, or start afresh with --overwrite.",
            )
        if differing:
            checkpoint.unlink()
    write_json(owner, mine, overwrite=True)
    return checkpoint.exists()


def release(folder: Path) -> None:
    """Remove a checkpoint and what says whose it is."""
    for name in (CHECKPOINT, OWNER):
        (folder / name).unlink(missing_ok=True)


def _fingerprint(job: Options, files: Iterable[Path]) -> dict[str, Any]:
    content = job.model_dump(mode="json", exclude=set(_FREE))
    options = content.pop("options")
    if "accumulate" in options:  # what counts is a step's number of micro-batches, whoever computes them
        options["accumulate"] *= distributed.world()
    stats = {str(path): path.stat() for path in files}
    return {
        "settings": content,
        "options": {key: value for key, value in options.items() if key not in _FREE_OPTIONS},
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
