"""The server's side of a federated training, as a FLARE controller.

One training may take several FLARE jobs. A site that was killed does not come back into a job that is running: FLARE
hands the job's work only to those that were there at its start, under the token of their first login. So a job ends
after the round in which a site was missing, and the administrator's ``mapseg federate run`` submits the next, which
includes whoever is connected. A server that was killed takes its job with it, and is continued in the same way. All
state is the coordinator's, who saves it after every round.

Whether a site is still there is told by its job's heartbeats. FLARE's own verdict does not come when a site is
restarted at once, since the new login erases the old one.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from ..errors import MAPSegError
from ..reports import plain, write_json
from .exchange import Update
from .flare_terms import IN_USE, PATIENCE, ROUND, TASK, TERMS, kit_folder, terms
from .kits import kit_plan
from .processes import take

if TYPE_CHECKING:
    from .coordinator import Coordinator

PROGRESS = "progress.json"
"""File of a finished job that says how far the training is."""
MOST_SCANS, MOST_LOSSES, LONGEST_NAME = 100_000, 32, 100
"""What an honest site may have: beyond that, an answer could take over a round, or fill the server's records."""
_log = logging.getLogger("MAPSegLib.federated")


def unpack(answer: Shareable) -> Update | None:
    """A site's answer; None where it holds no update."""
    if answer.get_return_code() != ReturnCode.OK:
        return None
    try:
        dxo = from_shareable(answer)
        losses = {str(name): float(value) for name, value in dxo.meta["losses"].items()}
        arrays = all(isinstance(array, np.ndarray) for array in dxo.data.values())
        scans = int(dxo.meta["scans"])
        plausible = 0 <= scans <= MOST_SCANS and len(losses) <= MOST_LOSSES
        plausible = plausible and all(len(name) <= LONGEST_NAME for name in losses)
        if dxo.data_kind != DataKind.WEIGHT_DIFF or not arrays or not plausible:
            return None
        return Update(dict(dxo.data), scans, losses)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


class RoundController(Controller):
    """Runs rounds until the training is done or a site is missing.

    Args:
        heartbeat: seconds between two signs of life of a site; after six without one it counts as gone.
    """

    def __init__(self, heartbeat: float = 10.0):
        super().__init__()
        self.silence = 6 * heartbeat
        self._heard: dict[str, float] = {}
        self._answers: dict[str, Update | None] = {}
        self._told: dict[str, Any] = {}
        self._coordinator: Coordinator | None = None

    def make_coordinator(self, folder: Path) -> Coordinator:
        """The work of the server, from its start kit; it continues where it was."""
        from .coordinator import Coordinator

        return Coordinator(kit_plan(folder), folder / "work")

    def set_communicator(self, communicator) -> None:
        super().set_communicator(communicator)
        passed_on = communicator.client_is_active

        def listen(client_name: str, reason: str, fl_ctx: FLContext) -> None:
            self._heard[client_name] = time.monotonic()
            passed_on(client_name, reason, fl_ctx)

        communicator.client_is_active = listen

    def start_controller(self, fl_ctx: FLContext) -> None:
        fl_ctx.get_engine().register_app_command("progress", lambda *_: self._told)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))
        try:
            write_json(folder / PROGRESS, self._told, overwrite=True)
        except MAPSegError as error:
            _log.error("%s", error.message)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        _log.info("%s: its answer came after the round had ended, and is dropped.", client.name)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        folder = kit_folder(fl_ctx)
        try:
            take(folder / IN_USE, PATIENCE)
            self._plan, self._terms = kit_plan(folder), terms(folder)
            self._coordinator = self.make_coordinator(folder)
            self._tell()
            missing: set[str] = set()
            while not (self._coordinator.done or missing or abort_signal.triggered):
                missing = self._run_round(abort_signal, fl_ctx)
            if self._coordinator.done:
                model = self._coordinator.finish(overwrite=True)
                _log.info("The training is done: %s.", model)
                self._tell(done=True, model=str(model))
        except MAPSegError as error:
            _log.error("The server cannot go on: %s", error)
            self._tell(problem=str(error))
        except Exception as error:
            _log.exception("The server cannot go on: %s", error)
            self._tell(problem=f"Unforeseen failure, {type(error).__name__}: {error}")

    def _run_round(self, abort_signal: Signal, fl_ctx: FLContext) -> set[str]:
        """One round; returns the sites that were missing from it."""
        number, started = self._coordinator.round, time.monotonic()
        meta = {ROUND: number, TERMS: self._terms}
        data = DXO(DataKind.WEIGHTS, data=self._coordinator.payload(), meta=meta).to_shareable()
        here = [client.name for client in fl_ctx.get_engine().get_clients()]
        _log.info("Round %d of %d: sent to %s.", number, self._plan.rounds, ", ".join(here))
        task = Task(TASK, data, result_received_cb=self._receive)
        self._answers = {}
        self._heard = dict.fromkeys(here, time.monotonic())
        self.broadcast(task, fl_ctx, targets=here, min_responses=len(here))
        gone = self._wait(here, abort_signal)
        self.cancel_task(task)
        if abort_signal.triggered:
            return set()
        planned = {site.name for site in self._plan.sites}
        missing = (planned - set(here)) | gone
        updates = {name: update for name, update in self._answers.items() if update is not None}
        failed = dict.fromkeys(planned - set(here), "not connected") | dict.fromkeys(gone, "no sign of life")
        failed |= {name: "could not take part" for name, update in self._answers.items() if update is None}
        entry = plain(self._coordinator.absorb(updates, time.monotonic() - started, failed))
        for name, site in entry["sites"].items():
            what = f"averaged, {site['scans']} scans" if site["used"] else site["reason"]
            _log.info("Round %d: %s: %s.", number, name, what)
        if not entry["averaged"]:
            used = sum(site["used"] for site in entry["sites"].values())
            text = f"{used} of at least {self._plan.min_sites} answers of round {number} could be averaged"
            self._tell(problem=f"{text}; see the logs of the server and the sites.")
            _log.error("%s; the round is repeated.", text)
            return missing or planned
        self._tell(sites=entry["sites"])
        if missing and not self._coordinator.done:
            _log.info("Missing: %s. The next job includes whoever is back.", ", ".join(sorted(missing)))
        return missing

    def _wait(self, here: list[str], abort_signal: Signal) -> set[str]:
        """Wait for the answers; returns the sites that fell silent."""
        start = time.monotonic()
        gone: set[str] = set()
        while not abort_signal.triggered:
            now = time.monotonic()
            pending = [name for name in here if name not in self._answers]
            for name in pending:
                if now - self._heard[name] > self.silence and name not in gone:
                    gone.add(name)
                    _log.warning("%s: no sign of life for %d s; the round goes on.", name, self.silence)
            pending = [name for name in pending if name not in gone]
            enough = sum(update is not None for update in self._answers.values()) >= self._plan.min_sites
            if not pending:
                break
            if enough and now - start > 60 * self._plan.minutes:
                _log.warning("Too late for this round: %s.", ", ".join(pending))
                break
            time.sleep(0.2)
        return gone

    def _receive(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        name = client_task.client.name
        update = unpack(client_task.result)
        client_task.result = None  # it is large
        if update is None:
            _log.warning("%s: could not take part in the round; its own log says why.", name)
        else:
            _log.info("%s: answered, %d scans.", name, update.scans)
        self._answers[name] = update

    def _tell(self, **more: Any) -> None:
        """What the administrator sees."""
        told = {"round": self._coordinator.round, "rounds": self._plan.rounds} if self._coordinator else {}
        self._told = {**told, **more}
