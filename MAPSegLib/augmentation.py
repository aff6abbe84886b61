"""Random changes of geometry and intensity, on tensors of one scan (X, Y, Z), on the CPU.

Every draw comes from the generator that is passed in, so that a resumed training draws what an
uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .networks.curve import apply_curve


def uniform(low: float, high: float, generator: Generator) -> float:
    """One number between ``low`` and ``high``."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def smooth_noise(shape: tuple[int, ...], points: int, generator: Generator, channels: int = 1) -> Tensor:
    """Normal noise on a coarse grid of ``points``³, interpolated to (channels, X, Y, Z)."""
    coarse = torch.randn(1, channels, points, points, points, generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]


def rotation(angles: tuple[float, float, float]) -> Tensor:
    """3x3 matrix of turns about the three axes, radians."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def random_affine(scale: tuple[float, float], degrees: float, shear: float, generator: Generator) -> Tensor:
    """3x3 matrix: turns up to ``degrees``, one common scale and a little per axis, shears up to ``shear``."""
    limit = math.radians(degrees)
    angles = tuple(uniform(-limit, limit, generator) for _ in range(3))
    common = uniform(*scale, generator)
    stretch = torch.diag(torch.tensor([common * uniform(0.95, 1.05, generator) for _ in range(3)]))
    skew = torch.eye(3) + shear * (2 * torch.rand(3, 3, generator=generator) - 1) * (1 - torch.eye(3))
    return rotation(angles) @ stretch @ skew


def warp_grid(
    shape: tuple[int, ...], matrix: Tensor, spacing_in: Tensor, spacing_out: Tensor, source: tuple[int, ...]
) -> Tensor:
    """Sampling positions, in voxels of the source, of an output grid about the same centre.

    Args:
        shape: voxels of the output grid.
        matrix: 3x3, output millimetres to source millimetres, both from the centre.
        spacing_in, spacing_out: mm, of source and output.
        source: voxels of the source grid.

    Returns:
        (3, X, Y, Z).
    """
    axes = [(torch.arange(n) - (n - 1) / 2) * float(s) for n, s in zip(shape, spacing_out, strict=True)]
    columns = matrix / spacing_in[:, None]
    centre = (torch.tensor(source, dtype=torch.float32) - 1) / 2
    grid = columns[:, 0].view(3, 1, 1, 1) * axes[0].view(1, -1, 1, 1)
    grid = grid + columns[:, 1].view(3, 1, 1, 1) * axes[1].view(1, 1, -1, 1)
    grid = grid + (columns[:, 2].view(3, 1, 1, 1) * axes[2].view(1, 1, 1, -1) + centre.view(3, 1, 1, 1))
    return grid


def sample(volume: Tensor, positions: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of (C, X, Y, Z) at ``positions`` (3, x, y, z) in voxels; zero outside."""
    edges = torch.tensor(volume.shape[1:], dtype=torch.float32).view(3, 1, 1, 1)
    grid = ((2 * positions + 1) / edges - 1).flip(0).permute(1, 2, 3, 0)[None]
    return F.grid_sample(volume[None], grid, mode=mode, align_corners=False)[0]


def warp_pair(image: Tensor, target: Tensor, matrix: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """An image and its class indices (X, Y, Z), both through one affine ``matrix`` (see :func:`warp_grid`).

    Args:
        spacing: of both, mm; without it a turn would shear anisotropic scans.
    """
    shape = tuple(image.shape)
    grid = warp_grid(shape, matrix, spacing, spacing, shape)
    moved = sample(target[None].float(), grid, "nearest")[0]
    return sample(image[None], grid)[0], moved.to(target.dtype)


PUBLISHED_CHANCE = 0.35
"""Of each change of the published augmentation (section 4.2)."""


def published_geometry(
    image: Tensor, target: Tensor, spacing: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The published changes of both domains: turned by up to 30 degrees, scaled by 1/1.4 to 1/0.7."""
    if uniform(0, 1, generator) >= PUBLISHED_CHANCE:
        return image, target
    return warp_pair(image, target, random_affine((0.7, 1.4), 30.0, 0.0, generator), spacing)


def published_source(
    image: Tensor, target: Tensor, spacing: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The published changes of the source: :func:`published_geometry`, a bias field, gamma."""
    image, target = published_geometry(image, target, spacing, generator)
    if uniform(0, 1, generator) < PUBLISHED_CHANCE:
        image = bias_field(image, uniform(0, 0.4, generator), generator).clamp(0, 1)
    if uniform(0, 1, generator) < PUBLISHED_CHANCE:
        image = gamma(image, uniform(-0.4, 0.4, generator))
    return image, target


def blur(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Gaussian blur of (X, Y, Z), as if its outermost voxels went on; ``sigma`` in voxels per axis."""
    for axis, s in enumerate(sigma):
        if s < 0.05:
            continue
        radius = max(1, math.ceil(2.5 * s))
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / s) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = radius
        wider = F.pad(image[None, None], padding, mode="replicate")
        image = F.conv3d(wider, (kernel / kernel.sum()).view(shape))[0, 0]
    return image


def thick_slices(image: Tensor, axis: int, factor: float) -> Tensor:
    """What slices ``factor`` times thicker would have kept of the image, on the same grid."""
    shape = list(image.shape)
    low = list(shape)
    low[axis] = max(2, round(shape[axis] / factor))
    coarse = F.interpolate(image[None, None], size=low, mode="area")
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)[0, 0]


def bias_field(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Multiply by a smooth field; its logarithm has deviation ``strength`` at 4³ points, about half of it overall."""
    return image * torch.exp(strength * smooth_noise(tuple(image.shape), 4, generator)[0])


def gamma(image: Tensor, log_gamma: float) -> Tensor:
    """Raise intensities in [0, 1] to the power exp(``log_gamma``)."""
    return image.clamp(0, 1) ** math.exp(log_gamma)


CURVE_KNOTS = 6
DARKEST = 1e-3
"""The lowest intensity inside a scan: 0 means outside."""


def kept_inside(image: Tensor, changed: Tensor) -> Tensor:
    """``changed`` inside of the scan that ``image`` shows, never as dark as the outside; 0 elsewhere."""
    return torch.where(image > 0, changed.clamp(min=DARKEST), 0)


@dataclass(frozen=True)
class Look:
    """Another contrast, and another quality of it, for all that is shown of one scan."""

    curve: Tensor | None
    """Heights of a random curve that may rise and fall, as in another sequence, at even distances in [0, 1]."""
    blur: float
    """Deviation, voxels."""
    noise: float
    """Deviation."""

    @classmethod
    def draw(cls, generator: Generator) -> Look:
        """Another contrast in half of the draws; a blur, and noise, in a third each."""

        def chance(share: float) -> bool:
            return uniform(0, 1, generator) < share

        heights = torch.rand(CURVE_KNOTS, generator=generator) if chance(1 / 2) else None
        if heights is not None:
            heights = (heights - heights.min()) / (heights.max() - heights.min())
        sigma = uniform(0.3, 1.2, generator) if chance(1 / 3) else 0.0
        return cls(heights, sigma, uniform(0, 0.1, generator) if chance(1 / 3) else 0.0)

    def contrast(self, image: Tensor) -> Tensor:
        """(X, Y, Z) in [0, 1] in the other contrast; 0 stays 0, and nothing else becomes 0."""
        if self.curve is None:
            return image
        return kept_inside(image, apply_curve(self.curve, image))

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """(X, Y, Z) in [0, 1] at full resolution. Outside, what is 0 may be blurred into; nothing inside becomes 0."""
        inside, image = image > 0, self.contrast(image)
        if self.blur:
            image = blur(image, (self.blur,) * 3)
        if self.noise:
            noise = self.noise * torch.randn(image.shape, generator=generator)
            image = (image + (image > 0) * noise).clamp(0, 1)
        return torch.where(inside, image.clamp(min=DARKEST), image)


def recolour(image: Tensor, generator: Generator) -> Tensor:
    """A scan (X, Y, Z) in another :class:`Look`."""
    return Look.draw(generator)(image, generator)


LEVELS = 33
"""Quantiles that describe the intensities of a class."""


def intensity_levels(image: Tensor, classes: Tensor, count: int) -> Tensor:
    """Quantiles of a scan's intensities in every class, (count, LEVELS); NaN for a class that it does not show.

    Args:
        image: (X, Y, Z) in [0, 1]; 0 is outside of the scan.
        classes: indices of the same shape, below ``count``.
    """
    values = image.flatten()
    return _levels(values, _places(values, classes, count))


def _places(values: Tensor, classes: Tensor, count: int) -> tuple[Tensor, ...]:
    """Which of a scan's flat values lie inside it, by class: one sort, where a mask of each class is a pass each."""
    inside = (values > 0).nonzero().flatten()
    order = classes.flatten()[inside].sort()
    return inside[order.indices].split(torch.bincount(order.values, minlength=count).tolist())


def _levels(values: Tensor, places: Sequence[Tensor]) -> Tensor:
    wanted = torch.linspace(0, 1, LEVELS)
    parts = (values[place[:: max(1, len(place) // 20_000)]] for place in places)
    return torch.stack([part.quantile(wanted) if len(part) else wanted * math.nan for part in parts])


def match_histograms(image: Tensor, classes: Tensor, levels: Tensor) -> Tensor:
    """The image with the intensities of another scan: its histogram is matched within every class.

    The change is smoothed, so that borders stay as soft as they were. Classes that the other scan does not show keep
    their intensities.

    Args:
        image: (X, Y, Z) in [0, 1]; 0 stays 0.
        classes: indices of the same shape.
        levels: :func:`intensity_levels` of the other scan.
    """
    values, inside, sigma = image.flatten(), image > 0, (0.7,) * 3
    places, change = _places(values, classes, len(levels)), torch.zeros_like(values)
    own = _levels(values, places)
    for index in (~(own + levels).isnan().any(1)).nonzero().flatten().tolist():
        here = places[index]
        change[here] = piecewise(values[here], own[index], levels[index]) - values[here]
    share = blur(inside.float(), sigma).clamp(min=1e-3)  # of the blur's weights that lie within the scan
    return inside * (image + blur(change.view(image.shape), sigma) / share).clamp(DARKEST, 1)


def piecewise(values: Tensor, knots: Tensor, heights: Tensor) -> Tensor:
    """Piecewise linear interpolation of values (N,): ``heights`` at the rising ``knots``, constant beyond them.

    A value at which several knots lie takes the middle of their heights.
    """
    first, after = (torch.searchsorted(knots, values, right=right) for right in (False, True))
    above = first.clamp(1, len(knots) - 1)
    below = above - 1
    share = (values - knots[below]) / (knots[above] - knots[below]).clamp(min=1e-6)
    line = torch.lerp(heights[below], heights[above], share.clamp(0, 1))
    last = len(knots) - 1
    middle = (heights[first.clamp(max=last)] + heights[(after - 1).clamp(0, last)]) / 2
    return torch.where(after - first > 1, middle, line)


def percentile(values: Tensor, share: float) -> Tensor:
    """The quantile ``share`` (0 to 1) of values (N,); of many, from every n-th of them."""
    step = max(1, values.numel() // 100_000)
    return values[::step].quantile(share)


def bounding_box(mask: Tensor) -> tuple[slice, slice, slice]:
    """The smallest box around the true voxels of a mask (X, Y, Z), which must have some."""
    slices = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        hits = mask.any(others[1]).any(others[0]).nonzero().flatten()
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(slices)
