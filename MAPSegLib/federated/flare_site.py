"""A site's side of a round, as a FLARE executor.

FLARE starts it in a process of its own for every job. What to train on, and as what, comes from the kit on this
machine and never from the server; the server sends weights, the number of the round, and what must agree. The
answer holds the difference of the weights, the number of scans and the losses: nothing else (:func:`pack`).

A failure is a log line here and an empty answer there: FLARE fails the whole job when the process of one site dies,
so nothing may be raised.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, JobConstants, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

from ..errors import Cancelled, InputError, MAPSegError
from ..jobs import Report
from .exchange import Update
from .flare_guard import hear_only_the_server
from .flare_terms import IN_USE, PATIENCE, ROUND, TERMS, kit_folder, terms
from .kits import kit_plan, local_data, read_kit
from .plan import agree
from .processes import take

if TYPE_CHECKING:
    from .site import Site

_log = logging.getLogger("MAPSegLib.federated")


def pack(update: Update) -> Shareable:
    """All that leaves a site after a round."""
    difference = {name: np.asarray(array, np.float16) for name, array in update.difference.items()}
    losses = {name: float(value) for name, value in update.losses.items()}
    meta = {"scans": int(update.scans), "losses": losses}
    return DXO(DataKind.WEIGHT_DIFF, data=difference, meta=meta).to_shareable()


class RoundExecutor(Executor):
    """Trains one round at a time."""

    def __init__(self):
        super().__init__()
        self._site: Site | None = None

    def make_site(self, folder: Path, report: Report) -> Site:
        """The work of this site, from its start kit."""
        from .site import Site

        federation, name = agree(kit_plan(folder)), read_kit(folder).name
        return Site(federation, name, local_data(folder), folder / "work", report)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.ABOUT_TO_START_RUN:
            hear_only_the_server(fl_ctx.get_engine().get_cell().core_cell)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        def report(event: str, **fields: Any) -> None:
            if abort_signal.triggered:
                raise Cancelled("Cancelled.")
            if event == "log":
                _log.info("%s", fields["message"])

        try:
            return pack(self._train(from_shareable(shareable), kit_folder(fl_ctx), report))
        except Cancelled:
            _log.info("The round was ended.")
            return make_reply(ReturnCode.TASK_ABORTED)
        except MAPSegError as error:
            _log.error("This site could not take part in the round: %s", error)
        except Exception as error:
            _log.exception("This site could not take part in the round: %s", error)
        return make_reply(ReturnCode.EXECUTION_EXCEPTION)

    def _train(self, task: DXO, folder: Path, report: Report) -> Update:
        check_terms(task.meta.get(TERMS), terms(folder))
        if self._site is None:
            take(folder / IN_USE, PATIENCE)
            self._site = self.make_site(folder, report)
        number = int(task.meta[ROUND])
        _log.info("Round %d: training.", number)
        update = self._site.train_round(number, task.data, report)
        losses = ", ".join(f"{name} {value:.4g}" for name, value in update.losses.items())
        _log.info("Round %d: trained on %d scans; %s. Sending the result.", number, update.scans, losses)
        return update


def check_terms(sent: Any, own: dict[str, str]) -> None:
    """What server and site must agree on before any work.

    Raises:
        InputError: they do not.
    """
    sent = sent if isinstance(sent, dict) else {}
    for name, value in own.items():
        if sent.get(name) != value:
            raise InputError(
                f"The server has another {name} ({sent.get(name)}) than this site ({value}).",
                "Install the server's version." if name == "MAPSeg version" else "Get the start kit again.",
            )


class Launcher(ClientProcessJobLauncher):
    """Starts a job's process, and keeps its death this site's affair.

    FLARE reports that a process was killed or could not start, and the server then ends the job for all. Here the
    server only hears that it is over; the round goes on without this site, which the next job includes again.
    """

    def launch_job(self, job_meta: dict, fl_ctx: FLContext) -> ProcessHandle:
        handle = super().launch_job(job_meta, fl_ctx)
        folder = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(job_meta[JobConstants.JOB_ID])
        return _OwnAffair(handle, Path(folder) / FLMetaKey.PROCESS_RC_FILE)


class _OwnAffair(ProcessHandle):
    def __init__(self, handle: ProcessHandle, verdict: Path):
        super().__init__(process_adapter=handle.adapter)
        self._verdict = verdict

    def wait(self) -> None:
        super().wait()
        self._verdict.unlink(missing_ok=True)
        if super().poll() != JobReturnCode.SUCCESS:
            _log.error("The work of this job ended early; this site takes part again in the next one.")

    def poll(self) -> int:
        code = super().poll()
        return code if code == JobReturnCode.SUCCESS else JobReturnCode.UNKNOWN


class Announcer(FLComponent):
    """Tells the site's log when the server has let it in; closes its ears to all others."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.BEFORE_CLIENT_REGISTER:
            hear_only_the_server(fl_ctx.get_engine().get_cell().core_cell)
        elif event_type == EventType.AFTER_CLIENT_REGISTER:
            _log.info("Connected to the server; waiting for a round.")
