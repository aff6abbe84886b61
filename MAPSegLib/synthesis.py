"""Images from label maps: training material for a model, and material for tests and the demo.

Every structure gets a mean and a deviation drawn from priors of its contrast (``t1``, ``t2``) or at random
(``random``; of ``mixed``, half of the scans, while the others are T1-like or T2-like); then come deformation,
resolution, bias field, gamma and noise, as in Billot et al., SynthSeg (Medical Image Analysis 2023).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from . import augmentation as aug
from .augmentation import uniform
from .config import Contrast, Label

OUTSIDE_BRAIN = frozenset((0, 24, *range(500, 600)))
"""Codes of ``brain_labels`` that brain extraction removes; CSF (24) stays where it touches the brain."""
EQUIVALENT = {136: 4, 137: 5, 163: 43, 164: 44, 25: 2, 57: 41}
"""Choroid plexus and lesions: drawn with their own intensities, labelled as what holds them."""
ALIKE = {31: 136, 63: 163, 78: 25, 79: 57, 80: 30, 5001: 2, 5002: 41}
"""Codes of FreeSurfer's own maps: choroid plexus, hypointensities, and white matter far from the cortex."""
UNSIDED = {77: (25, 57)} | dict.fromkeys(range(251, 256), (2, 41))
"""Codes that both sides share, hypointensities and corpus callosum, and what they become on the left and the right."""


def merge_parcels(labels: np.ndarray) -> np.ndarray:
    """FreeSurfer codes with the parcels of the cortex (of both its atlases) merged to 3 and 42."""
    merged = labels.copy()
    for left, right in ((1000, 2000), (11100, 12100)):
        merged[(labels >= left) & (labels < left + 100)] = 3
        merged[(labels >= right) & (labels < right + 100)] = 42
    return merged


def known_codes(labels: np.ndarray) -> np.ndarray:
    """A map of FreeSurfer (``aseg``, ``aparc+aseg``, ``wmparc``; (X, Y, Z), X to the right) in codes with priors.

    Parcels become cortex and white matter; choroid plexus, hypointensities and vessels get the codes that images are
    drawn from. Where both sides share a code (:data:`UNSIDED`), the hemisphere decides.
    """
    merged = merge_parcels(labels)
    for code, like in ALIKE.items():
        merged[labels == code] = like
    for first, white in ((3000, 2), (4000, 41)):
        merged[(labels >= first) & (labels < first + 100)] = white
    unsided = np.isin(labels, list(UNSIDED))
    if unsided.any():
        x = np.nonzero(unsided)[0]
        white = [np.nonzero(merged == code)[0] for code in (2, 41)]
        middle = np.mean([side.mean() if len(side) else x.mean() for side in white])
        left, right = np.array([UNSIDED[code] for code in labels[unsided].tolist()]).T
        merged[unsided] = np.where(x < middle, left, right)
    return merged


@cache
def brain_priors() -> list[dict]:
    """Intensity priors of the FreeSurfer codes (and 502-530, outside the brain), a dict per class."""
    path = Path(__file__).parent / "tables" / "brain_priors.json"
    return json.loads(path.read_text(encoding="utf-8"))["classes"]


@cache
def brain_labels() -> tuple[Label, ...]:
    """The structures of the brain models, with FreeSurfer's codes, in class order."""
    path = Path(__file__).parent / "tables" / "brain_labels.json"
    return tuple(Label(**row) for row in json.loads(path.read_text(encoding="utf-8")))


@cache
def brain_twins() -> tuple[tuple[int, int], ...]:
    """(left, right) codes of the structures that come in pairs."""
    return tuple((b.value, b.mirror) for b in brain_labels() if b.mirror is not None and b.value < b.mirror)


@dataclass(frozen=True)
class Anatomy:
    """A label map ready to be drawn from: canonical orientation, cropped to what is not background."""

    codes: Tensor
    """Rank of each voxel's code in ``values``, uint8 (X, Y, Z)."""
    values: tuple[int, ...]
    classes: Tensor
    """Class index of every rank, int64."""
    spacing: Tensor
    """mm, (3,)."""

    @classmethod
    def from_labels(
        cls, labels: Tensor, spacing: tuple[float, float, float], class_of: dict[int, int]
    ) -> Anatomy:
        """Args: an integer label map (X, Y, Z) in RAS order, its spacing in mm, and the class of every code."""
        inside = labels > 0
        if not inside.any():
            raise ValueError("the label map is empty")
        labels = labels[aug.bounding_box(inside)]
        values = torch.cat([labels.new_zeros(1), labels.flatten()]).unique()  # rank 0 is the background
        ranks = torch.searchsorted(values, labels.contiguous())
        values = tuple(int(v) for v in values)
        classes = torch.tensor([class_of.get(EQUIVALENT.get(v, v), 0) for v in values])
        return cls(ranks.to(torch.uint8), values, classes, torch.tensor(spacing, dtype=torch.float32))


def draw_intensities(
    values: tuple[int, ...],
    contrast: Literal["t1", "t2", "random"],
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every code, on a scale where 255 is bright.

    Codes of one prior class share its draw and get a little of their own, so that neighbours of like tissue
    do not always look exactly alike.
    """
    means, deviations = torch.zeros(len(values)), torch.zeros(len(values))
    rank = {v: i for i, v in enumerate(values)}
    for prior in brain_priors():
        draws = torch.randn(2, generator=generator)
        flat = torch.rand(2, generator=generator)
        if contrast == "random":
            mean, deviation = 255 * float(flat[0]), 25 * float(flat[1])
        else:
            m, ms, s, ss = prior[contrast]
            mean, deviation = m + ms * float(draws[0]), abs(s + ss * float(draws[1]))
        for code in prior["labels"]:
            own = 4 * float(torch.randn((), generator=generator))
            if code in rank:
                means[rank[code]], deviations[rank[code]] = mean + own, deviation
    for left, right in brain_twins():  # both sides are one tissue
        if left in rank and right in rank:
            means[rank[right]] = means[rank[left]]
    return means, deviations


def synthesise(
    anatomy: Anatomy,
    spacing: tuple[float, float, float],
    generator: Generator,
    contrast: Contrast = "t1",
    extracted: float = 0.5,
    deform: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw one scan of an anatomy.

    Args:
        anatomy: whose.
        spacing: of the result, mm.
        generator: source of every random number.
        contrast: which intensity priors.
        extracted: probability that all outside the brain is removed.
        deform: whether shape varies too.

    Returns:
        image, float32 (X, Y, Z) in [0, 1], cropped to its foreground box; class indices, int64, same shape.
    """
    if contrast == "mixed":
        contrast = ("t1", "t2", "random", "random")[int(torch.randint(4, (), generator=generator))]
    extract = uniform(0, 1, generator) < extracted
    codes = anatomy.codes
    outside = torch.tensor([v in OUTSIDE_BRAIN for v in anatomy.values])
    keep = _brain_mask(codes, outside, generator) if extract else None
    if extract:
        box = aug.bounding_box(keep)
        codes, keep = codes[box], keep[box]
    elif uniform(0, 1, generator) < 0.7:
        codes = _field_of_view(codes, outside, generator)
    means, deviations = draw_intensities(anatomy.values, contrast, generator)
    ranks = codes.to(torch.int64)
    image = means[ranks] + deviations[ranks] * torch.randn(codes.shape, generator=generator)
    if extract:
        image = image * keep
    elif uniform(0, 1, generator) < 0.5:
        image[ranks == 0] = 0
    image = aug.blur(image.clamp(min=0), (uniform(0.3, 0.8, generator),) * 3)

    matrix = aug.random_affine((0.85, 1.18), 15.0, 0.05, generator) if deform else torch.eye(3)
    out = torch.tensor(spacing)
    extent = torch.tensor(codes.shape) * anatomy.spacing
    reach = torch.linalg.inv(matrix).abs() @ extent
    shape = tuple(max(8, int(n)) for n in (reach / out).round())
    grid = aug.warp_grid(shape, matrix, anatomy.spacing, out, tuple(codes.shape))
    if deform:
        for points, limit in ((5, 4.0), (10, 2.0)):
            shift = aug.smooth_noise(shape, points, generator, 3) * uniform(0, limit, generator)
            grid += shift / anatomy.spacing.view(3, 1, 1, 1)
    image = aug.sample(image[None], grid)[0]
    ranks = aug.sample(codes[None].float(), grid, "nearest")[0].round().long()
    target = anatomy.classes[ranks]
    box = aug.bounding_box(image > 0.02 * float(image.max()))
    return acquire(image[box].contiguous(), generator), target[box].contiguous()


def acquire(image: Tensor, generator: Generator) -> Tensor:
    """What a scanner adds: thick slices at times, a bias field, noise, gamma; scaled to [0, 1]."""
    mask = image > 0
    if uniform(0, 1, generator) < 0.25:
        axis = int(torch.randint(3, (), generator=generator))
        image = aug.thick_slices(image, axis, uniform(1.2, 3.0, generator))
    image = aug.bias_field(image, uniform(0, 0.35, generator), generator)
    image = image / aug.percentile(image[mask], 0.995)
    image = image + mask * uniform(0, 0.03, generator) * torch.randn(image.shape, generator=generator)
    image = aug.gamma(image, 0.35 * float(torch.randn((), generator=generator)))
    return (image / aug.percentile(image[mask], uniform(0.99, 0.999, generator)).clamp(min=1e-3)).clamp(0, 1)


def _brain_mask(codes: Tensor, outside: Tensor, generator: Generator) -> Tensor:
    """The brain and a margin of one to three voxels, as extraction tools leave it."""
    brain = (~outside)[codes.to(torch.int64)].float()[None, None]
    margin = int(torch.randint(1, 4, (), generator=generator))
    for axis in range(3):  # a cube's maximum, an edge at a time: the same, many times faster
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * margin + 1, margin
        brain = torch.nn.functional.max_pool3d(brain, kernel, 1, padding)
    return brain[0, 0] > 0


def _field_of_view(codes: Tensor, outside: Tensor, generator: Generator) -> Tensor:
    """Cut the neck off, up to 40 voxels below the brain."""
    brain = (~outside)[codes.to(torch.int64)]
    lowest = int(brain.any(0).any(0).nonzero()[0])
    return codes[:, :, max(0, lowest - int(torch.randint(0, 40, (), generator=generator))) :]
