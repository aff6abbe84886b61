"""Import of the state dicts that the paper's authors publish (``.pth``) as models of our own format."""

from __future__ import annotations

import pickle  # for the name of its error only
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Architecture, Label, Preprocessing
from .errors import InputError
from .model_files import is_pickled, read_card, user_folder
from .models import ModelCard, save_model

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = (
    (re.compile(r"^local_encoder\.(\d+)\.basic_module\."), r"encoder.\1."),
    (re.compile(r"^seg_decoder\.classifier\."), "head."),
)
_PREFIXES = ("teacher.", "student.", "")
"""After adaptation a checkpoint holds both; the teacher is the average that the authors evaluate."""


def import_checkpoint(
    source: Path,
    destination: Path,
    *,
    name: str,
    labels: Sequence[Label] = (),
    preprocessing: Preprocessing | None = None,
    patch: int = 96,
    license: str = "",
    overwrite: bool = False,
) -> ModelCard:
    """Turn an authors' checkpoint into a model file.

    Widths, depth and classes are read off the weights' shapes; the dilations, which these do not tell, are the paper's.
    A checkpoint without a segmentation head, as masked autoencoding leaves it, becomes a pretrained encoder; its
    decoder is not kept.

    Args:
        labels: the structures in class order; numbered ones when absent. Each is its own logit there, so
            mirror pairs are not kept. An encoder has none.
        patch: edge in voxels of the local patches and of the resized whole scan.

    Raises:
        InputError: the file would need pickled code to run, is not such a checkpoint, or the labels do not fit.
    """
    file = source.name
    weights = _weights(_read(source), file)
    architecture, classes = _architecture(weights, file, patch)
    labels = tuple(labels) or tuple(Label(value=i, name=f"structure {i}") for i in range(1, classes))
    if labels and classes == 1:
        raise InputError(
            f"{file} holds a pretrained encoder, which has no structures.",
            "Leave the label table out; `mapseg train` takes it.",
        )
    if len(labels) != classes - 1:
        raise InputError(f"{file} has {classes - 1} structures, but the label table names {len(labels)}.")
    card = ModelCard(
        kind="segmenter" if labels else "encoder",
        name=name,
        architecture=architecture,
        preprocessing=preprocessing or Preprocessing(),
        labels=tuple(label.model_copy(update={"mirror": None}) for label in labels),
        provenance={"imported_from": file},
        license=license,
    )
    _check_fit(weights, card, file)
    save_model(destination, weights, card, overwrite)
    return card


def _read(path: Path) -> dict[str, Tensor]:
    import torch

    if path.is_dir():
        raise InputError(f"{path} is a folder, and a checkpoint is needed.", "Give the file in it.")
    if not path.is_file():
        raise InputError(f"{path} does not exist.", "Check the path.")
    if _has_card(path):
        raise InputError(
            f"{path.name} is a model already.",
            f"Commands take it as it is, and by its name once it is copied to {user_folder()}.",
        )
    advice = "Export its state dict alone, as torch.save(model.state_dict(), path) does."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways, other ones as if they held code
        with path.open("rb") as file:
            refused = isinstance(error, pickle.UnpicklingError) and is_pickled(file.read(2))
        what = (
            "needs pickled code to run and is refused"
            if refused
            else "is not a PyTorch checkpoint, or is damaged"
        )
        raise InputError(f"{path.name} {what}.", advice) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is not a state dict.")
    return {str(k).removeprefix("module."): v for k, v in content.items() if _is_weight(v)}


def _has_card(path: Path) -> bool:
    try:
        read_card(path)
    except InputError:
        return False
    return True


def _is_weight(value: object) -> bool:
    """Whether it is a tensor of numbers that are all there: not sparse, quantised, a mere shape or one for many."""
    import torch

    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    return dense and value.is_floating_point() and value.nbytes <= value.untyped_storage().nbytes()


def _weights(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        renamed = {}
        for key, tensor in state.items():
            for pattern, ours in _NAMES:
                if key.startswith(prefix) and pattern.match(key[len(prefix) :]):
                    renamed[pattern.sub(ours, key[len(prefix) :])] = tensor.float()
        if any(key.startswith("encoder.") for key in renamed):
            if not all(bool(tensor.isfinite().all()) for tensor in renamed.values()):
                raise InputError(
                    f"{file} holds weights that are not finite numbers.",
                    "Give a checkpoint from before that.",
                )
            return renamed
    raise InputError(f"{file} does not hold the weights of a MAPSeg network.")


def _architecture(weights: dict[str, Tensor], file: str, patch: int) -> tuple[Architecture, int]:
    """Sizes and the number of classes, background included; without a head, the paper's sizes of it and 1."""
    try:
        depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("encoder."))
        architecture = Architecture(
            width=weights["encoder.0.conv1.conv.weight"].shape[0],
            depth=depth,
            patch=patch,
            global_size=patch,
        )
        if not any(key.startswith("head.") for key in weights):
            return architecture, 1
        up = weights["head.1.weight"]
        head = {"head_width": up.shape[0], "up_channels": up.shape[1]}
        return Architecture(**architecture.model_dump() | head), weights["head.7.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{file} lacks weights of a MAPSeg network, or has them in other sizes.") from error


def _check_fit(weights: dict[str, Tensor], card: ModelCard, file: str) -> None:
    from .networks.encoder import Encoder
    from .networks.segmenter import Segmenter

    a = card.architecture
    try:
        if card.kind == "segmenter":
            Segmenter(a, card.labels).load_state_dict(weights)
        else:
            own = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}
            Encoder(a.width, a.depth).load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"{file} lacks weights of a MAPSeg network, or has them in other sizes.") from error
