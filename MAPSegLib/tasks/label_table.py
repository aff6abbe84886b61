"""Tables of structures: from a JSON file, built in, or made up for the values found."""

from __future__ import annotations

import colorsys
import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..config import Label, check_path
from ..errors import InputError, first_problem
from ..manifests import tables_of
from ..reports import read_json, reason
from ..segments import segment_names

IGNORE = "ignore"
"""What nnU-Net calls voxels that nobody labelled."""


def read_label_table(name: str | Path) -> tuple[Label, ...]:
    """Structures in class order.

    Args:
        name: ``brain`` for FreeSurfer's structures, or a JSON file: a list of labels (``value``, ``name`` and, as
            far as known, ``color``, ``mirror``, ``terminology``, ``one_sided``, ``one_piece``), or an object of
            value -> name or name -> value, also in an nnU-Net ``dataset.json``. The background, 0, is left out of
            an object. Colours that are not given are far apart.

    Raises:
        InputError: missing, or not such a table.
    """
    if str(name) == "brain":
        from ..synthesis import brain_labels

        return brain_labels()
    path = check_path(name)
    content = read_json(path, "a label table")
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):  # nnU-Net's dataset.json
        content = content["labels"]
    if isinstance(content, dict):
        if any(isinstance(value, list) for value in content.values()):
            raise InputError(
                f"{path.name}: regions, which are made of several values, are not supported.",
                "Give each value a name of its own.",
            )
        named_first = all(isinstance(value, int) for value in content.values())
        pairs = [(b, a) if named_first else (a, b) for a, b in content.items()]
        if named_first and IGNORE in content:
            raise InputError(
                f"{path.name}: voxels to ignore are not supported.",
                "Leave `ignore` out; such voxels then count as background.",
            )
        content = [{"value": value, "name": text} for value, text in pairs if str(value) != "0"]
    try:
        labels = TypeAdapter(tuple[Label, ...]).validate_python(content)
    except ValidationError as error:
        raise InputError(f"{path.name} is not a label table: {first_problem(error)}.") from error
    if not labels or len({label.value for label in labels}) < len(labels):
        raise InputError(f"{path.name} is not a label table: it is empty, or two structures share a value.")
    labels = tuple(
        label if "color" in label.model_fields_set else label.model_copy(update={"color": _color(i)})
        for i, label in enumerate(labels)
    )
    mirrors = {label.value: label.mirror for label in labels}
    for value, other in mirrors.items():
        if other is not None and mirrors.get(other) != value:
            what = f"does not name {value}" if other in mirrors else "is not in the table"
            raise InputError(
                f"{path.name}: {value} names {other} as its mirror image, which {what}.",
                "Name mirror images on both sides, or leave them out.",
            )
    return labels


def names_in(data: Path, maps: Mapping[Path, Sequence[int]] | None = None) -> dict[int, str]:
    """Names of values, as far as a data set (:func:`stated_names`) or its label maps give any, to train or to score by.

    Args:
        maps: the label maps, and the values that each holds. Slicer's segmentations (``.seg.nrrd``) name theirs, and
            may number them differently.

    Raises:
        InputError: it has voxels to ignore, or its tables are broken, or names differ.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    stated = [(table, stated_names(table)) for table in tables_of(data)]
    for path, values in (maps or {}).items():
        stated.append((path, {v: name for v, name in segment_names(path).items() if v in values}))
    for place, found in stated:
        if IGNORE in found.values():
            raise InputError(
                f"{place if place.is_file() else _about(place)}: voxels to ignore are not supported.",
                "Choose structures by a label table or, to score, by a mapping; such voxels then count as background.",
            )
        for value, name in found.items():
            if names.setdefault(value, name) != name:
                raise InputError(
                    f"The value {value} is called {names[value]} in {origin[value]} and {name} in {place}.",
                    "Let them agree, or name structures by a label table or, to score, by a model.",
                )
            origin.setdefault(value, place)
    return names


def stated_names(data: Path) -> dict[int, str]:
    """What a manifest, the ``dataset.json`` of nnU-Net or the Decathlon, or a table of BIDS calls the values.

    Raises:
        InputError: it cannot be read.
    """
    if data.suffix == ".tsv":
        return _look_up(data)
    path = _about(data)
    about = read_json(path, "a data set") if path.is_file() else None
    stated = about.get("labels") if isinstance(about, dict) else None
    names: dict[int, str] = {}
    for key, value in stated.items() if isinstance(stated, dict) else ():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if isinstance(name, str) and name:  # of regions, which have several values, no label map knows
            with suppress(ValueError, TypeError):
                names[int(number)] = name
    return names


def _about(data: Path) -> Path:
    return data if data.suffix in (".json", ".tsv") else data / "dataset.json"


def _look_up(path: Path) -> dict[int, str]:
    """What a table of BIDS calls the values of label maps; its row of the background is left out."""

    def broken(why: str) -> InputError:
        advice = "It needs the columns index, of whole numbers, and name, with tabs between."
        return InputError(f"{path} is not a label table: {why}.", advice)

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t", strict=True)
            rows, columns = list(table), table.fieldnames or ()
    except OSError as error:
        raise broken(reason(error)) from error
    except UnicodeDecodeError as error:
        raise broken("it is not UTF-8") from error
    except csv.Error as error:
        raise broken(f"the row after line {table.line_num} cannot be read, {error}") from error
    if lacking := [column for column in ("index", "name") if column not in columns]:
        raise broken(f"it has no column {' and no column '.join(lacking)}")
    names: dict[int, str] = {}
    for row in rows:
        index, name = ((row[column] or "").strip() for column in ("index", "name"))
        if name in ("", "n/a"):  # as BIDS has it
            continue
        try:
            value = int(index)
        except ValueError:
            raise broken(f"the index of {name} is {index or 'missing'}") from None
        if names.setdefault(value, name) != name:
            raise broken(f"{value} is {names[value]} and {name}")
    return {value: name for value, name in names.items() if value}


def infer_labels(values: Iterable[int], names: Mapping[int, str]) -> tuple[Label, ...]:
    """Structures, in colours far apart, for the values found in label maps; 0 is the background.

    Args:
        values: from 0 to 65535.
        names: of values, as far as known; the others are numbered.

    Raises:
        InputError: no value that can be a structure.
    """
    found = sorted(v for v in values if v != 0)
    if not found:
        raise InputError("The label maps hold no structures.", "Give label maps in which some are drawn.")
    return tuple(
        Label(value=v, name=names.get(v, f"structure {v}"), color=_color(i)) for i, v in enumerate(found)
    )


def _color(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.65, 0.95)  # the golden ratio spreads hues
    return round(255 * red), round(255 * green), round(255 * blue)
