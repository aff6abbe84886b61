"""The published procedures, as they are described, to measure ours against: same network, same weights, same scan.

Inference: one window at a time, in fp32; the windows at a scan's end are visited again and again; for each, the
whole scan is resized and encoded anew and the training-only result f(X) computed and thrown away; the part of
g(X) under a window is rounded to whole cells and stretched; all classes of the whole volume are kept and averaged.
Adaptation: one patch a step, in fp32, a pass of its own for every term.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from MAPSegLib.config import AdaptationOptions
from MAPSegLib.datasets import PatchBatch, resize_whole
from MAPSegLib.masking import cube_mask
from MAPSegLib.networks.segmenter import Segmenter

EDGE, PATCH, STRIDE = 256, 96, 80
"""Voxels of the published canvas, window and stride."""


def on_canvas(image: Tensor, patch: int) -> Tensor:
    """A prepared image (X, Y, Z) amid a cube that is to ``patch`` as 256 to 96; what does not fit is cut off."""
    edge = round(EDGE * patch / PATCH)
    margins = [((edge - n) // 2, edge - n - (edge - n) // 2) for n in reversed(image.shape)]
    return F.pad(image, [m for pair in margins for m in pair])


def window_starts(length: int, patch: int) -> list[int]:
    """First voxels of the windows along one axis; the last ones are moved inside, and may repeat."""
    stride = -(-STRIDE * patch // PATCH)
    return [max(0, min(start, length - patch)) for start in range(0, length, stride)]


def windows(shape: tuple[int, ...], patch: int) -> list[tuple[int, ...]]:
    """Corners of all windows, repeats included."""
    return list(itertools.product(*(window_starts(n, patch) for n in shape)))


def cells_under(features: Tensor, low: Tensor, high: Tensor, size: tuple[int, ...]) -> Tensor:
    """The whole cells of g(X) (1, C, d, h, w) nearest to one patch, stretched to ``size``.

    Args:
        low, high: corners of the patch as shares of the scan, (3,).
    """
    part = features
    for axis, n in enumerate(features.shape[2:]):
        first = min(round(float(low[axis]) * n), n - 1)
        last = min(max(round(float(high[axis]) * n), first + 1), n)
        part = part.narrow(2 + axis, first, last - first)
    return F.interpolate(part, size=size, mode="trilinear", align_corners=False)


def _decode(model: Segmenter, local_features: Tensor, under: Tensor, x: Tensor) -> Tensor:
    """The head as it is described, in PyTorch's own memory layout."""
    *steps, last = list(model.head.children())[:8]
    y = torch.cat([local_features, under], 1)
    for step in steps[:4]:
        y = step(y)
    if model.head.detail is not None:
        y = torch.cat([y, model.head.detail(x)], 1)
    for step in steps[4:]:
        y = step(y)
    weight = (last.mix @ last.weight.flatten(1)).view(-1, last.in_channels, 1, 1, 1)
    return F.conv3d(y, weight, last.mix @ last.bias)


def _forward(model: Segmenter, x: Tensor, whole: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """f(x), f(X), and the local and global features that f(x) was made of."""
    local_features, whole_features = model.features(x), model.features(whole)
    under = cells_under(whole_features, low, high, local_features.shape[2:])
    logits = _decode(model, local_features, under, x)
    return logits, _decode(model, whole_features, whole_features, whole), local_features, under


@torch.inference_mode()
def segment(model: Segmenter, image: Tensor) -> Tensor:
    """Class indices (X, Y, Z) of a prepared image."""
    model.eval()
    patch, size = model.architecture.patch, model.architecture.global_size
    shape = torch.tensor(image.shape)
    missing = [max(0, patch - n) for n in reversed(image.shape)]
    padded = F.pad(image, [m for n in missing for m in (0, n)])
    total = torch.zeros(model.classes, *padded.shape)
    visits = torch.zeros(padded.shape)
    for corner in windows(image.shape, patch):
        place = tuple(slice(c, c + patch) for c in corner)
        low = torch.tensor(corner) / shape
        logits = _forward(
            model, padded[place][None, None], resize_whole(image, size), low, low + patch / shape
        )[0]
        total[(slice(None), *place)] += logits[0].softmax(0)
        visits[place] += 1
    return (total / visits).argmax(0)[tuple(slice(n) for n in image.shape)]


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy minus the soft Dice of the foreground classes, absent ones included."""
    probability = logits.softmax(1)
    hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = (2 * (probability * hot).sum(axes) + 1e-5) / (probability.sum(axes) + hot.sum(axes) + 1e-5)
    return F.cross_entropy(logits, target) - dice[1:].mean()


def adaptation_step(
    student: Segmenter,
    teacher: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: PatchBatch,
    options: AdaptationOptions,
    generator: Generator,
) -> float:
    """One step of test-time adaptation on the first patch of a batch; returns the loss."""
    x, whole = batch.patches[:1], batch.whole
    place = batch.low[0], batch.high[0]
    student.train()
    with torch.no_grad():
        logits, whole_logits, _, _ = _forward(teacher, x, whole, *place)
        label, whole_label = logits.argmax(1), whole_logits.argmax(1)
    masked = x * cube_mask(x.shape, options.mask_cube, options.mask_ratio, generator)
    masked_whole = whole * cube_mask(
        whole.shape, max(1, options.mask_cube // 2), options.mask_ratio, generator
    )
    logits, whole_logits, local_features, under = _forward(student, masked, masked_whole, *place)
    loss = segmentation_loss(logits, label)
    loss = loss + 2 * options.global_weight * segmentation_loss(whole_logits, whole_label)
    cosine = 1 - F.cosine_similarity(local_features, under, dim=1).mean()
    loss = loss + 2 * options.cosine_weight * cosine
    local_features, whole_features = student.features(x), student.features(whole)
    under = cells_under(whole_features, *place, local_features.shape[2:])
    plain = _decode(student, local_features, under, x)
    loss = loss + options.plain_weight * segmentation_loss(plain, label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.mul_(options.ema_decay).add_(new, alpha=1 - options.ema_decay)
    return loss.item()
