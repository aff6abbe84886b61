"""Scans and label maps on disk, with their geometry.

A :class:`Volume` is a 3D array and the affine that takes its voxels to RAS millimetres, whatever the file
format. What cannot be segmented is refused once, with a sentence a user can act on: in :mod:`MAPSegLib.formats` what
one format alone can have, and here what is so in any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dicom import is_dicom
from .errors import InputError
from .formats import (
    READABLE,
    WRITABLE,
    Loaded,
    corner_gap,
    geometry_notes,
    load,
    pack,
    save,
    scan_suffix,
    unpack,
)
from .model_files import SUFFIX
from .reports import SIDE_RESULTS, replacing
from .segments import is_segmentation, segment_fields

if TYPE_CHECKING:
    from .config import Label

_SPACING_LIMITS = (0.05, 50.0)
_INT32 = np.iinfo(np.int32)
_MANY_VALUES = 512  # more than any label map has
_LONGEST_TABLE = 1 << 24  # entries: some atlases have ids around 10^8


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D array with its place in the world.

    Attributes:
        array: shape (X, Y, Z), in the file's voxel order; float32 for images, int32 for labels.
        affine: (4, 4) float64, voxel index to RAS millimetres.
        path: where it was read, if it was.
        header: the nibabel header, or :class:`~MAPSegLib.formats.ItkGeometry`; None for volumes made in
        memory.
        notes: what a user should know of its geometry.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path | None = None
    header: Any = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array's axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    def emptied(self) -> Volume:
        """The same with zeros that take no memory in place of its voxels: where results only need its grid."""
        return replace(self, array=np.broadcast_to(self.array.dtype.type(0), self.shape))


def scan_stem(path: str | Path) -> str:
    """The file name without ``.nii.gz`` or any other known suffix; a DICOM folder's own name."""
    name = Path(path).absolute().name
    return name[: len(name) - len(scan_suffix(name))]


def read_image(path: str | Path) -> Volume:
    """Read a scan: a file with one of the suffixes ``READABLE``, or the folder of one DICOM series.

    Returns:
        A volume whose array is float32, finite and not constant; scale factors of the file are applied.

    Raises:
        InputError: the file is missing, damaged, not a 3D scalar volume, without a usable geometry, or a
        label map.
    """
    path = Path(path)
    return _checked_scan(path.name, _read(path))


def image_in_memory(image: Any) -> Volume:
    """As :func:`read_image`, of an image of nibabel (NIfTI, MGH) or SimpleITK, which is left as it is."""
    name = "The image"
    return _checked_scan(name, _placed(name, None, unpack(image, name)))


def _checked_scan(name: str, volume: Volume) -> Volume:
    array = volume.array
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        _check_int32(name, array)
    with np.errstate(over="ignore"):  # what overflows float32 becomes Inf, and is refused as such
        array = np.asarray(array, dtype=np.float32)
    _check_finite(name, array)
    low, high = float(array.min()), float(array.max())
    if low == high:
        what = "holds only zeros" if low == 0 else f"has the same value ({low:g}) in every voxel"
        raise InputError(f"{name} {what}.", "Give the scan itself; this file may be an empty export.")
    if looks_like_labels(array):
        raise InputError(
            f"{name} looks like a label map, not a scan: it has few, whole values in large uniform regions.",
            "Give the scan that the labels were drawn on.",
        )
    return replace(volume, array=array)


def read_labels(path: str | Path) -> Volume:
    """Read a label map. Floating-point files are accepted as long as every value is a whole number.

    Returns:
        A volume whose array is int32.

    Raises:
        InputError: as for :func:`read_image`, or values that are not whole or do not fit 32 bits.
    """
    path = Path(path)
    volume = _read(path)
    name, array = path.name, volume.array
    if array.dtype.kind == "f":
        _check_finite(name, array)
        whole = np.rint(array)
        if np.abs(array - whole).max() > 1e-4:
            raise InputError(
                f"{name} is not a label map: it has values that are not whole numbers.",
                "Give a label map; one that was resampled needs nearest-neighbour interpolation.",
            )
        array = whole
    _check_int32(name, array)
    values, equal = _texture(array)
    if values > 32 and equal < 0.5:
        raise InputError(
            f"{name} looks like a scan, not a label map: its values are many and scattered.",
            "Give the label map; image and labels may have been swapped.",
        )
    return replace(volume, array=array.astype(np.int32))


def read_in_full(read: Callable[[Path], Volume], path: Path) -> Volume:
    """What ``read`` gives of a file; what it refuses has its folder, too, as another file may have its name."""
    try:
        return read(path)
    except InputError as error:
        message = error.message
        if str(path) not in message:
            # Only where a message begins with the name: a folder may be called "series", as its kind is.
            named = rf"((?:The DICOM series |The folder )?){re.escape(path.name)}(?=[ :])"
            begun = re.match(named, message)
            message = f"{begun[1]}{path}{message[begun.end() :]}" if begun else f"{path}: {message}"
        raise InputError(message, error.advice) from error


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether an image array has the texture of a label map rather than of a scan.

    Labels are whole numbers, few, and in regions: outside the background (the commonest value), neighbours
    are equal nearly always (0.86 and more in anatomical label maps). In scans, 8-bit ones too, noise keeps
    that below 0.15. The storage type decides nothing: label maps are often stored as float, and scans as
    8-bit integers.
    """
    values, equal = _texture(array)
    if values <= 2:
        return bool(np.unique(array).size <= 2)  # a mask, however small its regions
    return equal >= 0.75


def _texture(array: np.ndarray) -> tuple[float, float]:
    """Number of values in a sample of the array (infinite unless whole), and share of equal neighbours.

    The share is 0 where values are not whole, or more than any label map has.
    """
    step = max(1, round((array.size / 2e5) ** (1 / 3)))
    sample = array[::step, ::step, ::step]
    if np.any(sample != np.rint(sample)):
        return np.inf, 0.0
    values, counts = np.unique(sample, return_counts=True)
    if len(values) > _MANY_VALUES:
        return len(values), 0.0
    background = values[counts.argmax()]
    equal = pairs = 0
    for axis in range(3):
        lines = np.moveaxis(array, axis, 0)[:, ::step, ::step]
        if np.any(lines != np.rint(lines)):
            return np.inf, 0.0
        inside = (lines[1:] != background) & (lines[:-1] != background)
        equal += np.count_nonzero(inside & (lines[1:] == lines[:-1]))
        pairs += np.count_nonzero(inside)
    return len(values), equal / pairs if pairs else 1.0


def map_values(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Replace label values (from 0 up); those without an entry become 0. Same shape, int32."""
    largest = max(mapping, default=0)
    if largest > _LONGEST_TABLE:
        known, targets = np.array(sorted(mapping.items())).T
        labels = np.clip(labels, 0, None)
        place = np.searchsorted(known, labels).clip(max=len(known) - 1)
        return np.where(known[place] == labels, targets[place], 0).astype(np.int32)
    # the last entry stands for all larger values
    table = np.zeros(largest + 2, dtype=np.int32)
    for value, target in mapping.items():
        table[value] = target
    return table[np.clip(labels, 0, largest + 1)]


def canonical(volume: Volume) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume's array turned to canonical axes (a view, no copy), and its spacing along them in mm.

    These run nearest to right, anterior and superior; an oblique scan stays oblique.
    """
    permutation, flips = orientation(volume.affine)
    return turn(volume.array, permutation, flips), tuple(volume.spacing[axis] for axis in permutation)


def orientation(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """The native axis that becomes canonical axis 0, 1, 2, and whether that runs against it."""
    from nibabel.orientations import io_orientation

    towards = io_orientation(affine)  # per native axis: canonical axis, and 1 or -1
    permutation = tuple(int(a) for a in np.argsort(towards[:, 0]))
    return permutation, tuple(bool(towards[axis, 1] < 0) for axis in permutation)


def turn(native: np.ndarray, permutation: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> np.ndarray:
    """The view of a native array that :func:`orientation` tells of."""
    return native.transpose(permutation)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def check_same_grid(image: Volume, labels: Volume) -> None:
    """Refuse labels that do not lie on the image's voxels (corners may differ by 0.1 mm, or 5 % of a voxel).

    Raises:
        InputError: the shapes or the positions differ.
    """
    names = [
        v.path.name if v.path else default for v, default in ((image, "the image"), (labels, "the labels"))
    ]
    if names[0] == names[1]:
        names = [str(image.path), str(labels.path)]
    way = f"Resample {names[1]} to the grid of {names[0]} (nearest neighbour)"
    advice = f"{way}, or check that the two belong together."
    if image.shape != labels.shape:
        shapes = [" x ".join(map(str, v.shape)) for v in (labels, image)]
        raise InputError(f"{names[1]} has {shapes[0]} voxels but {names[0]} has {shapes[1]}.", advice)
    gap = corner_gap(image.shape, image.affine, labels.affine)
    if gap > min(0.1, 0.05 * min(image.spacing)):  # formats round: quaternions, decimals
        raise InputError(f"{names[1]} lies up to {gap:.3g} mm away from {names[0]} in space.", advice)


def find_scans(folder: str | Path) -> list[Path]:
    """The scans directly in a folder, sorted: readable files, and sub-folders that hold a DICOM series.

    A folder that is itself a DICOM series, and a single file, are returned as they are.

    Raises:
        InputError: nothing there.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist.", "Check the path.")
    if _holds_dicom(folder):
        names = [
            p.name for p in folder.iterdir() if scan_suffix(p) not in ("", ".dcm") and not is_segmentation(p)
        ]
        series = re.escape(folder.absolute().name)
        result = re.compile(rf"{series}(_\d+)?({'|'.join(('_seg', *SIDE_RESULTS))})")
        if others := sorted(n for n in names if not (n.startswith(".") or result.fullmatch(scan_stem(n)))):
            raise InputError(
                f"The folder {folder} holds DICOM slices and other scans ({others[0]}).",
                "Give each a folder of its own.",
            )
        return [folder]
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    # a link to nowhere counts: the reader tells it as a scan that is missing
    files = [p for p in entries if scan_suffix(p) and (p.is_file() or (p.is_symlink() and not p.exists()))]
    found = sorted(files + [p for p in entries if not p.is_file() and _holds_dicom(p)])
    if not found:
        raise InputError(
            f"The folder {folder} holds no scans.",
            f"Files that can be read: {', '.join(READABLE)}. What lies in folders below is not looked at.",
        )
    return found


def may_be_slice(path: Path) -> bool:
    """Whether a file may be one of a DICOM series, by its name: no other scan, and no result beside the slices."""
    other = path.name.startswith((".", "DICOMDIR")) or path.suffix in (".json", ".csv", SUFFIX)
    return not other and scan_suffix(path) in ("", ".dcm") and path.is_file()


def write_volume(
    path: str | Path, array: np.ndarray, like: Volume, overwrite: bool = False, labels: Sequence[Label] = ()
) -> Path:
    """Write an array on the grid of ``like``; the suffix (one of ``WRITABLE``) decides the format.

    Whole-number arrays take the smallest of uint8, uint16 and int32; all others float32. NIfTI written from
    NIfTI keeps the header's sform, qform, codes and units; NRRD and MetaImage keep spacing, origin and
    direction. The file appears under its name only when it is complete.

    Args:
        array: shape of ``like``; a fourth axis, where there is one, holds several values of each voxel.
        labels: the structures of a label map, which NRRD names (see :mod:`.segments`).

    Raises:
        InputError: the file exists and ``overwrite`` is off, the suffix cannot be written, or the disk
        refuses.
    """
    path = Path(path)
    suffix = scan_suffix(path)
    if suffix not in WRITABLE:
        raise InputError(
            f"{path.name} has no suffix that can be written.", f"Use one of {', '.join(WRITABLE)}."
        )
    if tuple(array.shape[:3]) != like.shape:
        raise ValueError(f"array of shape {tuple(array.shape)} on a grid of {like.shape}")
    stored = _storable(array)
    fields = segment_fields(stored, like.affine, labels) if labels and suffix == ".nrrd" else {}
    with replacing(path, overwrite) as temporary:
        temporary.touch()  # tells an unwritable folder from a failing writer
        save(temporary, stored, like.affine, like.header, fields)
    return path


def in_memory(array: np.ndarray, like: Volume) -> Any:
    """What :func:`write_volume` writes, as an image in memory: of the library that the scan is of."""
    return pack(_storable(array), like.affine, like.header)


def _read(path: Path) -> Volume:
    """Any supported file or folder."""
    return _placed(path.name, path, load(path))


def _holds_dicom(folder: Path) -> bool:
    """Whether a file of a folder is DICOM (by its preamble: many exports have no suffix)."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # no folder, or one of somebody else's: lost+found on many disks
        return False
    return any(map(is_dicom, filter(may_be_slice, entries)))


def _placed(name: str, path: Path | None, loaded: Loaded) -> Volume:
    """In its stored type, with a checked geometry."""
    array, affine, header = loaded
    volume = Volume(array, affine, path, header, geometry_notes(header))
    if not np.isfinite(volume.affine).all():
        raise InputError(f"{name} has a geometry that is not finite.", "Export the scan again.")
    spacing = np.array(volume.spacing)
    low, high = _SPACING_LIMITS
    if (spacing < low * (1 - 1e-4)).any() or (spacing > high * (1 + 1e-4)).any():  # headers round
        told = " x ".join(f"{s:.3g}" for s in spacing)
        raise InputError(
            f"{name} has a voxel spacing of {told} mm, outside {low:g}-{high:g} mm.",
            "Export the scan again with its spacing in mm.",
        )
    if abs(np.linalg.det(volume.affine[:3, :3] / spacing)) < 1e-2:
        raise InputError(
            f"{name} has a singular orientation matrix.", "Export the scan again with its orientation."
        )
    return volume


def _check_finite(name: str, array: np.ndarray) -> None:
    if np.isfinite(array.sum(dtype=np.float64)):  # NaN and Inf survive a sum
        return
    count = int(np.count_nonzero(~np.isfinite(array)))
    if count:
        raise InputError(
            f"{name} has {count} voxels that are NaN or infinite.",
            "Replace them, for instance by 0, and try again.",
        )


def _check_int32(name: str, array: np.ndarray) -> None:
    if array.max() > _INT32.max or array.min() < _INT32.min:
        largest = np.abs(array.astype(float)).max()
        raise InputError(
            f"{name} has values up to {largest:.3g}, beyond 32-bit integers.",
            "Store it in a smaller type; the values may come from a wrong conversion.",
        )


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biu":
        return np.asarray(array, dtype=np.float32)
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise ValueError(f"labels from {low} to {high} do not fit 32 bits")
