"""Uncertainty maps over their volumes, in the slice views."""

from __future__ import annotations

import slicer

from .scene import UNCERTAINTY

_OPACITY = 0.5
_COVERED = "MAPSeg.Covered"
"""Attribute of slice views, with the foreground volume's ID and opacity that an uncertainty map covers."""


def show_overlay(volumeNode, uncertaintyNode) -> None:
    """Show an uncertainty map over its volume in all slice views; what it covers there comes back after it.

    None for the map takes uncertainty maps out of the foreground, and leaves what else users put there.
    """
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        over = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        overlaid = over is not None and bool(over.GetAttribute(UNCERTAINTY))
        if uncertaintyNode is not None:
            if not overlaid:
                covered = f"{composite.GetForegroundVolumeID() or ''} {composite.GetForegroundOpacity()}"
                composite.SetAttribute(_COVERED, covered)
            composite.SetBackgroundVolumeID(volumeNode.GetID())
            composite.SetForegroundVolumeID(uncertaintyNode.GetID())
            composite.SetForegroundOpacity(_OPACITY)
        elif overlaid:
            before, _space, share = (composite.GetAttribute(_COVERED) or " 0").partition(" ")
            there = before and slicer.mrmlScene.GetNodeByID(before) is not None
            composite.SetForegroundVolumeID(before if there else None)
            composite.SetForegroundOpacity(float(share) if there else 0.0)
            composite.SetAttribute(_COVERED, None)
