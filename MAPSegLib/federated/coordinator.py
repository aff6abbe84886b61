"""What happens between rounds: sites' answers are checked, averaged and kept, so that a killed server goes on.

Aggregation is FedAvg (McMahan et al., AISTATS 2017) of the EMA teachers, weighted by the sites' numbers of scans. The
coordinator itself has no optimiser: what sites send is added to the weights, averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..config import Compute
from ..errors import InputError
from ..model_files import SUFFIX
from ..models import load_model, resolve, save_model
from ..reports import plain, remove_leftovers, replacing, write_json
from .exchange import Update, Weights, size, to_half, to_tensors
from .plan import Federation, Plan, agree
from .site import build_network

STATE, ROUNDS = "state.safetensors", "rounds.json"
CLIP = 3.0
"""No difference counts for more than this many times the (lower) median norm of the round's, zeros left out."""


class Coordinator:
    """The server's side of a federation.

    Args:
        plan: names the model to start from.
        afresh: begin anew where the folder holds a federation that has ended, or another one.
        folder: gets the state after every round (continued from where it exists), ``rounds.json`` and the model. No
            other process may be writing there.

    Raises:
        InputError: the folder holds the state of another federation, or the start model cannot be read.
    """

    def __init__(self, plan: Plan, folder: Path, afresh: bool = False):
        self.federation, self.folder = agree(plan), folder
        self.history: list[dict[str, Any]] = []
        """What every round so far brought; written to ``rounds.json``."""
        self.weights = _start(plan, self.federation)
        remove_leftovers(folder / name for name in (STATE, ROUNDS, f"{plan.name}{SUFFIX}"))
        if (folder / STATE).exists():
            self._load(afresh)

    @property
    def done(self) -> bool:
        return self.round > self.federation.plan.rounds

    @property
    def round(self) -> int:
        """Of the round that is next, from 1."""
        return 1 + sum(entry["averaged"] for entry in self.history)

    def payload(self) -> Weights:
        """The weights that the next round starts from."""
        return to_half(self.weights)

    def absorb(
        self, updates: Mapping[str, Update], seconds: float, failed: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """End a round: average the answers that can be, and keep the state.

        An answer with other parameters, with a number that is not finite or not of half precision, or without scans
        is rejected; one that is much larger than the others is made smaller (:data:`CLIP`). With fewer than
        ``min_sites`` answers left, the weights stay, and the round is to be repeated.

        Args:
            updates: by site.
            seconds: that the round took.
            failed: why a site has none, where it said so.

        Returns:
            the round's entry: number, whether it was averaged, and for every site what became of its answer.
        """
        plan = self.federation.plan
        sites: dict[str, dict[str, Any]] = {}
        good: dict[str, Update] = {}
        for member in plan.sites:
            update = updates.get(member.name)
            if update is None:
                why = (failed or {}).get(member.name, "no answer in time")
                sites[member.name] = {"used": False, "reason": why}
                continue
            fault = self._fault(update)
            sites[member.name] = {
                "used": fault is None,
                "reason": fault or "",
                "scans": update.scans,
                "losses": update.losses,
                "bytes": size(update.difference),
            }
            if fault is None:
                good[member.name] = update
        entry = {
            "round": self.round,
            "averaged": len(good) >= plan.min_sites,
            "seconds": round(seconds, 2),
            "bytes_to_a_site": size(self.payload()),
            "sites": sites,
        }
        if entry["averaged"]:
            shares = self._average(good)
            for name, known in shares.items():
                sites[name] |= known
        self.history.append(entry)
        self._save()
        return entry

    def finish(self, overwrite: bool = False) -> Path:
        """Write the model. Raises InputError where its file exists and may not be replaced."""
        federation, plan = self.federation, self.federation.plan
        counts: dict[str, int] = {}
        for entry in self.history:
            counts |= {name: site["scans"] for name, site in entry["sites"].items() if site["used"]}
        provenance = {
            "federation": {
                "task": plan.task,
                "rounds": plan.rounds,
                "steps": plan.steps,
                "sites": [
                    {"role": m.role, "scans": counts.get(m.name, 0)}
                    | ({"name": m.credit} if m.credit else {})
                    for m in plan.sites
                ],
                "options": plan.options.model_dump(mode="json", exclude=set(Compute.model_fields)),
                "version": __version__,
            },
        }
        if plan.task == "adapt":
            provenance["started_from"] = {"name": federation.card.name, **federation.card.provenance}
        priors = federation.card.priors_elsewhere
        changes = {"name": plan.name, "provenance": provenance, "scores": {}, "priors": priors}
        changes |= {"license": plan.license} if plan.license else {}
        weights = self.weights
        if plan.task == "pretrain":
            weights = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
        card = federation.card.model_copy(update=changes)
        return save_model(self.folder / f"{plan.name}{SUFFIX}", weights, card, overwrite)

    def _fault(self, update: Update) -> str | None:
        """Why an answer cannot be averaged."""
        sent, own = update.difference, self.weights
        if sent.keys() != own.keys() or any(sent[name].shape != tuple(own[name].shape) for name in own):
            return "rejected: weights of another architecture"
        if any(array.dtype != np.float16 for array in sent.values()):
            return "rejected: numbers that are not of half precision"
        if not all(np.isfinite(array).all() for array in sent.values()):
            return "rejected: numbers that are not finite"
        if update.scans < 1:
            return "rejected: no scans"
        return None

    def _average(self, updates: Mapping[str, Update]) -> dict[str, dict[str, float]]:
        """Add the weighted mean of the differences; returns each site's share, norm and what clipping left of it."""
        # One answer at a time in single precision: at the paper's size it takes 0.8 GB, and there may be many.
        norms = {name: _norm(to_tensors(update.difference).values()) for name, update in updates.items()}
        moved = sorted(filter(None, norms.values()))  # one that learnt nothing is no measure of the others
        typical = moved[(len(moved) - 1) // 2] if moved else 0.0
        scans = sum(update.scans for update in updates.values())
        known = {}
        for name, update in updates.items():
            share = update.scans / scans
            kept = min(1.0, CLIP * typical / norms[name]) if norms[name] else 1.0
            for parameter, tensor in to_tensors(update.difference).items():
                self.weights[parameter].add_(tensor, alpha=share * kept)
            known[name] = {"share": share, "norm": norms[name], "kept": kept}
        return known

    def _save(self) -> None:
        from safetensors.torch import save

        # before the state: a round that only the record has is repeated, and told again
        write_json(self.folder / ROUNDS, self.history, overwrite=True)
        told = {"federation": self.federation.model_dump_json(), "rounds": json.dumps(plain(self.history))}
        with replacing(self.folder / STATE, overwrite=True) as temporary:
            temporary.write_bytes(save(self.weights, metadata=told))

    def _load(self, afresh: bool) -> None:
        from safetensors import SafetensorError, safe_open

        path = self.folder / STATE
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata()
                # copies: as long as a file is mapped, Windows does not let the next state replace it
                weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            history = json.loads(told["rounds"])
            same = told["federation"] == self.federation.model_dump_json()
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged.", "Remove it to start the federation afresh.") from error
        ended = sum(entry["averaged"] for entry in history) >= self.federation.plan.rounds
        if afresh and (ended or not same):
            return
        if not same:
            raise InputError(
                f"{self.folder} holds the state of another federation.",
                "Choose another folder, or remove it to start afresh.",
            )
        self.weights, self.history = weights, history


def _start(plan: Plan, federation: Federation) -> dict[str, Tensor]:
    """The weights of round 1."""
    network = load_model(resolve(plan.model))[0] if plan.task == "adapt" else build_network(federation)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in tensors))
