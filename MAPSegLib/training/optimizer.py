"""AdamW, and Muon for the large convolutions where it is asked for, moved as one optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import unwrap

import torch
from torch import Tensor, nn

from ..config import PretrainingStep, StepOptions, TrainingOptions

MUON_INPUTS = 64
"""Convolutions with more inputs per output than this go to Muon: the stem, the logits and all vectors do not."""


class _Uncompiled:
    """PyTorch's functions without what is around them for ``torch.compile``.

    It would import the whole compiler: longer than all else that a short adaptation imports, and nothing here uses it.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class _AdamW(_Uncompiled, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class _Muon(_Uncompiled, torch.optim.Muon):
    step = torch.no_grad()(unwrap(torch.optim.Muon.step))


class Optimizer:
    """The optimiser of a training loop.

    Muon (https://kellerjordan.github.io/posts/muon) makes every update of a weight matrix orthogonal, so that rare
    directions are learnt as fast as common ones. A convolution's weight is the matrix of its outputs by all their
    inputs. From scratch, the losses of AdamW at 200 steps were reached at 150.

    Args:
        options: learning rate and weight decay are read from it.
        betas: of AdamW.
        rates: learning rates, without weight decay, of the parameters whose name starts with a key.
        muon_rate: learning rate of Muon; 0 leaves all to AdamW, as published.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PretrainingStep | StepOptions | TrainingOptions,
        betas: tuple[float, float],
        rates: Mapping[str, float],
        muon_rate: float = 0.0,
    ):
        groups = {"": {"params": [], "base": options.learning_rate, "weight_decay": options.weight_decay}}
        groups |= {
            prefix: {"params": [], "base": rate, "weight_decay": 0.0} for prefix, rate in rates.items()
        }
        self._convolutions: list[Tensor] = []
        for name, parameter in model.named_parameters():
            own = next((prefix for prefix in rates if name.startswith(prefix)), "")
            if muon_rate and not own and parameter.ndim == 5 and parameter[0].numel() > MUON_INPUTS:
                self._convolutions.append(parameter)
            else:
                groups[own]["params"].append(parameter)
        adamw = _AdamW(list(groups.values()), lr=options.learning_rate, betas=betas, foreach=True)
        self._parts: list[torch.optim.Optimizer] = [adamw]
        # Muon wants matrices: views that share the weights' memory
        self._matrices = [p.detach().flatten(1).requires_grad_() for p in self._convolutions]
        if self._matrices:
            group = {"params": self._matrices, "base": muon_rate}
            self._parts.append(_Muon([group], lr=muon_rate, weight_decay=options.weight_decay))

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self, factor: float) -> None:
        """One step at ``factor`` times the learning rates, from the gradients of the model's parameters."""
        for group in self.param_groups:
            group["lr"] = group["base"] * factor
        for matrix, parameter in zip(self._matrices, self._convolutions, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self._parts:
            part.step()
        for matrix in self._matrices:
            matrix.grad = None  # a view: it would keep the gradient for another step

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the state is of other parameters."""
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own)
