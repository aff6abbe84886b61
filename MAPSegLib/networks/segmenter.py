"""The global-local segmenter f (section 3.3): one encoder, two views of a scan, one head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import Architecture, Label
from .curve import IntensityCurve
from .encoder import Encoder, in_one_pass
from .heads import CHANNELS_LAST, SegmentationHead


def mirrored_classes(labels: Sequence[Label]) -> Tensor | None:
    """Class index of every class's mirror image, (classes,), if a mirrored scan looks like a scan, else None.

    It does where labels name mirror images, and both of each pair are there; but not where a structure lies to one
    side that has none.
    """
    rank = {label.value: i for i, label in enumerate(labels, 1)}
    twin = {label.value: label.mirror for label in labels if label.mirror is not None}
    whole = all(twin.get(other) == value for value, other in twin.items())
    if not twin or not whole or any(label.one_sided for label in labels):
        return None
    return torch.tensor([0, *(rank[twin.get(label.value, label.value)] for label in labels)])


def lateral_mix(labels: Sequence[Label]) -> Tensor:
    """What makes logits of classes from one output per structure and one for the side, (1 + len(labels), outputs).

    Left and right structures look alike in a patch; what tells them apart is where the patch lies. So a
    model whose labels name their mirror images predicts each pair once, and the side once for all pairs:
    logit(left) = logit(pair) + side, logit(right) = logit(pair) - side. The side learnt on the cortex then
    serves the smallest nucleus too. Without mirrored labels this is the identity. Class 0 is the background.
    """
    rank = {label.value: i for i, label in enumerate(labels, 1)}
    group, sign, groups = [0], [0.0], 1
    for i, label in enumerate(labels, 1):
        twin = rank.get(label.mirror) if label.mirror is not None else None
        if twin is not None and twin < i:
            group.append(group[twin])
            sign.append(-1.0)
        else:
            group.append(groups)
            sign.append(0.0 if twin in (None, i) else 1.0)  # what lies in the middle has no side
            groups += 1
    mix = torch.eye(groups)[group]
    return torch.cat([mix, torch.tensor(sign)[:, None]], 1) if any(sign) else mix


class Segmenter(nn.Module):
    """f(x) = h(g(x) + global features under x), for patches x of a scan whose whole is X.

    Args:
        architecture: sizes.
        labels: the structures, in class order (class 0 is the background).
    """

    def __init__(self, architecture: Architecture, labels: Sequence[Label]):
        super().__init__()
        a = architecture
        self.architecture = architecture
        self.labels = tuple(labels)
        self.classes = len(labels) + 1
        self.curve = IntensityCurve(a.curve_knots) if a.curve_knots else nn.Identity()
        self.encoder = Encoder(a.width, a.depth)
        self.blended = min(a.up_channels, self.classes)
        """Channels of :meth:`to_blend`."""
        self.head = SegmentationHead(
            2 * a.width, a.head_width, a.up_channels, lateral_mix(labels), a.dilations, a.dropout, a.detail
        )

    @contextmanager
    def uncurved(self) -> Iterator[None]:
        """Leave the intensity curve out: for scans that it was not learnt for, or that have been through it."""
        curve, self.curve = self.curve, nn.Identity()
        try:
            yield
        finally:
            self.curve = curve

    def features(self, x: Tensor) -> Tensor:
        """g(x): (B, 1, D, H, W) intensities in [0, 1] to (B, width, D/4, H/4, W/4)."""
        return self.encoder(self.curve(x))

    def encode(self, patches: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`features` of patches (B, 1, p, p, p) and whole scans (N, 1, G, G, G)."""
        return in_one_pass(self.features, patches, whole)

    def decode(self, local_features: Tensor, global_features: Tensor, patches: Tensor) -> Tensor:
        """Logits (B, classes, p, p, p), in the precision of the context.

        Args: two feature maps (B, width, p/4, p/4, p/4), and the patches (B, 1, p, p, p) of the first.
        """
        return self.head.logits(self.maps(local_features, global_features, patches))

    def maps(self, local_features: Tensor, global_features: Tensor, patches: Tensor) -> Tensor:
        """What the last convolution takes, (B, channels, p, p, p), channels last. Args: as :meth:`decode`."""
        return self.head.maps(torch.cat([local_features, global_features], 1), self.curve(patches))

    def to_blend(self, local_features: Tensor, global_features: Tensor, patches: Tensor) -> Tensor:
        """Maps (B, blended, p, p, p), channels last, of which the logits are a linear function, :meth:`blended_logits`.

        The mean over windows of what the last convolution takes makes the mean of their logits, with one convolution
        for a voxel instead of one for each window that holds it. Where classes are fewer, these are the logits, in
        fp32: in bf16 two of them may be equal, and a label that is chosen by their order is a biased one.

        Args: as :meth:`decode`.
        """
        maps = self.maps(local_features, global_features, patches)
        if self.blended < self.classes:
            return maps
        with torch.autocast(maps.device.type, enabled=False):
            return self.head.logits(maps.float()).contiguous(memory_format=CHANNELS_LAST)

    def blended_logits(self, maps: Tensor) -> Tensor:
        """Logits (B, classes, ...) of means of :meth:`to_blend`."""
        return self.head.logits(maps) if self.blended < self.classes else maps

    def forward(self, patches: Tensor, whole: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Logits of B patches of one scan: see :func:`sample_global` for ``low`` and ``high``."""
        local_features, global_features = self.encode(patches, whole)
        under = sample_global(global_features, low, high, local_features.shape[2:])
        return self.decode(local_features, under, patches)


def sample_global(features: Tensor, low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
    """The part of g(X) under each patch, at continuous coordinates (trilinear, as RoI-align does).

    Args:
        features: g(X) of one scan (1, C, d, h, w), or of one scan per patch (B, C, d, h, w).
        low, high: corners of the patches as shares of the scan's foreground box, (B, 3); may leave [0, 1].
        size: cells of the result along each axis.

    Returns:
        (B, C, *size), of the features' type.
    """
    axes = []
    for axis, (cells, length) in enumerate(zip(size, features.shape[2:], strict=True)):
        share = (torch.arange(cells, device=low.device, dtype=low.dtype) + 0.5) / cells
        place = low[:, axis, None] + share * (high - low)[:, axis, None]
        place = (place * length - 0.5).clamp(0, length - 1)
        near = 1 - (place[..., None] - torch.arange(length, device=low.device)).abs()
        axes.append(near.clamp(min=0))
    # Patches are not turned, so that the axes part: a third of grid_sample's time on a CPU.
    with torch.autocast(features.device.type, enabled=False):
        given = features.float().expand(len(low), -1, -1, -1, -1)
        return torch.einsum("bcdhw,bxd,byh,bzw->bcxyz", given, *axes).to(features.dtype)
