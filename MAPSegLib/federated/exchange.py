"""What a site sends back after a round: the only thing that ever leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Weights = dict[str, np.ndarray]
"""Arrays by name, in half precision where they travel."""
Report = Callable[..., None]
"""Called by the work as ``report(event, **fields)``; raises Cancelled when it is to end."""


@dataclass(frozen=True)
class Update:
    """A site's answer to one round.

    Attributes:
        difference: the site's EMA teacher minus the weights it was sent, float16.
        scans: how many scans it trained on.
        losses: mean losses of the round, by name.
    """

    difference: Weights
    scans: int
    losses: dict[str, float]


class SiteLike(Protocol):
    """The work of one site, as an engine sees it."""

    def train_round(self, number: int, weights: Weights, report: Report) -> Update: ...


class CoordinatorLike(Protocol):
    """The work of the server, as an engine sees it. It saves its state after every round."""

    @property
    def round(self) -> int: ...

    @property
    def done(self) -> bool: ...

    def payload(self) -> Weights: ...

    def absorb(self, updates: Mapping[str, Update]) -> dict[str, Any]: ...

    def finish(self) -> Path: ...
