"""One file per model: weights in safetensors, and a card in its header that says all that using it needs.

A model is named by its file (``brain-t1.safetensors``) and found among the embedded models, then in the user's
folder. Loading never unpickles.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from .config import Architecture, Label, Options, Preprocessing, check_path
from .errors import InputError
from .reports import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from .networks.segmenter import Segmenter

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
_KEY = "mapseg"
_HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


class ModelCard(Options):
    """What a model is, was made of, and expects.

    Class 0 of the network is the background; class i + 1 is ``labels[i]``.
    """

    format_version: int = FORMAT_VERSION
    name: str = Field(min_length=1)
    description: str = ""
    architecture: Architecture
    preprocessing: Preprocessing
    labels: tuple[Label, ...] = Field(min_length=1)
    provenance: dict[str, Any] = Field({}, description="data, steps, seed, versions")
    scores: dict[str, Any] = Field({}, description="measured Dice, by test set")
    priors: dict[str, Any] = Field(
        {}, description='of the source: "volumes" holds [mean, deviation] of log ml per label value'
    )
    license: str = ""

    @model_validator(mode="after")
    def _check(self) -> ModelCard:
        values = [label.value for label in self.labels]
        if len(set(values)) < len(values):
            raise ValueError("two labels share a value")
        return self


def save_model(path: Path, state: Mapping[str, Tensor], card: ModelCard, overwrite: bool = False) -> Path:
    """Write a model file; it appears under its name only when complete.

    Args:
        state: the weights of a :class:`~MAPSegLib.networks.segmenter.Segmenter`; half precision is kept on disk.

    Raises:
        InputError: the file exists and ``overwrite`` is off, or the disk refuses.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(Path(path), overwrite) as temporary:
        temporary.write_bytes(save(tensors, metadata={_KEY: card.model_dump_json()}))
    return Path(path)


def load_card(path: Path) -> ModelCard:
    """Read the card from a model file's header, without its weights.

    Raises:
        InputError: missing, damaged, pickled, not a MAPSeg model, or from a newer version of the format.
    """
    path = Path(path)
    metadata = _header(path).get("__metadata__", {})
    if _KEY not in metadata:
        raise InputError(
            f"{path.name} holds weights but no MAPSeg model card.", "Choose a file from `mapseg models`."
        )
    try:
        content = json.loads(metadata[_KEY])
        version = content["format_version"]
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path.name} is in model format {version}, but this MAPSeg reads up to {FORMAT_VERSION}.",
                "Update MAPSeg.",
            )
        return ModelCard.model_validate(content)
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path.name} has a damaged model card.", "Get the file again.") from error


def load_model(path: Path, device: str = "cpu") -> tuple[Segmenter, ModelCard]:
    """Load a model in evaluation mode, in fp32.

    Raises:
        InputError: as for :func:`load_card`, or weights that do not fit the card.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .devices import pick_device
    from .networks.segmenter import Segmenter

    path, card = Path(path), load_card(path)
    model = Segmenter(card.architecture, card.labels)
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path.name} is damaged: its weights do not fit its card.", "Get the file again."
        ) from error
    return model.to(pick_device(device)).eval(), card


def resolve(name: str | Path) -> Path:
    """The file of a model, given its name or its path.

    Raises:
        InputError: no such model; the message names those there are.
    """
    known = {path.stem: path for path in reversed(_model_files())}
    path = check_path(name)
    if str(name) in known:
        return known[str(name)]
    if path.is_file():
        return path
    if path.suffix or path.parent != Path.cwd():
        raise InputError(f"The model file {path} does not exist.", "Check the path.")
    listed = ", ".join(sorted(known)) or "none"
    raise InputError(f"Unknown model {name}; known: {listed}.", "Give one of these names, or a model file.")


def list_models() -> list[tuple[str, Path, ModelCard]]:
    """Name, file and card of the embedded models, then of the user's. Unreadable files are logged and left out."""
    found = {}
    for path in _model_files():
        try:
            found.setdefault(path.stem, (path.stem, path, load_card(path)))
        except InputError as error:
            logging.getLogger(__name__).warning("%s", error)
    return list(found.values())


def user_folder() -> Path:
    """Where a user's models are kept: ``$MAPSEG_HOME/models``, or ``~/.mapseg/models``."""
    return check_path(os.environ.get("MAPSEG_HOME") or "~/.mapseg") / "models"


def _model_files() -> list[Path]:
    package = Path(__file__).resolve().parent
    folders = (package.parent / "Resources" / "Models", package / "_models", user_folder())
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob(f"*{SUFFIX}"))]


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, once the file is known to be whole."""
    if not path.is_file():
        raise InputError(f"The model file {path} does not exist.", "Check the path.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
                raise InputError(
                    f"{path.name} is a pickled checkpoint, which MAPSeg does not run.",
                    "Turn it into a model with `mapseg import`.",
                )
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_HEADER_LIMIT, path.stat().st_size):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        if path.stat().st_size != 8 + length + end:
            raise ValueError("truncated")
        return header
    except OSError as error:
        raise InputError(f"{path} cannot be read.", "Check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path.name} is not a MAPSeg model file, or is damaged.", "Get the file again."
        ) from error
