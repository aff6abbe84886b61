"""Synthesised images, models made of the authors' checkpoints, and the demonstration."""

from __future__ import annotations

from typing import Any

from ..checkpoints import import_checkpoint
from ..config import Preprocessing, check_path
from ..jobs import DemoJob, ImportJob, Report, SynthesiseJob
from ..manifests import by_name
from ..models import SUFFIX, user_folder
from ..volumes import Volume, find_scans, scan_stem, write_volume
from .label_table import read_label_table
from .outputs import output_folder, refuse_embedded, refuse_existing


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
        generator = torch.Generator().manual_seed(job.seed)
        for index, path in enumerate(maps):
            source = SyntheticSource([path], labels, Preprocessing(spacing=spacing), job.contrast)
            for k in range(job.count):
                done = index * job.count + k
                report(
                    "progress",
                    stage="synthesise",
                    scan=str(path),
                    step=done,
                    steps=len(files),
                    seconds_left=None,
                )
                image, classes = draw(source.anatomies[0], spacing, generator, job.contrast)
                like = Volume(image.numpy(), affine)
                write_volume(files[done][0], like.array, like, job.overwrite)
                write_volume(files[done][1], codes[classes.numpy()], like, job.overwrite)
    return {"files": [str(path) for pair in files for path in pair], "failed": []}


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
    told = f"{what}, {sizes.width} channels, {sizes.depth} blocks."
    report("log", message=told)
    return {"files": [str(path)], "model": str(path), "failed": []}


def demo(job: DemoJob, report: Report) -> dict[str, Any]:
    """Run the demonstration. See :class:`~MAPSegLib.jobs.DemoJob`."""
    from ..demo import run_demo

    return run_demo(check_path(job.output), job.minutes, job.overwrite, report) | {"failed": []}
