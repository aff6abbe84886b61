"""Segmentation and adaptation: many scans, one report, and a bad scan that stops no other."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import distributed
from ..config import check_path
from ..errors import InputError
from ..jobs import AdaptJob, Report, SegmentJob
from ..manifests import Labelled, domains, list_labelled, manifest_in
from ..models import ModelCard, load_card, members, resolve, save_model
from ..reports import MAPS, TEMPORARY, remove_leftovers
from ..volumes import Volume, read_image, write_volume
from . import resume
from .candidates import Candidate, choose, choose_for_all, load_candidates, prepared, view
from .earlier import ADAPTED_MODEL, begin, remaining, written_maps
from .findings import Findings
from .outputs import ScanOutputs, collect_scans, output_folder
from .reading import tell_notes, track

if TYPE_CHECKING:
    import numpy as np

    from ..config import InferenceOptions
    from ..datasets import Source
    from ..inference import Progress, Segmentation
    from ..preprocessing import Scan
    from ..quality import Assessment
    from ..training.adaptation import Adapted, ScanResult
    from .candidates import Prepared

LONGEST = 240
"""Bytes of a result's name: file systems take 255, and while it is written it has a longer one."""


def segment(job: SegmentJob, report: Report) -> dict[str, Any]:
    """Segment every scan and judge every result. See :class:`~MAPSegLib.jobs.SegmentJob`."""
    given = collect_scans(job.scans, job.output)
    outputs = ScanOutputs.plan(job.output, given)
    maps = {kind: getattr(job, kind) for kind in MAPS}
    kinds = [kind for kind, asked in maps.items() if asked]
    path = resolve(job.model)
    card = load_card(path, choice=True)
    with output_folder(outputs.folder), resume.alone(outputs.beside(resume.LOCK)):
        begun = begin(job, outputs, given, kinds, members(path))
        scans = remaining(given, begun.done)
        remove_leftovers(begun.results)
        candidates = load_candidates(path, job.options.device) if scans else []
        findings = Findings(job, card, outputs, report, begun)
        changed = begun.changed & begun.asked
        if done := len(given) - len(scans) - len(changed):
            report("log", message=f"Scans that have their results: {done}; to do: {len(scans)}.")
        for entry in begun.done:
            if entry["file"] in changed:
                with findings.isolated(Path(entry["file"])):
                    raise InputError(
                        f"{entry['file']} has changed since it was segmented.",
                        f"To have that done again, remove {' and '.join(written_maps([entry]))}.",
                    )
        started = time.monotonic()
        # Told before anything is done to a scan: a caller knows which one a worker died over.
        for index, scan in enumerate(track(scans, report)):

            def progress(done: int, total: int, index: int = index, scan: Path = scan) -> None:
                share = (index + done / total) / len(scans)
                left = (time.monotonic() - started) * (1 - share) / share if share else None
                report(
                    "progress",
                    stage="segment",
                    scan=str(scan),
                    step=done,
                    steps=total,
                    seconds_left=None if left is None else round(left, 1),
                )

            findings.forget_results_before([scan])
            with findings.isolated(scan):
                begun_scan = time.monotonic()
                volume = read_image(scan)
                segmentation, verdict = segment_one(candidates, volume, job.options, maps, progress)
                segmentation.seconds = time.monotonic() - begun_scan
                findings.add(_write_segmented(findings, scan, volume, segmentation, verdict))
        return findings.finish()


def segment_one(
    candidates: Sequence[Candidate],
    volume: Volume,
    options: InferenceOptions,
    maps: Mapping[str, bool],
    progress: Progress = lambda done, total: None,
) -> tuple[Segmentation, Assessment]:
    """The result of the model that suits a scan, and the verdict on it.

    Args:
        maps: which of ``MAPS`` are asked for.
        progress: told percents done, and 100.
    """
    from ..inference import segment_scan
    from ..quality import assess

    # In percent of the windows: two quick looks by each model, and the result, which has about as many as seven.
    looking = 100 * 2 * len(candidates) / (2 * len(candidates) + 7)

    def looked(done: int, total: int) -> None:
        progress(round(looking * done / total), 100)

    def segmented(done: int, total: int) -> None:
        progress(round(looking + (100 - looking) * done / total), 100)

    views = view(candidates, prepared(candidates, volume), options, looked)
    best, why = choose(candidates, [one.score for one in views])
    (model, card, _), (ready, looks, _) = candidates[best], views[best]
    segmentation = segment_scan(model, card.labels, ready, options, **maps, progress=segmented)
    segmentation.notes += [why] if why else []
    return segmentation, assess(card, looks, ready.grid.working_spacing, segmentation.classes)


def _write_segmented(
    findings: Findings, scan: Path, volume: Volume, segmentation: Segmentation, verdict: Assessment
) -> dict[str, Any]:
    outputs = findings.outputs
    file = findings.volume(outputs.label_map(scan), segmentation.labels, volume, findings.card.labels)
    entry = findings.entry(scan, file, segmentation, verdict)
    for kind in MAPS:
        found = getattr(segmentation, kind)
        if found is not None:
            entry[kind] = findings.volume(outputs.volume(scan, kind), found, volume)
    return entry


def adapt(job: AdaptJob, report: Report) -> dict[str, Any]:
    """Adapt to all scans jointly, and keep per scan what the gate supports. See :class:`~MAPSegLib.jobs.AdaptJob`."""
    scans = collect_scans(job.scans, job.output)
    outputs = ScanOutputs.plan(job.output, scans)
    kinds = ["seg_source", "seg_adapted", *(["uncertainty"] if job.uncertainty else [])]
    path = resolve(job.model)
    models = members(path)
    known = list_labelled(job.source, job.source_labels, job.source_from_labels)
    files = [file for case in known for file in case if file] + manifest_in(job.source)
    begun = begin(job, outputs, scans, kinds, [*models, *files])
    long = [scan for scan in scans if len(os.fsencode(outputs.volume(scan, "seg_adapted").name)) > LONGEST]
    if long:
        raise InputError(f"{long[0].name}: the name is too long for results named after it.", "Rename it.")
    with output_folder(outputs.folder), output_folder(outputs.beside("adaptation")) as folder:
        candidates = load_candidates(path, job.options.device)
        findings = Findings(job, candidates[0].card, outputs, report, begun)
        volumes: dict[Path, Volume] = {}
        ready: list[Prepared] = []
        for scan in track(scans, report):
            with findings.isolated(scan):  # what is refused stops no other scan
                volume = read_image(scan)
                ready.append(prepared(candidates, volume))
                volumes[scan] = volume.emptied()
        if not volumes:
            return distributed.on_first(findings.finish)
        chosen, why = _chosen(candidates, ready, job, report)
        findings.card = chosen.card
        source, notes = _source(job, chosen.card, known, report)
        with resume.claim(folder, job, [chosen.path, *volumes, *files], begun.results) as resumed:
            if resumed:
                report("log", message="Continuing an adaptation that was interrupted.")
            own = [each[chosen.card.preprocessing] for each in ready]
            adapted = _adapt(chosen, own, volumes, source, job, folder, report)
            told = [line for line in (why, *notes) if line]
            return distributed.on_first(lambda: _write_all(findings, volumes, adapted, told))


def _chosen(
    candidates: Sequence[Candidate], ready: Sequence[Prepared], job: AdaptJob, report: Report
) -> tuple[Candidate, str]:
    """The model to adapt, the same in every process, and why, if there was a choice."""
    options = job.options.for_inference()

    index, why = distributed.on_first(lambda: choose_for_all(candidates, ready, options))
    if why:
        report("log", message=why.replace("Segmented with", "Adapting"))
    return candidates[index], why


def _write_all(
    findings: Findings, volumes: dict[Path, Volume], adapted: Adapted, told: Sequence[str]
) -> dict[str, Any]:
    """Write everything, or nothing: the same command, which continues from the checkpoint, finds no results there.

    Args:
        told: notes on all results.
    """
    try:
        _write_each(findings, volumes, adapted, told)
        return findings.finish()
    except BaseException:
        findings.withdraw()
        raise


def _write_each(
    findings: Findings, volumes: dict[Path, Volume], adapted: Adapted, told: Sequence[str]
) -> None:
    findings.extra["adaptation"] = {
        "steps": adapted.steps,
        "best_step": adapted.best_step,
        "history": adapted.history,
    }
    findings.forget_results_before([*volumes, *(Path(failure["scan"]) for failure in findings.failed)])
    for (scan, volume), result in zip(volumes.items(), adapted.results, strict=True):
        findings.add(_write_adapted(findings, scan, volume, result, told))
    if findings.job.save_model:
        file = str(_save_adapted(adapted, findings.card, findings.job, findings.outputs))
        findings.extra["model_file"] = file
        if not any(result.chosen == "adapted" for result in adapted.results):
            told = f"No scan kept the adapted result: the saved model may be no better than {findings.card.name}."
            findings.report("log", message=told)
        findings.files.append(file)


def _source(
    job: AdaptJob, card: ModelCard, files: Sequence[Labelled], report: Report
) -> tuple[Source | None, list[str]]:
    """What to train on as well, and what is to know of it."""
    from ..augmentation import published_source
    from ..datasets import ScanSource, SyntheticSource

    if job.source_from_labels:
        maps = [label for _, label in files]
        source = SyntheticSource(track(maps, report), card.labels, card.preprocessing, job.source_contrast)
        return source, []
    if not files:
        return None, []
    pairs = track(files, report, [image for image, _ in files])
    source = ScanSource(
        pairs, card.labels, card.preprocessing, published_source, domains(check_path(job.source))
    )
    return source, [f"Source scans: {line}" for line in tell_notes(source.notes, report, settled=True)]


def _adapt(
    chosen: Candidate,
    scans: Sequence[Scan],
    volumes: dict[Path, Volume],
    source: Source | None,
    job: AdaptJob,
    folder: Path,
    report: Report,
) -> Adapted:
    from ..training.adaptation import adapt as run

    paths = list(volumes)
    shown: dict[int, Path] = {}

    def preview(index: int, labels: np.ndarray, step: int) -> None:
        # A name of its own: a reader that is late must not meet another scan, nor lock the file to be replaced.
        file = folder / f"preview_{index}_{step}_{time.monotonic_ns()}.nii.gz"
        write_volume(file, labels, volumes[paths[index]], overwrite=True)
        if index in shown:
            with suppress(OSError):
                shown[index].unlink()
        shown[index] = file
        report("preview", file=str(file), scan=str(paths[index]), step=step)

    try:
        known = chosen.model, chosen.card, scans, job.options, folder, report
        shows = preview if distributed.rank() == 0 else None
        return run(*known, shows, job.uncertainty, source=source)
    finally:
        name = f"preview_{'_'.join(['[0-9]*'] * 3)}.nii.gz"
        names = (name, f"{TEMPORARY}{name}")
        for file in [path for name in names for path in folder.glob(name)]:  # those of a killed run, too
            with suppress(OSError):
                file.unlink()


def _write_adapted(
    findings: Findings, scan: Path, volume: Volume, result: ScanResult, notes: Sequence[str]
) -> dict[str, Any]:
    sides = {"source": result.source, "adapted": result.adapted}
    for side in sides.values():
        side.notes += notes
    entry = _write_segmented(findings, scan, volume, sides[result.chosen], result.assessment)
    entry |= {"chosen": result.chosen, "gate": result.reason}
    for name, verdict in (("source", result.assessment_source), ("adapted", result.assessment_adapted)):
        side = sides[name]
        path = findings.outputs.volume(scan, f"seg_{name}")
        file = findings.volume(path, side.labels, volume, findings.card.labels)
        entry[name] = findings.side(file, side, verdict)
    return entry


def _save_adapted(adapted: Adapted, card: ModelCard, job: AdaptJob, outputs: ScanOutputs) -> Path:
    provenance = {
        "adapted_from": card.name,
        "scans": len(adapted.results),
        "kept": sum(result.chosen == "adapted" for result in adapted.results),
        "best_step": adapted.best_step,
        "processes": distributed.world(),
        "options": job.options.model_dump(mode="json"),
        "source": card.provenance,
    }
    new = card.model_copy(
        update={
            "name": f"{card.name}-adapted",
            "architecture": adapted.model.architecture,
            "provenance": provenance,
            "scores": {},
            "priors": card.priors_elsewhere,
        }
    )
    return save_model(outputs.beside(ADAPTED_MODEL), adapted.model.state_dict(), new, job.overwrite)
