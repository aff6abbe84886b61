"""Which of several models suits a scan: the one whose result has the best label-free score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config import InferenceOptions, Preprocessing
from ..models import ModelCard, load_model, members

if TYPE_CHECKING:
    from ..inference import Progress
    from ..networks.segmenter import Segmenter
    from ..preprocessing import Scan
    from ..quality import Looks
    from ..volumes import Volume

    Prepared = Mapping[Preprocessing, Scan]


class Candidate(NamedTuple):
    """A model, its card and its file."""

    model: Segmenter
    card: ModelCard
    path: Path


class View(NamedTuple):
    """A scan as a model takes it, what a quick look makes of it, and the score of that."""

    scan: Scan
    looks: Looks
    score: float


def load_candidates(path: Path, device: str) -> list[Candidate]:
    """The models that a model file stands for, mostly one. Raises InputError as :func:`~MAPSegLib.models.members`."""
    return [Candidate(*load_model(file, device), file) for file in members(path)]


def prepared(candidates: Sequence[Candidate], volume: Volume) -> Prepared:
    """A scan as the candidates take it, mostly all alike.

    Raises:
        InputError: one of them cannot take it (as :func:`~MAPSegLib.preprocessing.prepare`).
    """
    from ..preprocessing import prepare

    return {known: prepare(volume, known) for known in {card.preprocessing for _, card, _ in candidates}}


def view(
    candidates: Sequence[Candidate],
    scans: Prepared,
    options: InferenceOptions,
    progress: Progress | None = None,
) -> list[View]:
    """How each candidate sees a scan.

    Args:
        scans: of :func:`prepared`.
        progress: told looks at windows done and all of them, those of each model taken for as many.
    """
    from ..quality import assess, look_twice

    views = []
    for number, (model, card, _) in enumerate(candidates):
        scan = scans[card.preprocessing]

        def part(done: int, total: int, number: int = number) -> None:
            progress(number * total + done, len(candidates) * total)

        mm = scan.grid.working_spacing
        looks = look_twice(model, card.labels, scan.image, mm, options, progress and part)
        views.append(View(scan, looks, assess(card, looks, mm).measures["score"]))
    return views


def choose(candidates: Sequence[Candidate], scores: Sequence[float]) -> tuple[int, str]:
    """Which candidate has the best score, and a sentence that says so; none for a single one."""
    best = max(range(len(candidates)), key=scores.__getitem__)
    if len(candidates) == 1:
        return best, ""
    told = ", ".join(f"{c.card.name} {score:.2f}" for c, score in zip(candidates, scores, strict=True))
    return best, f"Segmented with {candidates[best].card.name} (score: {told})."


def choose_for_all(
    candidates: Sequence[Candidate], several: Sequence[Prepared], options: InferenceOptions
) -> tuple[int, str]:
    """:func:`choose` by the mean over several scans, each of :func:`prepared`."""
    if len(candidates) == 1:
        return choose(candidates, [0.0])
    scores = [[one.score for one in view(candidates, scans, options)] for scans in several]
    return choose(candidates, [sum(each) / len(several) for each in zip(*scores, strict=True)])
