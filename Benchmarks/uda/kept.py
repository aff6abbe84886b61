"""The scores behind the tables, scan by scan: a file of a task's cells, one line of JSON per method and seed.

It lies in the repository, so that anyone can test other hypotheses on it, and seeds can be added on another day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from MAPSegLib.reports import plain, write_text

from .tasks import METHODS

FOLDER = Path(__file__).parent / "cells"
DIGITS = 4


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a file; none where there is no file."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def write(path: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Put cells in place of a file's, ordered by method and seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(cells, key=lambda cell: (METHODS.index(cell["method"]), cell["seed"]))
    text = "".join(json.dumps(cell, ensure_ascii=False, separators=(",", ":")) + "\n" for cell in order)
    write_text(path, text, overwrite=True)


def rounded(content: Any) -> Any:
    """The same with numbers of :data:`DIGITS` digits behind the point, and None for NaN."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, DIGITS) if isinstance(content, float) else content


def added(
    path: Path, cells: Sequence[dict[str, Any]], settings: Callable[[str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """``cells``, and those of the file that are of other methods and seeds and were made with the same options.

    Args:
        settings: the options of a method and seed today.
    """
    own = {(cell["method"], cell["seed"]) for cell in cells}
    others = [cell for cell in read(path) if (cell["method"], cell["seed"]) not in own]
    return [*cells, *(c for c in others if c["settings"] == plain(settings(c["method"], c["seed"])))]
