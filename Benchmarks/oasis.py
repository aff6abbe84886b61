"""The eight manually labelled T1 scans of ``oasis_t1``, their labels in FreeSurfer's codes.

Neuromorphometrics' protocol draws some borders differently from FreeSurfer's (amygdala, pallidum and accumbens
most), so even a perfect model stays below a Dice of 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MAPSegLib.metrics import dice_scores
from MAPSegLib.volumes import Volume, check_same_grid, map_values, read_image, read_labels

SCANS = tuple(str(number) for number in range(1000, 1008))

LEFT_CORTEX, RIGHT_CORTEX = 3, 42
FREESURFER = {
    60: 10, 59: 49,  # thalamus
    37: 11, 36: 50,  # caudate
    58: 12, 57: 51,  # putamen
    56: 13, 55: 52,  # pallidum
    48: 17, 47: 53,  # hippocampus
    32: 18, 31: 54,  # amygdala
    30: 26, 23: 58,  # accumbens
    52: 4, 51: 43,  # lateral ventricle
    35: 16, 4: 14, 11: 15,  # brain stem, third and fourth ventricle
    62: 28, 61: 60,  # ventral diencephalon
    45: 2, 44: 41,  # cerebral white matter
    41: 7, 40: 46, 39: 8, 38: 47,  # cerebellum: white matter, cortex
} | {code: RIGHT_CORTEX if code % 2 == 0 else LEFT_CORTEX for code in range(100, 208)}  # fmt: skip
"""Neuromorphometrics code to FreeSurfer code (parcels of the cortex from 100: even is right); else background."""

SEVEN = {
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "thalamus": (10, 49),
    "accumbens": (26, 58),
}
"""The paper's seven subcortical structures: left and right code."""
STRUCTURES = SEVEN | {
    "lateral ventricle": (4, 43),
    "third ventricle": (14,),
    "fourth ventricle": (15,),
    "brain stem": (16,),
    "ventral diencephalon": (28, 60),
    "cerebellum cortex": (8, 47),
    "cerebellum white matter": (7, 46),
    "cerebral cortex": (LEFT_CORTEX, RIGHT_CORTEX),
    "cerebral white matter": (2, 41),
}
"""What both protocols draw."""
SEVEN_VALUES = tuple(value for pair in SEVEN.values() for value in pair)


def image_path(data: Path, name: str) -> Path:
    """The scan ``name`` (``SCANS``) in the folder that holds ``oasis_t1``."""
    return data / "oasis_t1" / f"{name}_SS.nii.gz"


def load_pair(data: Path, name: str) -> tuple[Volume, np.ndarray]:
    """A scan and its reference labels in FreeSurfer's codes, int32, of the scan's shape."""
    image = read_image(image_path(data, name))
    reference = read_labels(data / "oasis_t1" / f"{name}_glm.nii.gz")
    check_same_grid(image, reference)
    return image, map_values(reference.array, FREESURFER)


def mean_dice(labels: np.ndarray, reference: np.ndarray) -> float:
    """Mean Dice (0-1) of the seven structures, both sides, in two maps of FreeSurfer codes of one shape."""
    return float(np.nanmean(list(dice_scores(labels, reference, SEVEN_VALUES).values())))
