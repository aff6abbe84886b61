"""Where the slices of DICOM files lie and how they are scaled, and what is refused as it makes no volume."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from .compression import check_deflated, check_pictures
from .errors import InputError
from .refusals import check_components, guard

_PLANE = (
    ("PlanePositionSequence", "ImagePositionPatient", None),
    ("PlaneOrientationSequence", "ImageOrientationPatient", None),
    ("PixelMeasuresSequence", "PixelSpacing", None),
    ("PixelValueTransformationSequence", "RescaleSlope", 1.0),
    ("PixelValueTransformationSequence", "RescaleIntercept", 0.0),
)
"""What a slice states: its sequence in a file of several frames, its name, and what holds where it is unsaid."""
_FIELDS = [3, 6, 9, 11]
"""Where what a slice states splits into position, direction of rows and of columns, spacing, and scale."""


def is_dicom(path: Path) -> bool:
    """By the preamble: many exports have no suffix. A DICOMDIR, which lists scans, is none."""
    if path.name.startswith((".", "DICOMDIR")) or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def check_all_read(folder: Path, slices: list[str]) -> None:
    """The reader leaves out what it cannot make sense of: a damaged first or last slice would be missing silently.

    Args:
        slices: file names of the series.
    """
    known = {Path(name).name for name in slices}
    lost = sorted(path.name for path in folder.iterdir() if path.name not in known and is_dicom(path))
    if lost:
        raise InputError(
            f"The DICOM series {folder.name} holds {lost[0]}, which cannot be read as one of its slices.",
            "Get the series again, or take the file out if it is no slice.",
        )


def _planes(file: Path, path: Path) -> np.ndarray:
    """Position, orientation, spacing and scale of the slices in a DICOM file of ``path``: (slices, 3 + 6 + 2 + 2)."""
    import pydicom

    _check_inflated(file)
    header = pydicom.dcmread(file, force=True)
    palette = header.get("PhotometricInterpretation") == "PALETTE COLOR"  # read as RGB
    check_components(path, 3 if palette else int(header.get("SamplesPerPixel") or 1))
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        raise InputError(
            f"{path.name} is stored inverted (MONOCHROME1): programs differ on the values that it holds.",
            "Export it again as MONOCHROME2, or as NIfTI.",
        )
    _check_length(header, file)
    # where frames state nothing of their own, two repeat a position as any larger number does
    count = min(int(header.get("NumberOfFrames") or 1), 2)
    frames = header.get("PerFrameFunctionalGroupsSequence") or [pydicom.Dataset()] * count
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]

    def stated(frame: Any, group: str, key: str, unsaid: float | None) -> np.ndarray:
        holders = [*(holder[group][0] for holder in (frame, shared) if holder.get(group)), header]
        value = next((holder.get(key) for holder in holders if holder.get(key)), unsaid)
        if value is None:
            raise InputError(
                f"{file.name} does not state where its slices lie ({key} is missing).",
                "Export the series again, as the scanner made it.",
            )
        return np.atleast_1d(np.asarray(value, dtype=float))

    return np.array([np.concatenate([stated(frame, *place) for place in _PLANE]) for frame in frames])


def _check_inflated(file: Path) -> None:
    """Raise EOFError where a deflated file would fill the memory as its header is read."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    about = read_file_meta_info(file)
    if about.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        # behind the preamble, and the element that tells the length of all others in the clear
        check_deflated(file, 128 + 4 + 12 + about.FileMetaInformationGroupLength)


def _check_length(header: Any, file: Path) -> None:
    """Raise EOFError where voxels are missing, in place of which the reader would give whatever memory holds."""
    if "PixelData" not in header:
        return
    voxels = math.prod(int(header.get(key) or 1) for key in ("Rows", "Columns", "NumberOfFrames"))
    if header["PixelData"].is_undefined_length:  # so are compressed frames
        check_pictures(file, voxels)
    elif len(header.PixelData) < voxels * int(header.get("BitsAllocated") or 1) // 8:
        raise EOFError("fewer voxels than the header says")


def check_planes(path: Path, files: list[Path]) -> np.ndarray:
    """Slices must fill a box: the reader would squeeze a gap, set a tilted stack upright, or stack time points.

    In a file of several frames they must share a scale: the reader takes the first one for all.

    Returns:
        what the slices state, for :func:`check_place`.
    """
    what = path.name if files == [path] else f"The DICOM series {path.name}"
    parts = [guard(file, lambda file: _planes(file, path)) for file in files]
    if len(parts) > 1 and max(map(len, parts)) > 1:
        raise InputError(
            f"{what} consists of several files with several slices each.", "Give one of them, as a file."
        )
    planes = np.concatenate(parts)
    origins, rows, columns, spacings, scales = np.split(planes, _FIELDS, 1)
    if len(origins) < 2:
        return planes
    directions = np.concatenate([rows, columns], 1)
    if max(np.ptp(directions, 0).max(), np.ptp(spacings, 0).max()) > 1e-3:
        raise InputError(
            f"{what} has slices of several orientations or voxel sizes.", "Export one complete 3D series."
        )
    normal = np.cross(rows[0], columns[0])
    if abs(np.linalg.norm(normal) - 1) > 0.02:
        raise InputError(
            f"{what} states rows and columns that are not at right angles.",
            "Export the series again, as the scanner made it.",
        )
    heights = origins @ normal
    aside = origins - origins[0] - np.outer(heights - heights[0], normal)
    if np.abs(aside).max() > 0.1:
        raise InputError(
            f"{what} has tilted slices (gantry tilt).",
            "Load it into Slicer, which straightens it, and save it as NRRD.",
        )
    gaps = np.diff(heights) * (1 if heights[-1] >= heights[0] else -1)
    repeated = gaps.min() < 0.01
    # Gaps between positions that are rounded to a tenth differ by just as much, and may by a little more;
    # where slices are finer, that much would be one of them.
    middle = np.median(gaps)
    allowed = max(min(0.1, middle / 2), 0.05 * middle) + 1e-3
    even = np.linspace(heights[0], heights[-1], len(heights))
    drift = np.abs(heights - even).max()  # small differences add up
    if repeated or max(np.ptp(gaps), drift) > allowed:
        told = "repeats or mixes slice positions" if repeated else "has missing or unevenly spaced slices"
        raise InputError(f"{what} {told}.", "Export one complete 3D series.")
    if len(parts) == 1 and np.ptp(scales, 0).any():
        raise InputError(
            f"{what} scales the values of its slices differently.",
            "Export it as NIfTI, or as a series with a file per slice.",
        )
    return planes


def check_place(path: Path, planes: np.ndarray, affine: np.ndarray) -> None:
    """The reader must put slices where they say: of files of several frames it knows some kinds, and guesses others.

    Args:
        planes: of :func:`check_planes`.
        affine: voxels to LPS mm, of the image that was read.
    """
    origins, rows, columns, spacings, _ = np.split(planes, _FIELDS, 1)
    axes = np.stack([rows[0] * spacings[0, 1], columns[0] * spacings[0, 0]], 1)
    ends = affine[:3, 3] + np.outer([0, len(origins) - 1], affine[:3, 2])
    gap = np.abs(ends - origins[[0, -1]]).max()
    if gap > 0.2 or np.abs(affine[:3, :2] - axes).max() > 0.01 * spacings.min():
        raise InputError(
            f"{path.name} is of a kind whose geometry cannot be read.",
            "Load it into Slicer, and save it as NRRD, once it lies where it should.",
        )
