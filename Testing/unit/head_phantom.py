"""A head of ellipsoids with FreeSurfer's codes: material for synthesis without any data."""

from __future__ import annotations

import torch

from MAPSegLib.config import Label
from MAPSegLib.synthesis import Anatomy

SCALP, CSF = 507, 24
LABELS = (
    Label(value=2, name="left white matter", mirror=41),
    Label(value=4, name="left ventricle", mirror=43),
    Label(value=10, name="left thalamus", mirror=49),
    Label(value=16, name="brain stem"),
    Label(value=41, name="right white matter", mirror=2),
    Label(value=43, name="right ventricle", mirror=4),
    Label(value=49, name="right thalamus", mirror=10),
)
CLASS_OF = {label.value: i for i, label in enumerate(LABELS, 1)}
SPACING = (4.0, 4.0, 4.0)


def ellipsoid(shape, centre, radii):
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1


def head(shape=(36, 40, 40)) -> torch.Tensor:
    """Codes (X, Y, Z) in RAS order: the left structures lie at small x; the neck below."""
    codes = torch.zeros(shape, dtype=torch.int64)
    middle = [(n - 1) / 2 for n in shape]
    codes[10:26, 12:28, 1:12] = SCALP
    middle[2] += 4
    for radii, code in (((16, 18, 15), SCALP), ((14, 16, 13), CSF), ((12.5, 14, 11), 2)):
        codes[ellipsoid(shape, middle, radii)] = code
    codes[ellipsoid(shape, (middle[0], middle[1], middle[2] - 8), (3, 3, 4))] = 16
    for left, offset, radii in ((4, 3, (2, 5, 3)), (10, 8, (2.5, 4, 3))):
        codes[ellipsoid(shape, (middle[0] - offset, *middle[1:]), radii)] = left
        codes[ellipsoid(shape, (middle[0] + offset, *middle[1:]), radii)] = {4: 43, 10: 49}[left]
    half = codes[shape[0] // 2 :]
    half[half == 2] = 41
    return codes


def anatomy() -> Anatomy:
    return Anatomy.from_labels(head(), SPACING, CLASS_OF)
