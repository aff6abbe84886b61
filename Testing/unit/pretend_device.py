"""A device that is not there, for tests on machines without a GPU: what would fail on one fails here as well.

Its tensors live in the CPU's memory and are computed there, but say that they are on another device. Where they meet a
tensor of the CPU in one operation, or a generator of the CPU, that raises as CUDA would; float64 raises as on Apple's
GPU. It goes by the name of PyTorch's ``meta`` device: the one that autograd knows everywhere.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
_CROSSING = {"copy_", "_to_copy", "_foreach_copy_"}
_WAITING = {"_local_scalar_dense", "nonzero", "bincount", "equal"}
"""What a GPU's queue has to be empty for; so has a copy to the CPU."""


class OnDevice(torch.Tensor):
    """A tensor of the pretended device, around one of the CPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        if held.dtype == torch.float64:
            raise TypeError("The pretended device has no float64.")
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} of a tensor of the pretended device, outside of it.")

    def tolist(self):  # which PyTorch refuses to wrappers
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):  # as files hold them, for map_location="cpu"
        return self.held.detach().clone().__reduce_ex__(protocol)


class PretendDevice(TorchDispatchMode):
    """Within it, the pretended device is there.

    Attributes:
        operations: how often each ran on the device.
        waits: how often the device had to be waited for.
        full: a function of an operation's name and tensors that tells when memory runs out.
    """

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits = 0
        self.full = lambda name, tensors: False
        self.alive: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function.overloadpacket.__name__
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        mine = [one for one in tensors if isinstance(one, OnDevice)]
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked) == DEVICE:
            kwargs["device"] = "cpu"
        result_here = bool(mine) if asked is None else torch.device(asked) == DEVICE
        if result_here or mine:
            self._check(name, args, kwargs, tensors, result_here)
        held = {id(one.held): one for one in mine}
        plain_args, plain_kwargs = tree_map_only(OnDevice, lambda one: one.held, (args, kwargs))
        result = function(*plain_args, **plain_kwargs)
        if name == "_local_scalar_dense" or not (result_here or mine):
            return result

        def labelled(one: torch.Tensor) -> torch.Tensor:
            if id(one) in held:  # changed in place
                return held[id(one)]
            if not result_here or any(one is other for other in tensors):
                return one
            made = OnDevice(one)
            self.alive.add(made.held)
            return made

        return tree_map_only(torch.Tensor, labelled, result)

    def _check(self, name, args, kwargs, tensors, result_here) -> None:
        self.operations[name] += 1
        self.waits += name in _WAITING or not result_here
        if self.full(name, tensors):
            raise torch.OutOfMemoryError("The pretended device is out of memory.")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: Expected a generator of the device, but found one of the CPU.")
        if name in _CROSSING:
            return
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):  # indices may be on the CPU
            tensors = [args[0], *(one for one in args[2:] if isinstance(one, torch.Tensor))]
        others = [one for one in tensors if not isinstance(one, OnDevice)]
        if others and len(others) < len(tensors):
            stray = [tuple(one.shape) for one in others if one.ndim]
            if stray and not name.startswith("_fused"):
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device; on the CPU: {stray}"
                )

    def bytes(self) -> int:
        """Of the tensors that the device holds."""
        storages = [held.untyped_storage() for held in self.alive]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def pretended() -> Iterator[PretendDevice]:
    """The pretended device, which MAPSegLib takes for this machine's GPU."""
    from MAPSegLib import devices, inference
    from MAPSegLib.training import loop

    made = torch.tensor
    with pytest.MonkeyPatch.context() as patch, PretendDevice() as device:
        for module in (devices, inference, loop):
            patch.setattr(module, "pick_device", lambda name="auto": DEVICE)
        # What looks at a device's name, or at how a tensor is made, before any operation.
        patch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        patch.setattr(torch, "tensor", lambda *args, device=None, **kwargs: made(*args, **kwargs).to(device))
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad() if mode else nullcontext())
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        yield device
