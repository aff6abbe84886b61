"""Source training: from folders of scans or label maps to a model file with its card."""

from __future__ import annotations

import itertools
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__, distributed
from ..config import ARCHITECTURES, Label, Preprocessing, TrainingOptions, check_path
from ..errors import InputError
from ..jobs import Report, TrainJob
from ..manifests import Labelled, as_stated, domains, list_labelled, manifest_in
from ..model_files import SUFFIX
from ..models import ModelCard, load_card, load_encoder, load_model, resolve, save_model
from ..reports import RECORD, first_few
from ..volumes import read_in_full, read_labels
from . import resume
from .label_table import infer_labels, names_in, read_label_table
from .outputs import output_folder, refuse_embedded, refuse_existing
from .reading import tell_notes, track

if TYPE_CHECKING:
    from torch import Tensor

    from ..datasets import ScanSource, SyntheticSource
    from ..networks.segmenter import Segmenter

TRUST_DRAWS, PROFILE_DRAWS = 8, 64
"""Scans of the source domain that the limits of trust and the profile of intensities are measured on."""


def train(job: TrainJob, report: Report) -> dict[str, Any]:
    """Train a model, or continue a training that was killed. See :class:`~MAPSegLib.jobs.TrainJob`."""
    import torch

    from ..datasets import Recoloured
    from ..pieces import with_pieces
    from ..quality import unfit
    from ..shapes import absences
    from ..sides import with_sides
    from ..training.source import train as run

    folder = check_path(job.output)
    final = folder / f"{job.name}{SUFFIX}"
    refuse_embedded(final)
    refuse_existing([final], job.overwrite)
    cases = list_labelled(job.images, job.labels, job.from_labels)
    if job.holdout >= len(cases):
        raise InputError(f"There are {len(cases)} cases, too few to keep {job.holdout} back.")
    with output_folder(folder):
        kept = set(random.Random(job.options.seed).sample(range(len(cases)), job.holdout))
        training = [case for i, case in enumerate(cases) if i not in kept]
        card = _card(job, training, report)
        source, validation = _material(job, card, training, [cases[i] for i in sorted(kept)], report)
        seen = _look(source, len(card.labels))
        lacking = absences(card.labels, seen.extents)
        unused = [label.name for label in card.labels if lacking.get(label.value) == 1]
        grid = card.preprocessing.grid
        if len(unused) == len(card.labels):
            raise InputError(
                f"No structure of the label maps is left at {grid} mm.",
                "Give a smaller --spacing, or a label table of structures that they hold.",
            )
        if unused:
            names = ", ".join(unused)
            report("log", message=f"No label map holds {names} at {grid} mm: these cannot be learnt.")
        labels = with_sides(with_pieces(card.labels, seen.pieces), seen.places)
        card = card.model_copy(update={"labels": labels})
        if aside := [label.name for label in labels if label.one_sided]:
            told = f"{first_few(aside)}: to one side, without a mirror image, so that a mirrored scan looks like none."
            report("log", message=f"{told} The model's results will not be averaged with those of one.")
        counts = f"Cases to learn from: {len(training)}; kept back: {len(kept)}"
        taken = f"{card.preprocessing.modality.upper()} at {grid} mm"
        report("log", message=f"{counts}; structures: {len(card.labels)}; {taken}.")
        files = [path for case in cases for path in case if path] + manifest_in(job.images)
        files += [resolve(job.init)] if job.init else []
        files += [check_path(job.label_table)] if job.label_table not in (None, "brain") else []
        with resume.claim(folder, job, files, [final]) as resumed:
            if resumed:
                report("log", message="Continuing a training that was interrupted.")
            torch.manual_seed(job.options.seed)
            shown = Recoloured(source) if job.options.augmentation == "strong" else source
            model, steps, dice = run(_start(job, card), shown, job.options, folder, report, validation)

            def finish() -> None:
                changes: dict[str, Any] = {"provenance": card.provenance | {"steps": steps}}
                if dice is not None:  # their names may be people's: they stay out of the card
                    changes["scores"] = {"kept back": {"mean_dice": round(dice, 3), "scans": len(kept)}}
                    names = ", ".join(cases[i][1].name for i in sorted(kept))
                    report("log", message=f"Dice {dice:.3f} on what was kept back, at step {steps}: {names}.")
                known = with_trust(model, card.model_copy(update=changes), source, seen.extents, job.options)
                if what := unfit(known.priors["trust"]):
                    told = f"On scans that it has learnt from, the model {what}: no result of it will be trusted."
                    report("log", message=f"{told} More steps may help.")
                save_model(final, model.state_dict(), known, job.overwrite)

            distributed.on_first(finish)
    return {"files": [str(final), str(folder / RECORD)], "model": str(final), "failed": []}


def _start(job: TrainJob, card: ModelCard) -> Segmenter:
    """A new model, a new one on a pretrained encoder, or a trained one."""
    from ..networks.segmenter import Segmenter

    path = resolve(job.init) if job.init else None
    if path and load_card(path, encoder=True).kind == "segmenter":
        return load_model(path)[0]
    model = Segmenter(card.architecture, card.labels)
    if path:
        load_encoder(path, model)
    return model


def _card(job: TrainJob, training: Sequence[Labelled], report: Report) -> ModelCard:
    start = load_card(resolve(job.init), encoder=True) if job.init else None
    if start and start.labels and job.label_table:
        raise InputError(f"The model {job.init} brings its own label table.", "Leave --label-table out.")
    labels = start.labels if start and start.labels else _labels(training, job, report)
    return ModelCard(
        name=job.name,
        description=job.description,
        architecture=start.architecture if start else ARCHITECTURES[job.preset or "small"],
        preprocessing=start.preprocessing if start else _preprocessing(job),
        labels=labels,
        provenance=_provenance(job, training, start),
        license=job.license,
    )


def _preprocessing(job: TrainJob) -> Preprocessing:
    given = job.preprocessing or Preprocessing()
    return given if job.from_labels else as_stated(given, [check_path(job.images)])


class _Seen(NamedTuple):
    """What label maps show of the structures, one entry for each map: far less than the maps themselves."""

    extents: list[Tensor]
    places: list[Tensor]
    pieces: list[dict[int, float]]


def _look(source: ScanSource | SyntheticSource, structures: int) -> _Seen:
    """All that is to know of a source's label maps, each of which is looked at once."""
    from ..pieces import largest_shares
    from ..shapes import log_extents
    from ..sides import places_across

    seen = _Seen([], [], [])
    for classes, spacing in source.label_maps():
        seen.extents.append(log_extents(classes, structures, spacing))
        seen.places.append(places_across(classes, structures, spacing))
        seen.pieces.append(largest_shares(classes, structures))
    return seen


def with_trust(
    model: Segmenter,
    card: ModelCard,
    source: ScanSource | SyntheticSource,
    extents: Sequence[Tensor],
    options: TrainingOptions,
) -> ModelCard:
    """The card with the source's shapes, and limits of trust and a profile of intensities of scans drawn from it.

    The limits let every structure be missing that any label map lacks: counted as lost, it would lower them so far
    that no result is trusted.

    Args:
        extents: of each of the source's label maps the :func:`~MAPSegLib.shapes.log_extents`.
    """
    import torch

    from ..quality import assess_image, intensity_profile, trust_limits
    from ..shapes import OFTEN, absences, extent_priors

    inference = options.for_inference()
    generator = torch.Generator().manual_seed(options.seed + 2)
    draws = [source.draw_undeformed(generator) for _ in range(TRUST_DRAWS)]
    priors: dict[str, Any] = {"extents": extent_priors(card.labels, extents)}
    lacking = absences(card.labels, extents)
    lenient = card.model_copy(update={"priors": priors | {"often_absent": list(lacking)}})
    measures = [assess_image(model, lenient, *drawn, inference)[0].measures for drawn in draws]
    if often := [value for value, share in lacking.items() if share >= OFTEN]:
        priors["often_absent"] = often
    more = (source.draw_undeformed(generator)[0] for _ in range(PROFILE_DRAWS - TRUST_DRAWS))
    profile = intensity_profile(itertools.chain((image for image, _ in draws), more))
    known = {"trust": trust_limits(measures), "intensity": profile}
    return card.model_copy(update={"priors": priors | known})


def _material(
    job: TrainJob, card: ModelCard, training: Sequence[Labelled], kept: Sequence[Labelled], report: Report
) -> tuple[ScanSource | SyntheticSource, list[tuple[Tensor, Tensor]]]:
    """What to learn from, and images with class indices to validate on."""
    import torch

    from ..datasets import EXTRACTED, ScanSource, SyntheticSource
    from ..synthesis import synthesise

    if not job.from_labels:
        stated = domains(check_path(job.images))

        def read(cases: Sequence[Labelled], part: str) -> ScanSource:
            pairs = track(cases, report, [image for image, _ in cases])
            return ScanSource(
                pairs, card.labels, card.preprocessing, domains=stated, part=part if kept else ""
            )

        source, others = read(training, "to learn from"), read(kept, "kept back")
        for each in (source, others):
            tell_notes(each.notes, report, settled=bool(job.init))
        return source, others.scans
    parts = ([label for _, label in part] for part in (training, kept))
    source, others = (
        SyntheticSource(track(maps, report), card.labels, card.preprocessing, job.contrast) for maps in parts
    )
    generator = torch.Generator().manual_seed(job.options.seed + 1)
    draws = [synthesise(a, others.spacing, generator, job.contrast, EXTRACTED) for a in others.anatomies]
    return source, draws


def _labels(cases: Sequence[Labelled], job: TrainJob, report: Report) -> tuple[Label, ...]:
    """The structures of the label table, or without one those that any label map holds, named by the data set."""
    import numpy as np

    if job.label_table or job.from_labels:
        return read_label_table(job.label_table or "brain")
    found: dict[int, Path] = {}
    values_in: dict[Path, list[int]] = {}
    for path in track([path for _, path in cases], report):
        values_in[path] = values = np.unique(read_in_full(read_labels, path).array).tolist()
        if wrong := [value for value in (values[0], values[-1]) if not 0 <= value <= 65535]:
            raise InputError(
                f"{path} holds the value {wrong[0]}; those of structures go from 1 to 65535.",
                "Give a label table to choose some.",
            )
        found = dict.fromkeys(values, path) | found
    names = names_in(check_path(job.images), values_in)
    if names and (others := sorted(found.keys() - names.keys() - {0})):
        held = f"The label maps hold {first_few(others)}, which {job.images.name} does not name"
        where = f"{others[0]} is in {found[others[0]].name}"
        report("log", message=f"{held} ({where}): each is learnt as a structure. A label table chooses some.")
    return infer_labels(found, names)


def _provenance(job: TrainJob, cases: Sequence[Labelled], start: ModelCard | None) -> dict[str, Any]:
    folder = check_path(job.from_labels or job.images).name
    return {
        "data": folder,
        "cases": len(cases),
        "held_out": job.holdout,
        "images": f"synthesised, contrast {job.contrast}" if job.from_labels else "acquired",
        "started_from": {"name": start.name, **start.provenance} if start else None,
        "seed": job.options.seed,
        "processes": distributed.world(),
        "options": job.options.model_dump(mode="json"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What a model was made with."""
    import numpy
    import torch

    return {
        "mapseg": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
