"""What the image libraries read and write, as plain arrays in RAS millimetres: the layer under ``volumes``.

NIfTI and MGH go through nibabel, NRRD, MetaImage and DICOM through SimpleITK, whose LPS axes are turned here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAPSegLib.errors import InputError
from MAPSegLib.reports import reason

# Array (X, Y, Z) in its stored type, affine (4, 4) from voxels to RAS mm, and the library's header.
Loaded = tuple[np.ndarray, np.ndarray, Any]

_NIBABEL = (".nii.gz", ".nii", ".mgz", ".mgh")
_ITK = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".dcm": "GDCMImageIO",
}
READABLE = (*_NIBABEL, *_ITK)
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")

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

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ItkGeometry:
    """Spacing, origin and direction as SimpleITK gave them, so that writing returns the very same numbers."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    oriented: bool = True
    """Whether the file says which way its axes run; NRRD need not."""


def scan_suffix(path: str | Path) -> str:
    """The suffix that decides the format, in lower case (``.nii.gz`` as one); empty for unknown formats."""
    name = Path(path).name.lower()
    return next((suffix for suffix in READABLE if name.endswith(suffix) and name != suffix), "")


def load(path: Path) -> Loaded:
    """Read a file or the folder of a DICOM series; its geometry and values are still unchecked.

    Raises:
        InputError: missing, damaged, of an unknown format, or not one 3D scalar volume.
    """
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist or cannot be reached.", "Check the path.")
    if path.is_dir():
        return _read_series(path)
    suffix = scan_suffix(path)
    if not suffix:
        raise InputError(
            f"{path.name} is of no known format.", f"Files that can be read: {', '.join(READABLE)}."
        )
    _check_signature(path, suffix)
    return _guard(path, _read_nibabel if suffix in _NIBABEL else _read_itk)


def save(path: Path, array: np.ndarray, affine: np.ndarray, header: Any) -> None:
    """Write an array in its own type.

    Args:
        header: what :func:`load` gave for the scan on the same grid, or None.

    Raises:
        OSError: the file could not be completed.
    """
    if scan_suffix(path) in _NIBABEL:
        _save_nifti(path, array, affine, header)
    else:
        _save_itk(path, array, affine, header)


def _guard(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Run a library's reader; whatever it raises is a damaged file, told in one sentence."""
    try:
        return reader(path)
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(
            f"{path.name} cannot be opened: permission denied.", "Check the file's permissions."
        ) from error
    except Exception as error:
        text = str(error).lower().replace(str(path).lower(), "")
        if any(words in text for words in ("to allocate", "bad_alloc", "out of memory")):
            raise MemoryError(text) from error
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
        raise InputError(
            f"{path.name} cannot be opened: {reason(error)}.", "Check the file's permissions."
        ) from error
    kind = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
    if kind is None and start[128:] == b"DICM":
        kind = "DICOM"
    expected = _EXPECTED.get(suffix, ("DICOM",) if suffix == ".dcm" else ())
    if kind is not None and kind not in expected:
        raise InputError(
            f"{path.name} is not what its suffix says: it is a {kind} file.", "Give it its own suffix."
        )
    if kind is None and "gzip" in expected:
        raise InputError(
            f"{path.name} is not gzip-compressed, as its suffix says.",
            "Export it again, or rename it to .nii.",
        )


def _read_nibabel(path: Path) -> Loaded:
    import nibabel as nib

    image = nib.load(path)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        what = "is a colour (RGB) image" if dtype.fields is not None else "holds complex numbers"
        raise InputError(f"{path.name} {what}.", "Give a scan with one real intensity per voxel.")
    shape = _squeezed_shape(path.name, image.shape)
    if isinstance(image, nib.Nifti1Image):
        if int(image.dataobj.offset) < image.header.single_vox_offset:  # nibabel would take header for voxels
            raise InputError(
                f"{path.name}: its voxels start within its header (vox_offset).", "Export it again."
            )
        _check_pixdim(path, image)
        _check_orientation(path, image)
        unit = {1: "metres", 3: "microns"}.get(int(image.header["xyzt_units"]) & 7)
        if unit:
            raise InputError(f"{path.name} has its spacing in {unit}, not in mm.", "Export it again in mm.")
    else:
        with nib.openers.ImageOpener(path) as file:
            start = file.read(30)
        image.header["goodRASFlag"] = int.from_bytes(start[28:], "big")  # nibabel sets it where it is not
    return np.asanyarray(image.dataobj).reshape(shape, order="F"), image.affine.astype(float), image.header


def _check_pixdim(path: Path, image: Any) -> None:
    """nibabel loads a spacing of 0 as 1 mm, and one below 0 as its absolute value, where ITK mirrors the scan."""
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        raw = image.header_class.from_fileobj(file, check=False)
    spacing = raw["pixdim"][1:4]
    if (spacing < 0).any():
        raise InputError(
            f"{path.name} has a negative voxel spacing: programs differ on which side is left then.",
            "Export the scan again.",
        )
    if image.header["sform_code"] <= 0 and not (spacing > 0).all():
        raise InputError(
            f"{path.name} has a voxel spacing of zero.", "Export the scan again with its spacing in mm."
        )


def _check_orientation(path: Path, image: Any) -> None:
    """A header may hold two orientations. They must agree: programs differ in which they take."""
    if image.header["sform_code"] > 0 and image.header["qform_code"] > 0:
        try:
            axes = [matrix[:3, :3] for matrix in (image.get_sform(), image.get_qform())]
        except ValueError:  # a quaternion that is none: there is one orientation only
            return
        one, other = (part / np.maximum(np.linalg.norm(part, axis=0), 1e-12) for part in axes)
        if (one * other).sum(0).min() < np.cos(np.pi / 4):
            raise InputError(
                f"{path.name} states two orientations (sform and qform) that contradict each other.",
                "Find out which one is right, and remove the other.",
            )


def geometry_notes(header: Any) -> tuple[str, ...]:
    """What a user should know of a scan whose file leaves its geometry open, or states it twice."""
    unstated = "The file states no orientation: left and right are assumed, and may be swapped."
    if isinstance(header, ItkGeometry):
        return () if header.oriented else (unstated,)
    if not hasattr(header, "get_sform"):  # MGH, or nothing
        return (unstated,) if header is not None and header["goodRASFlag"] <= 0 else ()
    if not (header["sform_code"] or header["qform_code"]):
        return (unstated,)
    if header["sform_code"] > 0:
        told, taken = header["pixdim"][1:4], np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        if np.abs(told / np.maximum(taken, 1e-12) - 1).max() > 0.01:
            sizes = [" x ".join(f"{n:.3g}" for n in numbers) for numbers in (taken, told)]
            return (
                f"The file states two voxel sizes: {sizes[0]} mm (sform) are taken, and not {sizes[1]} mm (pixdim), "
                "which other programs may take.",
            )
    return ()


def _read_itk(path: Path) -> Loaded:
    import SimpleITK as sitk

    if scan_suffix(path) == ".dcm":
        _check_planes(path, [path])
    return _from_itk(path, _quietly(lambda: sitk.ReadImage(str(path), imageIO=_ITK[scan_suffix(path)])))


def _read_series(folder: Path) -> Loaded:
    import SimpleITK as sitk

    series = _quietly(lambda: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if len(series) != 1:
        what = f"holds {len(series)} DICOM series" if series else "holds no DICOM series"
        raise InputError(
            f"The folder {folder.name} {what}.", "Give a folder with exactly one series, or a file."
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    _check_planes(folder, [Path(file) for file in files])

    def read(_: Path) -> Loaded:  # in floating point, as each slice may have a scale of its own
        return _from_itk(folder, _quietly(lambda: sitk.ReadImage(files, sitk.sitkFloat32)))

    return _guard(folder, read)


_PLANE = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
)
"""What a slice has to state of its place; the sequence that holds it in a file of several frames."""


def _planes(file: Path, path: Path) -> np.ndarray:
    """Position, orientation and spacing of the slices in a DICOM file of ``path``: (slices, 3 + 6 + 2), in LPS mm."""
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    palette = header.get("PhotometricInterpretation") == "PALETTE COLOR"  # read as RGB
    _check_components(path, 3 if palette else int(header.get("SamplesPerPixel") or 1))
    count = int(header.get("NumberOfFrames") or 1)
    frames = header.get("PerFrameFunctionalGroupsSequence") or [pydicom.Dataset()] * count
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]

    def stated(frame: Any, group: str, key: str) -> list[float]:
        for holder in (frame, shared):
            if holder.get(group) and key in holder[group][0]:
                return list(map(float, holder[group][0][key].value))
        if key not in header:
            raise InputError(
                f"{file.name} does not state where its slices lie ({key} is missing).",
                "Export the series again, as the scanner made it.",
            )
        return list(map(float, header[key].value))

    return np.array([sum((stated(frame, *place) for place in _PLANE), []) for frame in frames])


def _check_planes(path: Path, files: list[Path]) -> None:
    """Slices must fill a box: the reader would squeeze a gap, set a tilted stack upright, or stack time points."""
    what = path.name if files == [path] else f"The DICOM series {path.name}"
    parts = [_guard(file, lambda file: _planes(file, path)) for file in files]
    if len(parts) > 1 and max(map(len, parts)) > 1:
        raise InputError(
            f"{what} consists of several files with several slices each.", "Give one of them, as a file."
        )
    origins, rows, columns, spacings = np.split(np.concatenate(parts), [3, 6, 9], 1)
    if len(origins) < 2:
        return
    directions = np.concatenate([rows, columns], 1)
    if max(np.ptp(directions, 0).max(), np.ptp(spacings, 0).max()) > 1e-3:
        raise InputError(
            f"{what} has slices of several orientations or voxel sizes.", "Export one complete 3D series."
        )
    normal = np.cross(rows[0], columns[0])
    heights = origins @ normal
    aside = origins - origins[0] - np.outer(heights - heights[0], normal)
    if np.abs(aside).max() > 0.1:
        raise InputError(
            f"{what} has tilted slices (gantry tilt).",
            "Load it into Slicer, which straightens it, and save it as NRRD.",
        )
    gaps = np.diff(heights) * (1 if heights[-1] >= heights[0] else -1)
    repeated = gaps.min() < 0.01
    if repeated or gaps.max() - gaps.min() > max(0.1, 0.05 * np.median(gaps)):
        told = "repeats or mixes slice positions" if repeated else "has missing or unevenly spaced slices"
        raise InputError(f"{what} {told}.", "Export one complete 3D series.")


def _check_components(path: Path, components: int) -> None:
    if components > 1:
        raise InputError(
            f"{path.name} is a colour (RGB) or vector image.", "Give a scan with one intensity per voxel."
        )


def _from_itk(path: Path, image: Any) -> Loaded:
    import SimpleITK as sitk

    _check_components(path, image.GetNumberOfComponentsPerPixel())
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(
            f"{path.name} holds complex numbers.", "Give a scan with one real intensity per voxel."
        )
    _squeezed_shape(path.name, image.GetSize())
    while image.GetDimension() > 3:
        image = image[..., 0]
    space = image.GetMetaData("NRRD_space") if image.HasMetaDataKey("NRRD_space") else ""
    oriented = path.suffix.lower() not in (".nrrd", ".nhdr") or space == "left-posterior-superior"
    geometry = ItkGeometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), oriented)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    affine[:3, 3] = geometry.origin
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), _LPS @ affine, geometry


def _quietly(call: Callable[[], Any]) -> Any:
    """ITK prints warnings about odd headers to the console; what matters is checked here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _squeezed_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    spatial, rest = tuple(shape[:3]), tuple(shape[3:])
    if any(n != 1 for n in rest):
        raise InputError(
            f"{name} is a {len(shape)}D image ({' x '.join(map(str, shape))}).", "Give one 3D volume."
        )
    if len(spatial) < 3 or min(spatial) < 2:
        raise InputError(
            f"{name} is a 2D image ({' x '.join(map(str, shape))}).",
            "Give a 3D volume; for DICOM, the folder of the whole series.",
        )
    return spatial


def _save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, header: Any) -> None:
    import nibabel as nib

    if isinstance(header, nib.Nifti1Header):
        header = header.copy()
        header.extensions.clear()  # they describe the scan, not what was made from it
        header["cal_min"] = header["cal_max"] = 0
        header["intent_code"] = 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(array, header.get_best_affine(), header)
    else:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    image.set_data_dtype(array.dtype)
    nib.save(image, path)


def _save_itk(path: Path, array: np.ndarray, affine: np.ndarray, geometry: Any) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    if not isinstance(geometry, ItkGeometry):
        affine = _LPS @ affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        geometry = ItkGeometry(*(tuple(map(float, v)) for v in (spacing, affine[:3, 3], direction.ravel())))
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
