"""What a job tells while it reads many files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..jobs import Report

Item = TypeVar("Item")


def told(
    items: Sequence[Item], report: Report, paths: Sequence[Path] | None = None, stage: str = "read"
) -> Iterator[Item]:
    """The items in order, each told before it is given: who reads them need not know of reports.

    Args:
        paths: what is told of each item, where that is not its own path.
        stage: what is done to them.
    """
    for index, (item, path) in enumerate(zip(items, paths or items, strict=True)):
        report("progress", stage=stage, scan=str(path), step=index, steps=len(items), seconds_left=None)
        yield item
