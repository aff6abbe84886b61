"""Progress over files that are read, or worked on, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..jobs import Report

Item = TypeVar("Item")


def track(
    items: Sequence[Item], report: Report, paths: Sequence[Path] | None = None, stage: str = "read"
) -> Iterator[Item]:
    """The items in order; ``report`` gets ``progress`` before each, so that whoever takes them need not know of it.

    Args:
        paths: of the scan that each item belongs to, where it is not its own path.
        stage: what is done to them.
    """
    for index, (item, path) in enumerate(zip(items, paths or items, strict=True)):
        report("progress", stage=stage, scan=str(path), step=index, steps=len(items), seconds_left=None)
        yield item
