"""Whether the borders of a result lie where its scan changes.

A result can agree with itself and have plausible shapes, and lie in the wrong place. But then its borders cross tissue
as it comes. Whatever the contrast, a scan changes more at the borders of its structures than inside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNSEEN = 1e-3
"""Added to mean changes of intensities in [0, 1], so that an empty image has no contrast."""


def border_contrast(image: Tensor, classes: Tensor, structures: int) -> float:
    """Log of how many times more the image changes across a structure's border than inside it; mean over structures.

    0 where borders lie anywhere, as in noise; also where no structure is found. Changes are those between voxels that
    share a face.

    Args:
        image: intensities (X, Y, Z) in [0, 1].
        classes: indices (X, Y, Z), 0 for background.
        structures: their number; class indices run from 1 to it.
    """
    # sums of changes, and faces, by class
    inside, border = torch.zeros(2, 2, structures + 1, dtype=torch.float64)
    for axis in range(3):
        one, other = (classes.narrow(axis, start, classes.shape[axis] - 1).long() for start in (0, 1))
        change = image.diff(dim=axis).abs().double()
        crossed = one != other
        for sums, faces, side in ((inside, ~crossed, one), (border, crossed, one), (border, crossed, other)):
            sums[0] += torch.bincount(side[faces], change[faces], structures + 1)
            sums[1] += torch.bincount(side[faces], minlength=structures + 1)
    contrast = (border[0] / border[1] + UNSEEN).log() - (inside[0] / inside[1] + UNSEEN).log()
    known = contrast[1:][~contrast[1:].isnan()]  # of a structure of single voxels nothing is known, either
    return float(known.mean()) if len(known) else 0.0
