"""Structures that are one piece, and the islands that a network finds apart from them.

On scans unlike the source's, networks find parts of a structure where there is none of it. Where the source's label
maps show a structure in one piece, what lies apart from the largest piece goes, as with nnU-Net and SynthSeg; but not
what is nearly as large, as it might be the right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from .config import Label
from .reports import first_few

FEWEST_MAPS = 10
"""Label maps that it takes to know that a structure is one piece: a few tumours may all be single ones."""
ONE_PIECE = 0.99
"""Share of a structure that its largest piece has at least, in every label map: annotators leave stray voxels."""
ISLAND = 0.3
"""Voxels of an island, at most, as a share of those of the largest piece."""
NAMED = 3
"""Structures that a sentence on islands names: of a broken result they may be all."""
TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a corner are of one piece."""


def largest_shares(classes: Tensor, structures: int) -> dict[int, float]:
    """What share of its voxels the largest piece of each structure has that a label map holds, by class index.

    Args:
        classes: indices (X, Y, Z), 0 for background.
        structures: their number; class indices run from 1 to it.
    """
    pieces = _pieces(classes.numpy(), range(1, structures + 1))
    return {index: float(sizes.max() / sizes.sum()) for index, _, _, sizes in pieces}


def with_pieces(labels: Sequence[Label], maps: Iterable[Mapping[int, float]]) -> tuple[Label, ...]:
    """The labels, which say then what the source's label maps show in one piece.

    A label that says so already is contradicted by any map with several pieces; one that denies it keeps to that.

    Args:
        maps: of each label map what :func:`largest_shares` tells.
    """
    shares: dict[int, list[float]] = {label.value: [] for label in labels}
    for shown in maps:
        for index, share in shown.items():
            shares[labels[index - 1].value].append(share)

    def known(label: Label) -> Label:
        found = shares[label.value]
        both = found + shares.get(label.mirror, [])  # what holds on one side does on the other
        if min(both, default=1) < ONE_PIECE:
            return label.model_copy(update={"one_piece": False})
        if label.one_piece is None and len(found) >= FEWEST_MAPS:
            return label.model_copy(update={"one_piece": True})
        return label

    return tuple(map(known, labels))


def remove_islands(
    array: np.ndarray, labels: Sequence[Label], doubt: np.ndarray | None = None
) -> tuple[Counter[tuple[int, int]], list[int]]:
    """Of what is one piece, give islands to what most of their neighbours are.

    Args:
        array: label values (X, Y, Z), unsigned integers; changed in place.
        doubt: one minus the probability of each label, of the same shape; there the doubt of the new label is set,
            as far as it is known: it cannot be less than the probability of the old one.

    Returns:
        the number of voxels that changed, by their old and new value; and the values that should be one piece and
        are not, as a second one is no island.
    """
    from scipy.ndimage import binary_dilation, find_objects

    islands, split = [], []
    for value, place, numbered, sizes in _pieces(array, {label.value for label in labels if label.one_piece}):
        small = sizes <= ISLAND * sizes.max()
        if np.count_nonzero(~small) > 1:
            split.append(value)
        for number, box in enumerate(find_objects(numbered), 1):
            if small[number - 1]:
                inside = _grown(box)
                islands.append((value, place, inside, numbered[inside] == number))
    for _, place, inside, island in islands:
        array[place][inside][island] = 0  # all before any is filled: none is to become a part of another
    moved: Counter[tuple[int, int]] = Counter()
    for value, place, inside, island in islands:
        seen = array[place][inside]
        shell = binary_dilation(island, TOUCHING) & ~island
        other = int(np.bincount(seen[shell]).argmax())
        seen[island] = other
        moved[value, other] += int(island.sum())
        if doubt is not None:
            unsure = doubt[place][inside]
            unsure[island] = np.maximum(unsure, 1 - unsure)[island]
    return moved, split


def islands_told(
    moved: Counter[tuple[int, int]],
    split: Sequence[int],
    left: Mapping[int, int],
    labels: Sequence[Label],
    voxel_ml: float,
) -> list[str]:
    """Sentences on islands that were removed, where they were more than a few voxels, and on what is in pieces still.

    Args:
        moved, split: of :func:`remove_islands`.
        left: voxels of each value, without islands.
        voxel_ml: the volume of one.
    """
    lost: Counter[int] = Counter()
    for (value, _), voxels in moved.items():
        lost[value] += voxels
    names = {label.value: label.name for label in labels}
    many = [(value, voxels) for value, voxels in lost.most_common() if voxels > (1 - ONE_PIECE) * left[value]]
    gone = first_few([f"{names[value]} {voxels * voxel_ml:.2g} ml" for value, voxels in many], NAMED)
    apart = first_few([names[value] for value in split], NAMED)
    told = [f"Removed small parts that lay apart from their structure: {gone}."] if gone else []
    return told + ([f"In several large parts, unlike in the source's label maps: {apart}."] if apart else [])


def _pieces(
    array: np.ndarray, values: Collection[int]
) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray, np.ndarray]]:
    """Of those values that the array holds: a box around it, its pieces there, numbered from 1, and their voxels."""
    from scipy.ndimage import find_objects, label

    for value, box in enumerate(find_objects(array), 1):
        if box is not None and value in values:
            place = _grown(box)
            numbered, _ = label(array[place] == value, TOUCHING)
            yield value, place, numbered, np.bincount(numbered.ravel())[1:]


def _grown(box: Sequence[slice]) -> tuple[slice, ...]:
    """A voxel more on every side, as far as there are any."""
    return tuple(slice(max(0, edge.start - 1), edge.stop + 1) for edge in box)
