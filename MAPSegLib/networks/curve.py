"""A learnable intensity curve in front of a network: what a change of contrast does first, undone first."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def apply_curve(values: Tensor, x: Tensor) -> Tensor:
    """Map intensities of any shape through a piecewise linear curve on [0, 1]; 0, the background, stays 0.

    Args:
        values: at equally spaced knots, (knots + 1,); beyond the ends the nearest end holds.
    """
    pieces = len(values) - 1
    place = x.clamp(0, 1) * pieces
    left = place.detach().floor().clamp(max=pieces - 1).long()
    share = place - left
    # On a CPU, the gradient of indexing is summed in any order by several threads; that of gathering is not.
    flat, values = left.flatten(), values.to(x.dtype)
    low, high = (values.gather(0, flat + end).view_as(x) for end in (0, 1))
    return torch.where(x > 0, torch.lerp(low, high, share), 0)


class IntensityCurve(nn.Module):
    """:func:`apply_curve` with learnt values: at first the identity. Nothing makes it rise."""

    def __init__(self, knots: int):
        super().__init__()
        self.values = nn.Parameter(torch.linspace(0, 1, knots + 1))

    def forward(self, x: Tensor) -> Tensor:
        return apply_curve(self.values, x)
