"""The models at hand: embedded ones, and the user's own."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAPSegLib.errors import InputError
from MAPSegLib.model_files import SUFFIX, model_files, read_card, user_folder
from MAPSegLib.windows import RESERVED, replace

_NO_NAME = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
"""What a file's name cannot hold on some system, or what would lead into another folder."""
_SHOWN = {"description": str, "license": str, "provenance": dict, "scores": dict}
"""What texts are made of, where a card has it: of another kind it would stop the list of all models."""
_LONGEST = 200
"""Bytes of a model's name: 255 are the limit for a file's, of which endings take some."""


@dataclass(frozen=True)
class ModelEntry:
    """One model; ``card`` is what its file says of it (structures, preprocessing, provenance, scores, licence)."""

    name: str
    path: Path
    card: dict[str, Any] = field(hash=False)
    embedded: bool


def list_entries() -> list[ModelEntry]:
    """The embedded models, then the user's; no pretrained encoders. Unreadable files are logged and left out."""
    found: dict[str, ModelEntry] = {}
    for path in model_files():
        if path.stem not in found:
            try:
                if read_card(path).get("kind") != "encoder":
                    found[path.stem] = _entry(path)
            except InputError as error:
                logging.getLogger(__name__).warning("%s", error)
    return list(found.values())


def find_entry(model: str | Path) -> ModelEntry:
    """A model by its name or its file.

    Raises:
        InputError: no such model, or a damaged one.
    """
    entries = {entry.name: entry for entry in list_entries()}
    if str(model) in entries:
        return entries[str(model)]
    path = Path(model).expanduser().absolute()
    if path.suffix == SUFFIX or os.path.isfile(path):  # where Path would raise, for a name that is too long
        return _entry(path)
    told = _("Unknown model {model}; known: {names}.")
    names = ", ".join(entries) or _("none")
    raise InputError(told.format(model=model, names=names), _("Choose one of these."))


def add_model(path: str | Path, name: str | None = None) -> ModelEntry:
    """Copy a model file among the user's models.

    Raises:
        InputError: not a model, the name is taken or no name for a file, or the disk refuses.
    """
    path = Path(path)
    _checked(path)
    name = (path.stem if name is None else name).strip()
    if not name or name.startswith(".") or _NO_NAME.search(name):
        told = _("A model's name must not contain any of {letters}, nor begin with a dot.")
        raise InputError(told.format(letters='/ \\ : * ? " < > |'), _("Choose another name."))
    if len(name.encode()) > _LONGEST:
        raise InputError(
            _("The name {name} is too long for a file.").format(name=name), _("Choose another name.")
        )
    if RESERVED.match(name):
        told = _("Windows keeps the name {name} for a device.")
        raise InputError(told.format(name=name), _("Choose another name."))
    target = user_folder() / f"{name}{SUFFIX}"
    # A file that cannot be read is no entry, and on many disks names are one that differ by case.
    if target.exists() or any(entry.name == target.stem for entry in list_entries()):
        told = _("There is a model named {name} already.")
        raise InputError(told.format(name=target.stem), _("Choose another name."))
    partial = target.with_suffix(".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
        replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        told = _("{path} cannot be written: {reason}.").format(path=target, reason=error.strerror)
        raise InputError(told, _("Free some space.")) from error
    return _entry(target)


def remove(entry: ModelEntry) -> None:
    """Delete one of the user's models.

    Raises:
        InputError: an embedded model, or the system refuses.
    """
    if entry.embedded:
        raise InputError(_("{name} comes with MAPSeg and cannot be removed.").format(name=entry.name))
    try:
        entry.path.unlink(missing_ok=True)
    except OSError as error:
        told = _("{path} cannot be removed: {reason}.")
        raise InputError(told.format(path=entry.path, reason=error.strerror)) from error


def _entry(path: Path) -> ModelEntry:
    return ModelEntry(path.stem, path, _checked(path), path.parent != user_folder())


def _checked(path: Path) -> dict[str, Any]:
    """The card, once it holds what the module shows of it; the worker checks the rest."""
    card = read_card(path)
    if card.get("kind") == "encoder":
        told = _("{name} is a pretrained encoder, which cannot segment.")
        raise InputError(told.format(name=path.name), _("Choose a model."))
    try:
        for label in card["labels"]:
            int(label["value"]), str.strip(label["name"])
        card["preprocessing"]["spacing"], str.upper(card["preprocessing"]["modality"])
        if not all(isinstance(card.get(name, kind()), kind) for name, kind in _SHOWN.items()):
            raise TypeError("not to be shown")
    except (KeyError, TypeError, ValueError) as error:
        told = _("{name} has a damaged model card.").format(name=path.name)
        raise InputError(told, _("Get the file again.")) from error
    return card
