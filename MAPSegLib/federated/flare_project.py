"""From a plan to start kits: certificates by FLARE's own provisioning, rules of ours.

FLARE's defaults trust the project's administrator with much: to read a site's files by shell commands, to run code
that a job brings along, to be sent each site's error log. None of that is needed, so the kits forbid it
(:func:`_rules`, :func:`_resources`): a site builds the classes of its own list only, all of them installed with
mapseg, whatever a job asks for.

The key of the project's certificate authority is not kept. Nobody can make another kit that this server accepts;
who loses one makes the project anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from ..errors import InputError
from ..models import resolve
from ..reports import unwritable, write_json, write_text
from ..tasks.outputs import output_folder
from .flare_privacy import chosen
from .flare_terms import TASK
from .kits import Kit
from .plan import Member, Plan, agree

ORGANISATION = "mapseg"
ADMIN = "admin@mapseg.org"
"""FLARE's administrators are named like this; nothing is ever sent there."""
EXECUTOR = "MAPSegLib.federated.flare_site.RoundExecutor"
CONTROLLER = "MAPSegLib.federated.flare_server.RoundController"
SIGN_OF_LIFE = 5.0
"""Seconds between two signs of life of a site that waits; after six without one the server forgets it."""
_LONGEST_NAME = 64
"""Letters of a name in a certificate (RFC 5280)."""
_LAUNCHER = "MAPSegLib.federated.flare_site.Launcher"
_ANNOUNCER = "MAPSegLib.federated.flare_site.Announcer"


def write_project(
    plan: Plan, folder: Path, executor: str = EXECUTOR, controller: str = CONTROLLER, heartbeat: float = 10.0
) -> list[Path]:
    """Write one start kit for the server, one for the administrator, and one per site.

    Args:
        folder: of the kits; made here.
        executor: class that the sites run, and may run.
        controller: class that the server runs.
        heartbeat: seconds between two signs of life of a site.

    Returns:
        the kits' folders.

    Raises:
        InputError: the plan has no server, the start model is missing, the folder is not empty, or the disk refuses.
    """
    if plan.server is None:
        raise InputError("The plan names no server.", 'Add "server": {"host": ..., "port": ...} to the plan.')
    taken = {"server", "admin", plan.server.host} & {site.name for site in plan.sites}
    if taken:
        raise InputError(f"No site can be called {taken.pop()}.", "Choose another name in the plan.")
    agree(plan)  # its model can be read
    project = _project(plan)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty.", "Choose a new folder for the start kits.")
    try:
        with (
            output_folder(folder),
            _all_or_nothing(folder),
            tempfile.TemporaryDirectory(dir=folder) as scratch,
        ):
            made = _provision(plan, project, Path(scratch))
            kits = [
                _write_server(plan, folder, made / plan.server.host, controller),
                _write_admin(plan, folder, made / ADMIN, executor, controller, heartbeat),
            ]
            kits += [_write_site(plan, folder, made / site.name, site, executor) for site in plan.sites]
    except OSError as error:
        raise unwritable(folder, error) from error
    return kits


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Leave no keys behind, and a folder for another try, if the block fails."""
    try:
        yield
    except BaseException:
        for made in folder.iterdir():
            shutil.rmtree(made, ignore_errors=True)
        raise


def _project(plan: Plan) -> Project:
    """Who takes part, as FLARE has it."""
    for what, name in (("name", plan.name), ("server's host", plan.server.host)):
        if len(name) > _LONGEST_NAME or not name.isascii():
            raise InputError(
                f"The certificates cannot hold the {what} {name}.",
                f"Give one of at most {_LONGEST_NAME} letters, none with an accent.",
            )
    project = Project(plan.name, "MAPSeg", props={"api_version": 3})
    ports = {"fed_learn_port": plan.server.port, "admin_port": plan.server.port}
    try:
        project.set_server(plan.server.host, ORGANISATION, ports)
    except ValueError as error:
        raise InputError(
            f"The server's host cannot be {plan.server.host!r}.",
            "Give its name, or its address with four numbers.",
        ) from error
    for site in plan.sites:
        project.add_client(site.name, ORGANISATION, {})
    project.add_admin(ADMIN, ORGANISATION, {"role": "project_admin"})
    return project


def _provision(plan: Plan, project: Project, scratch: Path) -> Path:
    """FLARE's start kits; returns their folder."""
    builders = [
        WorkspaceBuilder(["master_template.yml"]),
        StaticFileBuilder(config_folder="config"),
        CertBuilder(root_valid_days=plan.server.valid_days),
        SignatureBuilder(),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        context = Provisioner(str(scratch), builders).provision(project)
    if context.get(CtxKey.BUILD_ERROR):
        raise InputError(f"FLARE could not make the start kits: {said.getvalue().strip()[-300:]}")
    return scratch / plan.name / "prod_00"


def _write_kit(folder: Path, made: Path, kit: Kit, plan: Plan, readme: str) -> Path:
    place = folder / kit.name
    place.mkdir(mode=0o700)  # a key lies here, and later where a site's scans are
    # Of FLARE's scripts and samples, none: they start without our checks.
    ignored = shutil.ignore_patterns("*.sh", "*.ipynb", "*.sample", "readme.txt")
    shutil.copytree(made, place / "flare", ignore=ignored)
    write_json(place / "kit.json", kit.model_dump())
    model = resolve(plan.model) if plan.model else None
    write_json(place / "plan.json", plan.model_dump(mode="json") | {"model": model and model.name})
    write_text(place / "README.txt", readme)
    if kit.kind != "admin":
        if model:
            shutil.copyfile(model, place / model.name)
        local = place / "flare" / "local"
        write_json(local / "log_config.json", _logging(local / "log_config.json.default"))
    return place


def _kit(plan: Plan, kind: str, name: str, role: str | None = None) -> Kit:
    return Kit(
        kind=kind, name=name, role=role, project=plan.name, host=plan.server.host, port=plan.server.port
    )


def _write_server(plan: Plan, folder: Path, made: Path, controller: str) -> Path:
    readme = "The server's start kit. Start it with: mapseg federate run server\n"
    place = _write_kit(folder, made, _kit(plan, "server", "server"), plan, readme)
    local = place / "flare" / "local"
    resources = _resources(local, [controller])
    resources["servers"][0]["heart_beat_timeout"] = 6 * SIGN_OF_LIFE
    resources["components"] = [part for part in resources["components"] if part["id"] != "log_receiver"]
    del resources["snapshot_persistor"]  # the coordinator saves its own state
    for part in resources["components"]:
        if part["id"] == "job_scheduler":
            part["args"]["max_jobs"] = 1
    write_json(local / "resources.json", resources)
    rules = _rules("submit_job", "manage_job", "download_job", "view", "app_command")
    write_json(local / "authorization.json", rules)
    return place


def _write_admin(
    plan: Plan, folder: Path, made: Path, executor: str, controller: str, heartbeat: float
) -> Path:
    readme = "The administrator's start kit. Start the training with: mapseg federate run admin\n"
    place = _write_kit(folder, made, _kit(plan, "admin", "admin"), plan, readme)
    write_job(place / "job", plan.name, executor, controller, heartbeat)
    return place


def _write_site(plan: Plan, folder: Path, made: Path, site: Member, executor: str) -> Path:
    labels = " --labels FOLDER" if site.role == "source" else ""
    readme = (
        f"The start kit of {site.name}, a {site.role} site. It holds this site's key: give it to nobody else.\n"
        f"Start it with: mapseg federate run {site.name} --images FOLDER{labels}\n"
        "Your scans never leave this machine.\n"
    )
    place = _write_kit(folder, made, _kit(plan, "site", site.name, site.role), plan, readme)
    local = place / "flare" / "local"
    filters = [
        {"path": f"{kind.__module__}.{kind.__name__}", "args": args} for kind, args in chosen(plan.privacy)
    ]
    resources = _resources(local, [executor, *(entry["path"] for entry in filters)])
    resources["allow_log_streaming"] = False
    resources["components"] = [part for part in resources["components"] if part["id"] != "site_log_streamer"]
    for part in resources["components"]:
        if part["id"] == "process_launcher":
            part["path"] = _LAUNCHER
    resources["components"].append({"id": "announcer", "path": _ANNOUNCER, "args": {}})
    write_json(local / "resources.json", resources)
    write_json(local / "authorization.json", _rules("submit_job", "manage_job"))
    if filters:
        scope = {"name": "site", "properties": {}, "task_result_filters": filters}
        write_json(local / "privacy.json", {"scopes": [scope], "default_scope": "site"})
    return place


def _resources(local: Path, classes: list[str]) -> dict[str, Any]:
    """FLARE's resources with our list of what a job may build."""
    resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    return resources | {"class_allow_list": classes, "class_list_enforcement_mode": "enforce"}


def _rules(*rights: str) -> dict[str, Any]:
    """What the administrator may do here; of code that a job brings along, nothing."""
    return {"format_version": "1.0", "permissions": {"project_admin": dict.fromkeys(rights, "any")}}


def _logging(defaults: Path) -> dict[str, Any]:
    """Our own lines on the terminal, and everything in FLARE's log files."""
    config = json.loads(defaults.read_text(encoding="utf-8"))
    config["formatters"]["plain"] = {"format": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"}
    config["filters"]["ours"] = {
        "()": "nvflare.fuel.utils.log_utils.LoggerNameFilter",
        "logger_names": ["MAPSegLib"],
        "exclude_logger_names": ["MAPSegLib.federated."],  # what FLARE's classes say in ours
        "allow_all_error_logs": False,
    }
    config["handlers"]["consoleHandler"] |= {"formatter": "plain", "filters": ["ours"]}
    return config


def write_job(folder: Path, name: str, executor: str, controller: str, heartbeat: float) -> None:
    """The job that the administrator submits: names of classes, no code."""
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    meta = {
        "name": name,
        "resource_spec": {},
        "deploy_map": {"app": ["@ALL"]},
        # The controller decides how many sites a round needs; FLARE would abort the job.
        "min_clients": 1,
    }
    server = {
        "format_version": 2,
        "server": {"heart_beat_timeout": 6 * heartbeat},
        "workflows": [{"id": "rounds", "path": controller, "args": {"heartbeat": heartbeat}}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }
    client = {
        "format_version": 2,
        "job_heartbeat_interval": heartbeat,
        "executors": [{"tasks": [TASK], "executor": {"path": executor, "args": {}}}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }
    write_json(folder / "meta.json", meta)
    write_json(config / "config_fed_server.json", server)
    write_json(config / "config_fed_client.json", client)
