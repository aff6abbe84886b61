"""Unlabelled scans of several domains, drawn evenly and varied: what pretraining sees (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from . import augmentation as aug
from .augmentation import uniform
from .config import Preprocessing
from .preprocessing import prepare_to_learn
from .volumes import read_image, read_in_full

PREPARED = 128
"""Prepared scans of a domain that stay in memory: about 2 GB of whole brains at 1 mm."""
SCALE, DEGREES = (0.75, 1.5), 40.0
"""How much a scan is made smaller or larger, and turned."""

Draw = Callable[[Generator], Tensor]
"""Gives an image in [0, 1], float32 (X, Y, Z), on the working grid."""


class UnlabelledScans:
    """The scans of one domain, each alike; a scan's white is drawn anew each time."""

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing):
        self.files = tuple(files)
        self.preprocessing = preprocessing
        self.prepared = lru_cache(PREPARED)(self._prepare)
        self.notes: dict[str, set[Path]] = {}
        """What is to know of the scans that were prepared, and of which."""

    def draw(self, generator: Generator) -> Tensor:
        image = self.prepared(self.files[int(torch.randint(len(self.files), (), generator=generator))])
        if self.preprocessing.modality == "ct":  # Hounsfield units need no guess at what is white
            return image
        lowest = 2 * self.preprocessing.percentile / 100 - 1  # of 99.5 %: 99, as published
        white = uniform(lowest, 1.0, generator)
        return (image / aug.percentile(image[image > 0], white)).clamp(max=1)

    def _prepare(self, file: Path) -> Tensor:
        """Read a scan; of MR, nothing is clipped at the bright end. Raises InputError."""
        ceiling = 1.0 if self.preprocessing.modality == "ct" else float("inf")
        scan = prepare_to_learn(read_in_full(read_image, file), self.preprocessing, ceiling)
        for note in scan.notes:
            self.notes.setdefault(note, set()).add(file)
        return scan.image


class Domains:
    """Images of several domains. The domain is drawn first, so that a small one is seen as often as a large one.

    Args:
        domains: name and source of each.
        spacing: of the working grid, mm.
    """

    def __init__(self, domains: Sequence[tuple[str, Draw]], spacing: tuple[float, float, float]):
        self.domains = tuple(domains)
        self.spacing = torch.tensor(spacing)

    def draw(self, generator: Generator) -> Tensor:
        _, source = self.domains[int(torch.randint(len(self.domains), (), generator=generator))]
        return vary(source(generator), self.spacing, generator)


def vary(image: Tensor, spacing: Tensor, generator: Generator) -> Tensor:
    """Flip each axis of (X, Y, Z) at times, and turn and scale the scan at times, cropped to what is left of it.

    The grid stays, so that a scan that grows loses its borders, as a smaller field of view would.
    """
    image = image.flip([axis for axis in range(3) if uniform(0, 1, generator) < 0.5])
    if uniform(0, 1, generator) < 0.5:
        shape = tuple(image.shape)
        # from the result's millimetres to the scan's: the inverse of what happens to the anatomy
        matrix = aug.random_affine((1 / SCALE[1], 1 / SCALE[0]), DEGREES, 0.0, generator)
        warped = aug.sample(image[None], aug.warp_grid(shape, matrix, spacing, spacing, shape))[0]
        if (warped > 0).any():
            image = warped[aug.bounding_box(warped > 0)]
    return image.contiguous()
