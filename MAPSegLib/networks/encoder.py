"""The encoder g, shared by the local and the global branch and by autoencoding and segmentation (section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 4
"""Edge, in voxels, of the cube that one feature cell stands for."""


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with ``groups`` groups, or one where there are fewer channels than groups."""
    return nn.GroupNorm(groups if channels >= groups else 1, channels)


class ConvUnit(nn.Module):
    """GroupNorm, convolution without bias, and (unless it closes a block) ReLU."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, relu: bool = True, groups: int = 32
    ):
        super().__init__()
        self.groupnorm = group_norm(cin, groups)
        self.conv = nn.Conv3d(cin, cout, kernel, stride, padding=0 if stride > 1 else kernel // 2, bias=False)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.groupnorm(x))
        return torch.relu_(x) if self.relu else x


class ResidualBlock(nn.Module):
    """Three units; the first one's output is added back before the last ReLU."""

    def __init__(self, cin: int, cout: int, stem: bool = False, groups: int = 32):
        super().__init__()
        self.conv1 = (
            ConvUnit(cin, cout, STRIDE, STRIDE, groups=groups)
            if stem
            else ConvUnit(cin, cout, 3, groups=groups)
        )
        self.conv2 = ConvUnit(cout, cout, 3, groups=groups)
        self.conv3 = ConvUnit(cout, cout, 3, relu=False, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(x)
        return torch.relu(self.conv3(self.conv2(residual)) + residual)


class Encoder(nn.Sequential):
    """``depth`` residual blocks of ``width`` channels; (B, 1, D, H, W) to (B, width, D/4, H/4, W/4)."""

    def __init__(self, width: int, depth: int):
        super().__init__(*(ResidualBlock(width if i else 1, width, stem=i == 0) for i in range(depth)))
