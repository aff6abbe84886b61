"""Scans as the training loop wants them: whole volumes drawn at random, and local + global pairs cut from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from . import augmentation as aug
from .augmentation import uniform
from .config import Contrast, Label, Preprocessing
from .errors import InputError
from .preprocessing import labels_to_working, prepare_to_learn
from .reports import first_few
from .segments import called_otherwise
from .synthesis import OUTSIDE_BRAIN, Anatomy, brain_priors, known_codes, synthesise
from .volumes import canonical, check_same_grid, map_values, read_image, read_in_full, read_labels


class Source(Protocol):
    """Labelled scans, drawn at random."""

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """An image in [0, 1], float32 (X, Y, Z), and its class indices, int64, on the working grid."""
        ...


@dataclass
class PatchBatch:
    """Local patches of one scan, and the scan itself.

    Shapes: ``patches`` (B, 1, p, p, p); ``whole`` (1, 1, G, G, G); ``low`` and ``high`` (B, 3), the patches'
    corners as shares of the scan's foreground box; ``target`` (B, p, p, p) and ``whole_target`` (1, G, G, G)
    class indices, or None without labels.
    """

    patches: Tensor
    whole: Tensor
    low: Tensor
    high: Tensor
    target: Tensor | None = None
    whole_target: Tensor | None = None

    def inside(self) -> Tensor:
        """Which voxels of the patches lie within the scan, (B, p, p, p): a patch may be larger."""
        patch = self.patches.shape[-1]
        share = (torch.arange(patch, device=self.low.device) + 0.5) / patch
        place = self.low[..., None] + share * (self.high - self.low)[..., None]
        x, y, z = (place < 1).unbind(1)
        return x[:, :, None, None] & y[:, None, :, None] & z[:, None, None, :]

    def to(self, device: torch.device) -> PatchBatch:
        return PatchBatch(*(t if t is None else t.to(device) for t in vars(self).values()))


def resize_whole(image: Tensor, size: int) -> Tensor:
    """The whole foreground box (X, Y, Z) as (1, 1, size, size, size): areas averaged where it shrinks."""
    small = F.adaptive_avg_pool3d(image[None, None], [min(size, n) for n in image.shape])
    return F.interpolate(small, size=[size] * 3, mode="trilinear", align_corners=False)


def cut_patches(
    image: Tensor,
    count: int,
    patch: int,
    global_size: int,
    generator: Generator,
    target: Tensor | None = None,
    foreground_share: float = 0.0,
) -> PatchBatch:
    """Cut ``count`` patches at random places, ``foreground_share`` of them about a voxel of a labelled structure.

    The structure is drawn first, each alike, so that small ones are seen as often as large ones.
    """
    shape = image.shape
    corners = torch.zeros(count, 3, dtype=torch.int64)
    # counted, as unique() would sort a whole scan for every micro-batch
    present = torch.zeros(0) if target is None else target.flatten().bincount()[1:].nonzero().flatten() + 1
    for i in range(count):
        room = torch.tensor([max(0, n - patch) for n in shape])
        if len(present) and uniform(0, 1, generator) < foreground_share:
            chosen = present[int(torch.randint(len(present), (), generator=generator))]
            voxels = (target == chosen).flatten().nonzero()
            flat = int(voxels[int(torch.randint(len(voxels), (), generator=generator))])
            centre = torch.tensor(np.unravel_index(flat, shape))
            jitter = torch.randint(-patch // 3, patch // 3 + 1, (3,), generator=generator)
            corners[i] = torch.minimum((centre - patch // 2 + jitter).clamp(min=0), room)
        else:
            corners[i] = torch.tensor([int(torch.randint(int(r) + 1, (), generator=generator)) for r in room])
    size = torch.tensor(shape, dtype=torch.float32)
    low, high = corners / size, (corners + patch) / size
    patches = torch.stack([crop(image, corner.tolist(), patch) for corner in corners])[:, None]
    batch = PatchBatch(patches, resize_whole(image, global_size), low, high)
    if target is not None:
        batch.target = torch.stack([crop(target, corner.tolist(), patch) for corner in corners])
        whole = F.interpolate(target[None, None].float(), size=[global_size] * 3, mode="nearest-exact")
        batch.whole_target = whole[0].long()
    return batch


def crop(volume: Tensor, corner: Sequence[int], patch: int) -> Tensor:
    """The cube of edge ``patch`` at ``corner``, zero beyond the volume."""
    part = volume[tuple(slice(c, c + patch) for c in corner)]
    missing = [patch - n for n in part.shape]
    if not any(missing):
        return part
    return F.pad(part, (0, missing[2], 0, missing[1], 0, missing[0]))


EXTRACTED = 0.6
"""Share of the images synthesised for training that show the brain alone."""


class SyntheticSource:
    """Scans drawn from label maps (see :mod:`MAPSegLib.synthesis`)."""

    def __init__(
        self,
        files: Iterable[Path],
        labels: Sequence[Label],
        preprocessing: Preprocessing,
        contrast: Contrast = "t1",
    ):
        class_of = {label.value: i for i, label in enumerate(labels, 1)}
        self.anatomies = [_anatomy(Path(f), class_of) for f in files]
        self.spacing, self.contrast = preprocessing.spacing, contrast

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        return self._draw(generator, deform=True)

    def label_maps(self) -> Iterator[tuple[Tensor, Sequence[float]]]:
        """Class indices of every label map, and their spacing in mm."""
        for anatomy in self.anatomies:
            yield anatomy.classes[anatomy.codes.long()], anatomy.spacing.tolist()

    def draw_undeformed(self, generator: Generator) -> tuple[Tensor, Sequence[float]]:
        """A scan in which structures have the shapes of the label map, and its spacing in mm."""
        return self._draw(generator, deform=False)[0], self.spacing

    def _draw(self, generator: Generator, deform: bool) -> tuple[Tensor, Tensor]:
        anatomy = self.anatomies[int(torch.randint(len(self.anatomies), (), generator=generator))]
        return synthesise(anatomy, self.spacing, generator, self.contrast, EXTRACTED, deform)


def _anatomy(path: Path, class_of: dict[int, int]) -> Anatomy:
    array, spacing = canonical(read_in_full(read_labels, path))
    array = known_codes(array)
    found = set(np.unique(array).tolist())
    known = {code for prior in brain_priors() for code in prior["labels"]}
    if (known - OUTSIDE_BRAIN).isdisjoint(found):
        raise InputError(
            f"{path}: holds none of FreeSurfer's codes of the brain, which images are synthesised from.",
            "Give label maps of the brain, such as FreeSurfer's aseg.",
        )
    if unknown := sorted(found - known):
        raise InputError(
            f"{path}: holds codes that no intensities are known for ({first_few(unknown)}).",
            "Replace each by a code that looks alike, or by 0.",
        )
    return Anatomy.from_labels(
        torch.from_numpy(np.ascontiguousarray(array).astype(np.int64)), spacing, class_of
    )


Augment = Callable[[Tensor, Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
"""Called as ``augment(image, class indices, spacing, generator)``."""


def deform_and_relight(
    image: Tensor, target: Tensor, spacing: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """What a source training does to a scan: half of the draws turned and scaled, half with a bias field."""
    if uniform(0, 1, generator) < 0.5:
        matrix = aug.random_affine((0.8, 1.25), 20.0, 0.05, generator)
        image, target = aug.warp_pair(image, target, matrix, spacing)
    return relight(image, generator), target


def relight(image: Tensor, generator: Generator) -> Tensor:
    """Another gamma, and a bias field in half of the draws."""
    if uniform(0, 1, generator) < 0.5:
        image = aug.bias_field(image, uniform(0, 0.35, generator), generator).clamp(0, 1)
    return aug.gamma(image, 0.3 * float(torch.randn((), generator=generator)))


@dataclass
class Recoloured:
    """A source's scans with their intensities changed strongly (:func:`~MAPSegLib.augmentation.recolour`)."""

    scans: Source

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        image, target = self.scans.draw(generator)
        return aug.recolour(image, generator), target


@dataclass
class Matched:
    """Half of a source's scans with the intensities that a target scan shows in the structures found there."""

    scans: Source
    target: Source
    classes: int
    """Of the network, background included."""

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        image, target = self.scans.draw(generator)
        if uniform(0, 1, generator) < 1 / 2:
            like, found = self.target.draw(generator)
            levels = aug.intensity_levels(like, found.long(), self.classes)
            image = aug.match_histograms(image, target, levels)
        return image, target


EMPTY = "Its label map is empty: that none of the structures is there will be learnt."
OTHERS = "Its label map holds other values alone: that none of the structures is there will be learnt."


class ScanSource:
    """Labelled scans from files, prepared once, then changed at random at every draw.

    Args:
        domains: of images that come from one of several. The domain is drawn first, so that a small one is seen as
            often as a large one.
        part: what these label maps are, for a message, where some cases of a data set are kept back.

    Raises:
        InputError: a file cannot be read, or does not fit its partner, or no label map holds a structure. The message
            names it.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Path, Path]],
        labels: Sequence[Label],
        preprocessing: Preprocessing,
        augment: Augment = deform_and_relight,
        domains: Mapping[Path, str] | None = None,
        part: str = "",
    ):
        lookup = {label.value: i for i, label in enumerate(labels, 1)}
        names = {label.value: label.name for label in labels}
        self.augment = augment
        self.scans: list[tuple[Tensor, Tensor]] = []
        # Scans have whole numbers of voxels, and so not quite the spacing that is asked for.
        self.spacings: list[tuple[float, float, float]] = []
        self.notes: dict[str, list[Path]] = {}
        """What is to know of scans, and of which."""
        groups: dict[str | None, list[int]] = {}
        held = False
        for index, (image_path, label_path) in enumerate(pairs):
            image, label = read_in_full(read_image, image_path), read_in_full(read_labels, label_path)
            check_same_grid(image, label)
            scan = prepare_to_learn(image, preprocessing)
            classes = map_values(label.array, lookup)
            known = bool(classes.any())
            held = held or known
            lacking = () if known else (OTHERS,) if label.array.any() else (EMPTY,)
            notes = [*scan.notes, *lacking]
            if other := called_otherwise(label_path, label.array, names):
                notes.append(f"Its label map calls {other[0]} {other[1]}: it is learnt as {names[other[0]]}.")
            for note in notes:
                self.notes.setdefault(note, []).append(image_path)
            working = labels_to_working(classes, scan.grid).to(torch.int16)
            self.scans.append((scan.image, working))
            self.spacings.append(scan.grid.working_spacing)
            groups.setdefault((domains or {}).get(image_path), []).append(index)
        self.groups = list(groups.values())
        if self.scans and not held:
            otherwise = ", or keep another number of cases back (--holdout)" if part else ""
            raise InputError(
                f"No label map {part and f'{part} '}holds any of the structures' values {sorted(lookup)}; "
                f"the last is {label_path}.",
                f"Give a label table with the values that the label maps hold{otherwise}.",
            )

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        index = self._pick(generator)
        image, classes = self.scans[index]
        return self.augment(image, classes.long(), torch.tensor(self.spacings[index]), generator)

    def label_maps(self) -> Iterator[tuple[Tensor, Sequence[float]]]:
        """Class indices of every scan, and their spacing in mm."""
        for (_, classes), spacing in zip(self.scans, self.spacings, strict=True):
            yield classes, spacing

    def draw_undeformed(self, generator: Generator) -> tuple[Tensor, Sequence[float]]:
        """A scan in which structures have the shapes of its labels, and its spacing in mm; one that has structures."""
        index = self._pick(generator)
        while not self.scans[index][1].any():
            index = self._pick(generator)
        return relight(self.scans[index][0], generator), self.spacings[index]

    def _pick(self, generator: Generator) -> int:
        group = self.groups[0]
        if len(self.groups) > 1:
            group = self.groups[int(torch.randint(len(self.groups), (), generator=generator))]
        return group[int(torch.randint(len(group), (), generator=generator))]
