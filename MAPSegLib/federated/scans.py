"""A site's own scans: named at the site, checked against its role, and told to nobody."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Compute, GivenPath, Label, Options
from ..errors import InputError
from ..manifests import list_pairs, list_scans
from ..volumes import read_labels


class SiteData(Options):
    """Where a site's scans are, and what it trains on."""

    images: GivenPath
    labels: GivenPath | None = None
    options: Compute = Compute()

    def beside(self, folder: Path) -> SiteData:
        """The same, with relative paths taken from ``folder``."""
        labels = folder / os.path.expanduser(self.labels) if self.labels else None
        return self.model_copy(update={"images": folder / os.path.expanduser(self.images), "labels": labels})


@dataclass(frozen=True)
class Found:
    """The scans of a site, and what it should know of them."""

    cases: list[tuple[Path, Path | None]]
    """Images, each with its label map where the site trains with labels."""
    notes: list[str]


def find(data: SiteData, structures: Sequence[Label] | None) -> Found:
    """The scans of a site.

    Args:
        structures: of the model, where the site trains with labels: a source does, unless it pretrains.

    Raises:
        InputError: there are none, no label maps where they are needed, or these lack a structure.
    """
    if structures is not None:
        try:
            pairs = list_pairs(data.images, data.labels)
        except InputError as error:
            raise InputError(f"A source needs labelled scans: {error.message}", error.advice) from error
        return Found(list(pairs), _check_labels([label for _, label in pairs], structures))
    scans = list_scans(data.images)
    ignored = data.labels is not None or _has_labels(data.images)
    notes = ["The label maps are ignored: this site trains without."] if ignored else []
    return Found([(scan, None) for scan in scans], notes)


def _check_labels(files: Sequence[Path], structures: Sequence[Label]) -> list[str]:
    """What a site should know of its label maps. A structure that they lack would be learnt as background there."""
    found = {int(value) for file in files for value in np.unique(read_labels(file).array)}
    lacking = [f"{label.value} ({label.name})" for label in structures if label.value not in found]
    if lacking:
        raise InputError(
            f"No label map of this site holds {', '.join(lacking)}, which the model segments.",
            "Map the values to the model's; `mapseg models NAME` shows them.",
        )
    more = sorted(found - {label.value for label in structures} - {0})
    return [f"The model has no {', '.join(map(str, more))}; they count as background."] if more else []


def _has_labels(images: Path) -> bool:
    try:
        return bool(list_pairs(images))
    except InputError:
        return False
