"""A look at a volume before anything is run: does it fit the model, and what will it cost?"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import slicer
from slicer.i18n import tr as _

from MAPSegLib.levels import foreground_bounds, levels_of, modality_notes

from .images import has_voxels, transform_above
from .models import ModelEntry

FOREIGN = 1.6
"""Distance of the intensity quantiles from the source's (Mahalanobis, by the root of their number) of a foreign scan.

The lowest quantile is left out: it tells brain-extracted heads from whole ones. For `brain-t1`, T1 brains of three
sources lie at 0.6 to 1.4, MNI152, an average of many heads, at 1.9, and so it does in the demo's contrast; for `brain`
at 0.4 to 1.1, 1.4 and 2.0. A T2 brain, FLAIR and an abdomen, at 0.9 to 1.4, do not stand out: this is a first hint.
"""
_TURNED = 0.7
"""Cosine of the angle by which a transform turns a scan over."""
_SAMPLE = 300_000
_CORES = max(1, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class Preflight:
    """What is known of a volume before it is segmented."""

    spacing: tuple[float, float, float]
    modality: str
    """In small letters: ``mr``, ``ct`` or what else DICOM says; empty when it cannot be segmented."""
    foreign: bool
    """Whether modality or intensities are foreign to the model's source, as far as that can be seen beforehand.

    Intensities that do not stand out prove no familiarity. What a result is worth is judged after the run.
    """
    advice: str
    """What to do about that, or about a transform that turns the scan over; one sentence, or empty."""
    problem: str
    """Why it cannot be segmented, in one sentence; empty when it can."""
    summary: str
    """All of it in one line for the panel."""


def preflight(volumeNode, entry: ModelEntry) -> Preflight:
    """Look at a volume node. Takes some milliseconds: intensities are sampled, not read whole."""
    try:
        return _look(volumeNode, entry)
    except Exception as error:  # of this volume: it keeps nobody from looking at the others
        return _refused(_("It cannot be looked at: {reason}").format(reason=error))


def _look(volumeNode, entry: ModelEntry) -> Preflight:
    problem = _unusable(volumeNode)
    if problem:
        return _refused(problem)
    spacing = tuple(map(float, volumeNode.GetSpacing()))
    sample, step = _sample(slicer.util.arrayFromVolume(volumeNode))
    if not np.isfinite(sample).all():
        problem = _("It holds values that are not numbers.")
    elif sample.min() == sample.max():
        problem = _("All of its voxels are alike.")
    if problem:
        return _refused(problem, spacing)
    wanted = entry.card["preprocessing"]["modality"]
    modality = _modality(volumeNode, sample, wanted)
    foreign, working = _compare(sample, [s * step for s in spacing], modality, entry.card)
    shape = volumeNode.GetImageData().GetDimensions()
    size = tuple(n * s for n, s in zip(shape, spacing, strict=True))
    memory = 0.9 + (24 * float(np.prod(shape)) + 150 * working) / 1e9
    seconds = 4 + 6e-6 * working / _CORES
    return Preflight(
        spacing,
        modality,
        foreign,
        _advice(volumeNode, modality, wanted, foreign),
        "",
        _summary(spacing, size, modality, foreign, wanted, memory, seconds),
    )


def _refused(problem: str, spacing=(0, 0, 0)) -> Preflight:
    return Preflight(spacing, "", False, "", problem, problem)


def _unusable(node) -> str:
    if not has_voxels(node):
        return _("It holds no voxels.")
    image = node.GetImageData()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("It is a label map, not a scan.")
    if image.GetNumberOfScalarComponents() != 1:
        return _("It is a colour or vector volume.")
    if min(image.GetDimensions()) < 2:
        return _("It is a picture, not a volume.")
    return ""


def _sample(array: np.ndarray) -> tuple[np.ndarray, int]:
    """Every n-th voxel along each axis, (i, j, k), and n."""
    step = max(1, int(np.ceil((array.size / _SAMPLE) ** (1 / 3))))
    return np.asarray(array[::step, ::step, ::step].transpose(2, 1, 0), np.float32), step


def _modality(node, sample: np.ndarray, wanted: str) -> str:
    """What DICOM says of it, else the model's, unless the worker would tell that its values are not of that one."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    told = hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""
    if told and told != "OT":  # "other"
        return told.lower()
    if not modality_notes(sample, wanted):
        return wanted
    return "mr" if wanted == "ct" else "ct"


def _compare(sample: np.ndarray, spacing: list[float], modality: str, card: dict) -> tuple[bool, float]:
    """Whether the sample is foreign to the model's source, and the voxels of the model's grid it will fill."""
    wanted = card["preprocessing"]
    levels = levels_of(sample, wanted["modality"], wanted["percentile"], wanted["window"])
    low, high = foreground_bounds(levels, (0, 0, 0))
    extent = np.subtract(high, low) * spacing
    working = float(np.prod(np.maximum(1, extent / np.array(wanted["spacing"]))))
    if modality != wanted["modality"]:
        return True, working
    known = card.get("priors", {}).get("intensity", {})
    if "covariance" not in known:
        return False, working
    tissue = sample if levels.blank is None else sample[sample != levels.blank]
    tissue = np.clip((tissue - levels.black) / max(levels.white - levels.black, 1e-30), 0, 1)
    tissue = tissue[tissue > 0]
    if tissue.size < 100:
        return False, working
    off = (np.quantile(tissue, known["quantiles"]) - known["mean"])[1:]
    covariance = np.array(known["covariance"])[1:, 1:]
    covariance += 1e-3 * np.trace(covariance) * np.eye(len(off))  # of few scans it may be flat somewhere
    distance = np.sqrt(off @ np.linalg.solve(covariance, off) / len(off))
    return bool(distance > FOREIGN), working


def _advice(node, modality: str, wanted: str, foreign: bool) -> str:
    if _turned_over(node):
        return _(
            "It lies under a transform that mirrors or turns it, and is segmented as it lies without. "
            "If the transform sets it right, harden it first: left and right depend on it."
        )
    if modality != wanted:
        return _("This model is for {modality}: choose another one.").format(modality=wanted.upper())
    return _("Adapting to it is advised.") if foreign else ""


def _turned_over(node) -> bool:
    """Whether transforms above the volume mirror it, or turn it by more than a registration would."""
    matrix = transform_above(node)
    if matrix is None:
        return False
    linear = matrix[:3, :3]
    left, _scales, right = np.linalg.svd(linear)
    cosine = (np.trace(left @ right) - 1) / 2
    return bool(np.linalg.det(linear) < 0 or cosine < _TURNED)


def _summary(spacing, size, modality, foreign, wanted, memory, seconds) -> str:
    parts = [
        _("{spacing} mm voxels, {size} mm").format(
            spacing=" × ".join(f"{s:.2f}".rstrip("0").rstrip(".") for s in spacing),
            size=" × ".join(f"{s:.0f}" for s in size),
        )
    ]
    parts.append(_("looks like {modality}").format(modality=modality.upper()))
    if modality != wanted:
        parts.append(_("but the model expects {modality}").format(modality=wanted.upper()))
    elif foreign:
        parts.append(_("intensities unlike the model's source"))
    cost = _("segmenting takes about {seconds:.0f} s on the CPU, and {memory:.1f} GB")
    return ", ".join(parts) + "; " + cost.format(memory=memory, seconds=seconds)
