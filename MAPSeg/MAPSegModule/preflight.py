"""A look at a volume before anything is run: does it fit the model, and what will it cost?"""

from __future__ import annotations

from dataclasses import dataclass

from .models import ModelEntry


@dataclass(frozen=True)
class Preflight:
    """What is known of a volume before it is segmented."""

    spacing: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    modality: str
    """``mr``, ``ct``, or empty when it cannot be told."""
    foreign: bool | None
    """Whether its intensities are foreign to the model's source; None when the card has no statistics."""
    memory_gb: float
    seconds: float
    problem: str
    """Why it cannot be segmented, in one sentence; empty when it can."""
    summary: str
    """All of it in one line for the panel."""


def preflight(volumeNode, entry: ModelEntry) -> Preflight:
    """Look at a volume node. Takes some milliseconds: intensities are sampled, not read whole."""
    raise NotImplementedError
