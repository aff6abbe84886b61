"""What can be said of a result without a reference: agreement, plausibility, and the verdict built on them.

Confidence and the loss follow the true Dice badly: adaptation trains on them. So results are judged by agreement with
the result on a transformed scan, and by whether the structures have the shapes of the source's. Where the labels name
their mirror images, the scan is mirrored, which adaptation never shows. Elsewhere it is turned and made smaller. That
is the weaker judge, as adaptation beside a source shows such scans, too; so there it also counts whether borders lie
where the scan changes. (The search for a first curve does maximise all this.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import augmentation as aug
from .borders import border_contrast
from .config import InferenceOptions, Label
from .inference import Progress, predict_classes
from .networks.segmenter import Segmenter, mirrored_classes
from .preprocessing import Scan
from .shapes import shape_deviation

if TYPE_CHECKING:
    from .models import ModelCard

PLAUSIBILITY_WEIGHT = 0.05
"""How much agreement one deviation of the mean shape weighs."""
BORDER_WEIGHT = 0.1
"""How much agreement it weighs that a scan changes e times as much at borders as inside structures."""
FEWEST_SCANS = 5
"""From so many scans on, their gains count together: see :func:`needed_gain`."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TURN, SHRINK = 15.0, 1.2
"""Degrees about the second axis, and a factor: of the scan that a result is compared with where nothing is mirrored."""
LOWEST, HIGHEST = 0.3, 5.0
"""Agreement and shape deviation beyond which no result is trusted, nor any of a model whose limits lie there."""
UNSEEN = -1
"""Class index of voxels that a transformed scan does not hold: the corners of its box, when it was turned."""
QUICK = {"overlap": 0.0, "mirror": False}
"""Windows of a check: as few as cover the scan show agreement as well as overlapping ones, in a third of the time."""


@dataclass(frozen=True)
class Assessment:
    """Whether a result can be trusted, and why, in one sentence.

    ``measures``: ``agreement`` (mean Dice with the result on the transformed scan, 0 to 1), ``shape_deviation``
    (:func:`~MAPSegLib.shapes.shape_deviation` from the source's; absent when the model states no shapes),
    ``border_contrast`` (:func:`~MAPSegLib.borders.border_contrast`; absent where the transformed scan is the mirrored
    one) and ``score``, which combines them. In the score, structures that are missing count although the source's
    scans often lack them: it compares results of one scan.
    """

    trusted: bool
    reason: str
    measures: dict[str, float] = field(default_factory=dict)


def class_dice(a: Tensor, b: Tensor, classes: int) -> Tensor:
    """Dice of two maps of class indices, per class; NaN where neither has it. Float64 (classes,)."""
    a, b = a.flatten().long(), b.flatten().long()
    both = torch.bincount(a[a == b], minlength=classes).double()
    total = (torch.bincount(a, minlength=classes) + torch.bincount(b, minlength=classes)).double()
    return torch.where(total > 0, 2 * both / total, math.nan)


def agreement(labels: Sequence[Label], one: Tensor, other: Tensor, priors: dict) -> float:
    """Mean Dice of two maps of class indices over the structures.

    A structure that the source has (``priors["extents"]``; all where a card states none) counts as 0 where neither
    map holds it: a result with next to nothing in it must not pass for a consistent one. Any other is left out there,
    and so are those that the source's scans often lack (``priors["often_absent"]``).
    Voxels of ``other`` below 0 (:data:`UNSEEN`) are not compared, nor structures that lie among them alone.
    """
    seen = other != UNSEEN
    dice = class_dice(one[seen], other[seen], len(labels) + 1)[1:]
    known = priors.get("extents")
    missing = torch.bincount(one.flatten().long(), minlength=len(labels) + 1)[1:] == 0
    absent = priors.get("often_absent", ())
    expected = torch.tensor(
        [(not known or str(label.value) in known) and label.value not in absent for label in labels]
    )
    return float(dice.masked_fill(dice.isnan() & expected & missing, 0.0).nanmean().nan_to_num(0.0))


@dataclass(frozen=True)
class Transformation:
    """What results are compared under: the way of an image there, and of its class indices back."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def transformation(labels: Sequence[Label], shape: Sequence[int], spacing: Sequence[float]) -> Transformation:
    """The mirrored scan where ``labels`` name their mirror images, else the scan turned and made smaller.

    Args:
        shape: of the image, whose first axis runs left to right.
        spacing: mm.
    """
    twin = mirrored_classes(labels)
    if twin is not None:
        return Transformation(lambda image: image.flip(0), lambda seen: twin[seen.flip(0).long()])
    mm, shape = torch.tensor(spacing), tuple(shape)
    small = tuple(max(1, round(n / SHRINK)) for n in shape)
    matrix = SHRINK * aug.rotation((0.0, math.radians(TURN), 0.0))
    there = aug.warp_grid(small, matrix, mm, mm, shape)
    back = aug.warp_grid(shape, torch.linalg.inv(matrix), mm, mm, small)
    return Transformation(
        lambda image: aug.sample(image[None], there)[0],
        lambda seen: aug.sample(seen[None].float() - UNSEEN, back, "nearest")[0].round().long() + UNSEEN,
    )


def transformed_classes(
    model: Segmenter,
    labels: Sequence[Label],
    image: Tensor,
    options: InferenceOptions,
    spacing: Sequence[float],
    progress: Progress | None = None,
) -> Tensor:
    """What the model makes of the transformed scan, brought back: class indices (X, Y, Z), or :data:`UNSEEN`.

    Args:
        image: (X, Y, Z) on the working grid; the first axis runs left to right.
        spacing: of the working grid, mm.
    """
    way = transformation(labels, image.shape, spacing)
    return way.back(predict_classes(model, way.there(image), options, progress))


class Looks(NamedTuple):
    """What a model makes of a scan and of the transformed scan: class indices (X, Y, Z), as quick looks find them."""

    image: Tensor
    """The scan on the working grid, (X, Y, Z)."""
    plain: Tensor
    transformed: Tensor
    """Brought back; :data:`UNSEEN` where the transformed scan shows nothing."""


def measure(
    labels: Sequence[Label], looks: Looks, classes: Tensor, spacing: Sequence[float], priors: dict
) -> dict[str, float]:
    """The measures of an :class:`Assessment`.

    Args: looks at a scan, the result whose shapes and borders count, its spacing in mm, and the priors of a card.
    """

    def of(priors: dict) -> tuple[float, float | None]:
        return (
            agreement(labels, looks.plain, looks.transformed, priors),
            shape_deviation(labels, classes, spacing, priors),
        )

    reached, deviation = of(priors)
    measures = {"agreement": reached}
    if deviation is not None:
        measures["shape_deviation"] = deviation
    if priors.get("often_absent"):  # to the score, a structure that is lost is no gain
        reached, deviation = of(priors | {"often_absent": ()})
    score = reached - PLAUSIBILITY_WEIGHT * (deviation or 0.0)
    if mirrored_classes(labels) is None:
        measures["border_contrast"] = border_contrast(looks.image, classes, len(labels))
        score += BORDER_WEIGHT * measures["border_contrast"]
    return measures | {"score": score}


def needed_gain(gained: Sequence[float], margin: float) -> float:
    """How much a scan's score must gain for the gate to keep its adapted result.

    That is the margin, as one scan's score is rough. But where all scans adapted to together gain, the mean by more
    than twice its standard error, a scan that does not lose is one of them.

    Args:
        gained: of these scans' scores.
    """
    if len(gained) < FEWEST_SCANS:
        return margin
    error = statistics.stdev(gained) / math.sqrt(len(gained))
    return 0.0 if statistics.mean(gained) > 2 * error else margin


def better(before: Assessment, after: Assessment, needed: float) -> bool:
    """The gate: whether an adapted result gained the score that it needs, and loses no trust.

    Args: verdicts on the results of the source model and the adapted one, and :func:`needed_gain`.
    """
    gained = after.measures["score"] >= before.measures["score"] + needed
    return gained and (after.trusted or not before.trusted)


def judge(measures: dict[str, float], priors: dict) -> Assessment:
    """The verdict on measures, against what the model reached on its own domain (``priors["trust"]``)."""
    limits = priors.get("trust", {})
    if objection := _objection(measures, limits):
        return Assessment(False, f"Not to be trusted: {objection}.", measures)
    reached, own = measures["agreement"], "" if limits else " The model states no limits of its own."
    return Assessment(True, f"Consistent: agreement {reached:.2f} with the transformed scan.{own}", measures)


def unfit(limits: dict[str, float]) -> str:
    """Why, by its limits of trust, no result of a model is to be trusted: what it does on its own scans; or nothing."""
    if limits.get("agreement", 1.0) <= LOWEST:
        return "does not agree with itself"
    return "finds implausible shapes" if limits.get("shape_deviation", 0.0) >= HIGHEST else ""


def _objection(measures: dict[str, float], limits: dict[str, float]) -> str:
    """What speaks against a result first; empty where nothing does."""
    if what := unfit(limits):
        return f"on scans of its own domain the model {what}"
    floor, ceiling = limits.get("agreement", 0.6), limits.get("shape_deviation", 2.5)
    if (reached := measures["agreement"]) < floor:
        told = _apart(reached, floor, "expected at least", 2)
        return f"the transformed scan is segmented differently (agreement {told})"
    if (deviation := measures.get("shape_deviation", 0.0)) > ceiling:
        told = _apart(deviation, ceiling, "expected at most", 1)
        return f"structures have implausible shapes (deviations from the source's: {told})"
    floor, contrast = limits.get("border_contrast"), measures.get("border_contrast")
    if floor is not None and contrast is not None and contrast < floor:
        told = _apart(contrast, floor, "expected at least", 2)
        return f"the borders of structures lie where the scan hardly changes (contrast {told})"
    return ""


def _apart(found: float, limit: float, words: str, digits: int) -> str:
    """Both numbers, with as many digits as it takes to tell them apart."""
    while f"{found:.{digits}f}" == f"{limit:.{digits}f}" and digits < 6:
        digits += 1
    return f"{found:.{digits}f}, {words} {limit:.{digits}f}"


def look_twice(
    model: Segmenter,
    labels: Sequence[Label],
    image: Tensor,
    spacing: Sequence[float],
    options: InferenceOptions,
    progress: Progress | None = None,
) -> Looks:
    """Both looks at an image. A full result may be an average with the mirrored scan's: it would agree with anything.

    Args:
        progress: told windows done and all windows, those of the transformed image taken for as many as the image's.
    """
    quick = options.model_copy(update=QUICK)

    def part(number: int) -> Progress | None:
        return progress and (lambda done, total: progress(number * total + done, 2 * total))

    return Looks(
        image,
        predict_classes(model, image, quick, part(0)),
        transformed_classes(model, labels, image, quick, spacing, part(1)),
    )


def assess(
    card: ModelCard, looks: Looks, spacing: Sequence[float], classes: Tensor | None = None
) -> Assessment:
    """The verdict on a result by looks at its scan; on that of the plain look when ``classes`` is absent."""
    classes = looks.plain if classes is None else classes
    measures = measure(card.labels, looks, classes, spacing, card.priors)
    if not (classes > 0).any():
        return Assessment(False, "Not to be trusted: no structure was found.", measures)
    return judge(measures, card.priors)


def assess_scan(
    model: Segmenter,
    card: ModelCard,
    scan: Scan,
    options: InferenceOptions,
    classes: Tensor | None = None,
) -> tuple[Assessment, Tensor]:
    """:func:`assess_image` of a prepared scan."""
    return assess_image(model, card, scan.image, scan.grid.working_spacing, options, classes)


def assess_image(
    model: Segmenter,
    card: ModelCard,
    image: Tensor,
    spacing: Sequence[float],
    options: InferenceOptions,
    classes: Tensor | None = None,
) -> tuple[Assessment, Tensor]:
    """Judge a model on an image (X, Y, Z) of the working grid, whose first axis runs left to right.

    Args:
        spacing: of the image, mm.
        classes: the result to judge, class indices; a quick one when absent.

    Returns:
        the assessment, and the class indices it was made on.
    """
    looks = look_twice(model, card.labels, image, spacing, options)
    return assess(card, looks, spacing, classes), looks.plain if classes is None else classes


def trust_limits(measures: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a result must reach to be trusted: a little less than the worst of the model's own domain.

    Args:
        measures: of :func:`assess_scan` on several scans of the source domain.
    """
    limits = {"agreement": max(LOWEST, min(m["agreement"] for m in measures) - 0.15)}
    if all("shape_deviation" in m for m in measures):
        limits["shape_deviation"] = min(HIGHEST, max(m["shape_deviation"] for m in measures) + 0.75)
    if all("border_contrast" in m for m in measures):
        # Other contrasts show borders less: right results have half of it.
        limits["border_contrast"] = max(0.0, min(m["border_contrast"] for m in measures) / 3)
    return {name: round(value, 6) for name, value in limits.items()}


def intensity_profile(images: Iterable[Tensor]) -> dict[str, list]:
    """What the source's scans look like: quantiles of their foreground, mean and sample covariance over scans.

    A front end can tell by them, before anything is computed, that a scan is unlike those a model knows. Quantiles
    vary together, with gamma above all: without the covariance any bright scan would seem unlike.

    Args:
        images: prepared scans (X, Y, Z) in [0, 1], many more than there are quantiles.
    """
    wanted = torch.tensor(QUANTILES)
    rows = torch.stack(
        [image[image > 0][:: max(1, image.numel() // 100_000)].quantile(wanted) for image in images]
    )
    return {
        "quantiles": list(QUANTILES),
        "mean": rows.mean(0).double().round(decimals=4).tolist(),
        "covariance": rows.T.double().cov().round(decimals=6).tolist(),
    }


def validation_dice(
    model: Segmenter, validation: Sequence[tuple[Tensor, Tensor]], options: InferenceOptions
) -> float:
    """Mean Dice over scans and structures; ``validation`` holds images and class indices (X, Y, Z)."""
    scores = [
        class_dice(predict_classes(model, image, options.model_copy(update=QUICK)), target, model.classes)[1:]
        for image, target in validation
    ]
    return float(torch.stack(scores).nanmean())
