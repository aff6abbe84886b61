"""What every training shares: the update, the averaged weights, checkpoints that resume exactly, the record."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ..config import InferenceOptions
from ..devices import is_out_of_memory, pick_device, precision_context, prepare_process
from ..errors import InputError, MemoryExhausted
from .optimizer import Optimizer

CLIP_NORM = 1.0
"""Largest gradient norm: mixed precision degrades without it."""


class Loop:
    """A model, its EMA and its optimiser, moved one step at a time.

    Args:
        model: trained in place.
        options: learning rate, weight decay, seed, device, precision and threads are read from it.
        ema_decay: share of the average that one step leaves; the same at every step, or a function of it.
        rate: factor on the learning rate at a step; constant when absent.
        betas: of AdamW.
        young: let a young average forget faster, as a model trained from scratch needs; a teacher that starts
            from a trained model does not.
        rates, muon_rate: see :class:`~MAPSegLib.training.optimizer.Optimizer`.
    """

    def __init__(
        self,
        model: nn.Module,
        options,
        ema_decay: float | Callable[[int], float],
        rate: Callable[[int], float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        young: bool = False,
        rates: dict[str, float] | None = None,
        muon_rate: float = 0.0,
    ):
        prepare_process(options.threads)
        self.device = pick_device(options.device)
        self.inference = InferenceOptions(
            device=options.device, precision=options.precision, threads=options.threads
        )
        self.model = model.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.ema_decay, self.rate = ema_decay, rate or (lambda step: 1.0)
        self.young = young
        self.optimizer = Optimizer(self.model, options, betas, rates or {}, muon_rate)
        self.generator = Generator().manual_seed(options.seed)
        torch.manual_seed(options.seed)
        self.step = 0
        self.skipped = 0
        self.extra: dict = {}
        """What the setting itself must remember between checkpoints; plain values and tensors."""

    def autocast(self):
        return precision_context(self.device, self.inference.precision)

    def update(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        """One step on the sum of the named terms; a step whose gradient is not finite is skipped, and counted.

        Raises:
            MemoryExhausted: the step does not fit on the device.
        """
        try:
            return self._update(losses)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryExhausted(
                f"A training step does not fit into the memory of the {self.device.type} device.",
                "Use fewer patches a step, a smaller model, or the device cpu.",
            ) from error

    def _update(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        self.model.train()
        terms = losses()
        total = sum(terms.values())
        self.model.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        if torch.isfinite(norm):
            self.optimizer.step(self.rate(self.step))
            decay = self.ema_decay(self.step) if callable(self.ema_decay) else self.ema_decay
            if self.young:
                decay = min(decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        else:
            self.skipped += 1
        self.step += 1
        return {name: float(value.detach()) for name, value in terms.items()} | {
            "loss": float(total.detach())
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint beside ``path`` and rename it, so that a killed process leaves the last whole one."""
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "extra": self.extra,
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        temporary = path.with_name(path.name + ".part")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{path}: the checkpoint could not be written ({error}).", "Free some space."
            ) from error
        finally:  # also when interrupted
            temporary.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint: weights, average, optimiser, step and random state.

        Raises:
            InputError: the file is damaged, or of another architecture.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["torch"].cpu())
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
            self.step, self.skipped, self.extra = state["step"], state["skipped"], state["extra"]
        except Exception as error:
            raise InputError(
                f"{path}: this checkpoint cannot be resumed ({type(error).__name__}).",
                "Remove it to start afresh.",
            ) from error


def warmup_cosine(warmup: int, steps: int, floor: float = 0.02) -> Callable[[int], float]:
    """Linear warm-up, then a half cosine down to ``floor`` at the last step."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


class Record:
    """``metrics.jsonl``: one line per logged step, cut back to the checkpoint when a run resumes."""

    def __init__(self, path: Path, step: int):
        self.path = path
        kept = []
        if path.exists() and step > 0:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):  # the line a killed process left half-written
                    continue
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, step: int, **values) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


class Clock:
    """Seconds left, from the pace since this process started."""

    def __init__(self, step: int):
        self.start, self.first = time.monotonic(), step

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def left(self, step: int, steps: int) -> float | None:
        done = step - self.first
        return self.elapsed() / done * (steps - step) if done else None
