"""Find the intensity curve under which a source model understands a foreign contrast.

Self-training needs a start to hold on to. Where contrast has changed so much that the source model fails, a
curve often brings it back: an inverted scan needs a falling one. A few dozen candidates are tried on the whole
scan at low resolution, where one costs a tenth of a second, and judged by the label-free score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..datasets import resize_whole
from ..devices import precision_context
from ..networks.curve import apply_curve
from ..networks.segmenter import Segmenter
from ..quality import Looks, measure, transformation

if TYPE_CHECKING:
    from ..models import ModelCard

BATCH = 4
ROUNDS = 4
CHILDREN = 12
PARENTS = 3


def search_curve(
    model: Segmenter,
    card: ModelCard,
    image: Tensor,
    spacing: Sequence[float],
    generator: Generator,
    precision: str = "auto",
    told: Callable[[int, int], bool] = lambda done, total: True,
) -> Tensor:
    """The best curve found by a small evolution from the identity and its inverse.

    Args:
        model: with an intensity curve; its own is ignored and left alone.
        image: prepared scan (X, Y, Z) in [0, 1].
        spacing: of the image, mm.
        told: rounds done and all of them; false ends the search with the best so far.

    Returns:
        knot values (knots + 1,).
    """
    knots = model.architecture.curve_knots
    line = torch.linspace(0, 1, knots + 1)
    pool: list[tuple[float, Tensor]] = []
    candidates = [line, 1 - line] + [
        _bend(base, 0.35, generator) for base in (line, 1 - line) for _ in range(5)
    ]
    for number in range(1, ROUNDS + 1):
        if not told(number - 1, ROUNDS) and pool:
            break
        pool += zip(_scores(model, card, image, spacing, candidates, precision), candidates, strict=True)
        pool = sorted(pool, key=lambda pair: -pair[0])[:PARENTS]
        size = 0.35 * 0.6**number
        candidates = [_bend(pool[i % len(pool)][1], size, generator) for i in range(CHILDREN)]
    return pool[0][1]


def _bend(curve: Tensor, size: float, generator: Generator) -> Tensor:
    """The curve plus smooth noise."""
    noise = torch.randn(1, 1, 6, generator=generator) * size
    return (curve + F.interpolate(noise, size=len(curve), mode="linear", align_corners=True)[0, 0]).clamp(
        0, 1
    )


@torch.inference_mode()
def _scores(
    model: Segmenter,
    card: ModelCard,
    image: Tensor,
    spacing: Sequence[float],
    curves: list[Tensor],
    precision: str,
) -> list[float]:
    """Label-free score of each curve, from f(X) of the whole scan and of the transformed one, both small."""
    size, device = model.architecture.global_size, next(model.parameters()).device
    low = F.adaptive_avg_pool3d(image[None], [min(size, n) for n in image.shape])[0]
    spacing = [mm * n / m for mm, n, m in zip(spacing, image.shape, low.shape, strict=True)]
    way = transformation(card.labels, low.shape, spacing)
    views, scores = (low, way.there(low)), []
    for first in range(0, len(curves), BATCH):
        maps = []
        for view in views:
            whole = resize_whole(view, size)
            seen = torch.cat([apply_curve(curve, whole) for curve in curves[first : first + BATCH]]).to(
                device
            )
            with precision_context(device, precision):
                features = model.encoder(seen)
                logits = model.head(torch.cat([features, features], 1), seen)
            found = logits.argmax(1, keepdim=True).cpu().float()
            maps.append(F.interpolate(found, size=view.shape, mode="nearest-exact")[:, 0].long())
        for one, other in zip(*maps, strict=True):
            looks = Looks(low, one, way.back(other))
            measures = measure(card.labels, looks, one, spacing, card.priors)
            scores.append(measures["score"])
    return scores
