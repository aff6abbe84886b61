"""What the image libraries read and write, as plain arrays in RAS millimetres: the layer under ``volumes``.

NIfTI and MGH go through nibabel, NRRD, MetaImage and DICOM through SimpleITK, whose LPS axes are turned here.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .compression import check_claim, check_gzip, check_voxels
from .dicom import check_all_read, check_place, check_planes, is_dicom
from .errors import InputError
from .refusals import (
    check_components,
    check_header,
    check_signature,
    guard,
    mirrored,
    not_in_mm,
    squeezed_shape,
)
from .text_headers import TextHeader, read_text_header
from .windows import itk_name, itk_target

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

# What a result in NIfTI takes over from the header of its scan.
_PLACE = ("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z")
_PLACE += ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ItkGeometry:
    """Spacing, origin and direction as SimpleITK gave them, so that writing returns the very same numbers."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    oriented: bool = True
    """Whether the file says which way its axes run; NRRD and MetaImage need not."""
    sized: bool = True
    """Whether the file says how large its voxels are; NRRD and MetaImage need not."""


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
    if not suffix and is_dicom(path):  # as many exports name each slice
        raise InputError(
            f"{path.name} is a DICOM file whose name does not end in .dcm.",
            "Give the folder of its series; a file of several frames can be renamed.",
        )
    if not suffix:
        raise InputError(
            f"{path.name} is of no known format.", f"Files that can be read: {', '.join(READABLE)}."
        )
    check_signature(path, suffix)
    return guard(path, _read_nibabel if suffix in _NIBABEL else _read_itk)


def save(
    path: Path, array: np.ndarray, affine: np.ndarray, header: Any, fields: Mapping[str, str] | None = None
) -> None:
    """Write an array in its own type.

    Args:
        header: what :func:`load` gave for the scan on the same grid, or None.
        fields: for the header of NRRD.

    Raises:
        OSError: the file could not be completed.
    """
    if scan_suffix(path) in _NIBABEL:
        import nibabel as nib

        nib.save(_nifti(array, affine, header), path)
    else:
        _save_itk(path, array, affine, header, fields or {})


def unpack(image: Any, name: str) -> Loaded:
    """What :func:`load` gives of a file, of an image that nibabel or SimpleITK hold in memory.

    Args:
        name: what messages call it.

    Raises:
        InputError: it is neither, or not one 3D scalar volume.
    """
    import nibabel as nib

    if isinstance(image, nib.Nifti1Image | nib.MGHImage):
        file = image.get_filename()
        if isinstance(image, nib.Nifti1Image) and file and os.path.exists(file):
            _check_pixdim(Path(file), image)  # the image no longer tells
        return guard(Path(name), lambda path: _from_nibabel(path, image))  # its voxels may still be in a file

    import SimpleITK as sitk

    if isinstance(image, sitk.Image):
        if "label" in image.GetPixelIDTypeAsString():  # asked for more of it, SimpleITK ends the process
            raise InputError(
                f"{name} is a label map of SimpleITK.", "Give the scan that the labels were drawn on."
            )
        return _from_itk(Path(name), image)
    raise InputError(
        f"{name} is of type {type(image).__name__}, and an image of nibabel (NIfTI in one file, MGH) or SimpleITK is "
        "needed.",
        "Read a file with nibabel.load(path); make an image of an array with nibabel.Nifti1Image(array, affine), the "
        "affine leading from voxels to mm right, anterior and superior.",
    )


def pack(array: np.ndarray, affine: np.ndarray, header: Any) -> Any:
    """What :func:`save` writes, as an image in memory: of SimpleITK where the scan is one, else of nibabel."""
    return (_itk if isinstance(header, ItkGeometry) else _nifti)(array, affine, header)


def _read_nibabel(path: Path) -> Loaded:
    import nibabel as nib

    kind = next(k for k in (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage) if k.path_maybe_image(path)[0])
    # nib.load takes no "Scan.Nii"; mapped, voxels would change with the file, and the process die as it shrinks
    image = kind.from_file_map({"image": nib.FileHolder(path)}, mmap=False)
    shape = _scalar_shape(path, image)
    needed = image.dataobj.offset + math.prod(map(int, shape)) * image.get_data_dtype().itemsize
    packed = scan_suffix(path) in (".nii.gz", ".mgz")
    if needed > (check_gzip(path, 2 * needed) if packed else path.stat().st_size):
        raise EOFError("fewer voxels than the header says")  # for which nibabel would take the memory first
    if isinstance(image, nib.Nifti1Image):
        if int(image.dataobj.offset) < image.header.single_vox_offset:  # nibabel would take header for voxels
            raise InputError(
                f"{path.name}: its voxels start within its header (vox_offset).", "Export it again."
            )
        _check_pixdim(path, image)
    else:
        with nib.openers.ImageOpener(path) as file:
            start = file.read(30)
        image.header["goodRASFlag"] = int.from_bytes(start[28:], "big")  # nibabel sets it where it is not
    return _from_nibabel(path, image)


def _scalar_shape(path: Path, image: Any) -> tuple[int, ...]:
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        what = "is a colour (RGB) image" if dtype.fields is not None else "holds complex numbers"
        raise InputError(f"{path.name} {what}.", "Give a scan with one real intensity per voxel.")
    return squeezed_shape(path.name, image.shape)


def _from_nibabel(path: Path, image: Any) -> Loaded:
    import nibabel as nib

    shape = _scalar_shape(path, image)
    if isinstance(image, nib.Nifti1Image):
        _check_orientation(path, image)
        if unit := {1: "metres", 3: "microns"}.get(int(image.header["xyzt_units"]) & 7):
            raise not_in_mm(path, unit)
    affine = image.header.get_best_affine() if image.affine is None else image.affine
    return np.asanyarray(image.dataobj).reshape(shape, order="F"), affine.astype(float), image.header


def _check_pixdim(path: Path, image: Any) -> None:
    """nibabel loads a spacing of 0 as 1 mm, one below 0 as above it, and any odd sign of slices as 1."""
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        raw = image.header_class.from_fileobj(file, check=False)
    spacing = raw["pixdim"][1:4]
    if (spacing < 0).any() or (raw["qform_code"] > 0 and -1 != raw["pixdim"][0] < 0):
        raise mirrored(path)
    if image.header["sform_code"] <= 0 and not (spacing > 0).all():
        raise InputError(
            f"{path.name} has a voxel spacing of zero.", "Export the scan again with its spacing in mm."
        )


def _two_affines(header: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The sform and the qform of a NIfTI header that states both."""
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        with contextlib.suppress(ValueError):  # a quaternion that is none: there is one orientation only
            return header.get_sform(), header.get_qform()
    return None


def _check_orientation(path: Path, image: Any) -> None:
    """A header may hold two orientations. They must agree: programs differ in which they take."""
    if affines := _two_affines(image.header):
        axes = (affine[:3, :3] for affine in affines)
        one, other = (part / np.maximum(np.linalg.norm(part, axis=0), 1e-12) for part in axes)
        if (one * other).sum(0).min() < np.cos(np.pi / 4):
            raise InputError(
                f"{path.name} states two orientations (sform and qform) that contradict each other.",
                "Find out which one is right, and remove the other.",
            )


def corner_gap(shape: tuple[int, ...], one: np.ndarray, other: np.ndarray) -> float:
    """How far apart, in mm, two affines place the corners of a grid, at most."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def geometry_notes(header: Any) -> tuple[str, ...]:
    """What a user should know of a scan whose file leaves its geometry open, or states it twice."""
    unstated = "The file states no orientation: left and right are assumed, and may be swapped."
    if isinstance(header, ItkGeometry):
        notes = (
            (header.sized, "The file states no voxel size: 1 mm is assumed."),
            (header.oriented, unstated),
        )
        return tuple(note for stated, note in notes if not stated)
    if not hasattr(header, "get_sform"):  # MGH, or nothing
        return (unstated,) if header is not None and header["goodRASFlag"] <= 0 else ()
    if not (header["sform_code"] or header["qform_code"]):
        return (unstated,)
    return (*_size_notes(header), *_place_notes(header))


def _size_notes(header: Any) -> Iterator[str]:
    if header["sform_code"] > 0:
        told, taken = header["pixdim"][1:4], np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        if not np.abs(told / np.maximum(taken, 1e-12) - 1).max() <= 0.01:  # NaN, too
            sizes = [" x ".join(f"{n:.3g}" for n in numbers) for numbers in (taken, told)]
            yield (
                f"The file states two voxel sizes: {sizes[0]} mm (sform) are taken, and not {sizes[1]} mm (pixdim), "
                "which other programs may take."
            )


def _place_notes(header: Any) -> Iterator[str]:
    if affines := _two_affines(header):
        gap = corner_gap(header.get_data_shape()[:3], *affines)
        if gap > np.linalg.norm(affines[0][:3, :3], axis=0).min():  # more than a voxel
            yield (
                f"The file states two positions, up to {gap:.3g} mm apart: its sform is taken, and not its qform, "
                "which other programs may take."
            )


def _read_itk(path: Path) -> Loaded:
    import SimpleITK as sitk

    suffix = scan_suffix(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_ITK[suffix])
    reader.SetFileName(itk_name(path))
    if suffix == ".dcm":
        planes = check_planes(path, [path])
        return _from_dicom(path, quietly(reader.Execute), planes)
    header = _checked_header(path, reader)
    check_header(path, header)
    voxels = math.prod(reader.GetSize())
    check_claim(header, voxels)
    voxel = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    check_voxels(header, voxels * sitk.GetArrayViewFromImage(voxel).nbytes)
    return _from_itk(path, quietly(reader.Execute), header)


def _checked_header(path: Path, reader: Any) -> TextHeader:
    """The header of NRRD or MetaImage, which ITK must be able to read, and whose voxels must be there."""
    header, failure = read_text_header(path), None  # first: there is that which ITK must not be given
    try:
        quietly(reader.ReadImageInformation)
    except RuntimeError as error:
        if path.suffix.lower() != ".nhdr":  # which ITK does not read without its voxels
            raise
        failure = error
    if lost := [file.name for file in header.files if not file.exists()]:
        raise InputError(
            f"{path.name} is a header alone: the file of its voxels, {lost[0]}, is not there.",
            "Copy both, and rename neither: the header names the other.",
        )
    if failure:
        raise failure
    return header


def _read_series(folder: Path) -> Loaded:
    import SimpleITK as sitk

    name = itk_name(folder)
    series = quietly(lambda: sitk.ImageSeriesReader.GetGDCMSeriesIDs(name))
    if len(series) != 1:
        what = f"holds {len(series)} DICOM series" if series else "holds no DICOM series"
        raise InputError(
            f"The folder {folder.name} {what}.", "Give a folder with exactly one series, or a file."
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name, series[0])
    check_all_read(folder, files)
    planes = check_planes(folder, [Path(file) for file in files])

    def read(_: Path) -> Loaded:  # in floating point, as each slice may have a scale of its own
        return _from_dicom(folder, quietly(lambda: sitk.ReadImage(files, sitk.sitkFloat32)), planes)

    return guard(folder, read)


def _from_dicom(path: Path, image: Any, planes: np.ndarray) -> Loaded:
    loaded = _from_itk(path, image)
    check_place(path, planes, _LPS @ loaded[1])
    return loaded


def _from_itk(path: Path, image: Any, header: TextHeader | None = None) -> Loaded:
    import SimpleITK as sitk

    check_components(path, image.GetNumberOfComponentsPerPixel())
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(
            f"{path.name} holds complex numbers.", "Give a scan with one real intensity per voxel."
        )
    squeezed_shape(path.name, image.GetSize())
    # Asked of the whole image: a part of it no longer tells.
    oriented = _is_oriented(image) and (header is None or header.oriented)
    sized = header is None or header.sized
    while image.GetDimension() > 3:
        image = image[..., 0]
    geometry = ItkGeometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), oriented, sized)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    affine[:3, 3] = geometry.origin
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), _LPS @ affine, geometry


def _is_oriented(image: Any) -> bool:
    """Whether the file that ITK read says which way its axes run; what was made in memory says so itself."""

    def told(key: str) -> str:
        return image.GetMetaData(key) if image.HasMetaDataKey(key) else ""

    if told("ITK_InputFilterName") == "NrrdImageIO":
        return told("NRRD_space") == "left-posterior-superior"
    return (told("sform_code"), told("qform_code")) != ("0", "0")  # of NIfTI


def quietly(call: Callable[[], Any]) -> Any:
    """ITK prints warnings about odd headers to the console; what matters is checked here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _nifti(array: np.ndarray, affine: np.ndarray, header: Any) -> Any:
    import nibabel as nib

    if isinstance(header, nib.Nifti1Header):
        place = type(header)()  # all else tells of the scan, and may name who was scanned
        for field in _PLACE:
            place[field] = header[field]
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(array, affine, place)
    else:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        # No quaternion is sheared: programs that take it would see the labels beside the scan.
        gap = corner_gap(array.shape[:3], affine, image.header.get_qform())
        image.set_qform(affine, code=int(gap < 0.25 * min(image.header.get_zooms()[:3])))
    image.set_data_dtype(array.dtype)
    return image


def _save_itk(
    path: Path, array: np.ndarray, affine: np.ndarray, geometry: Any, fields: Mapping[str, str]
) -> None:
    import SimpleITK as sitk

    image = _itk(array, affine, geometry)
    for name, value in fields.items():
        image.SetMetaData(name, value)

    def write_and_check() -> None:
        with itk_target(path) as name:
            sitk.WriteImage(image, name, useCompression=True)
            sitk.ReadImage(name)  # ITK does not report every short write; a full disk shows here

    try:
        quietly(write_and_check)
    except RuntimeError as error:
        raise OSError(errno.EIO, "the file could not be completed; the disk may be full") from error


def _itk(array: np.ndarray, affine: np.ndarray, geometry: Any) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.swapaxes(0, 2)), isVector=array.ndim > 3)
    if not isinstance(geometry, ItkGeometry):
        affine = _LPS @ affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        geometry = ItkGeometry(*(tuple(map(float, v)) for v in (spacing, affine[:3, 3], direction.ravel())))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image
