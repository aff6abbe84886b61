"""What is claimed of results without labels, held against their Dice: measures, the gate and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

HARM = 1.0
"""Dice points (%) that count as a difference."""
HEADER = ["claim", "cases", "found"]


@dataclass(frozen=True)
class Result:
    """One result: Dice (0 to 1), the measures that need no labels, and whether the verdict trusts it."""

    dice: float
    measures: dict[str, float | None]
    trusted: bool | None = None


def table(
    results: Sequence[Result], choices: Iterable[tuple[float, float]], whole: float | None
) -> list[list[str]]:
    """A line per claim.

    Args:
        choices: Dice of what the gate kept and of what it left.
        whole: Dice of results as they should be; below half of it one counts as collapsed. None: not known.
    """
    names = list(dict.fromkeys(name for result in results for name in result.measures))
    lines = [_correlation(results, name) for name in names]
    if whole is not None:  # of both kinds together, a measure that merely tells what has collapsed does well
        sound = [result for result in results if result.dice >= whole / 2]
        lines.append(_correlation(sound, "score", ", collapsed left out"))
    harm = np.array([100 * (left - kept) for kept, left in choices if kept != left])
    if len(harm):
        right = f"{(harm <= HARM).sum()}/{len(harm)}"
        lines.append(
            [
                f"gate: kept result at most {HARM:g} point below the other, where they differ",
                str(len(harm)),
                right,
            ]
        )
    judged = [result for result in results if result.trusted is not None]
    if judged and whole is not None:
        fallen = [r for r in judged if r.dice < whole / 2]
        others = [r for r in judged if r.dice >= whole / 2]
        for name, group in (("collapsed, called untrusted", fallen), ("others, called untrusted", others)):
            count = sum(not r.trusted for r in group)
            lines.append([f"verdict: {name}", str(len(group)), f"{count}/{len(group)}"])
    return lines


def _correlation(results: Sequence[Result], name: str, which: str = "") -> list[str]:
    from scipy.stats import spearmanr

    pairs = [(r.measures.get(name), r.dice) for r in results]
    known = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2)
    known = known[np.isfinite(known).all(1)]
    varied = len(known) > 2 and all(len(set(column)) > 1 for column in known.T)
    found = f"{spearmanr(*known.T).statistic:.2f}" if varied else "–"
    return [f"{name} follows Dice (Spearman){which}", str(len(known)), found]
