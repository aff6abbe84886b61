"""What every reader of scans refuses, in the same words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError
from .reports import reason
from .segments import is_segmentation
from .text_headers import TextHeader

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

# NRRD's names of spaces that ITK reads as if they were left, posterior, superior.
_TIMED = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last")


def guard(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Run a library's reader; whatever it raises is a damaged file, told in one sentence."""
    try:
        return reader(path)
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(
            f"{path.name} cannot be opened: permission denied.", "Check the file's permissions."
        ) from error
    except FileNotFoundError as error:  # nibabel's images read their voxels when these are asked for
        raise InputError(
            f"{path.name} cannot be opened: {error.filename} is no longer there.", "Keep its file until then."
        ) from error
    except Exception as error:
        text = str(error).lower()
        for name in (str(path), f"{path.parent}{os.sep}"):  # whose words say nothing
            text = text.replace(name.lower(), "")
        if any(words in text for words in ("to allocate", "bad_alloc", "out of memory")):
            raise MemoryError(text) from error
        if "scalarwithspace" in text:  # NRRD's word for it
            what = "states spacings beside a space, in which only space directions count"
        elif "spacing" in text or "pixdim" in text:
            what = "has a voxel spacing of zero"
        elif "direction" in text or "determinant" in text:
            what = "has a singular orientation matrix"
        else:
            what = "is damaged, truncated or not an image"
        raise InputError(f"{path.name} {what}.", "Export or download the file again.") from error


def check_signature(path: Path, suffix: str) -> None:
    """Refuse a file that is empty, or by its first bytes of another format than its suffix says."""
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


def check_header(path: Path, header: TextHeader) -> None:
    """Refuse NRRD and MetaImage that state what ITK does not read, or reads in a way of its own."""
    if header.encoding in ("bzip2", "bz2"):
        raise InputError(
            f"{path.name} is compressed with bzip2, which ITK does not read.", "Save it with gzip."
        )
    if header.foreign_unit:
        raise not_in_mm(path, header.foreign_unit)
    if header.mirrored:
        raise mirrored(path)
    if header.fields.get("space", "").lower() in _TIMED:
        raise InputError(
            f"{path.name} states its orientation in space and time, which ITK would take for another one.",
            "Save it as a 3D volume.",
        )


def not_in_mm(path: Path, unit: str) -> InputError:
    """The error of a file in another unit."""
    return InputError(f"{path.name} has its spacing in {unit}, not in mm.", "Export it again in mm.")


def mirrored(path: Path) -> InputError:
    """The error of a file whose voxels have a size below zero."""
    return InputError(
        f"{path.name} has a negative voxel spacing: programs differ on which side is left then.",
        "Export the scan again.",
    )


def check_components(path: Path, components: int) -> None:
    """Refuse an image of several values per voxel."""
    if components > 1 and is_segmentation(path):
        raise InputError(
            f"{path.name} has segments that overlap.", "In Slicer, export the segmentation to a label map."
        )
    if components > 1:
        raise InputError(
            f"{path.name} is a colour (RGB) or vector image.", "Give a scan with one intensity per voxel."
        )


def squeezed_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing ones; one that is not 3D then is refused."""
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
