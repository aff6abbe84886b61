"""What crosses the network, and nothing else does: weights to a site; from it a difference, a count and losses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # what waits for a training, as a site without a job does, needs no PyTorch
    from torch import Tensor, nn

Weights = dict[str, np.ndarray]
"""By parameter name, in half precision."""


@dataclass(frozen=True)
class Update:
    """A site's answer to a round: all that ever leaves it.

    Attributes:
        difference: its EMA teacher after the round, less the weights that it received, float16. Half precision keeps
            a small difference, from 1e-5 up, to three digits, which it would not in the sum with a weight.
        scans: how many it has: its weight in the average.
        losses: means over the round's steps, by term.
    """

    difference: Weights
    scans: int
    losses: dict[str, float]


def to_half(state: Mapping[str, Tensor]) -> Weights:
    """Weights as they are sent."""
    return {name: tensor.detach().cpu().numpy().astype(np.float16) for name, tensor in state.items()}


def to_tensors(weights: Weights) -> dict[str, Tensor]:
    """Weights as they were received, in single precision."""
    import torch

    return {name: torch.from_numpy(array).float() for name, array in weights.items()}


def difference(after: nn.Module, before: Mapping[str, Tensor]) -> Weights:
    """What a round changed."""
    return to_half({name: tensor.cpu() - before[name] for name, tensor in after.state_dict().items()})


def size(weights: Weights) -> int:
    """Bytes, without what an engine wraps around them."""
    return sum(array.nbytes for array in weights.values())


def fingerprint(weights: Weights) -> str:
    """The same for the same weights alone."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()
