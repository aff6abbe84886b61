"""Stand-ins for the work of a site and of the server: a few numbers that move, saved in files."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.private.admin_defs import Message
from nvflare.private.defs import CellChannel, SysCommandTopic, new_cell_message

from MAPSegLib.federated.exchange import Update
from MAPSegLib.federated.flare_server import RoundController
from MAPSegLib.federated.flare_site import RoundExecutor
from MAPSegLib.federated.kits import kit_plan, local_data
from MAPSegLib.manifests import list_scans

# FLARE looks for unfinished downloads of tensors when a job ends, and would import PyTorch for it.
sys.modules["nvflare.app_opt.pt.tensor_downloader"] = None


class StandInSite:
    """Moves every weight half of the way to one; takes as long as ``pause.txt`` in the kit says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.scans = len(list_scans(local_data(folder).images))

    def train_round(self, number, weights, report):
        pause = self.folder / "pause.txt"
        end = time.monotonic() + (float(pause.read_text()) if pause.is_file() else 0.2)
        (self.folder / f"started-{number}").touch()
        while time.monotonic() < end:
            report("progress", stage="federated", step=0, steps=1)
            time.sleep(0.05)
        difference = {name: ((1 - array) / 2).astype(np.float16) for name, array in weights.items()}
        return Update(difference, self.scans, {"loss": 1 / (number + 1)})


class StandInCoordinator:
    def __init__(self, folder: Path):
        self.plan = kit_plan(folder)
        self.file = folder / "work" / "state.json"
        self.file.parent.mkdir(exist_ok=True)
        state = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.round = state.get("round", 1)
        self.weights = np.array(state.get("weights", [0.0] * 4), np.float32)
        self.history = state.get("history", [])

    @property
    def done(self):
        return self.round > self.plan.rounds

    def payload(self):
        return {"a": self.weights[:3].astype(np.float16), "b": self.weights[3:].astype(np.float16)}

    def absorb(self, updates, seconds, failed):
        if len(updates) < self.plan.min_sites:
            return {"averaged": False, "sites": {}}
        total = sum(update.scans for update in updates.values())
        for update in updates.values():
            step = np.append(update.difference["a"], update.difference["b"]).astype(np.float32)
            self.weights += update.scans / total * step
        self.history.append({"round": self.round, "sites": sorted(updates)})
        self.round += 1
        state = {"round": self.round, "weights": self.weights.tolist(), "history": self.history}
        temporary = self.file.with_suffix(".part")
        temporary.write_text(json.dumps(state))
        temporary.replace(self.file)
        sites = {name: {"used": True, "scans": update.scans} for name, update in updates.items()}
        sites |= {name: {"used": False, "reason": reason} for name, reason in failed.items()}
        return {"averaged": len(updates) >= self.plan.min_sites, "sites": sites}

    def finish(self, overwrite):
        model = self.file.with_name(f"{self.plan.name}.safetensors")
        model.write_text(json.dumps(self.weights.tolist()))
        return model


class StandInExecutor(RoundExecutor):
    def make_site(self, folder, report):
        return StandInSite(folder)


class StandInController(RoundController):
    """Notes all that arrives from the sites."""

    def make_coordinator(self, folder):
        self.folder = folder
        return StandInCoordinator(folder)

    def _receive(self, client_task, fl_ctx):
        with open(self.folder / "work" / "arrived.jsonl", "a") as file:
            print(json.dumps(client_task.result, default=_outline), file=file)
        super()._receive(client_task, fl_ctx)


class Curious(FLComponent):
    """Of a site that means harm: asks hospital-b for a file of its own, by a message that names no command."""

    def handle_event(self, event_type, fl_ctx):
        if event_type == EventType.AFTER_CLIENT_REGISTER:
            threading.Thread(target=self._ask, args=(fl_ctx.get_engine().get_cell(),), daemon=True).start()

    def _ask(self, cell):
        kits = Path.cwd().parents[1]
        question = Message(SysCommandTopic.SHELL, f"cat {kits / 'hospital-b' / 'kit.json'}")
        answer = cell.send_request(
            target="hospital-b",
            channel=CellChannel.CLIENT_MAIN,
            topic=question.topic,
            request=new_cell_message({}, question),
            timeout=5,
        )
        part = kits / "told.part"
        part.write_text(str(getattr(answer.payload, "body", None)))
        part.rename(kits / "told.txt")


def _outline(value):
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "largest": float(np.abs(value).max())}
    if isinstance(value, FLContext):
        return value.get_all_public_props()
    return repr(value)
