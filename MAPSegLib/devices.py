"""Where tensors live and in which precision they are multiplied."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache

import torch

from . import distributed
from .errors import InputError

_log = logging.getLogger(__name__)
_CUDNN = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
"""What TF32 is switched for; apart from each other, PyTorch's older switch could no longer be read."""
_OTHERS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
"""What else a caller may have made rougher than fp32."""


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA or Apple's GPU where they work, else the CPU; of several processes, each has its own GPU.

    Raises:
        InputError: a device was asked for that this machine lacks or that does not work, or there are not enough.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if has[d] and _computes(d))
    if not has[name]:
        raise InputError(f"This machine offers PyTorch no {name} device.", "Choose device auto or cpu.")
    if not _computes(name):
        raise InputError(
            f"The {name} device of this machine does not compute what the CPU does.",
            "Choose device auto or cpu.",
        )
    return distributed.own_device(torch.device(name))


@cache
def _computes(kind: str) -> bool:
    """Whether a trial gives what the CPU does: a card too old, or a driver that does not fit, fails only when used."""
    if kind == "cpu":
        return True
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trial = torch.nn.Sequential(
                torch.nn.Conv3d(8, 16, 4, 4),
                torch.nn.Conv3d(16, 16, 3, padding=1),
                torch.nn.GroupNorm(4, 16),
                torch.nn.ConvTranspose3d(16, 8, 4, 4),
            )
            image = torch.rand(1, 8, 16, 16, 16)
        with torch.inference_mode():
            expected = trial(image)
            found = trial.to(kind)(image.to(kind)).cpu()
        if torch.allclose(found, expected, atol=0.02):
            return True
        _log.warning("The %s device gives other results than the CPU, and is not used.", kind)
    except Exception as error:  # of many kinds
        _log.warning("The %s device does not work, and is not used: %s", kind, error)
    return False


@cache
def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware there."""
    if device.type == "cuda":
        # With these, PyTorch leaves cuDNN out of 3D convolutions in bf16: its own are slower than those in fp32, and
        # take a multiple of the memory (https://github.com/pytorch/pytorch/issues/166643).
        left_out = 90800 <= (torch.backends.cudnn.version() or 0) < 91500
        return torch.cuda.is_bf16_supported(including_emulation=False) and not left_out
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def precision_context(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 convolutions where ``precision`` is ``bf16``, or ``auto`` and the device computes them in hardware.

    Softmax, losses and the sums in GroupNorm stay in fp32. Asked for ``fp32``, CUDA is kept from its TF32.

    Raises:
        InputError: bf16 was asked for on Apple's GPU, where PyTorch has no transposed 3D convolutions in it.
    """
    for part in _CUDNN:
        part.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    if enabled and device.type == "mps":
        raise InputError(
            "Apple's GPU cannot segment in bf16.", "Choose precision auto or fp32, or device cpu."
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    text = str(error).lower()  # of other errors it may hold a path, in which "alloc" says nothing
    # The last two are cuDNN's own words for it.
    words = "alloc", "out of memory", "valid cudnn algorithm", "unable to find an engine"
    told = isinstance(error, RuntimeError) and any(word in text for word in words)
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return told or refused or isinstance(error, MemoryError)


def prepare_process(threads: int | None = None) -> None:
    """Set the number of CPU threads (None: as it is), and let glibc keep freed memory."""
    if threads:
        torch.set_num_threads(threads)
    _keep_memory()


@contextmanager
def settings_kept() -> Iterator[None]:
    """Work with PyTorch as it starts, whatever the caller has set, and leave the caller's as it was.

    Inside, gradients are recorded, new tensors are fp32 on the CPU, autocast is off, and matrices are multiplied in
    fp32. Random numbers, the number of CPU threads, and whether cuDNN may use TF32 are the caller's again afterwards.
    """
    threads, switched = torch.get_num_threads(), [(part, part.fp32_precision) for part in _CUDNN]
    products = "highest"
    with suppress(RuntimeError):  # the caller has used the newer switches, after which it cannot be read
        products = torch.get_float32_matmul_precision()
    dtype = torch.get_default_dtype()
    # asking a GPU that the caller has not used would take its memory
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    elsewhere = torch.get_default_device().type != "cpu"  # such a context costs every operation a little
    try:
        torch.set_default_dtype(torch.float32)
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        for part in _OTHERS:
            if (was := part.fp32_precision) not in ("none", "ieee"):
                switched.append((part, was))
                part.fp32_precision = "ieee"
        with (
            torch.device("cpu") if elsewhere else nullcontext(),
            _no_autocast(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(gpus),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        if products != "highest":
            torch.set_float32_matmul_precision(products)
        for part, was in switched:
            part.fp32_precision = "none"  # what holds for all of PyTorch, as it may have been
            if part.fp32_precision != was:
                part.fp32_precision = was


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Out of the caller's autocast. In one, even in one that is off, ours would go on with the weights' first casts."""
    depth = torch.autocast_increment_nesting() - 1  # nothing else tells
    on = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    keeps = torch.is_autocast_cache_enabled()
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    for kind in on:
        torch.set_autocast_enabled(kind, False)
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for kind in on:
            torch.set_autocast_enabled(kind, True)
        torch.set_autocast_cache_enabled(keeps)


@cache
def _keep_memory() -> None:
    """Let glibc keep freed memory.

    By default glibc maps every large tensor anew and the kernel zeroes its pages: about half of a CPU
    training step. Keeping the pages made the same step 1.8 times faster. But images of many sizes leave holes
    in such a heap, by gigabytes in some hundred steps: see :func:`trim_memory`.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(top_pad, 64 * 2**20)


def trim_memory() -> None:
    """Give the system what glibc keeps and nothing uses now."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
