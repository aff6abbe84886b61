"""What a network is shown of a scan in one step: some patches plain, some masked, and the whole scan likewise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LossOptions
from ..datasets import PatchBatch
from ..masking import cube_mask
from ..networks.segmenter import sample_global
from .loop import Loop


@dataclass
class Shown:
    """Forward results; the plain views come first everywhere.

    Shapes: ``logits`` (P + M, K, p, p, p); ``local_features`` and ``global_features`` (P + M, C, p/4, p/4, p/4);
    ``whole_logits`` (wholes, K, G, G, G), or None when the whole scan is not to be decoded. A whole is there for
    the plain patches, and one for the masked, if there are any.
    """

    logits: Tensor
    local_features: Tensor
    global_features: Tensor
    whole_logits: Tensor | None


def show(
    loop: Loop,
    batch: PatchBatch,
    plain: int,
    masked: int,
    options: LossOptions,
    masked_whole_only: bool = False,
) -> Shown:
    """Forward the first ``plain`` patches as they are, and the last ``masked`` ones with most of their cubes hidden.

    A masked patch meets the features of the masked whole, with cubes half as wide (section 3.1). All goes through
    the encoder in one pass.

    Args:
        options: mask ratio, mask cube and weight of the whole-scan term are read from it.
        masked_whole_only: do not decode the plain whole, which costs as much as a patch.
    """
    patches, wholes = [], []
    if plain:
        patches.append(batch.patches[:plain])
        wholes.append(batch.whole)
    if masked:
        patches.append(_hide(loop, batch.patches[-masked:], options.mask_cube, options.mask_ratio))
        wholes.append(_hide(loop, batch.whole, max(1, options.mask_cube // 2), options.mask_ratio))
    low, high = (
        torch.cat([edge[:plain], edge[-masked:] if masked else edge[:0]]) for edge in (batch.low, batch.high)
    )
    shown, shown_wholes = torch.cat(patches), torch.cat(wholes)
    with loop.autocast():
        local_features, whole = loop.model.encode(shown, shown_wholes)
        counts = torch.tensor([n for n in (plain, masked) if n], device=whole.device)
        # told how many there will be, the host need not wait for a GPU to count
        wholes_under = whole.repeat_interleave(counts, 0, output_size=len(shown))
        under = sample_global(wholes_under, low, high, local_features.shape[2:])
        logits = loop.model.decode(local_features, under, shown)
        whole_logits = None
        if options.global_weight:
            told = slice(-1 if masked_whole_only else 0, None)
            whole_logits = loop.model.decode(whole[told], whole[told], shown_wholes[told])
    return Shown(logits, local_features, under, whole_logits)


def _hide(loop: Loop, images: Tensor, cube: int, ratio: float) -> Tensor:
    return images * cube_mask(tuple(images.shape), cube, ratio, loop.generator).to(images.device)
