"""The segmentation head h: ASPP on local and global features, then up to the patch's own grid (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .encoder import STRIDE, group_norm

CHANNELS_LAST = torch.channels_last_3d
"""At full resolution few channels meet many voxels: so laid out, those convolutions take about half the time."""


def _branch(cin: int, cout: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv3d(cin, cout, kernel, padding=padding, dilation=dilation, bias=False),
        group_norm(cout, 8),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1x1, three dilated 3x3x3, and a global-average branch, projected."""

    def __init__(self, cin: int, cout: int, dilations: tuple[int, int, int], dropout: float):
        super().__init__()
        pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), *_branch(cin, cout, 1))
        self.convs = nn.ModuleList(
            [_branch(cin, cout, 1), *(_branch(cin, cout, 3, d) for d in dilations), pool]
        )
        self.project = nn.Sequential(*_branch(5 * cout, cout, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(x) for conv in self.convs]
        maps[-1] = maps[-1].expand_as(maps[0])
        return self.project(torch.cat(maps, 1))


class Logits(nn.Conv3d):
    """The last convolution, 1x1x1, and a fixed ``mix`` (classes, outputs) of its outputs, as one product.

    What is laid out channels last comes out contiguous: together this takes two thirds of what a convolution, a copy
    and the mixing took.
    """

    def __init__(self, channels: int, mix: Tensor):
        super().__init__(channels, mix.shape[1], 1)
        self.register_buffer("mix", mix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.mix @ self.weight.flatten(1), self.mix @ self.bias
        flat = torch.baddbmm(bias.view(1, -1, 1), weight.expand(len(x), -1, -1), x.flatten(2))
        return flat.unflatten(2, x.shape[2:])


class SegmentationHead(nn.Sequential):
    """(B, 2 width, d, h, w) features to (B, classes, 4d, 4h, 4w) logits.

    With ``detail`` channels (our addition), one convolution of the patch itself joins the upsampled features. A
    feature cell of a narrow encoder cannot hold the place of every border inside it; the patch can.
    """

    def __init__(
        self,
        features: int,
        width: int,
        up_channels: int,
        mix: Tensor,
        dilations: tuple[int, int, int],
        dropout: float,
        detail: int = 0,
    ):
        super().__init__(
            ASPP(features, width, dilations, dropout),
            nn.ConvTranspose3d(width, up_channels, STRIDE, STRIDE),
            group_norm(up_channels, 8),
            nn.ReLU(inplace=True),
            nn.Conv3d(up_channels + detail, up_channels, 3, padding=1, bias=False),
            group_norm(up_channels, 8),
            nn.ReLU(inplace=True),
            Logits(up_channels, mix),
        )
        self.detail = _branch(1, detail, 3) if detail else None

    def maps(self, features: Tensor, patches: Tensor) -> Tensor:
        """What the last convolution takes: (B, up_channels, 4d, 4h, 4w), channels last.

        Args: feature maps, and the patches (B, 1, 4d, 4h, 4w) that they stand for.
        """
        pyramid, *finer = list(self.children())[:7]
        x = pyramid(features).contiguous(memory_format=CHANNELS_LAST)
        for step in finer[:3]:
            x = step(x)
        if self.detail is not None:
            detail = self.detail(patches).contiguous(memory_format=CHANNELS_LAST)
            x = torch.cat([x, detail], 1)
        for step in finer[3:]:
            x = step(x)
        return x

    def logits(self, maps: Tensor) -> Tensor:
        """The last convolution: logits (B, classes, 4d, 4h, 4w) of :meth:`maps`."""
        return self[7](maps)

    def forward(self, features: Tensor, patches: Tensor) -> Tensor:
        """Args: as :meth:`maps`."""
        return self.logits(self.maps(features, patches))
