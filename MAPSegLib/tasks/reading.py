"""Progress over files that are read, or worked on, one after the other."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..jobs import Report
from ..reports import first_few

Item = TypeVar("Item")
_NUMBER = re.compile(r"\d[\d.]*(e[+-]\d+)?")


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


def tell_notes(notes: Mapping[str, Collection[Path]], report: Report, settled: bool = False) -> list[str]:
    """Tell what is to know of scans to learn from, and return it: a line for all files of which alike is to know.

    Args:
        settled: the modality is that of a model to start from.
    """
    from ..levels import LIKE_CT, UNLIKE_CT
    from ..preprocessing import COARSE, FINE

    advice = dict.fromkeys((COARSE, FINE), " --spacing chooses others.")
    if not settled:
        advice |= dict.fromkeys((LIKE_CT, UNLIKE_CT), " --modality says which it is.")
    kinds: dict[str, list[tuple[str, str]]] = {}
    for note, files in notes.items():
        kinds.setdefault(_NUMBER.sub("#", note), []).extend((path.name, note) for path in files)
    lines = []
    for found in map(sorted, kinds.values()):
        (first, note), names = found[0], [name for name, _ in found]
        others = any(other != note for _, other in found)
        more = f" These are the numbers of {first}." if others else advice.get(note, "")
        lines.append(f"{first_few(names)}: {note}{more}")
        report("log", message=lines[-1])
    return lines
