"""From a scan to the network's input, and exactly back.

A scan passes three grids. *Native*: the file's voxels. *Canonical*: the same voxels, permuted and flipped so
that the axes run nearest to right, anterior and superior (an oblique scan stays oblique). *Working*: the
foreground box of the canonical grid, resampled to the model's spacing. A :class:`Grid` remembers the way, so
that labels return voxel for voxel. All arrays are indexed (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from .config import Preprocessing
from .errors import InputError
from .levels import AIR_MARGIN, Shape, foreground_bounds, levels_of, modality_notes
from .volumes import Volume, canonical, orientation, turn

Triple = tuple[float, float, float]

MOST_VOXELS = 1e9
"""Of a working grid: an image alone takes 4 GB then."""
_MUCH = 8
"""Times as many voxels, or an eighth of them: from there on, a working grid that nobody chose is told."""
FINE = "Its voxels are far smaller than 1 mm, which they become: fine structures may be lost."
COARSE = "Its voxels are far larger than 1 mm, which they become: that takes time and shows no more."
_PIECE = 8_000_000  # voxels of the output that label resampling handles at once


@dataclass(frozen=True)
class Grid:
    """Where a scan's voxels lie on the working grid.

    Along each axis, the centre of working voxel w lies at canonical coordinate
    ``lo + (w + 0.5) * working_spacing / canonical_spacing - 0.5``.

    Attributes:
        native_shape, native_affine: of the file; the affine leads to RAS mm.
        permutation: native axis that becomes canonical axis 0, 1, 2.
        flips: whether canonical axis 0, 1, 2 runs against its native axis.
        canonical_spacing: mm.
        box: foreground box (lo, hi) in canonical voxels; hi is exclusive.
        working_spacing: mm; the model's spacing, adjusted so that whole voxels fill the box.
        working_shape: voxels.
    """

    native_shape: Shape
    native_affine: np.ndarray
    permutation: Shape
    flips: tuple[bool, bool, bool]
    canonical_spacing: Triple
    box: tuple[Shape, Shape]
    working_spacing: Triple
    working_shape: Shape

    @property
    def box_shape(self) -> Shape:
        return tuple(hi - lo for lo, hi in zip(*self.box, strict=True))

    @property
    def native_voxel_ml(self) -> float:
        return float(abs(np.linalg.det(self.native_affine[:3, :3]))) / 1000

    def canonical(self, native: np.ndarray) -> np.ndarray:
        """The canonical view (no copy) of an array on the native grid."""
        return turn(native, self.permutation, self.flips)

    def boxed(self, native: np.ndarray) -> np.ndarray:
        """The view (no copy) of the foreground box, in canonical order, of an array on the native grid."""
        return self.canonical(native)[tuple(slice(lo, hi) for lo, hi in zip(*self.box, strict=True))]


@dataclass(frozen=True)
class Scan:
    """A scan ready for the network: ``image`` is float32 in [0, 1], shape ``grid.working_shape``."""

    image: torch.Tensor
    grid: Grid
    notes: tuple[str, ...]
    """Of the volume, and whether its values are unlike those of the modality."""


def prepare(volume: Volume, options: Preprocessing, ceiling: float = 1.0) -> Scan:
    """Orient, crop to the foreground, normalise and resample a scan (see :class:`Grid`).

    MR: black becomes 0 and the given percentile of the foreground 1. CT: the window becomes [0, 1].

    Args:
        volume: finite, not constant (as from :func:`~MAPSegLib.volumes.read_image`).
        ceiling: intensities above are clipped to it; more than 1 leaves it to the caller to choose a white.

    Raises:
        InputError: the scan would have more than :data:`MOST_VOXELS` voxels on the working grid.
    """
    array, spacing = canonical(volume)
    permutation, flips = orientation(volume.affine)
    levels = levels_of(array, options.modality, options.percentile, options.window)
    margin = AIR_MARGIN if levels.noisy else 0.0
    box = foreground_bounds(levels, tuple(int(np.ceil(margin / s)) for s in spacing))

    box_shape = np.subtract(box[1], box[0])
    working_shape = tuple(
        max(1, round(n * s / w)) for n, s, w in zip(box_shape, spacing, options.spacing, strict=True)
    )
    if np.prod(working_shape, dtype=float) > MOST_VOXELS:
        extent = " x ".join(f"{n * s:.0f}" for n, s in zip(box_shape, spacing, strict=True))
        raise InputError(
            f"{volume.path.name if volume.path else 'The scan'} is {extent} mm large, too much for this model.",
            "Check the spacing in the file, or crop the scan.",
        )
    grid = Grid(
        native_shape=volume.shape,
        native_affine=volume.affine,
        permutation=permutation,
        flips=flips,
        canonical_spacing=spacing,
        box=box,
        working_spacing=tuple(
            float(n * s / m) for n, s, m in zip(box_shape, spacing, working_shape, strict=True)
        ),
        working_shape=working_shape,
    )
    values = np.array(grid.boxed(volume.array), dtype=np.float32, order="C")
    empty = values == levels.blank if levels.blank is not None else None
    values -= levels.black
    values /= max(levels.white - levels.black, np.finfo(np.float32).tiny)
    np.clip(values, 0, ceiling, out=values)
    if empty is not None:
        values[empty] = 0
    notes = volume.notes + modality_notes(array, options.modality)
    return Scan(resample(torch.from_numpy(values), working_shape), grid, notes)


def prepare_to_learn(volume: Volume, options: Preprocessing, ceiling: float = 1.0) -> Scan:
    """:func:`prepare`, with a note where nobody chose the voxels and they are far from the scan's own.

    Raises:
        InputError: the scan shows nothing, so that no intensities can be measured.
    """
    scan = prepare(volume, options, ceiling)
    if not scan.image.any():
        if options.modality == "mr":
            raise InputError(f"{volume.path}: all of it is background.", "Leave this scan out.")
        raise InputError(
            f"{volume.path}: no voxel lies above {options.window[0]:g}, where the CT window begins.",
            "Check the window, and that the scan holds Hounsfield units.",
        )
    if "spacing" in options.model_fields_set:
        return scan
    times = np.prod(scan.grid.canonical_spacing) / np.prod(options.spacing)
    size = (COARSE,) if times >= _MUCH else (FINE,) if times <= 1 / _MUCH else ()
    return replace(scan, notes=scan.notes + size)


def resample(image: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Resample a float image (X, Y, Z) so that the same box is filled by ``shape`` voxels.

    Linear where the grid gets finer; where it gets coarser, averaged over the output voxels, which keeps fine
    structure from aliasing. An axis whose size stays is copied exactly.
    """
    for axis in sorted(range(3), key=lambda a: shape[a] / image.shape[a]):  # shrinking axes first: less to do
        if shape[axis] != image.shape[axis]:
            image = interpolate_along(interpolation_weights(image.shape[axis], shape[axis]), image, axis)
    return image


def restore(labels: torch.Tensor | np.ndarray, grid: Grid) -> np.ndarray:
    """Bring labels from the working grid back to the file's own voxels; background outside the box.

    Exact where the two spacings agree; elsewhere each label's one-hot map is interpolated, and the strongest
    wins.

    Args:
        labels: whole numbers >= 0, shape ``grid.working_shape``.

    Returns:
        int32 array of shape ``grid.native_shape``.
    """
    return to_native(_resample_labels(torch.as_tensor(labels), grid.box_shape), grid)


def to_native(boxed: torch.Tensor | np.ndarray, grid: Grid) -> np.ndarray:
    """Put an array on the canonical box (labels, or a map of floats) into the native grid, 0 elsewhere."""
    if isinstance(boxed, torch.Tensor):
        boxed = boxed.detach().cpu().numpy()
    native = np.zeros(grid.native_shape, dtype=boxed.dtype)
    grid.boxed(native)[...] = boxed
    return native


def labels_to_working(labels: np.ndarray, grid: Grid) -> torch.Tensor:
    """Bring labels (whole numbers >= 0) from the native to the working grid, by majority; int32."""
    boxed = torch.from_numpy(np.array(grid.boxed(labels), dtype=np.int32, order="C"))
    return _resample_labels(boxed, grid.working_shape)


# --- resampling ---------------------------------------------------------------------------------------------


def interpolation_weights(size_in: int, size_out: int) -> torch.Tensor:
    """Resampling along one axis as a float32 matrix (size_out, size_in) on the CPU; rows sum to 1, borders repeat.

    Linear interpolation, averaged over a window where the grid gets coarser. Both keep a linear ramp exact:
    nothing moves. The window of sqrt(ratio^2 - 1) vanishes at equal size: blurs add by their squares.
    """
    ratio = size_in / size_out
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * ratio - 0.5
    offset = centre[:, None] - torch.arange(size_in, dtype=torch.float64)
    if ratio > 1:
        window = (ratio**2 - 1) ** 0.5
        weights = (_hat_integral(offset + window / 2) - _hat_integral(offset - window / 2)) / window
    else:
        weights = (1 - offset.abs()).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _hat_integral(x: torch.Tensor) -> torch.Tensor:
    """Integral up to x of the kernel of linear interpolation, max(0, 1 - |x|)."""
    x = x.clamp(-1, 1)
    return 0.5 + x - x * x.abs() / 2


def interpolate_along(weights: torch.Tensor, image: torch.Tensor, axis: int) -> torch.Tensor:
    """Apply a matrix (out, in) along one axis of a contiguous (X, Y, Z) image, without permuting it."""
    x, y, z = image.shape
    if axis == 0:
        return (weights @ image.reshape(x, y * z)).view(-1, y, z)
    if axis == 1:
        return weights @ image
    return (image.reshape(x * y, z) @ weights.T).view(x, y, -1)


def _resample_labels(labels: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Resample labels (X, Y, Z) to ``shape``: the label with the greatest share of each new voxel; int32.

    Each label is interpolated inside its own bounding box only, and the output is made in slabs, so that
    memory does not grow with the number of labels. Background's share is what the labels leave.
    """
    from scipy.ndimage import find_objects

    labels = labels.to("cpu", torch.int32).contiguous()
    if tuple(labels.shape) == tuple(shape):
        return labels
    matrices = [interpolation_weights(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    boxes = [(value, box) for value, box in enumerate(find_objects(labels.numpy()), start=1) if box]
    result = torch.zeros(shape, dtype=torch.int32)
    rows = max(1, _PIECE // (shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = result[start : start + rows]
        best, total = torch.zeros(part.shape), torch.zeros(part.shape)
        pieces = [matrices[0][start : start + rows], *matrices[1:]]
        for value, box, reach, cut in _reached(boxes, pieces):
            share = (labels[box] == value).float()
            for axis in sorted(range(3), key=lambda a: cut[a].shape[0] / cut[a].shape[1]):
                share = interpolate_along(cut[axis], share, axis)
            better = share > best[reach] + 1e-6  # equal shares: the smaller value, whatever the rounding
            part[reach].masked_fill_(better, value)
            torch.maximum(best[reach], share, out=best[reach])
            total[reach] += share
        part.masked_fill_(best < 1 - total - 1e-5, 0)
    return result


def _reached(
    boxes: list[tuple[int, tuple[slice, ...]]], matrices: list[torch.Tensor]
) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...], list[torch.Tensor]]]:
    """For each label: its input box, the output box it reaches, and the matrices between the two."""
    for value, box in boxes:
        reach, cut = [], []
        for matrix, extent in zip(matrices, box, strict=True):
            columns = matrix[:, extent]
            touched = columns.any(1).nonzero().flatten()
            if touched.numel() == 0:
                break
            reach.append(slice(int(touched[0]), int(touched[-1]) + 1))
            cut.append(columns[reach[-1]].contiguous())
        else:
            yield value, box, tuple(reach), cut
