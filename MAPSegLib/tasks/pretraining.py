"""Pretraining: from folders of unlabelled scans, or label maps, to a file with an encoder."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import distributed
from ..config import ARCHITECTURES, check_path
from ..jobs import PretrainJob, Report
from ..manifests import as_stated, manifest_in, scans_by_domain
from ..model_files import SUFFIX
from ..models import ModelCard, save_model
from ..reports import CHECKPOINT, RECORD, replacing
from ..volumes import find_scans
from . import resume
from .outputs import output_folder, refuse_embedded, refuse_existing
from .reading import tell_notes, track
from .training import versions

if TYPE_CHECKING:
    from ..domains import Domains
    from ..pictures import Reconstruction

PICTURES = "pictures"


def pretrain(job: PretrainJob, report: Report) -> dict[str, Any]:
    """Pretrain an encoder, or continue a pretraining that was killed. See :class:`~MAPSegLib.jobs.PretrainJob`."""
    import torch

    from ..networks.autoencoder import Autoencoder
    from ..training.pretraining import pretrain as run

    folder = check_path(job.output)
    final = folder / f"{job.name}{SUFFIX}"
    refuse_embedded(final)
    pictures = folder / PICTURES
    unfinished = (folder / CHECKPOINT).exists()
    refuse_existing([final, *(() if unfinished else _pictures(pictures))], job.overwrite)
    places = list(map(check_path, job.domains))
    job = job.model_copy(update={"preprocessing": as_stated(job.preprocessing, places)})
    scans = scans_by_domain(places)
    maps = find_scans(check_path(job.from_labels)) if job.from_labels else []
    drawn = job.options.picture_every > 0 and find_spec("matplotlib") is not None
    if job.options.picture_every and not drawn:
        why = 'No pictures of reconstructions: they need matplotlib (pip install "mapseg[demo]").'
        report("log", message=why)
    with output_folder(folder):
        domains = _domains(job, scans, maps, report)
        counts = [f"{len(files)} scans in {name}" for name, files in scans.items()]
        counts += [f"images of {len(maps)} label maps"] if maps else []
        taken = f"{job.preprocessing.modality.upper()} at {job.preprocessing.grid} mm"
        report("log", message=f"Learning from {', '.join(counts)}; {taken}.")

        def picture(step: int, rows: list[Reconstruction]) -> None:
            from ..pictures import reconstructions

            path = pictures / f"step_{step:06d}.png"
            with output_folder(pictures), replacing(path, overwrite=True) as temporary:
                reconstructions(rows, temporary)

        given = [*maps, *(file for files in scans.values() for file in files)]
        given += [manifest for place in places for manifest in manifest_in(place)]
        with resume.claim(folder, job, given, [final]) as resumed:
            if resumed:
                report("log", message="Continuing a pretraining that was interrupted.")
            elif distributed.rank() == 0:
                _remove_pictures(pictures)
            try:
                torch.manual_seed(job.options.seed)
                model = Autoencoder(ARCHITECTURES[job.preset])
                run(model, domains, job.options, folder, report, picture if drawn else None)
            except BaseException:
                if distributed.rank() == 0 and not (folder / CHECKPOINT).exists():
                    _remove_pictures(pictures)
                raise
            weights = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
            distributed.on_first(lambda: save_model(final, weights, _card(job, scans, maps), job.overwrite))
    made = [final, folder / RECORD, *_pictures(pictures)]
    return {"files": [str(path) for path in made], "model": str(final), "failed": []}


def _domains(job: PretrainJob, scans: dict[str, list[Path]], maps: list[Path], report: Report) -> Domains:
    """The domains, every scan of which has been read once: a bad one is told now, and not after hours."""
    from ..datasets import SyntheticSource
    from ..domains import Domains, Draw, UnlabelledScans

    domains: list[tuple[str, Draw]] = []
    for name, files in scans.items():
        source = UnlabelledScans(files, job.preprocessing)
        for file in track(files, report):
            source.prepared(file)
        tell_notes(source.notes, report)
        domains.append((name, source.draw))
    if maps:
        synthetic = SyntheticSource(track(maps, report), (), job.preprocessing, job.contrast)
        domains.append((f"synthesised {job.contrast}", lambda generator: synthetic.draw(generator)[0]))
    return Domains(domains, job.preprocessing.spacing)


def _card(job: PretrainJob, scans: dict[str, list[Path]], maps: list[Path]) -> ModelCard:
    domains = [{"data": name, "cases": len(files), "images": "acquired"} for name, files in scans.items()]
    if maps:
        images = f"synthesised, contrast {job.contrast}"
        domains.append({"data": check_path(job.from_labels).name, "cases": len(maps), "images": images})
    return ModelCard(
        kind="encoder",
        name=job.name,
        description=job.description,
        architecture=ARCHITECTURES[job.preset],
        preprocessing=job.preprocessing,
        provenance={
            "domains": domains,
            "steps": job.options.steps,
            "seed": job.options.seed,
            "processes": distributed.world(),
            "options": job.options.model_dump(mode="json"),
            "versions": versions(),
        },
        license=job.license,
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.png") if path.stem.removeprefix("step_").isdecimal())


def _remove_pictures(folder: Path) -> None:
    for path in _pictures(folder):
        path.unlink()
    with suppress(OSError):
        folder.rmdir()
