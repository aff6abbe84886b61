"""Start kits: the folders with which the server, the sites and the administrator take part.

::

    KIT/README.txt    what to do with it
    KIT/kit.json      what it is for
    KIT/plan.json     the plan, and beside it the start model (server and sites)
    KIT/data.json     a site's own scans: named by the site, read there, never sent
    KIT/flare/        FLARE's part: certificate and key (startup), rules (local), logs
    KIT/work/         what a restart continues from
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ..config import Options, check_path
from ..errors import InputError, first_problem
from ..reports import read_json, write_json
from .plan import Plan, Role, agree, read_plan
from .scans import SiteData, find

DATA = "data.json"


class Kit(Options):
    """What a start kit is for."""

    kind: Literal["server", "site", "admin"]
    name: str
    role: Role | None = None
    project: str
    host: str
    port: int


def read_kit(folder: Path) -> Kit:
    """What a folder is the start kit of.

    Raises:
        InputError: it is no start kit.
    """
    file = folder / "kit.json"
    if not file.is_file():
        raise InputError(f"{folder} is not a start kit.", "Give the folder that holds kit.json.")
    try:
        return Kit.model_validate(read_json(file, "a start kit"))
    except ValidationError as error:
        raise InputError(f"{file} is damaged: {first_problem(error)}.", "Get the kit again.") from error


def kit_plan(folder: Path) -> Plan:
    """The plan in a start kit."""
    return read_plan(folder / "plan.json")


def choose_data(
    folder: Path, images: Path | None = None, labels: Path | None = None
) -> tuple[int, list[str]]:
    """Check a site's scans against its role, and remember them in the kit.

    Args:
        images: folder, data set or manifest; those of the last start where it is None.
        labels: folder of the label maps, where ``images`` is a folder of scans alone.

    Returns:
        how many scans there are, and what the site should know.

    Raises:
        InputError: none were named, or they do not fit the role, or the kit lacks its start model.
    """
    if images:
        known = {"options": local_data(folder).options} if (folder / DATA).is_file() else {}
        data = SiteData(images=check_path(images), **known)
    else:
        data = local_data(folder)
    if labels:
        data = data.model_copy(update={"labels": check_path(labels)})
    plan = kit_plan(folder)
    labelled = plan.task == "adapt" and read_kit(folder).role == "source"
    card = agree(plan).card  # a kit that was copied in part is told now, and not in some round
    found = find(data, card.labels if labelled else None)
    data = data if labelled else data.model_copy(update={"labels": None})
    write_json(folder / DATA, data.model_dump(mode="json", exclude_unset=True), overwrite=True)
    return len(found.cases), found.notes


def local_data(folder: Path) -> SiteData:
    """The scans that a site named; paths in the file start from the kit, whatever folder a process works in.

    Raises:
        InputError: none were named yet, or the file that says so is damaged.
    """
    file = folder / DATA
    if not file.is_file():
        raise InputError(
            "This site has not named its scans.", f"Give `mapseg federate run {folder} --images FOLDER`."
        )
    try:
        return SiteData.model_validate(read_json(file, "the site's scans")).beside(folder.absolute())
    except ValidationError as error:
        raise InputError(
            f"{file} is damaged: {first_problem(error)}.", "Remove it, and name the scans again."
        ) from error
