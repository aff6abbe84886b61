"""The three tasks' scans, written once in one layout: ``{source,target,test}/{images,labels}`` with like names.

Splits are those of the data folder's README. Labels of the target part are read by the supervised upper bound, by
``Benchmarks.stop``, and by ``Benchmarks.ablation``, which chose the parts of ``plus``. Choices of the method have read
them, too (``Docs/evidence.md``). Those of the test part are read by the final scoring alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MAPSegLib.errors import InputError
from MAPSegLib.jobs import build_job
from MAPSegLib.volumes import Volume, find_scans, read_image, read_labels, write_volume
from MAPSegLib.worker import run_job

from ..contrasts import change

CURVE = "sine 2.6"
"""The target contrast of the hippocampus task: not monotone, so that no order of grey values survives."""
SYNTHESIS_SEEDS = {"target": 1116, "test": 1720}
"""Of the synthesised target and test scans, the same whatever the seed of a training."""
PARTS = ("source", "target", "test")


@dataclass(frozen=True)
class Pair:
    """Files of one case before they are prepared, and the name it gets."""

    name: str
    image: Path
    label: Path


Split = dict[str, list[Pair]]


def existing(folder: Path) -> Path:
    """Raise InputError, one sentence, where a task's folder of data is missing."""
    if not folder.is_dir():
        raise InputError(
            f"The data folder {folder} does not exist.", "Give the folder that holds it (--data)."
        )
    return folder


def cardiac_split(data: Path) -> Split:
    """bSSFP of patients 1-25, LGE of 1-25, LGE of 26-35. The sequences of a patient count as unpaired."""
    folder = existing(data / "cardiac_mscmr")

    def pairs(sequence: str, numbers: Iterable[int]) -> list[Pair]:
        stems = [f"patient{number:02d}_{sequence}" for number in numbers]
        files = [folder / sequence / stem for stem in stems]
        return [Pair(f.name, Path(f"{f}.nii.gz"), Path(f"{f}_manual.nii.gz")) for f in files]

    return {
        "source": pairs("C0", range(1, 26)),
        "target": pairs("LGE", range(1, 26)),
        "test": pairs("LGE", range(26, 36)),
    }


def hippocampus_split(data: Path) -> Split:
    """By name: the first two fifths are the source, three tenths the target, the others the test."""
    folder = existing(data / "hippocampus")
    images = find_scans(folder / "images")
    ends = [0, round(0.4 * len(images)), round(0.7 * len(images)), len(images)]
    cases = [Pair(path.name.removesuffix(".nii.gz"), path, folder / "labels" / path.name) for path in images]
    return {part: cases[ends[i] : ends[i + 1]] for i, part in enumerate(PARTS)}


def brain_split(data: Path) -> dict[str, list[Path]]:
    """Label maps: anatomies 1-10, 11-16, 17-20."""
    folder = existing(data / "brain_labels")
    numbers = {"source": range(1, 11), "target": range(11, 17), "test": range(17, 21)}
    return {part: [folder / f"training_seg_{n:02d}.nii.gz" for n in numbers[part]] for part in PARTS}


def upright(volume: Volume, in_plane: float | None = None) -> Volume:
    """The same voxels with their axes called right, anterior and superior.

    The heart's short axis lies between the body's axes, so that slices are stacked along right in some files and
    along anterior in others; in the order of the file they always lie along the last axis, and look alike.

    Args:
        in_plane: spacing of the first two axes, mm, where the file's is wrong.
    """
    spacing = volume.spacing if in_plane is None else (in_plane, in_plane, volume.spacing[2])
    return Volume(volume.array, np.diag([*spacing, 1.0]))


BSSFP_IN_PLANE = 0.74
"""mm. These copies of the bSSFP scans were resampled to the pixels of the LGE scans, but say 1.2 mm, as before: left
ventricles would hold 400 ml. With the LGE scans' 0.74 mm the same patients' hearts have the same size in both."""


def write_cardiac(data: Path, folder: Path, limit: int | None) -> None:
    """Scans on upright grids."""
    for part, pairs in cardiac_split(data).items():
        in_plane = BSSFP_IN_PLANE if part == "source" else None
        for pair in pairs[:limit]:
            image = upright(read_image(pair.image), in_plane)
            _write(folder / part, pair.name, image, read_labels(pair.label))


def write_hippocampus(data: Path, folder: Path, limit: int | None) -> None:
    """The source as it is, target and test through one curve."""
    for part, pairs in hippocampus_split(data).items():
        for pair in pairs[:limit]:
            image = read_image(pair.image)
            shown = image if part == "source" else change(image, CURVE)
            _write(folder / part, pair.name, replace(shown, header=None), read_labels(pair.label))


def write_brain(data: Path, folder: Path, limit: int | None, spacing: float = 1.0) -> None:
    """T2-like target and test scans; of the source the label maps alone, which are drawn from as T1-like images."""
    for part, maps in brain_split(data).items():
        copies = folder / part / ("labels" if part == "source" else "anatomies")
        copies.mkdir(parents=True, exist_ok=True)
        for path in maps[:limit]:
            shutil.copyfile(path, copies / path.name)
        if part != "source":
            job = {"task": "synthesise", "label_maps": copies, "output": folder / part, "contrast": "t2"}
            job |= {"seed": SYNTHESIS_SEEDS[part], "spacing": spacing, "overwrite": True}
            run_job(build_job(job), lambda event: None)


def _write(folder: Path, name: str, image: Volume, labels: Volume) -> None:
    for kind, array in (("images", image.array), ("labels", labels.array)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write_volume(folder / kind / f"{name}.nii.gz", array, image, overwrite=True)
