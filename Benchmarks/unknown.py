"""Which embedded model for a scan of unknown contrast: source-only Dice of each, as scans are and in changed contrasts.

    python -m Benchmarks.unknown --data FOLDER [--scans 1000 1001] [--changes "sine 3.2"] [--release]

With ``--release`` the choice between them becomes the embedded model ``brain``, with these figures in its card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MAPSegLib.config import InferenceOptions
from MAPSegLib.inference import segment_scan
from MAPSegLib.models import ModelCard, resolve, save_model
from MAPSegLib.quality import assess
from MAPSegLib.tasks.candidates import Candidate, load_candidates, prepared, view

from . import oasis
from .brain import EMBEDDED, TRAINED_ON
from .commands import told
from .contrasts import CHANGES, change
from .shift import NATIVE
from .tables import write_section
from .uda.report import spread

MODELS = ("brain-t1", "brain-mr")


def line(name: str, models: list[Candidate], data: Path, scans: list[str]) -> list[str]:
    """A line of the table: for every model the mean Dice and how often it was called untrusted; then the choice."""
    options = InferenceOptions()
    dice, score, doubted = (np.zeros((len(models), len(scans))) for _ in range(3))
    for place, scan in enumerate(scans):
        volume, reference = oasis.load_pair(data, scan)
        volume = volume if name == NATIVE else change(volume, name)
        views = view(models, prepared(models, volume), options)
        for index, ((model, card, _), seen) in enumerate(zip(models, views, strict=True)):
            result = segment_scan(model, card.labels, seen.scan, options)
            verdict = assess(card, seen.looks, seen.scan.grid.working_spacing, result.classes)
            dice[index, place] = 100 * oasis.mean_dice(result.labels, reference)
            score[index, place] = seen.score  # as the product chooses
            doubted[index, place] = not verdict.trusted
    cells = [name]
    for own, doubts in zip(dice, doubted, strict=True):
        cells += [spread(own), f"{int(doubts.sum())}/{len(scans)}"]
    chosen = np.take_along_axis(dice, score.argmax(0)[None], 0)[0]
    return [*cells, f"{chosen.mean():.1f}", f"{dice.max(0).mean():.1f}"]


def release(cards: Sequence[ModelCard], rows: Sequence[Sequence[str]], scans: int) -> Path:
    """Write the choice between the models, with the figures of its own column."""
    names = [card.name for card in cards]
    scores = {
        f"oasis_t1 {row[0]}": {"mean_dice_of_seven": round(float(row[-2]) / 100, 3), "scans": scans}
        for row in rows
    }
    card = ModelCard(
        kind="choice",
        name="brain",
        description=f"31 structures of the adult brain on any MR: {' or '.join(names)}, by scan",
        architecture=cards[0].architecture,
        preprocessing=cards[-1].preprocessing,
        labels=cards[0].labels,
        members=tuple(names),
        provenance={"data": TRAINED_ON},
        scores=scores | {"command": "python -m Benchmarks.unknown"},
        priors=cards[-1].priors,
        license=cards[0].license,
    )
    return save_model(EMBEDDED / "brain.safetensors", {}, card, overwrite=True)


def main() -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds oasis_t1")
    parser.add_argument("--scans", nargs="+", default=list(oasis.SCANS), choices=oasis.SCANS)
    parser.add_argument("--release", action="store_true", help="embed the choice between the models")
    parser.add_argument("--changes", nargs="+", default=[NATIVE, *CHANGES], choices=[NATIVE, *CHANGES])
    arguments = parser.parse_args()
    models = [candidate for name in MODELS for candidate in load_candidates(resolve(name), "cpu")]
    rows = [line(name, models, arguments.data, arguments.scans) for name in arguments.changes]
    header = ["contrast"]
    for _, card, _ in models:
        header += [card.name, "called untrusted"]
    write_section(
        "unknown",
        f"Models without adaptation on {len(arguments.scans)} scans of oasis_t1, as they are and in changed contrasts: "
        "mean Dice (%) of the seven structures ± deviation over scans. By score: of each scan the result with the "
        "better label-free score.",
        [*header, "by score", "by Dice"],
        rows,
    )
    if arguments.release:
        cards = [card for _, card, _ in models]
        print(f"wrote {release(cards, rows, len(arguments.scans))}")


if __name__ == "__main__":
    sys.exit(told(main))
