"""Which of several models suits a scan: the one whose result has the best label-free score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config import InferenceOptions
from ..models import ModelCard, load_model, members

if TYPE_CHECKING:
    from ..networks.segmenter import Segmenter
    from ..volumes import Volume


class Candidate(NamedTuple):
    """A model, its card and its file."""

    model: Segmenter
    card: ModelCard
    path: Path


def load_candidates(path: Path, device: str) -> list[Candidate]:
    """The models that a model file stands for, mostly one. Raises InputError as :func:`~MAPSegLib.models.members`."""
    return [Candidate(*load_model(file, device), file) for file in members(path)]


def choose(
    candidates: Sequence[Candidate], volumes: Sequence[Volume], options: InferenceOptions
) -> tuple[Candidate, str]:
    """The candidate with the best score, mean over the scans, and a sentence that says so; none for a single one.

    Raises:
        InputError: a scan cannot be segmented by any model (empty, or two-dimensional).
    """
    if len(candidates) == 1:
        return candidates[0], ""
    from ..preprocessing import prepare
    from ..quality import assess_scan

    scores = []
    for model, card, _ in candidates:
        prepared = (prepare(volume, card.preprocessing) for volume in volumes)
        verdicts = [assess_scan(model, card, scan, options)[0] for scan in prepared]
        scores.append(sum(verdict.measures["score"] for verdict in verdicts) / len(verdicts))
    best = max(range(len(candidates)), key=scores.__getitem__)
    told = ", ".join(f"{c.card.name} {score:.2f}" for c, score in zip(candidates, scores, strict=True))
    return candidates[best], f"Segmented with {candidates[best].card.name} (score: {told})."
