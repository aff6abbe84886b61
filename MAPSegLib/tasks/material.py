"""Manifests, synthesised images, models made of the authors' checkpoints, and the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import import_checkpoint
from ..config import Preprocessing, check_path
from ..errors import InputError
from ..jobs import DemoJob, ImportJob, ManifestJob, Report, SynthesiseJob
from ..manifests import Case, by_name, domain_name, list_cases, list_pairs, tables_of, within, write_manifest
from ..model_files import SUFFIX, user_folder
from ..volumes import Volume, find_scans, scan_stem, write_volume
from .label_table import IGNORE, read_label_table, stated_names
from .outputs import output_folder, refuse_embedded, refuse_existing
from .reading import track

if TYPE_CHECKING:
    from ..synthesis import Anatomy

LEAST = 4
"""Voxels of a brain along each axis, so that what is left of it when it shrinks and is cut is a volume still."""


def manifest(job: ManifestJob, report: Report) -> dict[str, Any]:
    """List the cases of data sets in one manifest. See :class:`~MAPSegLib.jobs.ManifestJob`."""
    path, places = check_path(job.output), list(map(check_path, job.places))
    refuse_existing([path], job.overwrite)
    if job.labels:
        pairs = list_pairs(places[0], check_path(job.labels))
        cases = [Case(image=image, label=label) for image, label in pairs]
    else:
        named = {place: domain_name(place, places) for place in places} if len(places) > 1 else {}
        cases = [
            case.model_copy(update={"domain": within(named[place], case.domain)}) if place in named else case
            for place in places
            for case in list_cases(place)
        ]
    with output_folder(path.parent):
        write_manifest(path, cases, _names(places, report), job.overwrite)
    labelled = sum(case.label is not None for case in cases)
    report("log", message=f"Scans: {len(cases)}; with a label map: {labelled}.")
    return {"files": [str(path)], "failed": []}


def _names(places: Sequence[Path], report: Report) -> dict[int, str]:
    """What all data sets that name a value call it; where two differ, that is told. What one ignores stays so."""
    found: dict[int, dict[str, Path]] = {}
    tables = [table for place in places for table in tables_of(place)]
    for table in tables:
        for value, name in stated_names(table).items():
            if value:
                found.setdefault(value, {}).setdefault(name, table)
    for value, names in found.items():
        if len(names) > 1:
            told = " and ".join(f"{name} in {domain_name(table, tables)}" for name, table in names.items())
            report("log", message=f"The value {value} is called {told}: see whether it means the same.")
    return {
        value: IGNORE if IGNORE in names else next(iter(names))
        for value, names in sorted(found.items())
        if len(names) == 1 or IGNORE in names
    }


def synthesise(job: SynthesiseJob, report: Report) -> dict[str, Any]:
    """Draw images with their labels, on RAS grids. See :class:`~MAPSegLib.jobs.SynthesiseJob`."""
    import numpy as np
    import torch

    from ..datasets import SyntheticSource
    from ..synthesis import brain_labels
    from ..synthesis import synthesise as draw

    maps = list(by_name(find_scans(check_path(job.label_maps)), scan_stem).values())
    folder = check_path(job.output)
    names = [f"{scan_stem(path)}_{job.contrast}_{k:03d}.nii.gz" for path in maps for k in range(job.count)]
    files = [(folder / "images" / name, folder / "labels" / name) for name in names]
    refuse_existing([path for pair in files for path in pair], job.overwrite)
    labels, spacing = brain_labels(), (job.spacing,) * 3
    codes = np.array([0, *(label.value for label in labels)])
    affine = np.diag([*spacing, 1.0])
    with output_folder(folder / "images"), output_folder(folder / "labels"):
        # All are read before any is drawn from: a bad one leaves no part of a set.
        source = SyntheticSource(track(maps, report), labels, Preprocessing(spacing=spacing), job.contrast)
        for path, anatomy in zip(maps, source.anatomies, strict=True):
            _refuse_flat(path, anatomy, job.spacing)
        generator = torch.Generator().manual_seed(job.seed)
        draws = [anatomy for anatomy in source.anatomies for _ in range(job.count)]
        paths = [path for path in maps for _ in range(job.count)]
        for anatomy, pair in zip(draws, track(files, report, paths, "synthesise"), strict=True):
            image, classes = draw(anatomy, spacing, generator, job.contrast)
            like = Volume(image.numpy(), affine)
            write_volume(pair[0], like.array, like, job.overwrite)
            write_volume(pair[1], codes[classes.numpy()], like, job.overwrite)
    return {"files": [str(path) for pair in files for path in pair], "failed": []}


def _refuse_flat(path: Path, anatomy: Anatomy, spacing: float) -> None:
    """Raise InputError where images of the brain, deformed and cut to it, might be no volumes."""
    from ..augmentation import bounding_box
    from ..synthesis import OUTSIDE_BRAIN

    inside = anatomy.codes.new_tensor([value not in OUTSIDE_BRAIN for value in anatomy.values])
    box = bounding_box(inside[anatomy.codes.long()] > 0)
    edges = [(part.stop - part.start) * float(mm) for part, mm in zip(box, anatomy.spacing, strict=True)]
    if min(edges) < LEAST * spacing:
        raise InputError(
            f"{path}: its brain has fewer than {LEAST} voxels of {spacing:g} mm along an axis.",
            "Give a smaller --spacing.",
        )


def import_model(job: ImportJob, report: Report) -> dict[str, Any]:
    """Turn an authors' checkpoint into a model file. See :class:`~MAPSegLib.jobs.ImportJob`."""
    folder = check_path(job.output) if job.output else user_folder()
    path = folder / f"{job.name}{SUFFIX}"
    refuse_embedded(path)
    refuse_existing([path], job.overwrite)
    labels = read_label_table(job.label_table) if job.label_table else ()
    with output_folder(folder):
        card = import_checkpoint(
            check_path(job.checkpoint),
            path,
            name=job.name,
            labels=labels,
            preprocessing=job.preprocessing,
            patch=job.patch,
            license=job.license,
            overwrite=job.overwrite,
        )
    sizes = card.architecture
    what = f"{len(card.labels)} structures" if card.labels else "A pretrained encoder"
    report("log", message=f"{what}, {sizes.width} channels, {sizes.depth} blocks.")
    return {"files": [str(path)], "model": str(path), "failed": []}


def demo(job: DemoJob, report: Report) -> dict[str, Any]:
    """Run the demonstration. See :class:`~MAPSegLib.jobs.DemoJob`."""
    from ..demo import run_demo

    return run_demo(check_path(job.output), job.minutes, job.overwrite, report) | {"failed": []}
