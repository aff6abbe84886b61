"""One file per model: weights in safetensors, and a card in its header that says all that using it needs.

A model is named by its file (``brain-t1.safetensors``) and found among the embedded models, then in the user's
folder. Loading never unpickles.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .config import Architecture, Label, Name, Options, Preprocessing, check_path
from .errors import InputError, MAPSegError
from .model_files import (
    CARD_KEY,
    DIGEST_KEY,
    FORMAT_VERSION,
    SUFFIX,
    damaged_card,
    model_files,
    read_card,
)
from .reports import plain, replacing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .networks.segmenter import Segmenter


_Pair = tuple[float, float]


class _Priors(BaseModel):
    """What is read of a card's priors; what else is in them nobody asks."""

    model_config = ConfigDict(allow_inf_nan=False)
    extents: dict[str, tuple[_Pair, _Pair, _Pair]] = {}
    often_absent: tuple[int, ...] = ()
    trust: dict[str, float] = {}


class ModelCard(Options):
    """What a model is, was made of, and expects.

    Class 0 of the network is the background; class i + 1 is ``labels[i]``. A pretrained encoder, a file of kind
    ``encoder``, has no labels; the sizes of its head are those that a training will give it. A ``choice`` has no
    weights: of its ``members``, which have its labels, every scan gets the one with the better supported result.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["segmenter", "encoder", "choice"] = "segmenter"
    name: str = Field(min_length=1)
    description: str = ""
    architecture: Architecture
    preprocessing: Preprocessing
    # Not shown: hundreds of lines in a notebook, with those below.
    labels: tuple[Label, ...] = Field(default=(), repr=False)
    members: tuple[Name, ...] = Field(
        default=(), max_length=16, description="of a choice: names of the models, beside it or known by name"
    )
    provenance: dict[str, Any] = Field(default={}, repr=False, description="data, steps, seed, versions")
    scores: dict[str, Any] = Field(default={}, repr=False, description="measured Dice, by test set")
    priors: dict[str, Any] = Field(
        default={},
        repr=False,
        description='of the source: "extents" holds, per label value, [mean, deviation] of log mm along three axes; '
        '"often_absent" lists the values that scans may well lack',
    )
    license: str = ""

    @model_validator(mode="after")
    def _check(self) -> ModelCard:
        values = [label.value for label in self.labels]
        if len(set(values)) < len(values):
            raise ValueError("two labels share a value")
        if bool(values) != (self.kind != "encoder"):
            raise ValueError("a segmenter has labels, and an encoder has none")
        if bool(self.members) != (self.kind == "choice"):
            raise ValueError("a choice has members, and no other model has")
        _Priors.model_validate(self.priors)
        return self

    @property
    def priors_elsewhere(self) -> dict[str, Any]:
        """The priors, for a model adapted to scans that do not look like those this one was trained on."""
        return {name: known for name, known in self.priors.items() if name != "intensity"}


def save_model(path: Path, state: Mapping[str, Tensor], card: ModelCard, overwrite: bool = False) -> Path:
    """Write a model file; it appears under its name only when complete.

    Args:
        state: the weights of a :class:`~MAPSegLib.networks.segmenter.Segmenter`, or those of its encoder alone;
            half precision is kept on disk.

    Raises:
        InputError: the file exists and ``overwrite`` is off, or the disk refuses.
        MAPSegError: the weights are not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise MAPSegError(
            f"{Path(path).name} is not written: its weights are not finite numbers, as the training diverged.",
            "Use a lower learning rate, or precision fp32.",
        )
    told = card.model_dump_json()
    with replacing(Path(path), overwrite) as temporary:
        _write(temporary, tensors, {CARD_KEY: told, DIGEST_KEY: _digest(tensors, told)})
    return Path(path)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. The library would order the metadata by chance, and no two files would be alike."""
    from safetensors.torch import save

    content = memoryview(save(dict(tensors)))
    start = 8 + int.from_bytes(content[:8], "little")
    fields = {"__metadata__": metadata} | json.loads(bytes(content[8:start]))
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that weights begin where the format wants them
    with path.open("wb") as file:
        file.writelines((len(header).to_bytes(8, "little"), header, content[start:]))


def load_card(path: Path, encoder: bool = False, choice: bool = False) -> ModelCard:
    """Read the card from a model file's header, without its weights.

    Args:
        encoder: whether a pretrained encoder will do.
        choice: whether a choice between models will do.

    Raises:
        InputError: missing, damaged, pickled, not a MAPSeg model, from a newer version of the format, or of a kind
            that will not do.
    """
    path = Path(path)
    content = read_card(path)
    try:
        card = ModelCard.model_validate(content)
    except (ValueError, TypeError) as error:
        raise damaged_card(path) from error
    if card.kind == "encoder" and not encoder:
        raise InputError(
            f"{path.name} is a pretrained encoder, which cannot segment.",
            "Train a model from it with `mapseg train --init`.",
        )
    if card.kind == "choice" and not choice:
        raise InputError(
            f"{path.name} is a choice between models, and one is needed here.",
            f"Give one of {', '.join(card.members)}.",
        )
    return card


def members(path: Path) -> list[Path]:
    """The model files that a file stands for: itself, or those that it is a choice between.

    Raises:
        InputError: as for :func:`load_card`, or a member is missing or has other labels.
    """
    card = load_card(path, choice=True)
    if card.kind != "choice":
        return [path]
    found = []
    for name in card.members:
        beside = path.with_name(f"{name}{SUFFIX}")
        found.append(beside if beside.is_file() else resolve(name))
        if load_card(found[-1]).labels != card.labels:
            raise InputError(f"{path.name}: its member {name} has other structures.", "Get the file again.")
    return found


def load_model(path: Path, device: str = "cpu") -> tuple[Segmenter, ModelCard]:
    """Load a model in evaluation mode, in fp32.

    Raises:
        InputError: as for :func:`load_card`, or weights that do not fit the card.
    """
    from .devices import pick_device
    from .networks.segmenter import Segmenter

    path, card = Path(path), load_card(path)
    model = Segmenter(card.architecture, card.labels)
    _fill(model, path)
    return model.to(pick_device(device)).eval(), card


def load_encoder(path: Path, model: Segmenter) -> None:
    """Give a model the weights of a pretrained encoder, whose card is known; its head keeps its own.

    Raises:
        InputError: the weights do not fit the model's encoder.
    """
    _fill(model.encoder, Path(path), "encoder.")


def _fill(network: nn.Module, path: Path, prefix: str = "") -> None:
    """Load all weights of a file, whose names have ``prefix`` before the network's own."""
    from safetensors import SafetensorError, safe_open

    if plain(str(path)) != str(path):  # which the library does not open
        raise InputError(
            f"{path}: its name or its folder's is not UTF-8.", "Rename it, or copy the model elsewhere."
        )
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # files from before there was a digest have none
        if DIGEST_KEY in told and told[DIGEST_KEY] != _digest(tensors, told[CARD_KEY]):
            raise InputError(
                f"{path.name} is damaged: its weights or its card are not those that were saved.",
                "Get the file again.",
            )
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise RuntimeError("whole numbers")
        state = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise InputError(f"{path.name} holds weights that are not finite numbers.", "Get the file again.")
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path.name} is damaged: its weights do not fit its card.", "Get the file again."
        ) from error


def _digest(tensors: Mapping[str, Tensor], card: str) -> str:
    """Of a model's weights and card: one wrong bit makes another model, which nothing else would reveal."""
    import torch

    digest = hashlib.blake2b(card.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def resolve(name: str | Path) -> Path:
    """The file of a model, given its name or its path.

    Raises:
        InputError: no such model; the message names those there are.
    """
    known = {path.stem: path for path in reversed(model_files())}
    if str(name) in known:
        return known[str(name)]
    path = check_path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a model file is needed.", "Give the file in it.")
    if path.suffix == SUFFIX or len(Path(name).parts) > 1:
        raise InputError(f"The model file {path} does not exist.", "Check the path.")
    listed = ", ".join(sorted(known)) or "none"
    raise InputError(f"Unknown model {name}; known: {listed}.", "Give one of these names, or a model file.")


def list_models() -> list[tuple[str, Path, ModelCard]]:
    """Name, file and card of the embedded models, then of the user's. Unreadable files are logged and left out."""
    found = {}
    for path in model_files():
        try:
            found.setdefault(path.stem, (path.stem, path, load_card(path, encoder=True, choice=True)))
        except InputError as error:
            logging.getLogger(__name__).warning("%s", error)
    return list(found.values())
