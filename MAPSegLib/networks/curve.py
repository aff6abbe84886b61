"""A learnable intensity curve in front of a network: what a change of contrast does first, undone first."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IntensityCurve(nn.Module):
    """A piecewise linear map of [0, 1] with equally spaced knots; 0, the background, stays 0.

    Starts as the identity. Nothing makes it rise: an inverted scan needs a falling one.

    Args:
        knots: pieces of the curve.
    """

    def __init__(self, knots: int):
        super().__init__()
        self.values = nn.Parameter(torch.linspace(0, 1, knots + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map intensities of any shape; values outside [0, 1] follow the nearest end."""
        pieces = len(self.values) - 1
        place = x.clamp(0, 1) * pieces
        left = place.detach().floor().clamp(max=pieces - 1).long()
        share = place - left
        values = self.values.to(x.dtype)
        return torch.where(x > 0, values[left] * (1 - share) + values[left + 1] * share, 0)
