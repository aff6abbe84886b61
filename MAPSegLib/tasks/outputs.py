"""Where results go: names fixed, and refused where they exist, before anything is computed."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import check_path
from ..errors import InputError
from ..formats import WRITABLE, scan_suffix
from ..manifests import list_scans
from ..model_files import embedded_folders, user_folder
from ..reports import SIDE_RESULTS, unwritable
from ..results import results_in
from ..volumes import find_scans, scan_stem

_FAMILY = {".nii": ".nii", ".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}
"""Suffix of the results for a scan's suffix; compressed NIfTI for all others."""
_NO_FOLDERS = (".gz", ".bz2", ".xz", ".zst", ".zip", ".img", ".hdr", ".mnc", ".h5", ".npy", ".npz", ".vtk")
_NO_FOLDERS += (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".json", ".csv")
"""How the names of files end that are no results, and that nobody means as a folder."""


def collect_scans(given: Sequence[Path], output: Path | None = None) -> list[Path]:
    """The scans named, with folders, data sets and manifests replaced by what they hold, each once.

    Args:
        output: of the job. A shell's ``scans/*`` names it beside the scans when a job continues in ``scans/out``; where
            nothing but results lies there, it is left out.

    Raises:
        InputError: a folder without scans. Files that do not exist are left for the reader to refuse one by one.
    """
    found: dict[tuple[str, str], Path] = {}
    own = os.path.realpath(check_path(output)) if output and len(given) > 1 else ""
    for path in map(check_path, given):
        if os.path.realpath(path) == own and _holds_results_alone(path):
            continue
        for scan in list_scans(path) if os.path.isdir(path) or path.suffix == ".json" else [path]:
            # However it is spelled; a link of another name stands for a scan, and results, of its own.
            found.setdefault((on_disk(os.path.realpath(scan)), on_disk(scan.name)), scan)
    return list(found.values())


def _holds_results_alone(folder: Path) -> bool:
    try:
        return results_in(folder).issuperset(find_scans(folder))
    except InputError:  # it holds none
        return folder.is_dir() and not any(map(scan_suffix, folder.iterdir()))


@dataclass(frozen=True)
class ScanOutputs:
    """Names of the results of a set of scans: ``folder/STEM_KIND.nii.gz``.

    With ``single``, the name that the user chose for the label map of one scan, the others are named after it.
    """

    folder: Path
    single: Path | None = None

    @classmethod
    def plan(cls, output: Path, scans: Sequence[Path]) -> ScanOutputs:
        """Raises InputError where one name is given for many scans, or two scans would share a name."""
        output = check_path(output)
        meant = scan_suffix(output) or output.name.lower().endswith(_NO_FOLDERS)
        if meant and not os.path.isdir(output):
            if len(scans) > 1:
                raise InputError(f"{output} is one file, but there are {len(scans)} scans.", "Give a folder.")
            if scan_suffix(output) not in WRITABLE:
                raise InputError(f"{output.name}: results are written as {', '.join(WRITABLE)}.")
            return cls(output.parent, output)
        plan = cls(output)
        taken: dict[str, Path] = {}
        for scan in scans:
            other = taken.setdefault(on_disk(scan_stem(scan)), scan)
            if other != scan:
                raise InputError(
                    f"{other} and {scan} would share a result's name.",
                    "Link one by another name, or use two folders.",
                )
        return plan

    def label_map(self, scan: Path) -> Path:
        return self.single or self.volume(scan, "seg")

    def volume(self, scan: Path, kind: str) -> Path:
        if self.single:
            return (
                self.folder
                / f"{scan_stem(self.single)}_{kind.removeprefix('seg_')}{scan_suffix(self.single)}"
            )
        return self.folder / f"{scan_stem(scan)}_{kind}{_FAMILY.get(scan_suffix(scan), '.nii.gz')}"

    def every(self, scan: Path) -> list[Path]:
        """All maps of a scan that some run may write."""
        return [self.label_map(scan), *(self.volume(scan, kind.removeprefix("_")) for kind in SIDE_RESULTS)]

    def beside(self, name: str) -> Path:
        """A file or folder that belongs to the whole job."""
        return self.folder / (f"{scan_stem(self.single)}_{name}" if self.single else name)


def on_disk(name: str) -> str:
    """The same for names that most disks of this system take for one: a Mac's, too, ignore case."""
    return name.casefold() if sys.platform == "darwin" else os.path.normcase(name)


def refuse_embedded(path: Path) -> None:
    """Raise InputError if a model would lie among the user's under the name of an embedded one, which hides it."""
    if path.parent == user_folder() and any((folder / path.name).is_file() for folder in embedded_folders()):
        raise InputError(f"{path.stem} is the name of an embedded model.", "Choose another name.")


def refuse_existing(paths: Iterable[Path], overwrite: bool, whose: str = "") -> None:
    """Raise InputError if a result is there already and may not be replaced.

    Args:
        whose: what is known of what is there, after a comma.
    """
    there = [path for path in paths if os.path.exists(path)]
    if there and not overwrite:
        what = f"and {len(there) - 1} more are" if len(there) > 1 else "is"
        raise InputError(
            f"{there[0]} {what} already there{whose and f', {whose}'}.",
            "Choose another output, or allow overwriting (--overwrite).",
        )


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Make a folder and make sure that it can be written; if the block fails, folders left empty are removed.

    Raises:
        InputError: the system refuses.
    """
    made = []
    with contextlib.suppress(OSError):
        made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        _remove_empty(made)
        raise unwritable(folder, error) from error
    try:
        yield folder
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:  # the innermost first
        with contextlib.suppress(OSError):
            folder.rmdir()
