"""Between MRML and files: volumes out, label maps in as segmentations with names, colours and terminology."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def export_volume(node, path: str | Path) -> Path:
    """Write a scalar volume as it lies on its own grid; parent transforms are left out, as results get the same."""
    raise NotImplementedError


def load_labels(path: str | Path, volumeNode, card: dict[str, Any], name: str = ""):
    """A label map on a volume's grid as a new segmentation node: beside the volume, under the same transform."""
    raise NotImplementedError


def replace_labels(segmentationNode, path: str | Path, volumeNode, card: dict[str, Any]) -> None:
    """Put another label map of the same volume into a segmentation; display settings of its segments stay."""
    raise NotImplementedError


def load_uncertainty(path: str | Path, volumeNode, name: str = ""):
    """An uncertainty map as a scalar volume node with a colour scale, beside its volume and under its transform."""
    raise NotImplementedError


def show_overlay(volumeNode, uncertaintyNode, opacity: float = 0.5) -> None:
    """Show an uncertainty map over its volume in all slice views; None removes the overlay."""
    raise NotImplementedError


def export_segmentation(segmentationNode, volumeNode, path: str | Path) -> Path:
    """Write ``.seg.nrrd``, or a label map with the model's values for other suffixes (``.nii.gz``, ``.nrrd``)."""
    raise NotImplementedError
