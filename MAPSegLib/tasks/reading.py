"""What a job tells while it reads many files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..jobs import Report

Item = TypeVar("Item")


def told(items: Sequence[Item], paths: Sequence[Path], report: Report) -> Iterator[Item]:
    """The items in order, the path of each told before it is asked for: who reads them need not know of reports."""
    for index, (item, path) in enumerate(zip(items, paths, strict=True)):
        report("progress", stage="read", scan=str(path), step=index, steps=len(items), seconds_left=None)
        yield item
