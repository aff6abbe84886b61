"""L_seg and L_cos (section 3.3) and the error of reconstructions (3.1), in fp32 whatever the network's precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _SegmentationLoss(torch.autograd.Function):
    """Cross-entropy minus soft Dice, with the gradient written out.

    With many classes the chain of elementwise operations costs more than the network's last layers; the
    closed form touches the probabilities three times instead of a dozen.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, balance: float) -> Tensor:
        probabilities = logits.float().log_softmax(1)
        log_hit = probabilities.gather(1, target[:, None])
        probabilities.exp_()
        hit = log_hit.exp()
        classes = logits.shape[1]
        count = torch.bincount(target.flatten(), minlength=classes).to(hit.dtype)
        # plane by plane: one sum of millions of voxels in fp32 would lose those that come last
        rows = target.flatten(0, 1).flatten(1)
        overlap = hit.new_zeros(len(rows), classes).scatter_add_(1, rows, hit.view_as(rows)).sum(0)
        total = (probabilities.sum((0, 2, 3, 4)) + count).clamp(min=1e-6)  # of an absent class: 0 / 0 is no 0
        scored = (count > 0) & (torch.arange(classes, device=count.device) > 0)
        weight = scored / scored.sum().clamp(min=1)
        share = count.clamp(min=1) ** -balance
        share /= (share * count).sum()
        ctx.save_for_backward(
            probabilities, target, hit, weight * 2 * overlap / total**2, weight * 2 / total, share
        )
        ctx.dtype = logits.dtype
        return -(log_hit * share[target[:, None]]).sum() - (weight * 2 * overlap / total).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        p, target, hit, everywhere, at_target, share = ctx.saved_tensors
        target = target[:, None]
        share = share[target]
        # softmax's own derivative: p * (g - sum p g), with g the derivative of Dice by each probability
        own = at_target[target] * hit
        inner = torch.einsum("bkxyz,k->bxyz", p, everywhere)[:, None] - own
        slope = everywhere.view(1, -1, 1, 1, 1) + (share - inner)
        slope.mul_(p).scatter_add_(1, target, -own - share)
        return slope.mul_(gradient).to(ctx.dtype), None, None


def segmentation_loss(logits: Tensor, target: Tensor, balance: float = 0.0) -> Tensor:
    """Cross-entropy minus the soft Dice of the foreground classes, over the batch as one volume.

    Only classes that the target holds count towards Dice: an absent class has none to score.

    Args:
        logits: (B, K, D, H, W).
        target: class indices (B, D, H, W), int64.
        balance: cross-entropy weighs a class by its frequency to the power of minus this; 0 weighs voxels alike,
            1 classes. A small structure may never be learnt without.
    """
    return _SegmentationLoss.apply(logits, target, balance)


def cosine_loss(local_features: Tensor, global_features: Tensor) -> Tensor:
    """One minus the cosine of local features and of the global ones at the same place, mean over cells.

    Args: two feature maps (B, C, d, h, w).
    """
    return 1 - F.cosine_similarity(local_features.float(), global_features.float(), dim=1).mean()


def masked_error(rebuilt: Tensor, image: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error of the hidden voxels (section 3.1); what is visible costs nothing.

    Args: two images and where voxels stayed visible, all of one shape.
    """
    hidden = ~keep
    return ((rebuilt.float() - image.float()).square() * hidden).sum() / hidden.sum()
