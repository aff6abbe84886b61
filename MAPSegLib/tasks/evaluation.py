"""Scoring label maps against references, a case at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ..config import Label, check_path
from ..errors import InputError, MAPSegError
from ..jobs import EvaluateJob, Report
from ..manifests import LABEL_ENDINGS, by_name, case_name, list_pairs
from ..models import load_card, resolve
from ..reports import SIDE_RESULTS, first_few, plain, reports_in, write_csv, write_json
from ..results import results_in
from ..segments import SEGMENTATION, called_otherwise, is_segmentation
from ..volumes import find_scans, read_in_full, read_labels, scan_stem
from .label_table import names_in
from .outputs import output_folder, refuse_existing
from .reading import track

_BESIDE_ONE = ("_source", "_adapted")
"""Of names of maps that a job leaves beside a label map whose name the user chose."""


class _Report(BaseModel):
    """What a report of results tells of their structures."""

    labels: list[Label] = []


class Paired(NamedTuple):
    """Label maps with their references, and what is left of both."""

    pairs: list[tuple[Path, Path]]
    label_maps: list[Path]
    references: list[Path]


def evaluate(job: EvaluateJob, report: Report) -> dict[str, Any]:
    """Score every label map that has a reference. See :class:`~MAPSegLib.jobs.EvaluateJob`."""
    from ..metrics import evaluate_pair, summarise

    folder = check_path(job.output)
    files = [folder / "metrics.json", folder / "metrics.csv"]
    refuse_existing(files, job.overwrite)
    pairs, alone, unpaired = pair_cases(check_path(job.prediction), check_path(job.reference))
    if unpaired:
        what = f"{len(unpaired)} references have" if len(unpaired) > 1 else "A reference has"
        told = first_few([path.name for path in unpaired])
        report("log", message=f"{what} no label map to score: {told}.")
    names = (
        {label.value: label.name for label in load_card(resolve(job.model), choice=True).labels}
        if job.model
        else _structures([reference for _, reference in pairs], job, report)
    )
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    errors: list[MAPSegError] = []

    def tell(error: InputError, prediction: Path) -> None:
        failed.append({**error.record(), "scan": str(prediction)})
        report("error", **failed[-1])

    advice = "Check the references, --model and --mapping."
    with output_folder(folder):
        for prediction in alone:
            tell(_no_reference([prediction], job.reference), prediction)
        for prediction, reference in track(pairs, report, [path for path, _ in pairs], "evaluate"):
            try:
                expected = read_in_full(read_labels, reference)
                scores = evaluate_pair(read_in_full(read_labels, prediction), expected, names, job.mapping)
                rows += [{"scan": prediction.name, **score} for score in scores]
                if not job.mapping and (other := called_otherwise(reference, expected.array, names)):
                    told = (
                        f"{reference.name} calls {other[0]} {other[1]}, which is scored as {names[other[0]]}."
                    )
                    report("log", message=told)
            except InputError as error:
                errors.append(error)
                tell(error, prediction)
        if not rows:
            errors.append(InputError(f"{job.reference} holds no structures to score.", advice))
            raise errors[0]
        held = {row["value"] for row in rows if row["reference_ml"]}
        absent = {row["value"]: row["structure"] for row in rows if row["value"] not in held}
        if not held:
            raise InputError(f"{job.reference} holds none of the structures to score.", advice)
        if absent:  # another protocol: that is not the label map's fault
            report("log", message=f"Not scored, as no reference holds them: {', '.join(absent.values())}.")
        rows = [row for row in rows if row["value"] in held]
        result = {"task": "evaluate", "summary": summarise(rows), "scans": rows, "failed": failed}
        result |= {"not_in_references": list(absent.values()), "unpaired": [str(path) for path in unpaired]}
        write_json(files[0], result, job.overwrite)
        write_csv(files[1], rows, job.overwrite)
    return {**plain(result), "files": [str(file) for file in files]}


def pair_cases(prediction: Path, reference: Path) -> Paired:
    """Label maps and their references: two files, or files of two folders that are named alike.

    Endings such as ``_seg`` and ``_label`` do not count.

    Raises:
        InputError: no label map has a reference.
    """
    if prediction.is_file() and reference.is_file() and reference.suffix != ".json":
        return Paired([(prediction, reference)], [], [])
    references = _references(reference)
    named = {scan_stem(path): case for case, path in references.items()}
    there = find_scans(prediction)
    stems = {scan_stem(path) for path in there}
    sides = {f"{stem}{side}" for stem in stems for side in _BESIDE_ONE}
    found = [
        path
        for path in there
        if scan_stem(path) in named
        or not scan_stem(path).endswith(SIDE_RESULTS)
        and scan_stem(path) not in sides
    ]
    # A batch in Slicer leaves its labels twice.
    twins = {f"{stem.removesuffix('_seg')}{SEGMENTATION}" for stem in stems if stem.endswith("_seg")}
    found = [path for path in found if not (is_segmentation(path) and scan_stem(path) in twins)]
    # Of scans that were segmented in place, the label map counts.
    found = _without_images(found, results_in(prediction) & set(there))

    def case_of(path: Path) -> str:
        whole = scan_stem(path).removesuffix("_seg").removesuffix("_0000")  # of nnU-Net's case_0000_0000
        return case if (case := case_name(path)) in references else named.get(whole, case)

    cases = {path: case_of(path) for path in found} or _of_one_side(there)
    by_name(cases, cases.__getitem__)
    alone = [path for path, case in cases.items() if case not in references]
    if len(alone) == len(cases):
        raise _no_reference(alone or [prediction], reference)
    pairs = [(path, references.pop(case)) for path, case in cases.items() if case in references]
    return Paired(pairs, alone, list(references.values()))


def _no_reference(label_maps: Sequence[Path], place: Path | str) -> InputError:
    return InputError(
        f"No reference in {place} for {first_few([path.name for path in label_maps])}.",
        "Name label map and reference alike: case01_seg.nii.gz, case01_label.nii.gz.",
    )


def _of_one_side(files: Sequence[Path]) -> dict[Path, str]:
    """An adaptation's results of one model, source or adapted, that lie in a folder by themselves, and their cases."""
    for side in _BESIDE_ONE:
        if all(scan_stem(path).endswith(f"_seg{side}") for path in files):
            return {path: case_name(Path(f"{scan_stem(path).removesuffix(side)}.nii")) for path in files}
    return {}


def _references(place: Path) -> dict[str, Path]:
    """Reference label maps by the names of their cases: of a folder of them, or of a data set."""
    files = []
    if place.suffix != ".json":
        with suppress(InputError):  # nothing there: told below, as of a data set
            files = find_scans(place)
    if files:
        labels = [path for path in files if scan_stem(path).endswith(LABEL_ENDINGS)]
        return by_name(_without_images(files, labels), case_name)
    pairs = list_pairs(place)
    by_name([image for image, _ in pairs], case_name)
    return {case_name(image): label for image, label in pairs}


def _without_images(files: Iterable[Path], labels: Iterable[Path]) -> list[Path]:
    """The files, less the images beside ``labels``: what has the name of a case of theirs, and not of a label map."""
    labels = set(labels)  # which need not be named like ones: a user may have chosen a result's name
    labelled = set(map(case_name, labels))
    return [
        path
        for path in files
        if path in labels or case_name(path) not in labelled or scan_stem(path).endswith(LABEL_ENDINGS)
    ]


def _structures(references: Sequence[Path], job: EvaluateJob, report: Report) -> dict[int, str]:
    """The values that any reference holds, mapped where a mapping is given: found where one lacks it, it is wrong."""
    import numpy as np

    held: dict[Path, list[int]] = {}
    for reference in track(references, report):
        with suppress(InputError):  # told when it is its turn
            held[reference] = np.unique(read_labels(reference).array).tolist()
    values = sorted({value for found in held.values() for value in found if value > 0})
    names = _reported_names(check_path(job.prediction))
    if job.mapping is not None:
        values = sorted({job.mapping[v] for v in values if job.mapping.get(v, 0) > 0})
    else:
        stated = names_in(check_path(job.reference), held)
        differ = [v for v in values if v in names.keys() & stated.keys() and names[v] != stated[v]]
        if differ:
            what = f"The references call {differ[0]} {stated[differ[0]]}, and the results {names[differ[0]]}."
            report("log", message=f"{what} If these are two structures, --mapping turns the values.")
        names |= stated
    return {value: names.get(value, f"structure {value}") for value in values}


def _reported_names(results: Path) -> dict[int, str]:
    """What the reports in a folder of results call the values; where they differ, no name."""
    stated: dict[int, set[str]] = {}
    for content in reports_in(results):
        with suppress(ValidationError):
            for label in _Report.model_validate(content).labels:
                stated.setdefault(label.value, set()).add(label.name)
    return {value: names.pop() for value, names in stated.items() if len(names) == 1}
