"""Which embedded model for a scan of unknown contrast: source-only Dice of each, as scans are and in changed contrasts.

python -m Benchmarks.unknown --data FOLDER [--models brain-t1 brain-mr] [--scans 1000 1001] [--changes "sine 3.2"]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from MAPSegLib.config import InferenceOptions
from MAPSegLib.inference import segment_scan
from MAPSegLib.models import load_model, resolve
from MAPSegLib.preprocessing import prepare
from MAPSegLib.quality import assess_scan

from . import oasis
from .contrasts import CHANGES, change
from .shift import NATIVE
from .tables import write_section


def line(name: str, models: list, data: Path, scans: list[str]) -> list[str]:
    """A line of the table: for every model the mean Dice and how often it was called untrusted; then the choice."""
    options = InferenceOptions()
    dice, score, doubted = (np.zeros((len(models), len(scans))) for _ in range(3))
    for place, scan in enumerate(scans):
        volume, reference = oasis.load_pair(data, scan)
        volume = volume if name == NATIVE else change(volume, name)
        for index, (model, card) in enumerate(models):
            prepared = prepare(volume, card.preprocessing)
            result = segment_scan(model, card.labels, prepared, options)
            verdict, _ = assess_scan(model, card, prepared, options, result.classes)
            dice[index, place] = 100 * oasis.mean_dice(result.labels, reference)
            score[index, place] = verdict.measures["score"]
            doubted[index, place] = not verdict.trusted
    cells = [name]
    for own, doubts in zip(dice, doubted, strict=True):
        cells += [f"{own.mean():.1f} ± {own.std():.1f}", f"{int(doubts.sum())}/{len(scans)}"]
    chosen = np.take_along_axis(dice, score.argmax(0)[None], 0)[0]
    return [*cells, f"{chosen.mean():.1f}", f"{dice.max(0).mean():.1f}"]


def main() -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds oasis_t1")
    parser.add_argument("--models", nargs="+", default=["brain-t1", "brain-mr"])
    parser.add_argument("--scans", nargs="+", default=list(oasis.SCANS), choices=oasis.SCANS)
    parser.add_argument("--changes", nargs="+", default=[NATIVE, *CHANGES], choices=[NATIVE, *CHANGES])
    arguments = parser.parse_args()
    models = [load_model(resolve(name)) for name in arguments.models]
    rows = [line(name, models, arguments.data, arguments.scans) for name in arguments.changes]
    header = ["contrast"]
    for _, card in models:
        header += [card.name, "called untrusted"]
    write_section(
        "unknown",
        f"Models without adaptation on {len(arguments.scans)} scans of oasis_t1, as they are and in changed contrasts: "
        "mean Dice (%) of the seven structures ± deviation over scans. By score: of each scan the result with the "
        "better label-free score.",
        [*header, "by score", "by Dice"],
        rows,
    )


if __name__ == "__main__":
    main()
