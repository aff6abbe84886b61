"""Arrays between the scene and files. Reading and writing touch no scene, so that a thread can do them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from slicer.i18n import tr as _


@dataclass(frozen=True)
class Snapshot:
    """A volume node's voxels (k, j, i) and its own geometry in LPS mm, without parent transforms."""

    array: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, node) -> Snapshot:
        """Take it from a scalar volume node; the voxels are shared with it.

        Raises:
            ValueError: the node holds no voxels, or several values per voxel.
        """
        import slicer

        if not has_voxels(node):
            raise ValueError(_("{name} holds no voxels.").format(name=node.GetName()))
        if node.GetImageData().GetNumberOfScalarComponents() != 1:
            raise ValueError(_("{name} is a colour or vector volume.").format(name=node.GetName()))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_of(node)
        spacing = np.array(node.GetSpacing())
        direction = lps[:3, :3] / spacing
        return cls(
            slicer.util.arrayFromVolume(node), tuple(spacing), tuple(lps[:3, 3]), tuple(direction.ravel())
        )

    def write(self, path: str | Path) -> Path:
        """Write the volume uncompressed: it is read once and deleted."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(self.array)
        image.SetSpacing(list(map(float, self.spacing)))
        image.SetOrigin(list(map(float, self.origin)))
        image.SetDirection(list(map(float, self.direction)))
        sitk.WriteImage(image, str(path), useCompression=False)
        return Path(path)


@dataclass(frozen=True)
class Labels:
    """A label map (k, j, i), cut to the box that holds labels."""

    array: np.ndarray
    start: tuple[int, int, int]
    """Of the box, (k, j, i)."""
    shape: tuple[int, int, int]
    """Of the whole map."""
    values: tuple[int, ...]
    """Those that occur, in order; 0 is left out."""
    affine: np.ndarray | None = None
    """Of the whole map, as its file says: (i, j, k) to RAS mm."""
    sums: dict[int, int] = field(default_factory=dict)
    """By value: see :func:`voxel_sums`."""

    def lies_on(self, affine: np.ndarray) -> bool:
        """Whether the map's corners lie where those of such a grid do, to a quarter of a voxel.

        Slicer turns left-handed grids right-handed as it loads files, by reversing the slices. A map that was made from
        such a file, not from the volume node, has its voxels in another order: it would be shown mirrored.
        """
        if self.affine is None:
            return True
        corners = np.array(list(itertools.product(*((0, n - 1) for n in reversed(self.shape)))))
        here, there = (corners @ each[:3, :3].T + each[:3, 3] for each in (self.affine, affine))
        return bool(np.abs(here - there).max() < 0.25 * spacing_of(affine).min())


def read_array(path: str | Path) -> np.ndarray:
    """The voxels (k, j, i) of an image file."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def read_labels(path: str | Path) -> Labels:
    """Read a label map, and find what is in it."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return cut_labels(sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def cut_labels(array: np.ndarray, affine: np.ndarray | None = None) -> Labels:
    """Cut a label map (k, j, i) to the box that holds labels; empty maps give an empty box."""
    if array.dtype not in (np.uint8, np.uint16):
        array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    planes = array.any(axis=0)
    lines = [array.any(axis=(1, 2)), planes.any(axis=1), planes.any(axis=0)]
    if not lines[0].any():
        return Labels(array[:0, :0, :0], (0, 0, 0), array.shape, (), affine)
    ranges = [(int(line.argmax()), len(line) - int(line[::-1].argmax())) for line in lines]
    box = np.ascontiguousarray(array[tuple(slice(*r) for r in ranges)])
    start = tuple(r[0] for r in ranges)
    sums = voxel_sums(box, start)
    return Labels(box, start, array.shape, tuple(sums), affine, sums)


def voxel_sums(array: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> dict[int, int]:
    """Of every value but 0 in a label map (k, j, i), a sum over the places of its voxels, to tell changes by.

    Args:
        start: of the array in the whole map, (k, j, i): which box of the map it is makes no difference.
    """
    j, i = (first + np.arange(count) for first, count in zip(start[1:], array.shape[1:], strict=True))
    weights = ((73_856_093 * j[:, None] + 19_349_663 * i + j[:, None] * i) % 65_521 + 1.0).ravel()
    sums = np.zeros(65536, np.int64)
    for k, plane in enumerate(array, start[0]):  # a plane at a time: bincount wants 16 bytes a voxel
        found = np.bincount(plane.ravel(), weights)
        sums[: len(found)] += (7_919 * k + 1) * found.astype(np.int64)
    return {int(value): int(sums[value]) for value in sums.nonzero()[0] if value}


def has_voxels(node) -> bool:
    """Whether a volume node holds an image with values: of a volume that was loaded by half, only the size is there."""
    image = node.GetImageData()
    values = image.GetPointData().GetScalars() if image is not None else None
    return values is not None and values.GetNumberOfTuples() > 0


def affine_of(node) -> np.ndarray:
    """From voxels (i, j, k) of a volume node to RAS mm, (4, 4)."""
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Of a grid, in mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def transform_above(node) -> np.ndarray | None:
    """Of all transforms above a node, (4, 4) in RAS mm; None where one of them is not linear."""
    import slicer
    import vtk

    matrix, transform = vtk.vtkMatrix4x4(), node.GetParentTransformNode()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            return None
        transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def is_sheared(affine: np.ndarray) -> bool:
    """Whether axes are not at right angles: Slicer would set them upright, and what lies on them beside the scan."""
    axes = affine[:3, :3] / spacing_of(affine)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)
