"""Whether a mirrored scan looks like a scan: not where a structure lies to one side that has no mirror image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .config import Label

ASIDE = 0.25
"""How far from the middle a structure lies to one side, where paired ones lie 1 from it on average."""


def with_sides(labels: Sequence[Label], maps: Iterable[Tensor]) -> tuple[Label, ...]:
    """The labels, which say then whether those without a mirror image lie to one side; what they said already stays.

    Args:
        maps: of each label map the :func:`places_across`.
    """
    rank = {label.value: index for index, label in enumerate(labels)}
    pairs = torch.tensor(
        [[rank[label.value], rank[label.mirror]] for label in labels if label.mirror in rank]
    )
    if not len(pairs):
        return tuple(labels)
    places = torch.stack(list(maps))
    left, right = places[:, pairs].unbind(2)
    middle = ((left + right) / 2).nanmean(1, keepdim=True)
    offsets = ((places - middle) / ((left - right).abs() / 2).nanmean(1, keepdim=True)).nanmean(0)
    return tuple(
        label.model_copy(update={"one_sided": abs(offset) > ASIDE})
        if label.mirror is None and label.one_sided is None and offset == offset
        else label
        for label, offset in zip(labels, offsets.tolist(), strict=True)
    )


def places_across(classes: Tensor, structures: int, spacing: Sequence[float]) -> Tensor:
    """Mean place of every structure along the first axis, mm; NaN where it has none. Float64 (structures,).

    Args:
        classes: indices (X, Y, Z), 0 for background, the first axis from left to right.
        structures: their number; class indices run from 1 to it.
        spacing: mm.
    """
    across = torch.arange(len(classes), dtype=torch.float64)
    counts = torch.stack(
        [torch.bincount(plane.flatten().long(), minlength=structures + 1) for plane in classes]
    )
    return (across @ counts.double() / counts.sum(0))[1:] * spacing[0]
