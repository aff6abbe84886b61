"""Model files as any Python can see them: where they lie, and the card in their header. Standard library only.

Front ends that hold no PyTorch (the Slicer module) list models with this; :mod:`MAPSegLib.models` builds on it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import InputError

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
CARD_KEY = "mapseg"
DIGEST_KEY = "digest"
"""Of the weights and the card, which loading checks."""
_HEADER_LIMIT = 10_000_000
"""Bytes. The format allows ten times as many, which take a minute to read; a card with 65,535 labels takes fewer."""
_PICKLED = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
"""How a checkpoint of PyTorch begins: a zip archive or a pickle."""


def user_folder() -> Path:
    """Where a user's models are kept: ``$MAPSEG_HOME/models``, or ``~/.mapseg/models``."""
    return Path(os.path.expanduser(os.environ.get("MAPSEG_HOME") or "~/.mapseg")).absolute() / "models"


def embedded_folders() -> tuple[Path, ...]:
    """Where models that come with MAPSeg may lie: beside the package in a checkout, in it when installed by pip."""
    package = Path(__file__).resolve().parent
    return package.parent / "Resources" / "Models", package / "_models"


def model_files() -> list[Path]:
    """The embedded models, then the user's; of files with one name, the first counts.

    Hidden files are none: so begin the names of files that are being written.
    """
    folders = (*embedded_folders(), user_folder())
    found = (sorted(folder.glob(f"[!.]*{SUFFIX}"), key=lambda path: path.stem) for folder in folders)
    return [path for paths in found for path in paths]


def is_pickled(start: bytes) -> bool:
    """Whether a file that starts so may be a checkpoint of PyTorch."""
    return start[:2] in _PICKLED


def read_card(path: Path) -> dict[str, Any]:
    """The card in a model file's header; of its content only the format version is checked.

    Raises:
        InputError: missing, damaged, pickled, not a MAPSeg model, or from a newer version of the format.
    """
    path = Path(path)
    metadata = _header(path).get("__metadata__")
    if not isinstance(metadata, dict) or CARD_KEY not in metadata:
        raise InputError(
            f"{path.name} holds weights but no MAPSeg model card.", "Choose a file from `mapseg models`."
        )
    try:
        card = json.loads(metadata[CARD_KEY])
        newer = card["format_version"] > FORMAT_VERSION
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged_card(path) from error
    if newer:
        raise InputError(
            f"{path.name} is in model format {card['format_version']}, but this MAPSeg reads up to "
            f"{FORMAT_VERSION}.",
            "Update MAPSeg.",
        )
    return card


def damaged_card(path: Path) -> InputError:
    """The error of a card that makes no sense."""
    return InputError(f"{path.name} has a damaged model card.", "Get the file again.")


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, once the file is known to be whole."""
    if not path.is_file():
        raise InputError(f"The model file {path} does not exist.", "Check the path.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_HEADER_LIMIT, path.stat().st_size):
                # as a length these are astronomic, but a header may begin with the same two
                if is_pickled(start):
                    raise InputError(
                        f"{path.name} is a pickled checkpoint, which MAPSeg does not run.",
                        "Turn it into a model with `mapseg import`.",
                    )
                raise ValueError("no header")
            header = json.loads(file.read(length))
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        end = max(ends, default=0)  # a choice between models has no weights
        if not header:
            raise ValueError("nothing in it")
        if path.stat().st_size != 8 + length + end:
            raise ValueError("truncated")
        return header
    except OSError as error:
        raise InputError(f"{path} cannot be read.", "Check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not a MAPSeg model file, or is damaged.", "Get the file again."
        ) from error
