"""What the FLARE sides of server and site have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from .. import __version__
from ..models import resolve
from .kits import kit_plan

TASK = "train"
ROUND, TERMS = "round", "terms"
"""Names in a task's meta data."""
IN_USE, PATIENCE = "work.pid", 60.0
"""File that names the process which owns a kit's work, and seconds to wait for its predecessor's end: when a server
was killed, its jobs take a moment to notice."""


def kit_folder(fl_ctx: FLContext) -> Path:
    """The start kit whose FLARE workspace this process runs in."""
    return Path(fl_ctx.get_engine().get_workspace().get_root_dir()).resolve().parent


def terms(folder: Path) -> dict[str, str]:
    """What must be the same at the server and at every site, by what the log calls it."""
    plan = kit_plan(folder)
    return {
        "MAPSeg version": __version__,
        "plan": _digest((folder / "plan.json").read_bytes()),
        "start model": _digest(resolve(plan.model).read_bytes()) if plan.model else "none",
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
