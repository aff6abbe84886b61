"""A fixed family of contrast changes: what another sequence or scanner might make of the same head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from MAPSegLib.augmentation import bias_field
from MAPSegLib.volumes import Volume

Curve = Callable[[np.ndarray], np.ndarray]

MONOTONE: dict[str, Curve] = {
    "gamma 0.5": lambda x: x**0.5,
    "gamma 2.2": lambda x: x**2.2,
    "bias 0.3": lambda x: x,
}
NON_MONOTONE: dict[str, Curve] = {
    "sine 3.2": lambda x: 0.5 + 0.5 * np.sin(3.2 * math.pi * x - 1.2),
    "sine 2.6": lambda x: 0.5 + 0.5 * np.sin(2.6 * math.pi * x - 0.9),
    "sine 2.0": lambda x: 0.5 + 0.5 * np.sin(2.0 * math.pi * x - 0.6),
    "tent 0.7": lambda x: np.where(x < 0.7, x / 0.7, 1 - 0.75 * (x - 0.7) / 0.3),
}
INVERSION: dict[str, Curve] = {"inverted": lambda x: 1 - 0.95 * x}
CHANGES = MONOTONE | NON_MONOTONE | INVERSION


def change(volume: Volume, name: str) -> Volume:
    """The scan in another contrast; background (0) stays 0.

    Intensities are first scaled so that the 99.5th percentile of the foreground is 1.
    """
    inside = volume.array > 0
    x = np.clip(volume.array / np.percentile(volume.array[inside], 99.5), 0, 1)
    if name == "bias 0.3":
        field = bias_field(torch.from_numpy(x.astype(np.float32)), 0.3, torch.Generator().manual_seed(0))
        x = field.numpy()
    else:
        x = CHANGES[name](x)
    array = np.where(inside, np.maximum(x, 1e-3), 0).astype(np.float32)
    return dataclasses.replace(volume, array=array)
