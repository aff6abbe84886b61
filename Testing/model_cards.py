"""Edits of the card in a model file, for tests of what reads it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any


def with_card(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a model file's card in place; its digest, which would no longer fit, is left out."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    card = json.loads(header["__metadata__"]["mapseg"])
    change(card)
    header["__metadata__"]["mapseg"] = json.dumps(card)
    header["__metadata__"].pop("digest", None)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
