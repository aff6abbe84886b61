"""Where the cases of a data set are: its layout read into images and, where they are there, their label maps.

Told apart by what is in the folder, the first that fits:

manifest   a JSON file ``{"cases": [{"image": ..., "label": ..., "domain": ...}, ...]}``, paths relative to it, the last
           two optional; beside ``cases`` also ``labels``, what values are called (``{"1": "myocardium"}``)
nnU-Net    ``dataset.json`` with ``imagesTr`` and ``labelsTr``; the Medical Segmentation Decathlon's is the same
BIDS       ``sub-*/[ses-*/]anat``, or else ``ct``; label maps (``_dseg``, ``_seg``, ``_mask``) under ``derivatives``;
           what values are called in tables there (``_dseg.tsv``), beside a ``_dseg`` map or in a folder above it
authors'   ``*_img`` and ``*_label`` files side by side, in the folder or in its ``*_train`` sub-folders
plain      scans; label maps, named alike, in a folder that is given beside it, or Slicer's (``.seg.nrrd``) beside them
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import GivenPath, Options, Preprocessing, check_path
from .errors import InputError, first_problem
from .formats import scan_suffix
from .reports import first_few, plain, read_json, write_json
from .results import results_in
from .segments import SEGMENTATION, is_segmentation
from .volumes import find_scans, scan_stem

_DERIVED = ("space", "res", "den", "desc", "label", "atlas", "seg")
"""BIDS entities that a label map has beyond those of its image."""
_LABELS = ("dseg", "seg", "mask", "label")
_ALIKE = "Name all alike, or list the scans in a manifest."
LABEL_ENDINGS = (SEGMENTATION, "_seg", "_dseg", "_mask", "_label", "_labels")
"""Of names of label maps."""


Labelled = tuple[Path | None, Path]
"""An image, None where it is synthesised, and its label map."""


class Case(Options):
    """A scan, and its label map where there is one."""

    image: GivenPath
    label: GivenPath | None = None
    domain: str | None = None
    """Where it comes from, in a manifest of several data sets: all of them are drawn equally often."""


class _Manifest(Options):
    cases: tuple[Case, ...]
    labels: dict[str, Any] = {}
    """What values are called, in any of the forms of a ``dataset.json``; read where names are needed."""


def list_cases(place: Path) -> list[Case]:
    """The scans of a data set with the label maps that are there; what an earlier run wrote beside them is left out.

    Raises:
        InputError: nothing there, or the layout is broken; the message names the file.
    """
    cases = _cases(place)
    if not cases:
        raise InputError(f"The folder {place} holds results of an earlier run alone.", "Give the scans.")
    return cases


def manifest_in(place: Path | None) -> list[Path]:
    """The place itself where it is a manifest: it states domains, so that results depend on it as on its cases."""
    return [check_path(place)] if place and place.suffix == ".json" else []


def domains(place: Path) -> dict[Path, str]:
    """The domains of scans, where the data set is a manifest that states any.

    Raises:
        InputError: as for :func:`list_cases`.
    """
    return {case.image: case.domain for case in list_cases(place) if case.domain} if place.is_file() else {}


def as_stated(given: Preprocessing, places: Sequence[Path]) -> Preprocessing:
    """The same, of CT where its modality is left open and every data set says CT, of nnU-Net's layout or of BIDS.

    Raises:
        InputError: a ``dataset.json`` cannot be read, or a data set of BIDS is broken.
    """
    if "modality" in given.model_fields_set:
        return given
    stated = {frozenset(map(str.upper, _channels(place))) for place in places}
    return given.model_copy(update={"modality": "ct"}) if stated == {frozenset({"CT"})} else given


def tables_of(place: Path) -> list[Path]:
    """Where a data set may say what values are called: itself, or tables of BIDS, of each label map the nearest.

    Raises:
        InputError: as for :func:`list_cases`.
    """
    if place.suffix == ".json" or (place / "dataset.json").is_file():
        return [place]
    scans = _anatomical(place)
    if not scans:
        return []
    tables: dict[Path, list[Path]] = {}
    for table in _derived(place, lambda name: name.endswith("dseg.tsv")):
        tables.setdefault(table.parent, []).append(table)
    found: dict[Path, None] = {}
    for label in filter(None, (case.label for case in _bids(place, scans))):
        parts = set(scan_stem(label).split("_"))
        fitting = (
            [t for t in tables.get(up, ()) if parts.issuperset(t.stem.split("_"))] for up in label.parents
        )
        found |= dict.fromkeys(next(filter(None, fitting), ()))
    return list(found)


def list_scans(place: Path) -> list[Path]:
    """The scans of a data set, without its label maps. Raises InputError as :func:`list_cases` does."""
    return [case.image for case in list_cases(place)]


def scans_by_domain(places: Iterable[Path]) -> dict[str, list[Path]]:
    """The scans of data sets by the names of domains: those that a manifest states, and each data set otherwise.

    Raises:
        InputError: as for :func:`list_cases`.
    """
    # However they are spelled: a domain that is given twice would be drawn twice as often.
    places = list({(os.path.realpath(place), place.name): place for place in places}.values())
    found: dict[str, list[Path]] = {}
    for place in places:
        name = domain_name(place, places)
        for case in list_cases(place):
            found.setdefault(within(name, case.domain), []).append(case.image)
    return found


def within(place: str, stated: str | None) -> str:
    """A case's domain, by its data set's name and, of a manifest, by what that states of the case."""
    return f"{stated} ({place})" if stated else place


def write_manifest(
    path: Path, cases: Iterable[Case], names: Mapping[int, str], overwrite: bool = False
) -> Path:
    """Write cases as a manifest: paths relative to it where they lie below its folder, else absolute.

    Args:
        names: of the values of label maps.

    Raises:
        InputError: a file is there twice, or has a name that is no text; or the manifest cannot be written.
    """
    cases = list(cases)
    if twice := _twice(file for case in cases for file in (case.image, case.label) if file):
        raise InputError(
            f"{twice} is named more than once.", "Give each data set once, or keep one of its scans."
        )

    def told(file: Path) -> str:
        below = file.is_relative_to(path.parent)
        name = (file.relative_to(path.parent) if below else file).as_posix()
        if plain(name) != name:
            raise InputError(f"{file}: its name is not UTF-8, so that no manifest can hold it.", "Rename it.")
        return name

    content = [case.model_dump(exclude_none=True) for case in cases]
    content = [{k: told(v) if isinstance(v, Path) else v for k, v in case.items()} for case in content]
    named = {"labels": {str(value): name for value, name in names.items()}} if names else {}
    return write_json(path, {**named, "cases": content}, overwrite)


def _scans_of(folder: Path) -> list[Path]:
    """What an earlier run wrote beside them left out."""
    results = results_in(folder)
    return [path for path in find_scans(folder) if path not in results]


def list_pairs(place: Path, labels: Path | None = None) -> list[tuple[Path, Path]]:
    """The scans of a data set with their label maps.

    Args:
        labels: folder of the label maps, where ``place`` has scans alone.

    Raises:
        InputError: a scan without a label map, nothing there, or a broken layout; the message names the file.
    """
    if labels is not None:
        cases = _pair(list_scans(place), find_scans(labels))
        lacking = f"has a label map of the same name in {labels}"
    else:
        cases, lacking = _cases(place), "has a label map"
    lonely = [case.image.name for case in cases if case.label is None]
    if len(lonely) == len(cases):
        raise InputError(
            f"No image in {place} {lacking}.",
            "Give the folder of the label maps; name both files alike: case01.nii.gz, or case01_img.nii.gz and "
            "case01_label.nii.gz.",
        )
    if lonely:
        raise InputError(
            f"{place}: no label map{f' in {labels}' if labels else ''} for {first_few(lonely)}.",
            "Add what is missing, or list those that have one in a manifest.",
        )
    if twice := _twice(case.label for case in cases):
        raise InputError(f"Two images are named like {twice}.", "List the pairs in a manifest.")
    return [(case.image, case.label) for case in cases]


def list_labelled(images: Path | None, labels: Path | None, from_labels: Path | None) -> list[Labelled]:
    """What a job learns from: scans with their label maps, or label maps alone; nothing where it names neither.

    Raises:
        InputError: as for :func:`list_pairs`.
    """
    if from_labels:
        return [(None, path) for path in find_scans(check_path(from_labels))]
    if images is None:
        return []
    return list_pairs(check_path(images), check_path(labels) if labels else None)


def _cases(place: Path) -> list[Case]:
    if place.is_file() and place.suffix == ".json":
        return _manifest(place)
    if (place / "dataset.json").is_file():
        return _nnunet(place)
    subjects = _anatomical(place)
    if subjects:
        _refuse_others(place, "a BIDS data set")
        return _bids(place, subjects)
    parts = [p for p in sorted(place.glob("*_train")) if p.is_dir() and not p.name.startswith(".")]
    found = {folder: _authors(folder, _scans_of(folder)) for folder in parts}
    if any(found.values()):
        _refuse_others(place, f"the data set {parts[0].name}")
        if lacking := [folder for folder, cases in found.items() if not cases]:
            raise InputError(f"{lacking[0]} holds no scans named like those of other folders: x_img.", _ALIKE)
        return [case for cases in found.values() for case in cases]
    files = _scans_of(place)
    return ([] if parts else _authors(place, files)) or _drawn_on(files)


def _drawn_on(files: list[Path]) -> list[Case]:
    """Scans with the segmentations that Slicer saved beside them: each is of the scan that has all of its name."""
    scans = [file for file in files if not is_segmentation(file)] or files
    stems = set(map(scan_stem, scans))

    def of(file: Path) -> str:
        return name if (name := scan_stem(file).removesuffix(SEGMENTATION)) in stems else case_name(file)

    drawn = by_name(filter(is_segmentation, files), of)
    return [Case(image=scan, label=drawn.get(scan_stem(scan))) for scan in scans]


def _refuse_others(folder: Path, what: str) -> None:
    """Raise InputError for a scan that lies beside a data set: which of them is meant cannot be known."""
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    there = {path for path in entries if path.is_file() and scan_suffix(path)}
    others = sorted(path.name for path in there - results_in(folder))
    if others:
        raise InputError(
            f"The folder {folder} holds {what} and scans beside it ({others[0]}).",
            "Give each a folder of its own.",
        )


def _manifest(path: Path) -> list[Case]:
    try:
        cases = _Manifest.model_validate(read_json(path, "a manifest")).cases
    except ValidationError as error:
        raise InputError(
            f"{path} is not a manifest: {first_problem(error)}.",
            'It should hold {"cases": [{"image": "a.nii.gz", "label": "a_label.nii.gz"}]}.',
        ) from error
    if not cases:
        raise InputError(f"{path} lists no cases.")
    files = [path.parent / file for case in cases for file in (case.image, case.label) if file]
    for file in files:
        if not file.exists():
            raise InputError(
                f"{path} lists {file}, which does not exist.", "Paths are relative to the manifest."
            )
    if twice := _twice(files):
        raise InputError(
            f"{path} lists {twice} more than once.",
            "Keep one of its entries: a scan, and a label map, belongs to one case.",
        )
    folder = path.parent
    return [
        Case(image=folder / c.image, label=folder / c.label if c.label else None, domain=c.domain)
        for c in cases
    ]


def _channels(folder: Path) -> list[str]:
    """What a ``dataset.json``, or the names of BIDS, call the channels of scans; empty where neither is there."""
    if not (folder / "dataset.json").is_file():
        return _contrasts(_anatomical(folder))
    about = read_json(folder / "dataset.json", "a data set")
    named = (about.get("channel_names") or about.get("modality")) if isinstance(about, dict) else None
    named = list(named.values()) if isinstance(named, dict) else [named] if isinstance(named, str) else named
    return list(map(str, named)) if isinstance(named, list) else []


def _nnunet(folder: Path) -> list[Case]:
    if len(channels := _channels(folder)) > 1:
        raise InputError(f"{folder / 'dataset.json'} names {len(channels)} channels; scans must have one.")
    _refuse_others(folder, "a data set of nnU-Net's layout")
    labels = folder / "labelsTr"
    return _pair(_scans_of(folder / "imagesTr"), find_scans(labels) if labels.is_dir() else [])


def _authors(folder: Path, files: list[Path]) -> list[Case]:
    named = {kind: [f for f in files if scan_stem(f).endswith(kind)] for kind in ("_img", "_label")}
    others = [f.name for f in files if not scan_stem(f).endswith(tuple(named))]
    if named["_img"] and others:
        raise InputError(
            f"The folder {folder} holds scans named like {named['_img'][0].name}, and others ({others[0]}).",
            _ALIKE,
        )
    return _pair(named["_img"], named["_label"])


def _anatomical(folder: Path) -> list[Path]:
    """The scans of a BIDS data set, or nothing where the folder is none; a subject's CT where there is nothing else."""
    whose = [place for pattern in ("sub-*", "sub-*/ses-*") for place in sorted(folder.glob(pattern))]
    kinds = [[place / kind for kind in ("anat", "ct") if (place / kind).exists()] for place in whose]
    return [scan for places in kinds for place in places[:1] for scan in _scans_of(place)]


def _contrasts(scans: Iterable[Path]) -> list[str]:
    """What the names of BIDS end in: ``T1w``, ``ct``."""
    return sorted({scan_stem(scan).rsplit("_", 1)[-1] for scan in scans})


def _bids(folder: Path, scans: list[Path]) -> list[Case]:
    if len(contrasts := _contrasts(scans)) > 1:
        raise InputError(
            f"{folder} holds {' and '.join(contrasts)} scans; one contrast is needed.",
            "List the scans of one, or write a manifest.",
        )
    found: dict[frozenset[str], Path] = {}
    for file in _derived(folder, lambda name: name.startswith("sub-")):
        if file.is_file() and scan_suffix(file) and scan_stem(file).rsplit("_", 1)[-1] in _LABELS:
            other = found.setdefault(_entities(file), file)
            if other != file:
                raise InputError(f"{other} and {file} label the same scan.", "List the pairs in a manifest.")
    return [Case(image=scan, label=found.get(_entities(scan))) for scan in scans]


def _derived(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Files of the derivatives of BIDS, sorted; their folders may be links, and none counts twice."""
    found: list[Path] = []
    known: set[str] = set()
    for place, folders, names in os.walk(folder / "derivatives", followlinks=True):
        if (own := os.path.realpath(place)) in known:  # links may lead back
            folders.clear()
            continue
        known.add(own)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if wanted(name)]
    return sorted(found)


def _entities(path: Path) -> frozenset[str]:
    """What a BIDS name says of the scan: ``sub-01``, ``ses-2``, ``run-1``."""
    parts = [part for part in scan_stem(path).split("_") if "-" in part]
    return frozenset(part for part in parts if part.split("-")[0] not in _DERIVED)


def _pair(images: list[Path], labels: list[Path]) -> list[Case]:
    """Match by name: ``case_img.nii.gz`` or ``case_0000.nii.gz`` belongs to ``case…``."""
    stems, named = [scan_stem(image).removesuffix("_0000") for image in images], set(map(scan_stem, labels))
    if all(scan_stem(image).endswith("_0000") for image in images) and not named.isdisjoint(stems):
        known = by_name(labels, scan_stem)  # nnU-Net's: all else is the case's name, as of case_0000_0000
        return [Case(image=image, label=known.get(stem)) for image, stem in zip(images, stems, strict=True)]
    known = by_name(labels, case_name)
    return [Case(image=image, label=known.get(case_name(image))) for image in images]


def by_name(files: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    """Files by what is left of their names. Raises InputError where two would be taken for each other."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(name(file), file)
        if other != file:
            raise InputError(f"{other} and {file} are named alike.", "Keep one of them.")
    return found


def _twice(files: Iterable[Path]) -> Path | None:
    """A file that is there again, however it is spelled; a link of another name is another file."""
    seen = set()
    for file in files:
        known = os.path.realpath(file), file.name
        if known in seen:
            return file
        seen.add(known)
    return None


def domain_name(place: Path, others: Iterable[Path]) -> str:
    """What a data set is called among others: by its own name, with those above it as far as others share it."""
    others = [other for other in others if other != place]
    for start in range(len(place.parts) - 1, 0, -1):
        name = place.parts[start:]
        if all(other.parts[-len(name) :] != name for other in others):
            return "/".join(name)
    return str(place)


def case_name(path: Path) -> str:
    """A file's name without what tells images and label maps of one case apart, and how an umlaut is written."""
    stem = unicodedata.normalize("NFC", scan_stem(path))  # a Mac may have taken them apart
    for ending in (*LABEL_ENDINGS, "_img", "_image", "_0000"):
        stem = stem.removesuffix(ending)
    return stem
