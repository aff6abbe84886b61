"""How far structures reach, and how far that is from what the source's label maps show.

A result can be wrong, yet consistent: the same wrong tissue is found again in the mirrored scan. But then structures
have the wrong shape. The standard deviations of a structure's voxels along its own three axes tell much of its shape
and its size, whichever way a scan lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Label

NARROWEST = 0.1
"""Deviation of log extents, at least: a few label maps may happen to be alike."""
FURTHEST = 10.0
"""Deviations that a structure counts at most, and one that is missing altogether."""
MANY, LARGER = 8, 1.5
"""From so many structures on, a size that they have in common is no deviation, up to this factor either way: small and
large heads are no errors. Fewer structures that are too small, all of them, may well be."""
OFTEN = 0.1
"""Share of the source's label maps without a structure from which a scan may well lack it."""


def log_extents(classes: Tensor, structures: int, spacing: Sequence[float]) -> Tensor:
    """Log of the standard deviations (mm) of every structure's voxels along its own axes, the longest first.

    A voxel counts as the cube that it is, so that a single one, or a flat structure, has an extent too.

    Args:
        classes: indices (X, Y, Z), 0 for background.
        structures: their number; class indices run from 1 to it.
        spacing: mm.

    Returns:
        float64 (structures, 3); NaN for a structure without a voxel.
    """
    places = (classes > 0).nonzero()
    index = classes[tuple(places.T)].long() - 1
    mm = torch.as_tensor(spacing, dtype=torch.float64)
    points, number = places * mm, torch.bincount(index, minlength=structures)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(index, values, structures) / number.clamp(min=1)

    points -= torch.stack([mean(axis) for axis in points.T], 1)[index]
    covariance = torch.stack([torch.stack([mean(a * b) for a in points.T], 1) for b in points.T], 1)
    variances = torch.linalg.eigvalsh(covariance + torch.diag(mm**2 / 12)).flip(1)
    return torch.where(number[:, None] > 0, variances.log() / 2, torch.nan)


def extent_priors(labels: Sequence[Label], maps: Sequence[Tensor]) -> dict[str, list]:
    """For every label value that a map holds, [mean, sample deviation] over maps of each log extent.

    The deviation is 0 with one map.

    Args:
        maps: of each label map the :func:`log_extents`.
    """
    priors = {}
    for label, rows in zip(labels, torch.stack(list(maps)).unbind(1), strict=True):
        rows = rows[~rows.isnan().any(1)]
        if len(rows):
            deviation, mean = torch.std_mean(rows, 0, correction=min(1, len(rows) - 1))
            priors[str(label.value)] = torch.stack([mean, deviation], 1).round(decimals=4).tolist()
    return priors


def absences(labels: Sequence[Label], maps: Sequence[Tensor]) -> dict[int, float]:
    """Share of the maps (as of :func:`extent_priors`) that lack a structure, by its value; only where some do."""
    lacking = torch.stack(list(maps)).isnan().any(2).double().mean(0)
    return {label.value: share for label, share in zip(labels, lacking.tolist(), strict=True) if share}


def shape_deviation(
    labels: Sequence[Label], classes: Tensor, spacing: Sequence[float], priors: dict
) -> float | None:
    """Mean distance of the structures' log extents from the source's, in its deviations; None where it states none.

    A size that many structures have in common does not count (:data:`MANY`).

    Args:
        classes: indices (X, Y, Z).
        priors: of the model card; ``extents`` is what :func:`extent_priors` returns. A structure that is missing counts
            most, unless ``often_absent`` names its value.
    """
    stated, absent = priors.get("extents", {}), priors.get("often_absent", ())
    known = [index for index, label in enumerate(labels) if str(label.value) in stated]
    if not known:
        return None
    source = torch.tensor([stated[str(labels[index].value)] for index in known], dtype=torch.float64)
    mean, deviation = source.unbind(2)
    extents = log_extents(classes, len(labels), spacing)[known]
    excused = torch.tensor([labels[index].value in absent for index in known]) & extents.isnan().any(1)
    if excused.all():
        return FURTHEST  # of nothing, nothing can be said
    apart, deviation = (extents - mean)[~excused], deviation[~excused]
    sizes = apart.mean(1)[~apart.isnan().any(1)]
    if len(sizes) >= MANY:
        apart = apart - sizes.median().clamp(-math.log(LARGER), math.log(LARGER))
    distance = apart.abs() / deviation.clamp(min=NARROWEST)
    return float(distance.nan_to_num(FURTHEST).clamp(max=FURTHEST).mean())
