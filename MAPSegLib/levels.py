"""Intensities of a scan: what becomes 0 and 1, and where its foreground lies. NumPy alone.

Front ends that hold no PyTorch (the Slicer module) look at scans with this before anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Shape = tuple[int, int, int]

_SAMPLE = 500_000  # voxels that intensity statistics are taken from
AIR_MARGIN = 5.0  # mm kept around a head whose air is noisy

LIKE_CT = "Its values go far below 0, as those of CT do, but it is taken for MR."
UNLIKE_CT = "Its values do not go far below 0, as Hounsfield units of air and fat do, but it is taken for CT."


@dataclass(frozen=True)
class Levels:
    """What becomes 0 and 1; the value of blank voxels, unless black; the foreground; whether air is noisy."""

    black: float
    white: float
    blank: float | None
    foreground: np.ndarray
    noisy: bool = False


def levels_of(image: np.ndarray, modality: str, percentile: float, window: tuple[float, float]) -> Levels:
    """The intensities of a scan, by the options of :class:`~MAPSegLib.config.Preprocessing`."""
    if modality == "ct":
        return Levels(*window, None, image > window[0])
    return mr_levels(image, percentile)


def mr_levels(image: np.ndarray, percentile: float) -> Levels:
    """The intensities of an MR scan.

    Three kinds of scan are met. Background of one value (masked or padded): that value is black, unless much
    tissue lies below it, as in scans standardised inside a mask (background 0 in mid-range) or shown white;
    then blank voxels are set to 0 by name, and tissue keeps its order. Noisy air: black is 0. Noisy and
    shifted (a z-scored whole head, an offset): black is the level of the air, so that nothing negative is
    lost. The few negatives that interpolation leaves around edges stay below black and are clipped.
    """
    step = max(1, round((image.size / _SAMPLE) ** (1 / 3)))
    sample = image[::step, ::step, ::step]
    blank = _blank_value(image, sample)
    inside = sample.ravel() if blank is None else sample[sample != blank]
    if inside.size < 100:  # a tiny object, missed by sampling
        inside = image.ravel() if blank is None else image[image != blank]
    low, high = (float(v) for v in np.percentile(inside, (0.5, percentile)))

    if blank is None:
        black = low if low < -0.05 * high else _air_level(sample, high)
        cut = black + 0.05 * (high - black)
        return Levels(black, _white(inside, cut, percentile, high), None, image > cut, noisy=True)
    if low < blank - 0.05 * abs(high - blank):
        black = min(low, 0.0)
        return Levels(black, high, blank, image != blank)
    cut = blank + 0.01 * (high - blank)
    return Levels(blank, _white(inside, cut, percentile, high), None, image > cut)


def _white(inside: np.ndarray, cut: float, percentile: float, otherwise: float) -> float:
    bright = inside[inside > cut]
    return float(np.percentile(bright, percentile)) if bright.size else otherwise


def _blank_value(image: np.ndarray, sample: np.ndarray) -> float | None:
    """The value shared by most corners and by part of the scan: background without noise."""
    values, counts = np.unique(image[np.ix_((0, -1), (0, -1), (0, -1))], return_counts=True)
    value = values[counts.argmax()]
    if counts.max() < 4 or np.count_nonzero(sample == value) < 0.02 * sample.size:
        return None
    return float(value)


def _air_level(sample: np.ndarray, high: float) -> float:
    """0, or the level of the outer faces where that is even and clearly above 0 (a stored offset)."""
    faces = np.concatenate([np.take(sample, (0, -1), axis).ravel() for axis in range(3)])
    low, middle, top = (float(v) for v in np.percentile(faces, (10, 50, 90)))
    return middle if middle > 0.1 * high and top - low < 0.1 * (high - middle) else 0.0


def foreground_bounds(levels: Levels, margin: Shape) -> tuple[Shape, Shape]:
    """Box (lo, hi) of the planes with more foreground than noise makes, widened; the whole grid if none has."""
    foreground, share = levels.foreground, 0.005 if levels.noisy else 0.0
    lows, highs = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        size = foreground.shape[axis]
        filled = np.flatnonzero(np.count_nonzero(foreground, axis=others) > share * foreground.size / size)
        if filled.size == 0:
            return (0, 0, 0), foreground.shape
        lows.append(max(0, int(filled[0]) - margin[axis]))
        highs.append(min(size, int(filled[-1]) + 1 + margin[axis]))
    return tuple(lows), tuple(highs)


def modality_notes(image: np.ndarray, modality: str) -> tuple[str, ...]:
    """Whether a scan's values are those of the other modality: of CT, air and fat are negative."""
    if modality == "ct":
        return (UNLIKE_CT,) if np.count_nonzero(image < -50) < 0.001 * image.size else ()
    return (LIKE_CT,) if np.count_nonzero(image < -500) > 0.01 * image.size else ()
