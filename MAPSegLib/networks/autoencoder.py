"""The masked autoencoder (section 3.1): the encoder g, and a small decoder that is thrown away after pretraining."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Architecture
from .encoder import STRIDE, Encoder, ResidualBlock, group_norm, in_one_pass

FINE_CHANNELS = 16
"""Channels at full resolution from which the intensity is read."""


class ReconstructionDecoder(nn.Sequential):
    """(B, width, d, h, w) features to (B, 1, 4d, 4h, 4w) intensities, before their sigmoid."""

    def __init__(self, width: int):
        up = max(1, width // 16)
        up -= up % 8 if up > 8 else 0  # whole groups
        super().__init__(
            nn.ConvTranspose3d(width, up, STRIDE, STRIDE),
            ResidualBlock(up, FINE_CHANNELS, groups=8),
            group_norm(FINE_CHANNELS, 8),
            nn.Conv3d(FINE_CHANNELS, 1, 3, padding=1),
        )


class Autoencoder(nn.Module):
    """Both branches through one encoder and one decoder.

    The encoder's weights have the names that they have in a :class:`~MAPSegLib.networks.segmenter.Segmenter`.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture.width, architecture.depth)
        self.decoder = ReconstructionDecoder(architecture.width)

    def forward(self, patches: Tensor, wholes: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuilt intensities in [0, 1], float32, of patches (B, 1, p, p, p) and whole scans (N, 1, G, G, G)."""
        return in_one_pass(self._rebuild, patches, wholes)

    def _rebuild(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x)).float())
