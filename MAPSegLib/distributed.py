"""Several processes that train as one, started by ``torchrun``: who does what, and how they agree.

Every process has the whole model and reads all data. A step's micro-batches are numbered through, each process computes
its own, and gradients are averaged. A micro-batch draws its scans, patches, masks and dropout from a stream of its own
(:class:`~MAPSegLib.training.loop.Loop`): that is what shares out domains and scans, and why N processes do what one
does with N times the accumulation. Each process has the same weights, average and optimiser at every step, so that a
checkpoint is the same, too.

The first process alone writes files, tells events and decides what a clock or a user's order decides; the others learn
it (:func:`on_first`). Without torchrun nothing here does anything, nor imports :mod:`torch.distributed`.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .errors import InputError, MAPSegError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

WAIT = timedelta(hours=12)
"""How long a process waits for another: the first one may segment many scans. torchrun ends all if one dies."""
PATIENCE = 5.0
"""Seconds that a process that failed waits for the others to fail as well."""
_store: torch.distributed.Store | None = None


def world() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Which of them this is; 0 is the first."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def join() -> None:
    """Meet the other processes. GPUs talk over NCCL where PyTorch has it (not on Windows), all else goes over gloo."""
    global _store
    if world() == 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
        # before anything tries CUDA, which opens a context on the current GPU
        if (mine := int(os.environ["LOCAL_RANK"])) < torch.cuda.device_count():
            torch.cuda.set_device(mine)
    shared, number, count = next(rendezvous("env://"))
    store = dist.PrefixStore(_agree(shared, number, count), shared)
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=number, world_size=count, timeout=WAIT)
    _store = dist.PrefixStore("failures", store)


def _agree(store: torch.distributed.Store, number: int, count: int) -> str:
    """A word that only the processes started together know, as the store keeps what those before a restart wrote.

    The first process thinks of it and leaves it under the names that it finds; old names do not matter, since nobody
    looks there any more.
    """
    word = uuid.uuid4().hex
    if number == 0:
        others = range(1, count)
        while not store.check([f"{word} {other}" for other in others]):
            for other in others:
                if store.check([f"name {other}"]):
                    store.set(f"word for {store.get(f'name {other}').decode()}", word)
            time.sleep(0.05)
        return word
    name = word
    store.set(f"name {number}", name)
    while not store.check([f"word for {name}"]):
        time.sleep(0.05)
    word = store.get(f"word for {name}").decode()
    store.set(f"{word} {number}", "")
    return word


def leave() -> None:
    """Part from the others, after work that went well."""
    global _store
    if _store is not None:
        import torch.distributed as dist

        dist.destroy_process_group()
        _store = None


def end(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several skips the interpreter's own way out, which threads of gloo that still run can abort. On that way,
    which takes a second with PyTorch, a signal would only change the code of what is done.
    """
    if world() == 1:
        atexit.register(ignore_signals)
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ignore_signals() -> None:
    """From now on, those that ask a process to end: it is on its way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: with CUDA, a GPU for each.

    Raises:
        InputError: there are more processes than GPUs, or they would share Apple's.
    """
    if world() == 1 or device.type == "cpu":
        return device
    import torch

    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.type != "cuda":
        raise InputError(f"Several processes cannot share the device {device.type}.", "Choose device cpu.")
    if number >= count:
        raise InputError(
            f"torchrun started more processes here than there are GPUs ({count}).",
            f"Give it --nproc-per-node {count}, or choose device cpu.",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def on_first(work: Callable[[], T]) -> T:
    """What ``work`` gives in the first process, in all of them; the others wait for it and do not run it.

    Raises:
        MAPSegError: ``work`` raised it: in every process.
    """
    if world() == 1:
        return work()
    import torch.distributed as dist

    told: list = [None, None]
    if rank() == 0:
        try:
            told[0] = work()
        except MAPSegError as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


class Replica:
    """A model of which every process has a copy; all start from the first one's weights.

    DistributedDataParallel averages gradients while they are still being computed, but wants one forward that it is
    called through. Ours are many (``encode``, ``decode``, a teacher between them), so that the one forward is that of
    a micro-batch: from the model to its losses.
    """

    def __init__(self, model: nn.Module):
        self.parallel = None
        if world() > 1:
            from torch import nn
            from torch.nn.parallel import DistributedDataParallel

            class Losses(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.model = model

                def forward(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
                    return losses()

            # said of convolutions over single voxels, whose few gradients are copied
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            # a warm-up, whose scans pass by the intensity curve, gives it no gradient
            curved = any("curve." in name for name, _ in model.named_parameters())
            self.parallel = DistributedDataParallel(Losses(), find_unused_parameters=curved)

    def backward(
        self, losses: Callable[[], dict[str, Tensor]], share: float, last: bool
    ) -> dict[str, Tensor]:
        """Add the gradients of ``share`` of the losses' sum to the model's, and return the losses by name.

        Args:
            losses: scalars, computed with the model.
            last: no more is to be added: average the gradients over the processes.
        """
        context = nullcontext() if self.parallel is None or last else self.parallel.no_sync()
        with context:
            terms = losses() if self.parallel is None else self.parallel(losses)
            (share * sum(terms.values())).backward()
        return {name: value.detach() for name, value in terms.items()}


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values / world()


def is_lost(error: BaseException) -> bool:
    """Whether an error only says that another process cannot be reached."""
    if world() == 1:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def tell_once(tell: Callable[[], None]) -> None:
    """Tell why the work failed, unless another process has: by the first one, if it failed as well.

    Processes that fail together, as with bad input, wait for each other, so that torchrun ends none of them before it
    has come to its own exit code.
    """
    if _store is None:
        if rank() == 0:
            tell()
        return

    def claim() -> None:
        if _store.add("told", 1) == 1:
            tell()

    with suppress(RuntimeError):  # torchrun, which keeps the store, has gone
        if rank() == 0:
            claim()
        _store.set(f"failed {rank()}", "")
        everyone, until = [f"failed {number}" for number in range(world())], time.monotonic() + PATIENCE
        while not _store.check(everyone) and time.monotonic() < until:
            time.sleep(0.05)
        claim()
