"""Block masking (section 3.1): non-overlapping cubes, a fixed share of them, drawn anew for every sample."""

from __future__ import annotations

import torch
from torch import Tensor


def cube_mask(
    shape: tuple[int, ...], cube: int, ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """True where voxels stay.

    Args:
        shape: (B, 1, D, H, W) of the patches to mask; edges that are no multiple of ``cube`` get a part of one.
        cube: edge of a cube, voxels.
        ratio: share of the cubes to hide; exactly ``round(ratio * cubes)`` of each sample are, and at least one.

    Returns:
        bool (B, 1, D, H, W), on the CPU.
    """
    b, _, *edges = shape
    counts = [-(-e // cube) for e in edges]
    cubes = counts[0] * counts[1] * counts[2]
    order = torch.rand(b, cubes, generator=generator).argsort(1)
    keep = (order.argsort(1) >= max(1, round(ratio * cubes))).view(b, 1, *counts)
    for axis, edge in zip((2, 3, 4), edges, strict=True):
        keep = keep.repeat_interleave(cube, axis).narrow(axis, 0, edge)
    return keep
