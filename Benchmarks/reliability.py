"""How sure a model is of its voxels, and how often it is right: real T1 scans, as they are and in another contrast.

    python -m Benchmarks.reliability --data FOLDER [--model brain-t1] [--scans 1000 1001] [--changes "sine 3.2"]

Beside the section of the results it draws the picture ``Benchmarks/reliability.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from MAPSegLib.config import InferenceOptions
from MAPSegLib.inference import segment_scan
from MAPSegLib.models import load_model, resolve
from MAPSegLib.preprocessing import prepare

from . import oasis
from .commands import told
from .contrasts import CHANGES, change
from .shift import NATIVE
from .tables import write_section

BINS = 10
LEAST = 100
"""Voxels of a bin that say something."""
PICTURE = Path(__file__).parent / "reliability.png"


class Reliability(NamedTuple):
    """Per bin of probability: voxels, and among them the mean probability and the share that is right (NaN: none)."""

    voxels: np.ndarray
    said: np.ndarray
    right: np.ndarray

    @property
    def told(self) -> np.ndarray:
        """The share that is right; NaN in bins of too few voxels."""
        return np.where(self.voxels < LEAST, np.nan, self.right)

    @property
    def gap(self) -> float:
        """Mean distance of probability and share over all voxels: the expected calibration error."""
        return float(np.nansum(self.voxels * np.abs(self.said - self.right)) / self.voxels.sum())


def reliability(probability: np.ndarray, right: np.ndarray) -> Reliability:
    """Hold the probabilities of labels (0 to 1) against whether they are right, both of any one shape."""
    place = np.minimum((probability.ravel() * BINS).astype(int), BINS - 1)
    voxels, said, hits = (
        np.bincount(place, weights, BINS) for weights in (None, probability.ravel(), right.ravel())
    )
    with np.errstate(invalid="ignore"):
        return Reliability(voxels, said / voxels, hits / voxels)


def draw(found: Mapping[str, Reliability], path: Path) -> None:
    """Draw the shares that are right over the probabilities, a line for each contrast."""
    from matplotlib.figure import Figure

    figure = Figure((4.6, 4.2), dpi=110, layout="tight")
    cell = figure.add_subplot(
        xlim=(0, 1), ylim=(0, 1), xlabel="probability of the label", ylabel="share right"
    )
    cell.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for name, one in found.items():
        cell.plot(one.said, one.told, marker=".", label=f"{name} (off by {one.gap:.2f})")
    cell.legend(frameon=False, fontsize=8, loc="upper left")
    cell.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Run the benchmark, and write its section of the results and its picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds oasis_t1")
    parser.add_argument("--model", default="brain-t1")
    parser.add_argument("--scans", nargs="+", default=list(oasis.SCANS))
    parser.add_argument("--changes", nargs="+", default=[NATIVE, "sine 3.2"], choices=[NATIVE, *CHANGES])
    arguments = parser.parse_args()
    model, card = load_model(resolve(arguments.model))
    options = InferenceOptions()
    both = [value for values in oasis.STRUCTURES.values() for value in values]
    found: dict[str, Reliability] = {}
    for name in arguments.changes:
        parts = []
        for number in arguments.scans:
            volume, reference = oasis.load_pair(arguments.data, number)
            volume = volume if name == NATIVE else change(volume, name)
            scan = prepare(volume, card.preprocessing)
            result = segment_scan(model, card.labels, scan, options, uncertainty=True)
            labelled = np.isin(result.labels, both)
            parts.append((1 - result.uncertainty[labelled], (result.labels == reference)[labelled]))
            print(f"{number} {name}: {parts[-1][1].mean():.3f} of the voxels labelled are right", flush=True)
        found[name] = reliability(*map(np.concatenate, zip(*parts, strict=True)))
    rows = []
    for index in range(BINS):
        row = [f"{index / BINS:.1f} to {(index + 1) / BINS:.1f}"]
        for one in found.values():
            share, right = one.voxels[index] / one.voxels.sum(), one.told[index]
            row += [f"{100 * share:.1f}", "–" if np.isnan(right) else f"{100 * right:.1f}"]
        rows.append(row)
    rows.append(
        ["**off by, on average**", *(cell for one in found.values() for cell in ("", f"{100 * one.gap:.1f}"))]
    )
    write_section(
        "reliability",
        f"Probability that {card.name} gives its labels, and how often they are right (%): scans of oasis_t1: "
        f"{len(arguments.scans)}; all voxels that it labels as a structure that both protocols draw.",
        ["probability", *(cell for name in found for cell in (f"{name}: share of voxels", "right"))],
        rows,
    )
    draw(found, PICTURE)


if __name__ == "__main__":
    sys.exit(told(main))
