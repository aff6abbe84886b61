"""A site's own scans: named at the site, checked against its role, and told to nobody."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..config import Compute, GivenPath, Options
from ..errors import InputError
from ..manifests import list_pairs, list_scans


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


def find(data: SiteData, labelled: bool) -> Found:
    """The scans of a site.

    Args:
        labelled: whether it trains with labels: a source does, unless it pretrains.

    Raises:
        InputError: there are none, or no label maps where they are needed.
    """
    if labelled:
        try:
            return Found(list(list_pairs(data.images, data.labels)), [])
        except InputError as error:
            raise InputError(f"A source needs labelled scans: {error.message}", error.advice) from error
    scans = list_scans(data.images)
    ignored = data.labels is not None or _has_labels(data.images)
    notes = ["The label maps are ignored: this site trains without."] if ignored else []
    return Found([(scan, None) for scan in scans], notes)


def _has_labels(images: Path) -> bool:
    try:
        return bool(list_pairs(images))
    except InputError:
        return False
