"""Scans and label maps on disk, with their geometry.

A :class:`Volume` is a 3D array and the affine that takes its voxels to RAS millimetres, whatever the file format:
NIfTI and MGH go through nibabel, NRRD, MetaImage and DICOM through SimpleITK (whose LPS axes are turned here).
Everything that cannot be segmented is refused here, once, with a sentence a user can act on.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAPSegLib.errors import InputError

_NIBABEL = (".nii.gz", ".nii", ".mgz", ".mgh")
_ITK = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".dcm": "GDCMImageIO"}
READABLE = (*_NIBABEL, *_ITK)
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")

_SPACING_LIMITS = (0.05, 50.0)
_INT32 = np.iinfo(np.int32)
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# First bytes of files that are met under a wrong name; NIfTI is recognised by its own reader.
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"NRRD": "NRRD",
    b"\x89PNG": "PNG picture",
    b"\xff\xd8\xff": "JPEG picture",
    b"PK\x03\x04": "ZIP archive",
    b"%PDF": "PDF",
    b"ObjectType": "MetaImage",
}
_EXPECTED = {
    ".nii.gz": ("gzip",),
    ".mgz": ("gzip",),
    ".nrrd": ("NRRD",),
    ".nhdr": ("NRRD",),
    ".mha": ("MetaImage",),
    ".mhd": ("MetaImage",),
}


@dataclass(frozen=True)
class ItkGeometry:
    """Spacing, origin and direction as SimpleITK gave them, so that writing returns the very same numbers."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D array with its place in the world.

    Attributes:
        array: shape (X, Y, Z), in the file's voxel order; float32 for images, int32 for labels.
        affine: (4, 4) float64, voxel index to RAS millimetres.
        path: where it was read, if it was.
        header: the nibabel header, or :class:`ItkGeometry`; None for volumes made in memory.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path | None = None
    header: Any = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array's axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


def scan_suffix(path: str | Path) -> str:
    """The suffix that decides the format, lower case (``.nii.gz`` as one); empty if it is none that is read."""
    name = Path(path).name.lower()
    return next((suffix for suffix in READABLE if name.endswith(suffix) and name != suffix), "")


def scan_stem(path: str | Path) -> str:
    """The file name without ``.nii.gz`` or any other known suffix; a DICOM folder's own name."""
    name = Path(path).name
    return name[: len(name) - len(scan_suffix(name))]


def read_image(path: str | Path) -> Volume:
    """Read a scan: a file with one of the suffixes ``READABLE``, or the folder of one DICOM series.

    Returns:
        A volume whose array is float32, finite and not constant; scale factors of the file are applied.

    Raises:
        InputError: the file is missing, damaged, not a 3D scalar volume, without a usable geometry, or a label map.
    """
    path = Path(path)
    volume = _read(path)
    name, array = path.name, volume.array
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
    return Volume(array, volume.affine, path, volume.header)


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
    return Volume(array.astype(np.int32), volume.affine, path, volume.header)


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether an image array has the texture of a label map rather than of a scan.

    Labels are whole numbers, few, and in regions: outside the background (the commonest value), neighbours are equal
    nearly always (0.86 and more in anatomical label maps). In scans, 8-bit ones too, noise keeps that below 0.15.
    The storage type decides nothing: label maps are often stored as float, and scans as 8-bit integers.
    """
    step = max(1, round((array.size / 2e5) ** (1 / 3)))
    sample = array[::step, ::step, ::step]
    if np.any(sample != np.rint(sample)):
        return False
    values, counts = np.unique(sample, return_counts=True)
    if len(values) > 512:
        return False
    background = values[counts.argmax()]
    equal = pairs = 0
    for axis in range(3):
        lines = np.moveaxis(array, axis, 0)[:, ::step, ::step]
        if np.any(lines != np.rint(lines)):
            return False
        inside = (lines[1:] != background) & (lines[:-1] != background)
        equal += np.count_nonzero(inside & (lines[1:] == lines[:-1]))
        pairs += np.count_nonzero(inside)
    if len(values) <= 2:
        return bool(np.unique(array).size <= 2)  # a mask, however small its regions
    return equal >= 0.75 * pairs


def check_same_grid(image: Volume, labels: Volume) -> None:
    """Refuse labels that do not lie on the image's voxels (corners may differ by 0.001 mm).

    Raises:
        InputError: the shapes or the positions differ.
    """
    names = [v.path.name if v.path else default for v, default in ((image, "the image"), (labels, "the labels"))]
    advice = "Resample the labels to the image's grid (nearest neighbour), or check that the two belong together."
    if image.shape != labels.shape:
        shapes = [" x ".join(map(str, v.shape)) for v in (labels, image)]
        raise InputError(f"{names[1]} has {shapes[0]} voxels but {names[0]} has {shapes[1]}.", advice)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(image.shape) - 1
    gap = float(np.linalg.norm((corners @ (image.affine - labels.affine).T)[:, :3], axis=1).max())
    if gap > 1e-3:
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
        return [folder]
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    found = sorted(p for p in entries if (scan_suffix(p) if p.is_file() else _holds_dicom(p)))
    if not found:
        raise InputError(f"The folder {folder} holds no scans.", f"Files that can be read: {', '.join(READABLE)}.")
    return found


def write_volume(path: str | Path, array: np.ndarray, like: Volume, overwrite: bool = False) -> Path:
    """Write an array on the grid of ``like``; the suffix (one of ``WRITABLE``) decides the format.

    Whole-number arrays take the smallest of uint8, uint16 and int32; all others float32. NIfTI written from NIfTI
    keeps the header's sform, qform, codes and units; NRRD and MetaImage keep spacing, origin and direction. The file
    appears under its name only when it is complete.

    Args:
        array: shape of ``like``.

    Raises:
        InputError: the file exists and ``overwrite`` is off, the suffix cannot be written, or the disk refuses.
    """
    path = Path(path)
    suffix = scan_suffix(path)
    if suffix not in WRITABLE:
        raise InputError(f"{path.name} has no suffix that can be written.", f"Use one of {', '.join(WRITABLE)}.")
    if tuple(array.shape) != like.shape:
        raise ValueError(f"array of shape {tuple(array.shape)} on a grid of {like.shape}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists.", "Choose another name, or allow overwriting.")
    array = _storable(array)
    temporary = path.with_name(f".{scan_stem(path)}-{uuid.uuid4().hex[:8]}{suffix}")
    save: Callable[..., None] = _save_nifti if suffix in _NIBABEL else _save_itk
    try:
        temporary.touch()  # tells an unwritable folder from a failing writer
        save(temporary, array, like)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}.", "Choose another output folder.") from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
    return path


# --- reading ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Volume:
    """Any supported file or folder as a validated 3D volume in its stored type."""
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path.")
    if path.is_dir():
        volume = _read_series(path)
    else:
        suffix = scan_suffix(path)
        if not suffix:
            raise InputError(f"{path.name} is of no known format.", f"Files that can be read: {', '.join(READABLE)}.")
        _check_signature(path, suffix)
        volume = _guard(path, _read_nibabel if suffix in _NIBABEL else _read_itk)
    _check_geometry(path.name, volume)
    return volume


def _guard(path: Path, reader: Callable[[Path], Volume]) -> Volume:
    """Run a library's reader; whatever it raises is a damaged file, told in one sentence."""
    try:
        return reader(path)
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(f"{path.name} cannot be opened: permission denied.", "Check the file's permissions.") from error
    except Exception as error:
        text = str(error).lower()
        if "spacing" in text or "pixdim" in text:
            what = "has a voxel spacing of zero"
        elif "direction" in text or "determinant" in text:
            what = "has a singular orientation matrix"
        else:
            what = "is damaged, truncated or not an image"
        raise InputError(f"{path.name} {what}.", "Export or download the file again.") from error


def _check_signature(path: Path, suffix: str) -> None:
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty (0 bytes).", "Export or download the file again.")
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened: {_reason(error)}.", "Check the file's permissions.") from error
    kind = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
    if kind is None and start[128:] == b"DICM":
        kind = "DICOM"
    expected = _EXPECTED.get(suffix, ("DICOM",) if suffix == ".dcm" else ())
    if kind is not None and kind not in expected:
        raise InputError(f"{path.name} is not what its suffix says: it is a {kind} file.", "Give it its own suffix.")
    if kind is None and "gzip" in expected:
        raise InputError(f"{path.name} is not gzip-compressed.", f"Rename it without '{suffix[-3:]}', or export again.")


def _read_nibabel(path: Path) -> Volume:
    import nibabel as nib

    image = nib.load(path)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        what = "is a colour (RGB) image" if dtype.fields is not None else "holds complex numbers"
        raise InputError(f"{path.name} {what}.", "Give a scan with one real intensity per voxel.")
    shape = _squeezed_shape(path.name, image.shape)
    if isinstance(image, nib.Nifti1Image):
        _check_pixdim(path, image)
    return Volume(np.asanyarray(image.dataobj).reshape(shape, order="F"), image.affine.astype(float), path, image.header)


def _check_pixdim(path: Path, image: Any) -> None:
    """nibabel turns a spacing of 0 into 1 mm on loading; where geometry rests on it, that would be an invention."""
    from nibabel.openers import ImageOpener

    if image.header["sform_code"] > 0:
        return
    with ImageOpener(path) as file:
        raw = image.header_class.from_fileobj(file, check=False)
    if not np.all(np.abs(raw["pixdim"][1:4]) > 0):
        raise InputError(f"{path.name} has a voxel spacing of zero.", "Export the scan again with its spacing in mm.")


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk

    return _from_itk(path, _quietly(lambda: sitk.ReadImage(str(path), imageIO=_ITK[scan_suffix(path)])))


def _read_series(folder: Path) -> Volume:
    import SimpleITK as sitk

    series = _quietly(lambda: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if len(series) != 1:
        what = f"holds {len(series)} DICOM series" if series else "holds no DICOM series"
        raise InputError(f"The folder {folder.name} {what}.", "Give a folder with exactly one series, or a file.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    _check_slices(folder, files)
    return _guard(folder, lambda _: _from_itk(folder, _quietly(lambda: sitk.ReadImage(files))))


def _check_slices(folder: Path, files: tuple[str, ...]) -> None:
    """Slices must be evenly spaced: the reader would silently squeeze a gap, or stack time points."""
    import SimpleITK as sitk

    if len(files) < 2:
        return
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    heights = []
    for file in files:
        reader.SetFileName(file)
        _guard(Path(file), lambda _: _quietly(reader.ReadImageInformation))
        normal = np.reshape(reader.GetDirection(), (3, 3))[:, 2]
        heights.append(float(normal @ reader.GetOrigin()))
    gaps = np.abs(np.diff(heights))
    if gaps.max() - gaps.min() > max(0.1, 0.05 * np.median(gaps)):
        what = "repeats slice positions" if gaps.min() < 0.01 else "has missing or unevenly spaced slices"
        raise InputError(f"The DICOM series {folder.name} {what}.", "Export one complete 3D series.")


def _from_itk(path: Path, image: Any) -> Volume:
    import SimpleITK as sitk

    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{path.name} is a colour (RGB) or vector image.", "Give a scan with one intensity per voxel.")
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"{path.name} holds complex numbers.", "Give a scan with one real intensity per voxel.")
    _squeezed_shape(path.name, image.GetSize())
    while image.GetDimension() > 3:
        image = image[..., 0]
    geometry = ItkGeometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    affine[:3, 3] = geometry.origin
    return Volume(sitk.GetArrayFromImage(image).transpose(2, 1, 0), _LPS @ affine, path, geometry)


def _holds_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder is DICOM (by its preamble: many exports have no suffix)."""
    if not folder.is_dir():
        return False
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))[:5]:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    return False


def _quietly(call: Callable[[], Any]) -> Any:
    """ITK prints warnings about odd headers to the console; what matters is checked here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


# --- checks -----------------------------------------------------------------------------------------------------


def _squeezed_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    spatial, rest = tuple(shape[:3]), tuple(shape[3:])
    if any(n != 1 for n in rest):
        raise InputError(f"{name} is a {len(shape)}D image ({' x '.join(map(str, shape))}).", "Give one 3D volume.")
    if len(spatial) < 3 or min(spatial) < 2:
        raise InputError(f"{name} is a 2D image ({' x '.join(map(str, shape))}).", "Give a 3D volume.")
    return spatial


def _check_geometry(name: str, volume: Volume) -> None:
    if not np.isfinite(volume.affine).all():
        raise InputError(f"{name} has a geometry that is not finite.", "Export the scan again.")
    spacing = np.array(volume.spacing)
    low, high = _SPACING_LIMITS
    if (spacing < low).any() or (spacing > high).any():
        told = " x ".join(f"{s:.3g}" for s in spacing)
        raise InputError(
            f"{name} has a voxel spacing of {told} mm, outside {low:g}-{high:g} mm.",
            "Export the scan again with its spacing in mm.",
        )
    if abs(np.linalg.det(volume.affine[:3, :3] / spacing)) < 1e-2:
        raise InputError(f"{name} has a singular orientation matrix.", "Export the scan again with its orientation.")


def _check_finite(name: str, array: np.ndarray) -> None:
    if np.isfinite(array.sum(dtype=np.float64)):  # NaN and Inf survive a sum
        return
    count = int(np.count_nonzero(~np.isfinite(array)))
    if count:
        raise InputError(
            f"{name} has {count} voxels that are NaN or infinite.", "Replace them, for instance by 0, and try again."
        )


def _check_int32(name: str, array: np.ndarray) -> None:
    if array.max() > _INT32.max or array.min() < _INT32.min:
        raise InputError(
            f"{name} has values up to {float(np.abs(array.astype(float)).max()):.3g}, beyond 32-bit integers.",
            "Store it in a smaller type; the values may come from a wrong conversion.",
        )


# --- writing ----------------------------------------------------------------------------------------------------


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biu":
        return np.asarray(array, dtype=np.float32)
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise ValueError(f"labels from {low} to {high} do not fit 32 bits")


def _save_nifti(path: Path, array: np.ndarray, like: Volume) -> None:
    import nibabel as nib

    if isinstance(like.header, nib.Nifti1Header):
        header = like.header.copy()
        header.extensions.clear()  # they describe the scan, not what was made from it
        header["cal_min"] = header["cal_max"] = 0
        header["intent_code"] = 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(array, header.get_best_affine(), header)
    else:
        image = nib.Nifti1Image(array, like.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(like.affine, code=1)
        image.set_qform(like.affine, code=1)
    image.set_data_dtype(array.dtype)
    nib.save(image, path)


def _save_itk(path: Path, array: np.ndarray, like: Volume) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    geometry = like.header
    if not isinstance(geometry, ItkGeometry):
        affine = _LPS @ like.affine
        direction = affine[:3, :3] / np.array(like.spacing)
        geometry = ItkGeometry(like.spacing, tuple(affine[:3, 3]), tuple(direction.ravel()))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)

    def write_and_check() -> None:
        sitk.WriteImage(image, str(path), useCompression=True)
        sitk.ReadImage(str(path))  # ITK does not report every short write; a full disk shows here

    try:
        _quietly(write_and_check)
    except RuntimeError as error:
        raise OSError(errno.EIO, "the file could not be completed; the disk may be full") from error


def _reason(error: OSError) -> str:
    told = {errno.ENOSPC: "no space left on the disk", errno.EACCES: "permission denied"}
    told |= {errno.ENOENT: "the folder does not exist", errno.EROFS: "the disk is read-only"}
    return told.get(error.errno, (error.strerror or str(error)).lower())
