"""Tables from cells: mean ± deviation over seeds, the share of the gap closed, and what the gate did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import claims
from ..claims import HARM
from .tasks import ADAPTING, METHODS

Cells = Sequence[dict[str, Any]]

MAIN_HEADER = ["method", "seeds", "Dice", "HD95 (mm)", "gap closed", "not found", "training", "peak memory"]
GATE_HEADER = [
    "method",
    "results",
    "adapted kept",
    "gain of gated",
    "gated > 1 below its start",
    "worst",
    "ungated > 1 below its start",
    "worst",
    "gated > 1 below source-only",
    "worst",
]


def lines(cells: Cells) -> list[tuple[str, list[dict], str]]:
    """The lines of the main table: name, cells by seed, and which of their results; those without cells left out."""
    found = []
    for method in METHODS:
        of_method = sorted((c for c in cells if c["method"] == method), key=lambda c: c["seed"])
        if of_method:
            found.append((method, of_method, "final"))
            if method in ADAPTING:
                found.append((f"{method}, ungated", of_method, "adapted"))
    return found


def values(scores: Iterable[dict], measure: str, structure: str | None = None) -> np.ndarray:
    """``measure`` of every scan and structure, or of one; NaN where it is undefined."""
    return np.array([v for s in scores for k, v in s[measure].items() if structure in (None, k)], dtype=float)


def seed_means(cells: Cells, result: str, measure: str, structure: str | None = None) -> list[float]:
    """A mean per seed, Dice as a percentage; NaN where nothing is defined."""
    factor = 100 if measure == "dice" else 1
    found = [values(cell["results"][result], measure, structure) for cell in cells]
    return [factor * float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for v in found]


def spread(numbers: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample deviation of those that are defined."""
    known = [n for n in numbers if not np.isnan(n)]
    if not known:
        return "–"
    mean = f"{np.mean(known):.{digits}f}"
    return f"{mean} ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else mean


def mean_of_known(numbers: Iterable[float | None]) -> float:
    """Mean of those that are defined; NaN without any."""
    known = [n for n in numbers if n is not None and not np.isnan(n)]
    return float(np.mean(known)) if known else np.nan


def less_by_seed(own: Cells, others: Cells) -> list[float]:
    """Dice points of every seed's mean, less that of the others' same seed, for seeds that both have."""
    whole = dict(zip((c["seed"] for c in others), seed_means(others, "final", "dice"), strict=True))
    dice = seed_means(own, "final", "dice")
    return [d - whole[c["seed"]] for d, c in zip(dice, own, strict=True) if c["seed"] in whole]


def comparison(cells: Cells, names: Iterable[str], whole: str) -> list[list[str]]:
    """A line per method: its name, seeds, Dice, HD95, and Dice less that of the method ``whole``."""
    table, others = [], [cell for cell in cells if cell["method"] == whole]
    for name in names:
        own = [cell for cell in cells if cell["method"] == name]
        if own:
            dice, distance = (spread(seed_means(own, "final", measure)) for measure in ("dice", "hd95"))
            less = "" if name == whole else spread(less_by_seed(own, others))
            table.append([name, str(len(own)), dice, distance, less])
    return table


def gap_closed(cells: Cells, own: Cells, result: str) -> str:
    """Share of the way from source-only to target-supervised, of the means over the seeds that all three have."""
    named = {
        name: {c["seed"]: c for c in cells if c["method"] == name}
        for name in ("source-only", "target-supervised")
    }
    seeds = set.intersection(*map(set, named.values()), {c["seed"] for c in own})
    if not seeds:
        return "–"
    low, high = (
        float(np.mean(seed_means([of_method[s] for s in seeds], "final", "dice")))
        for of_method in named.values()
    )
    reached = np.mean(seed_means([c for c in own if c["seed"] in seeds], result, "dice"))
    return f"{100 * (reached - low) / (high - low):.0f} %" if high > low else "no gap"


def main_table(cells: Cells) -> list[list[str]]:
    """A line per method, and one per adaptation without its gate."""
    table = []
    for name, own, result in lines(cells):
        distances = np.concatenate([values(cell["results"][result], "hd95") for cell in own])
        # The clock of a training that was killed and continued has not seen all of it.
        seconds = [cell["seconds"] for cell in own if not cell["continued"]]
        table.append(
            [
                name,
                str(len(own)),
                spread(seed_means(own, result, "dice")),
                spread(seed_means(own, result, "hd95")),
                gap_closed(cells, own, result),
                f"{100 * np.isnan(distances).mean():.0f} %",
                f"{np.mean(seconds):.0f} s" if seconds else "–",
                f"{max(cell['peak_gb'] for cell in own):.2f} GiB",
            ]
        )
    return table


def structure_table(cells: Cells, structures: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Header and a line per structure: Dice / HD95 of every method, gated where there is a gate."""
    gated = [(name, own) for name, own, result in lines(cells) if result == "final"]
    table = []
    for structure in structures:
        line = [structure]
        for _, own in gated:
            dice, distance = (spread(seed_means(own, "final", m, structure)) for m in ("dice", "hd95"))
            line.append(f"{dice} / {distance}")
        table.append(line)
    return ["structure", *(name for name, _ in gated)], table


def gate_table(cells: Cells) -> list[list[str]]:
    """A line per adaptation, over test scans and seeds: how often, and how far, results end below a baseline's.

    Its start is the model that the gate falls back on. Neither that nor source-only has the steps of the adaptation.
    """
    table = []
    plain = {c["seed"]: c["results"]["final"] for c in cells if c["method"] == "source-only"}
    for name, own, result in lines(cells):
        if name not in ADAPTING:
            continue
        chosen = [choice for cell in own for choice in cell["chosen"]]
        start = _differences((cell["results"][result], cell["results"]["start"]) for cell in own)
        free = _differences((cell["results"]["adapted"], cell["results"]["start"]) for cell in own)
        only = _differences(
            (cell["results"][result], plain[cell["seed"]]) for cell in own if cell["seed"] in plain
        )
        kept = chosen.count("adapted")
        harm = [text for difference in (start, free, only) for text in _harm(difference)]
        table.append([name, str(len(chosen)), f"{kept}/{len(chosen)}", f"{np.mean(start):+.1f}", *harm])
    return table


def claims_table(cells: Cells) -> list[list[str]]:
    """What the label-free measures, the gate and the verdict are worth, over all results on the test scans.

    A result that several methods share, or several seeds, counts once, as the first of them measured it: a source
    model's is the start of all that adapt it, and what keeps its start ends with it.
    """
    results: dict[tuple, claims.Result] = {}
    choices = []
    for _, own, result in lines(cells):
        for cell in own:
            found = cell["results"]
            for name in ("start", "adapted") if "start" in found else ("final",):
                for scan in found[name]:
                    # the same labels, whoever made them
                    key = (scan["scan"], *scan["dice"].values(), *scan["hd95"].values())
                    told = claims.Result(_mean_dice(scan), scan["measures"], scan["trusted"])
                    results.setdefault(key, told)
            if result == "adapted":
                for kept, before, after in zip(cell["chosen"], found["start"], found["adapted"], strict=True):
                    pair = (_mean_dice(after), _mean_dice(before))
                    choices.append(pair if kept == "adapted" else pair[::-1])
    supervised = [c for c in cells if c["method"] == "target-supervised"]
    whole = float(np.mean(seed_means(supervised, "final", "dice"))) / 100 if supervised else None
    return claims.table(list(results.values()), choices, whole)


def _mean_dice(scan: dict) -> float:
    return float(np.nanmean(values([scan], "dice")))


def _differences(pairs: Iterable[tuple[list[dict], list[dict]]]) -> np.ndarray:
    """Dice points of each scan's mean over structures, the first of a pair minus the second."""
    return np.array(
        [
            100 * (_mean_dice(one) - _mean_dice(other))
            for ours, theirs in pairs
            for one, other in zip(ours, theirs, strict=True)
        ]
    )


def _harm(differences: np.ndarray) -> tuple[str, str]:
    if not len(differences):
        return "–", "–"
    return f"{(differences < -HARM).sum()}/{len(differences)}", f"{differences.min():+.1f}"
