"""How large the same patients' hearts are in the labels of both domains: what no adaptation without labels can know.

    python -m Benchmarks.sizes --data FOLDER

Patients 1 to 25 of the cardiac task have both sequences, each with manual labels. A model that finds structures in
the target just as large as the source's labels have them reaches at most the Dice in the last column.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from MAPSegLib.volumes import read_labels

from .commands import told
from .tables import write_section
from .uda.data import BSSFP_IN_PLANE, cardiac_split, upright
from .uda.report import spread
from .uda.tasks import HEART

HEADER = [
    "structure",
    "bSSFP (ml)",
    "LGE (ml)",
    "ratio",
    "longer in bSSFP (mm)",
    "patients",
    "Dice at most (%)",
]


def measured(data: Path, part: str, in_plane: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Millilitres, and millimetres along the stack of slices, of every structure: (patients, structures) each."""
    volumes, lengths = [], []
    for pair in cardiac_split(data)[part]:
        labels = upright(read_labels(pair.label), in_plane)
        masks = [labels.array == value for value in HEART]
        volumes.append([mask.sum() * np.prod(labels.spacing) / 1000 for mask in masks])
        lengths.append([mask.any((0, 1)).sum() * labels.spacing[2] for mask in masks])
    return np.array(volumes), np.array(lengths)


def table(source: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray]) -> list[list[str]]:
    """A line per structure."""
    (before, long), (after, short) = source, target
    most = 100 * 2 * np.minimum(before, after) / (before + after)
    return [
        [
            name,
            spread(before[:, i], 0),
            spread(after[:, i], 0),
            spread(before[:, i] / after[:, i], 2),
            spread(long[:, i] - short[:, i], 0),
            f"{(long[:, i] > short[:, i]).sum()}/{len(long)}",
            spread(most[:, i]),
        ]
        for i, name in enumerate(HEART.values())
    ]


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cardiac_mscmr")
    data = parser.parse_args().data
    rows = table(measured(data, "source", BSSFP_IN_PLANE), measured(data, "target", None))
    write_section(
        "sizes",
        "The same 25 patients' hearts in the manual labels of both sequences, mean ± deviation over patients: volumes, "
        "how many times larger, how much longer along the stack (and in how many patients), and the Dice that a result "
        "of the source's size reaches at most.",
        HEADER,
        rows,
    )


if __name__ == "__main__":
    sys.exit(told(main))
