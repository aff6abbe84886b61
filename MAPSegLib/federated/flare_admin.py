"""The administrator's side: submit the training, follow it, continue it after a failure.

A training may take several FLARE jobs (:mod:`.flare_server`); :func:`follow` submits one after the other until the
server says that it is done. Nothing is lost when this program ends: the job goes on, and the next ``follow`` finds it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.api_spec import (
    InternalError,
    JobNotRunning,
    NoReply,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from ..errors import Cancelled, InputError, MAPSegError
from .flare_project import ADMIN
from .flare_run import check_certificates, check_server
from .flare_server import PROGRESS
from .kits import kit_plan, read_kit
from .plan import Plan

_POLL = 2.0
"""Seconds between two looks at the server."""
_LATECOMERS = 60.0
"""Seconds that a job waits for the sites beyond the smallest number."""
_PATIENCE = 60.0
"""Seconds that logging in may take."""
_ATTEMPTS = 3
"""Jobs (or failures of a server that is there) without a new round before giving up."""
_ENDED, _ABORTED = "FINISHED", "FINISHED:ABORTED"
Say = Callable[[str], None]


def follow(folder: Path, say: Say) -> None:
    """Run the training of an administrator's kit to its end.

    Args:
        say: receives a line for the user.

    Raises:
        Cancelled: somebody stopped it.
        InputError: the kit's certificate is not valid, or the server does not accept it.
        MAPSegError: the training makes no progress.
    """
    plan, kit = kit_plan(folder), read_kit(folder)
    check_certificates(folder)
    best, failures = 1, 0  # a job that begins is at round 1
    while failures < _ATTEMPTS:
        try:
            with _session(folder, say) as session:
                job = _running_job(session, plan.name)
                if job is None:
                    _wait_for_sites(session, plan, say)
                    job = session.submit_job(str((folder / "job").resolve()))
                told = _follow_job(session, job, say)
        except MAPSegError:
            raise
        except Exception as error:  # FLARE raises many kinds when its server dies
            say("Lost the server. The training continues when it is back.")
            told = {"problem": str(error)}
            time.sleep(_POLL)
            failures += check_server(folder, kit)  # one that is there should not fail
            continue
        if told.get("done"):
            say(f"The training is done. The model is at the server: {told['model']}")
            return
        failures = 0 if told.get("round", 0) > best else failures + 1
        best = max(best, told.get("round", 0))
    problem = told.get("problem", "see the logs of the server and the sites.")
    raise MAPSegError(f"The training makes no progress: {problem}")


def show(folder: Path, say: Say) -> None:
    """Say which sites are connected, and how far the training is.

    Raises:
        InputError: the server does not answer, or does not accept the kit.
    """
    plan, kit = kit_plan(folder), read_kit(folder)
    check_certificates(folder)
    if not check_server(folder, kit):
        raise InputError(f"The server {kit.host}:{kit.port} does not answer.", "Start it first.")
    with _session(folder, say) as session:
        connected = _connected(session)
        for site in plan.sites:
            say(f"{site.name} ({site.role}): {'connected' if site.name in connected else 'not connected'}")
        job = _running_job(session, plan.name)
        told = _progress(session, job) if job else None
        say(_line(told) if told else "The training is starting." if job else "No training is running.")


def stop_training(folder: Path, say: Say) -> None:
    """End the running job. The server keeps what is complete, and the next ``follow`` continues."""
    kit = read_kit(folder)
    check_certificates(folder)
    if not check_server(folder, kit):
        raise InputError(f"The server {kit.host}:{kit.port} does not answer.", "Nothing can run without it.")
    with _session(folder, say) as session:
        job = _running_job(session, kit.project)
        if job is None:
            say("No training is running.")
            return
        session.abort_job(job)
        say("Stopped. The server keeps the rounds that are complete; `mapseg federate run` continues.")


@contextlib.contextmanager
def _session(folder: Path, say: Say) -> Iterator[Session]:
    """A session with the server, as soon as it is there."""
    kit = read_kit(folder)
    told = False
    while not check_server(folder, kit):
        if not told:
            say(f"The server {kit.host}:{kit.port} does not answer yet; waiting for it.")
        told = True
        time.sleep(_POLL)
    logging.getLogger().addHandler(logging.NullHandler())  # FLARE's own warnings are not for the terminal
    with contextlib.redirect_stdout(io.StringIO()):
        session = new_secure_session(ADMIN, str((folder / "flare").resolve()), timeout=_PATIENCE)
    try:
        yield session
    finally:
        with contextlib.suppress(Exception):
            session.close()


def _connected(session: Session) -> set[str]:
    return {client.name for client in session.get_connected_client_list()}


def _running_job(session: Session, name: str) -> str | None:
    """The job of the training that runs, or waits to. One that a killed server left behind still says RUNNING."""
    really = {job.job_id for job in session.get_system_info().job_info}
    for job in session.list_jobs(name_prefix=name):
        if job["job_id"] in really or job["status"] == "SUBMITTED":
            return job["job_id"]
    return None


def _wait_for_sites(session: Session, plan: Plan, say: Say) -> None:
    """Wait until all sites are there, or enough of them for a while."""
    planned = {site.name for site in plan.sites}
    start, told = time.monotonic(), None
    while True:
        here = planned & _connected(session)
        if len(here) < plan.min_sites:
            start = time.monotonic()
        if here != told:
            missing = ", ".join(sorted(planned - here))
            say(
                f"{len(here)} of {len(planned)} sites are connected."
                + (f" Missing: {missing}." if missing else "")
            )
            told = here
        if here == planned or time.monotonic() - start > _LATECOMERS:
            return
        time.sleep(_POLL)


def _follow_job(session: Session, job: str, say: Say) -> dict[str, Any]:
    """Say what changes until a job ends; returns the last that its server told."""
    last = None
    while True:
        status = session.get_job_status(job)
        if status == _ABORTED:
            raise Cancelled("The training was stopped.", "`mapseg federate run` continues it.")
        if status.startswith(_ENDED):
            break
        told = _progress(session, job) if status == "RUNNING" else None
        if told and told != last:
            say(_line(told))
            last = told
        time.sleep(_POLL)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(session.download_job_result(job, scratch))
        try:
            return json.loads((place / "workspace" / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"problem": f"the job ended as {status}."}


def _progress(session: Session, job: str) -> dict[str, Any] | None:
    try:
        return session.do_app_command(job, "progress", {})
    except (InternalError, JobNotRunning, NoReply):  # it starts or ends
        return None


def _line(told: dict[str, Any]) -> str:
    number, of = told.get("round", 0), told.get("rounds", 0)
    line = f"Round {number} of {of}" if number <= of else f"All {of} rounds are complete"
    return f"{line}; {told['problem']}" if "problem" in told else f"{line}."
