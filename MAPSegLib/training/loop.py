"""What every training shares: the update, random streams, averaged weights, exact resume, the record."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import clear_frames
from typing import Generic, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import distributed, windows
from ..config import PretrainingOptions, PretrainingStep, StepOptions, TrainingOptions
from ..devices import is_out_of_memory, pick_device, precision_context, prepare_process, trim_memory
from ..errors import Cancelled, InputError, MAPSegError, MemoryExhausted
from ..reports import CHECKPOINT, PART, RECORD, plain, reason, unwritable, write_text
from .optimizer import Optimizer

T = TypeVar("T")
Report = Callable[..., None]
"""Called as ``report(event, **fields)``; raising from it ends a training."""

CLIP_NORM = 1.0
"""Largest gradient norm: mixed precision degrades without it."""
MOST_SKIPPED = 20
"""Steps in a row without a finite gradient, from which a training does not recover."""


def seed_of(seed: int, *place: str | int) -> int:
    """A seed for one place in a run, 32 bits: unlike those of all other places, whoever asks and when."""
    text = " ".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


class Loop:
    """A model, its EMA and its optimiser, moved one step at a time.

    A step is the mean of one or more micro-batches, shared out evenly where there are several processes
    (:mod:`MAPSegLib.distributed`). Before each, ``generator`` and PyTorch's own are seeded for that micro-batch of
    that step: what is drawn in it depends neither on the process nor on what was drawn before.

    Args:
        model: trained in place.
        options: learning rate, weight decay, accumulation, seed, device, precision and threads are read from it.
        ema_decay: share of the average that one step leaves; the same at every step, or a function of it. None where
            no average is wanted: ``ema`` is the model itself.
        rate: factor on the learning rate at a step; constant when absent.
        betas: of AdamW.
        young: let a young average forget faster, as a model trained from scratch needs; a teacher that starts
            from a trained model does not.
        rates, muon_rate: see :class:`~MAPSegLib.training.optimizer.Optimizer`.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PretrainingStep | StepOptions | TrainingOptions,
        ema_decay: float | Callable[[int], float] | None,
        rate: Callable[[int], float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        young: bool = False,
        rates: dict[str, float] | None = None,
        muon_rate: float = 0.0,
    ):
        prepare_process(options.threads)
        self.device = pick_device(options.device)
        self.inference = options.for_inference()
        self.model = model.to(self.device)
        self.replica = distributed.Replica(self.model)
        self.ema = self.model
        if ema_decay is not None:
            self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.ema_decay, self.rate = ema_decay, rate or (lambda step: 1.0)
        self.young = young
        self.optimizer = Optimizer(self.model, options, betas, rates or {}, muon_rate)
        self.seed, self.accumulate = options.seed, options.accumulate
        self.generator = Generator().manual_seed(options.seed)
        self.step = 0
        self.saved = 0
        """Step of the last checkpoint."""
        self.whole = True
        """Whether :meth:`done` was told of the last step: before that a checkpoint would not resume exactly."""
        self.part = 0
        """Number of the micro-batch at hand, over all processes."""
        self.skipped = 0
        """Steps in a row whose gradient was not finite."""
        self.extra: dict = {}
        """What the setting itself must remember between checkpoints; plain values and tensors."""

    def autocast(self):
        return precision_context(self.device, self.inference.precision)

    def update(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        """One step on the sum of the named terms; a step whose gradient is not finite is skipped.

        Args:
            losses: called once for every micro-batch of this process; draws from ``generator``.

        Returns:
            the terms and their sum (``loss``), means over the step's micro-batches.

        Raises:
            MemoryExhausted: the step does not fit on the device.
            MAPSegError: :data:`MOST_SKIPPED` steps in a row were skipped.
        """
        try:
            return self._update(losses)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            clear_frames(error.__traceback__)  # they hold the step: nobody who goes on would have more memory
            raise MemoryExhausted(
                f"A training step does not fit into the memory of the {self.device.type} device.",
                "Use fewer patches a step, a smaller model, or the device cpu.",
            ) from error

    def _update(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        first, told = distributed.rank() * self.accumulate, []
        for part in range(first, first + self.accumulate):
            self.part = part
            self.generator.manual_seed(seed_of(self.seed, "step", self.step, part))
            torch.manual_seed(seed_of(self.seed, "dropout", self.step, part))
            last = part == first + self.accumulate - 1
            terms = self.replica.backward(losses, 1 / self.accumulate, last)
            told.append(torch.stack([*terms.values(), sum(terms.values())]))
        values = distributed.mean(sum(told) / self.accumulate).tolist()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.whole = False
        if torch.isfinite(norm):
            self.skipped = 0
            self.optimizer.step(self.rate(self.step))
            self._average()
        else:
            self.skipped += 1
            if self.skipped == MOST_SKIPPED:
                raise MAPSegError(
                    f"{MOST_SKIPPED} steps in a row had no finite gradient: the training diverged.",
                    "Use a lower learning rate, or precision fp32.",
                )
        self.step += 1
        return dict(zip([*terms, "loss"], values, strict=True))

    def _average(self) -> None:
        if self.ema_decay is None:
            return
        decay = self.ema_decay(self.step) if callable(self.ema_decay) else self.ema_decay
        if self.young:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.ema.parameters()), list(self.model.parameters()), None)

    def done(self, path: Path, every: int) -> None:
        """Say that all that belongs to the step is done, and write a checkpoint every so many steps."""
        self.whole = True
        if self.step % every == 0:
            self.save(path)

    def note(self, network: nn.Module, better: bool, **known: float) -> None:
        """Remember a network that was judged at this step where it is the best so far, else that it was not.

        Args:
            known: of it, and remembered with its weights.
        """
        if better:
            best = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.extra |= {**known, "best": best, "best_step": self.step, "waited": 0}
        else:
            self.extra["waited"] = self.extra.get("waited", 0) + 1

    @contextmanager
    def cancellable(self, path: Path) -> Iterator[None]:
        """Write a checkpoint when the block is cancelled, unless that happens while a step moves the weights."""
        try:
            yield
        except (KeyboardInterrupt, Cancelled):
            if self.whole and self.step > self.saved:
                with suppress(InputError):  # it is cancelled all the same
                    self.save(path)
            raise

    def save(self, path: Path) -> None:
        """Write a checkpoint beside ``path`` and rename it, so that a killed process leaves the last whole one.

        The memory is trimmed as well: what trains for long saves every so often.
        """
        trim_memory()
        if distributed.rank():
            return
        state = {
            "seed": self.seed,
            "step": self.step,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": self.extra,
        }
        temporary = path.with_name(path.name + PART)
        try:
            # A link that somebody has put there would lead into another file.
            windows.remove(temporary)
            # By name: through a file of Python's, a signal meanwhile would look like a disk that refuses.
            torch.save(state, temporary)
            windows.replace(temporary, path)
            self.saved = self.step
        except (OSError, RuntimeError) as error:  # what PyTorch says is for its programmers
            windows.close_files(error)
            why = f": {reason(error)}" if isinstance(error, OSError) else ""
            raise InputError(
                f"The checkpoint {path} could not be written{why}.", "Free some space."
            ) from error
        finally:  # also when interrupted
            windows.remove(temporary)

    def resume(self, path: Path) -> None:
        """Continue from the checkpoint, if there is one. Raises InputError as :meth:`load` does."""
        if distributed.on_first(path.exists):
            self.load(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint: weights, average, optimiser, seed and step.

        Raises:
            InputError: the file cannot be read, is damaged, or of another architecture.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seed, self.step = state["seed"], state["step"]
            self.skipped, self.extra = state["skipped"], state["extra"]
            self.saved = self.step
        except OSError as error:
            raise InputError(
                f"The checkpoint {path} cannot be read: {reason(error)}.",
                "Make it readable to continue, or remove it to start afresh.",
            ) from error
        except Exception as error:
            raise InputError(
                f"{path}: this checkpoint cannot be resumed ({type(error).__name__}).",
                "Remove it to start afresh.",
            ) from error


def take_steps(
    loop: Loop,
    losses: Callable[[], dict[str, Tensor]],
    options: PretrainingOptions | TrainingOptions,
    folder: Path,
    report: Report,
    stage: str,
    judge: Callable[[Record], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Take the steps of a training that are left, and keep its record and its checkpoint in ``folder``.

    Args:
        losses: of a micro-batch (:meth:`Loop.update`).
        report: told ``progress`` of the ``stage`` at every step.
        judge: called after every step, for what a training looks at now and then.
        enough: asked before every step whether to end early.
    """
    checkpoint = folder / CHECKPOINT
    record, clock = Record(folder / RECORD, loop.step), Clock(loop.step, loop.extra)
    with loop.cancellable(checkpoint):
        while loop.step < options.steps and not enough():
            values = loop.update(losses)
            seconds = round(clock.total(), 1)  # at every step, as any may be the last that a checkpoint keeps
            if loop.step % 10 == 0 or loop.step == options.steps:
                record.add(loop.step, seconds=seconds, **values)
            judge(record)
            loop.done(checkpoint, options.checkpoint_every)
            report(
                "progress",
                stage=stage,
                step=loop.step,
                steps=options.steps,
                seconds_left=clock.left(loop.step, options.steps),
                losses=values,
            )
        loop.save(checkpoint)


class Reused(Generic[T]):
    """What is drawn for a micro-batch and serves it for several steps; drawn again, alike, when a run is resumed.

    While a GPU computes, the next one is drawn: that is the CPU's work, and takes it longer than a step takes a GPU.
    """

    def __init__(self, draw: Callable[[Generator], T], steps: int):
        self.draw, self.steps = draw, steps
        self.held: dict[int, tuple[int, T]] = {}
        self.coming: dict[int, tuple[int, Future[T]]] = {}
        self.aside = ThreadPoolExecutor(1)

    def __call__(self, loop: Loop) -> T:
        block, part = loop.step // self.steps, loop.part
        if self.held.get(part, (None,))[0] != block:
            begun, future = self.coming.pop(part, (None, None))
            self.held[part] = (
                block,
                future.result() if begun == block else self._drawn(loop.seed, block, part),
            )
            if loop.device.type != "cpu":
                self.coming[part] = block + 1, self.aside.submit(self._drawn, loop.seed, block + 1, part)
        return self.held[part][1]

    def _drawn(self, seed: int, block: int, part: int) -> T:
        return self.draw(Generator().manual_seed(seed_of(seed, "draw", block, part)))


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Linear warm-up, then a half cosine, which would reach a fiftieth after the last step."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

    return factor


class Record:
    """``metrics.jsonl``: one line per logged step, cut back to the checkpoint when a run resumes.

    Of several processes, the first one keeps it.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        if distributed.rank():
            return
        kept = []
        if path.exists() and step > 0:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):  # the line a killed process left half-written
                    continue
        write_text(path, "".join(line + "\n" for line in kept), overwrite=True)

    def add(self, step: int, **values) -> None:
        if distributed.rank():
            return
        try:
            with windows.patiently(lambda: self.path.open("a", encoding="utf-8")) as file:
                file.write(json.dumps(plain({"step": step, **values})) + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error


class Clock:
    """Seconds left, from the pace since this process started, and seconds of the whole run.

    Args:
        step: at which this process starts.
        extra: of the loop (:attr:`Loop.extra`), where the run's seconds are kept for a process that resumes it.
    """

    def __init__(self, step: int, extra: dict):
        self.start, self.first, self.extra = time.monotonic(), step, extra
        self.before = extra.get("seconds", 0.0)

    def elapsed(self) -> float:
        """Of this process."""
        return time.monotonic() - self.start

    def total(self) -> float:
        """Of all processes until now, which the next checkpoint keeps."""
        self.extra["seconds"] = self.before + self.elapsed()
        return self.extra["seconds"]

    def left(self, step: int, steps: int) -> float | None:
        done = step - self.first
        return self.elapsed() / done * (steps - step) if done else None
