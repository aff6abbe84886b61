"""How well a label map agrees with a reference: Dice, 95 % Hausdorff distance, volumes.

A structure that neither map has is not scored (NaN): counting it as 1 would flatter every model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .config import Label
from .volumes import Volume, check_same_grid, map_values


def dice_scores(prediction: np.ndarray, reference: np.ndarray, values: Sequence[int]) -> dict[int, float]:
    """Dice (0-1) of each label value; NaN where neither array has it. The arrays have the same shape."""
    overlap, predicted, expected = _counts(*_ranks(prediction, reference, values), len(values))
    return {v: _dice(o, p, r) for v, o, p, r in zip(values, overlap, predicted, expected, strict=True)}


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm between the surfaces of two masks (X, Y, Z); NaN if either is empty.

    The surface is the mask's outermost voxels. The larger of the two directed 95th percentiles is returned.

    Args:
        spacing: voxel size in mm along the three axes.
    """
    from scipy.ndimage import find_objects
    from scipy.spatial import cKDTree

    if not (prediction.any() and reference.any()):
        return math.nan
    box = find_objects((prediction | reference).astype(np.uint8))[0]
    surfaces = [_surface(mask[box]) * np.asarray(spacing, dtype=float) for mask in (prediction, reference)]
    trees = [cKDTree(points) for points in surfaces]
    directed = [trees[1 - i].query(surfaces[i])[0] for i in (0, 1)]
    return float(max(np.percentile(distances, 95) for distances in directed))


def evaluate_pair(
    prediction: Volume,
    reference: Volume,
    labels: Sequence[Label] | Mapping[int, str],
    mapping: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Score one label map against a reference on the same grid.

    Args:
        labels: the structures to score, as a model's labels or as value -> name.
        mapping: reference value -> value in ``labels``, where the two follow different protocols. Reference
            values without an entry then count as background, since the same number may mean something else.

    Returns:
        One row per structure: ``value``, ``structure``, ``dice`` (0-1), ``hd95_mm``, ``volume_ml``,
        ``reference_ml`` and ``volume_error`` (signed, as a share of the reference). What is undefined is NaN.

    Raises:
        InputError: the two maps do not lie on the same grid.
    """
    from scipy.ndimage import find_objects

    check_same_grid(reference, prediction)
    names = dict(labels) if isinstance(labels, Mapping) else {label.value: label.name for label in labels}
    expected = reference.array if mapping is None else map_values(reference.array, mapping)
    values = list(names)
    voxel_ml = abs(float(np.linalg.det(reference.affine[:3, :3]))) / 1000
    maps = _ranks(prediction.array, expected, values)
    counts = zip(*_counts(*maps, len(values)), strict=True)
    boxes = zip(*(find_objects(each, len(values)) for each in maps), strict=True)
    rows = []
    for rank, (value, (overlap, p, r), (mine, theirs)) in enumerate(
        zip(values, counts, boxes, strict=True), 1
    ):
        row = {"value": value, "structure": names[value], "dice": _dice(overlap, p, r), "hd95_mm": math.nan}
        if mine and theirs:  # where they are alone: a whole scan would be gone through for every structure
            box = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(mine, theirs, strict=True)
            )
            row["hd95_mm"] = hd95(*(each[box] == rank for each in maps), reference.spacing)
        row |= {"volume_ml": float(p * voxel_ml), "reference_ml": float(r * voxel_ml)}
        row["volume_error"] = float((p - r) / r) if r else math.nan
        rows.append(row)
    return rows


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means per structure over the rows of any number of scans, in order of first appearance.

    Returns:
        One row per structure: ``value``, ``structure``, ``scans`` (in which it was scored), ``missed`` (the
        reference has it, the prediction does not: their distance is undefined and absent from the mean), and
        means of ``dice``, ``hd95_mm``, ``volume_error`` and ``absolute_volume_error``; ``dice_sd`` is the
        sample deviation.
    """
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["value"], []).append(row)
    summary = []
    for value, group in groups.items():
        dice = np.array([row["dice"] for row in group if not math.isnan(row["dice"])])
        errors = [row["volume_error"] for row in group]
        summary.append(
            {
                "value": value,
                "structure": group[0]["structure"],
                "scans": len(dice),
                "missed": sum(row["reference_ml"] > 0 and row["volume_ml"] == 0 for row in group),
                "dice": mean(dice),
                "dice_sd": float(dice.std(ddof=1)) if len(dice) > 1 else math.nan,
                "hd95_mm": mean([row["hd95_mm"] for row in group]),
                "volume_error": mean(errors),
                "absolute_volume_error": mean(np.abs(errors)),
            }
        )
    return summary


def mean(values: Iterable[float]) -> float:
    """Of what is defined; NaN where nothing is."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def _ranks(prediction: np.ndarray, reference: np.ndarray, values: Sequence[int]) -> list[np.ndarray]:
    """Both arrays with ranks from 1 in place of the values, and 0 elsewhere."""
    rank = {value: i for i, value in enumerate(values, start=1)}
    return [map_values(array, rank) for array in (prediction, reference)]


def _counts(prediction: np.ndarray, reference: np.ndarray, structures: int) -> tuple[np.ndarray, ...]:
    """Voxels of each rank in both arrays, in the prediction, and in the reference: one pass for all."""
    n = structures + 1
    pairs = prediction.ravel() * n + reference.ravel()
    table = np.bincount(pairs, minlength=n * n).reshape(n, n)
    return np.diag(table)[1:], table.sum(1)[1:], table.sum(0)[1:]


def _dice(overlap: int, predicted: int, expected: int) -> float:
    return float(2 * overlap / (predicted + expected)) if predicted + expected else math.nan


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices (n, 3) of a mask's voxels with a face neighbour outside it, or outside the array."""
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))
