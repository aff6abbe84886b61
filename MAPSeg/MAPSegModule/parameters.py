"""What the user chose, whether it can be run, and the job that the worker gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAPSegLib.errors import InputError

from .models import find_entry

_SHORT = {"warmup": 0, "ema_decay": 0.98, "check_every": 10}
"""Of an adaptation with source scans that lasts minutes: the published schedules are made for thousands of steps."""
DEVICES = ("auto", "cpu", "cuda", "mps")
MINUTES = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 240.0)
"""What the panel offers for adapting."""


@dataclass
class Parameters:
    """Choices of one run; ``options`` goes to the backend as it is (MAPSegLib/config.py)."""

    model: str = "brain"
    """Name or file."""
    adapt: bool = False
    minutes: float = 2.5
    """Time for adapting, all volumes together."""
    device: str = "auto"
    uncertainty: bool = False
    source_folder: str = ""
    """Labelled scans of the source (a folder, a data set or a manifest): adapts with them at hand."""
    preview_seconds: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> str:
        """Why this cannot be run, in one sentence; empty when it can."""
        try:
            find_entry(self.model)
        except InputError as error:
            return error.message
        if self.device not in DEVICES:
            told = _("There is no device {device}; choose one of {devices}.")
            return told.format(device=self.device, devices=", ".join(DEVICES))
        if self.adapt and not 0 < self.minutes <= 600:
            return _("The time for adapting must lie between 0 and 600 minutes.")
        if self.adapt and self.source_folder and not os.path.exists(os.path.expanduser(self.source_folder)):
            return _("The source scans {folder} do not exist.").format(folder=self.source_folder)
        return ""

    def to_job(self, files: Sequence[str | Path], folder: str | Path) -> dict[str, Any]:
        """The worker's job for these scans; ``folder`` gets the results."""
        options = {"device": self.device, **self.options}
        job: dict[str, Any] = {
            "task": "adapt" if self.adapt else "segment",
            "model": str(find_entry(self.model).path),
            "scans": [str(file) for file in files],
            "output": str(folder),
            "uncertainty": self.uncertainty,
            "overwrite": True,
            "options": options,
        }
        if self.adapt:
            minutes = {"minutes": self.minutes / max(1, len(files)), "preview_seconds": self.preview_seconds}
            job["options"] = minutes | options
            job["save_model"] = True
            if self.source_folder:
                job["source"] = str(Path(self.source_folder).expanduser().absolute())
                job["options"] = _SHORT | job["options"]
        return job
