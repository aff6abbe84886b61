"""The encoder g, shared by the local and the global branch and by autoencoding and segmentation (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

STRIDE = 4
"""Edge, in voxels, of the cube that one feature cell stands for."""


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with ``groups`` groups, or one where there are fewer channels than groups."""
    return nn.GroupNorm(groups if channels >= groups else 1, channels)


class ConvUnit(nn.Module):
    """GroupNorm, convolution without bias, and (unless it closes a block) ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int, groups: int, stride: int = 1, relu: bool = True):
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
        kernel, stride = (STRIDE, STRIDE) if stem else (3, 1)
        self.conv1 = ConvUnit(cin, cout, kernel, groups, stride)
        self.conv2 = ConvUnit(cout, cout, 3, groups)
        self.conv3 = ConvUnit(cout, cout, 3, groups, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(x)
        return torch.relu(self.conv3(self.conv2(residual)) + residual)


class Encoder(nn.Sequential):
    """``depth`` residual blocks of ``width`` channels; (B, 1, D, H, W) to (B, width, D/4, H/4, W/4)."""

    def __init__(self, width: int, depth: int):
        super().__init__(*(ResidualBlock(width if i else 1, width, stem=i == 0) for i in range(depth)))


def in_one_pass(
    network: Callable[[Tensor], Tensor], patches: Tensor, wholes: Tensor
) -> tuple[Tensor, Tensor]:
    """What a network makes of patches (B, 1, p, p, p) and whole scans (N, 1, G, G, G), together where sizes agree.

    GroupNorm treats samples alone, so one pass gives what two would.
    """
    if patches.shape[2:] != wholes.shape[2:]:
        return network(patches), network(wholes)
    both = network(torch.cat([patches, wholes]))
    return both[: len(patches)], both[len(patches) :]
