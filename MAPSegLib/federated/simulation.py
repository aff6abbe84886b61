"""A federation on one machine: every site trains in turn, in this process.

No engine is needed, but for the privacy filters of a plan that has any: they are FLARE's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ..config import check_path
from ..errors import InputError, first_problem
from ..jobs import Report, SimulateJob
from ..model_files import SUFFIX
from ..reports import read_json
from ..tasks import resume
from ..tasks.outputs import output_folder, refuse_existing

if TYPE_CHECKING:
    from .exchange import Update
    from .plan import Plan
    from .scans import SiteData


def simulate(job: SimulateJob, report: Report) -> dict[str, Any]:
    """Run a plan's rounds, or continue them after a kill. See :class:`~MAPSegLib.jobs.SimulateJob`."""
    from .coordinator import ROUNDS, Coordinator
    from .plan import read_plan
    from .site import Site

    plan = read_plan(check_path(job.plan))
    leave = _way_out(plan)
    data = _site_data(check_path(job.sites), plan)
    folder = check_path(job.output)
    refuse_existing([folder / f"{plan.name}{SUFFIX}"], job.overwrite)
    with output_folder(folder), resume.alone(folder / resume.LOCK):
        coordinator = Coordinator(plan, folder, job.overwrite)
        sites = {}
        for name, scans in data.items():
            own = folder / name
            with output_folder(own):
                sites[name] = Site(coordinator.federation, name, scans, own, report)
        if coordinator.round > 1 and not coordinator.done:
            report("log", message=f"Continuing with round {coordinator.round} of {plan.rounds}.")
        while not coordinator.done:
            started, weights = time.monotonic(), coordinator.payload()
            updates = {
                name: leave(site.train_round(coordinator.round, weights, report))
                for name, site in sites.items()
            }
            entry = coordinator.absorb(updates, time.monotonic() - started)
            if not entry["averaged"]:
                raise InputError(
                    f"Round {entry['round']} has fewer than {plan.min_sites} answers that can be averaged: "
                    + "; ".join(f"{name}: {site['reason']}" for name, site in entry["sites"].items()),
                )
        model = coordinator.finish(job.overwrite)
    return {
        "files": [str(model), str(folder / ROUNDS)],
        "model": str(model),
        "rounds": coordinator.history,
        "failed": [],
    }


def _way_out(plan: Plan) -> Callable[[Update], Update]:
    """What the plan's privacy filters leave of an answer. Raises InputError where FLARE is needed and missing."""
    if not plan.privacy.filters:
        return lambda update: update
    if find_spec("nvflare") is None:
        raise InputError(
            "The plan's privacy filters are NVIDIA FLARE's, which is not installed.",
            'Install it with: pip install "mapseg[federated]"',
        )
    from .flare_privacy import filtered

    return lambda update: filtered(update, plan.privacy)


def _site_data(path: Path, plan: Plan) -> dict[str, SiteData]:
    """Every site's scans; paths are relative to the file. Raises InputError where a site lacks them."""
    from .scans import SiteData

    content = read_json(path, "the sites' scans")
    try:
        sites = TypeAdapter(dict[str, SiteData]).validate_python(content)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}.") from error
    for member in plan.sites:
        if member.name not in sites:
            raise InputError(f"{path} does not say where the scans of {member.name} are.")
    return {member.name: sites[member.name].beside(path.parent) for member in plan.sites}
