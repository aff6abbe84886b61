"""``mapseg adapt`` on real T1 scans whose contrast was changed: what adaptation regains, and what the gate makes of it.

    python -m Benchmarks.shift --data FOLDER [--scans 1000 1001] [--changes "sine 3.2"] [--seeds 0 1 2] --work FOLDER

Every case is a line of ``WORK/shift.jsonl``; cases found there, of the same model files and of today's version
(:data:`~.uda.tasks.VERSION`), are not run again, so that a stopped run resumes. Of a choice between models (``--model
brain``) source-only is the first of them, and what is adapted the one that suits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MAPSegLib.config import AdaptationOptions, InferenceOptions
from MAPSegLib.inference import segment_volume
from MAPSegLib.models import load_card, members, resolve
from MAPSegLib.tasks.candidates import Candidate, choose_for_all, load_candidates, prepared
from MAPSegLib.training.adaptation import adapt

from . import claims, oasis
from .commands import told
from .contrasts import CHANGES, INVERSION, MONOTONE, NON_MONOTONE, change
from .tables import write_section
from .uda.report import spread
from .uda.tasks import VERSION

NATIVE = "native"
HISTORY = ("step", "agreement", "shape_deviation", "score", "eta", "kept", "dice")
"""What is remembered of each label-free check."""


def run_case(
    candidates: Sequence[Candidate], scan: str, name: str, seed: int, data: Path, options: AdaptationOptions
) -> dict:
    """Dice (mean of the seven structures) of source-only, adapted and gated results, and of every check."""
    volume, reference = oasis.load_pair(data, scan)
    volume = volume if name == NATIVE else change(volume, name)
    checks: list[float] = []

    def preview(index: int, labels: np.ndarray, step: int) -> None:
        checks.append(oasis.mean_dice(labels, reference))

    started = time.monotonic()
    scans = prepared(candidates, volume)
    best, _ = choose_for_all(candidates, [scans], InferenceOptions())
    model, card, _ = candidates[best]
    ready = [scans[card.preprocessing]]
    with tempfile.TemporaryDirectory() as folder:
        adapted = adapt(model, card, ready, options, Path(folder), lambda event, **fields: None, preview)
    seconds = time.monotonic() - started
    result = adapted.results[0]
    history = [entry | {"dice": dice} for entry, dice in zip(adapted.history, checks, strict=True)]
    source, first = result.source, candidates[0]
    if model is not first.model:
        source = segment_volume(first.model, first.card, volume, InferenceOptions())
    return {
        "scan": scan,
        "change": name,
        "seed": seed,
        "model": card.name,
        "source": oasis.mean_dice(source.labels, reference),
        "start": oasis.mean_dice(result.source.labels, reference),
        "adapted": oasis.mean_dice(result.adapted.labels, reference),
        "gated": oasis.mean_dice(result.segmentation.labels, reference),
        "chosen": result.chosen,
        "trusted": result.assessment.trusted,
        "start_trusted": result.assessment_source.trusted,
        "steps": adapted.steps,
        "best_step": adapted.best_step,
        "stop": [entry["dice"] for entry in history if entry["kept"]][-1],
        "best": max(checks),
        "history": [{key: value for key, value in entry.items() if key in HISTORY} for entry in history],
        "seconds": round(seconds, 1),
    }


def digest(files: Sequence[Path]) -> str:
    """What tells these files from those of an earlier run."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def table(rows: list[dict], choice: bool) -> list[list[str]]:
    """A line per change: medians would hide the worst case, so means, with the worst beside them.

    Args:
        choice: whether there were several models: then also which one each scan got, and its result as it was.
    """
    groups: dict[str, list[dict]] = defaultdict(list)
    native = {row["scan"]: row["source"] for row in rows if row["change"] == NATIVE}
    for row in rows:
        groups[row["change"]].append(row)
    lines = []
    for name in [NATIVE, *CHANGES]:
        cases = groups.get(name, [])
        if not cases:
            continue
        kinds = ("source", "start", "adapted", "gated")
        dice = {kind: np.array([100 * case[kind] for case in cases]) for kind in kinds}
        told = {kind: spread(values) for kind, values in dice.items()}
        counts = Counter(case["model"] for case in cases)
        models = ", ".join(f"{model} {n}" for model, n in counts.items())
        base = np.array([100 * native.get(case["scan"], np.nan) for case in cases])
        lost = base - dice["source"]
        regained = (
            (dice["gated"] - dice["source"]).sum() / lost.sum()
            if name in NON_MONOTONE | INVERSION
            else np.nan
        )
        regret = np.array([100 * (case["best"] - case["stop"]) for case in cases])
        lines.append(
            [
                name,
                str(len(cases)),
                "" if np.isnan(lost).all() else f"{np.nanmean(lost):.1f}",
                told["source"],
                *([models, told["start"]] if choice else []),
                told["adapted"],
                told["gated"],
                "" if np.isnan(regained) else f"{100 * regained:.0f} %",
                f"{(dice['gated'] - dice['source']).min():+.1f}",
                f"{regret.mean():.1f} / {regret.max():.1f}",
                f"{sum(not case['trusted'] for case in cases)}/{len(cases)}",
                f"{np.median([case['seconds'] for case in cases]):.0f} s",
            ]
        )
    return lines


def claims_table(rows: list[dict]) -> list[list[str]]:
    """What the label-free measures say of every check, the gate of every case, and the verdict of both results."""
    checks = [
        claims.Result(
            check["dice"],
            {
                "score": check["score"],
                "agreement": check["agreement"],
                "plausible shapes": -check["shape_deviation"],
                "eta": check["eta"],
            },
        )
        for row in rows
        for check in row["history"]
    ]
    judged = []
    for row in rows:
        judged.append(claims.Result(row["start"], {}, row["start_trusted"]))
        if row["chosen"] == "adapted":
            judged.append(claims.Result(row["adapted"], {}, row["trusted"]))
    choices = [(row["gated"], row["start"] + row["adapted"] - row["gated"]) for row in rows]
    native = [row["source"] for row in rows if row["change"] == NATIVE]
    return claims.table(checks + judged, choices, float(np.mean(native)) if native else None)


HEADER = [
    "change",
    "cases",
    "lost",
    "source-only",
    "chosen",
    "not adapted",
    "adapted",
    "gated",
    "regained",
    "worst gain",
    "stop regret mean / max",
    "called untrusted",
    "time",
]


def main() -> None:
    """Run the cases that are missing, and write the section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds oasis_t1")
    parser.add_argument("--work", type=Path, required=True, help="folder for the cases' results")
    parser.add_argument("--model", default="brain-t1")
    parser.add_argument("--scans", nargs="+", default=list(oasis.SCANS))
    parser.add_argument("--changes", nargs="+", default=[NATIVE, *CHANGES], choices=[NATIVE, *CHANGES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / "shift.jsonl"
    rows = (
        [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        if results.exists()
        else []
    )
    path = resolve(arguments.model)
    asked = {"version": VERSION, "asked": arguments.model, "minutes": arguments.minutes}
    asked |= {"files": digest(members(path))}
    rows = [row for row in rows if asked.items() <= row.items()]
    done = {(row["scan"], row["change"], row["seed"]) for row in rows}
    candidates, title = load_candidates(path, AdaptationOptions().device), load_card(path, choice=True).name
    choice = len(candidates) > 1
    for seed in arguments.seeds:
        for name in arguments.changes:
            for scan in arguments.scans:
                if (scan, name, seed) in done or (seed != arguments.seeds[0] and name in MONOTONE):
                    continue
                options = AdaptationOptions(seed=seed, minutes=arguments.minutes, preview_seconds=1e-6)
                row = asked | run_case(candidates, scan, name, seed, arguments.data, options)
                rows.append(row)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{scan} {name} seed {seed}: source {row['source']:.3f} adapted {row['adapted']:.3f} "
                    f"gated {row['gated']:.3f} ({row['chosen']}, step {row['best_step']}, "
                    f"{'trusted' if row['trusted'] else 'untrusted'}, {row['seconds']} s)",
                    flush=True,
                )
    rows = [
        row
        for row in rows
        if row["scan"] in arguments.scans
        and row["change"] in arguments.changes
        and row["seed"] in arguments.seeds
    ]
    section = "shift" if arguments.model == "brain-t1" else f"shift {title}"
    told = f" Source-only: {candidates[0].card.name}, whatever was chosen." if choice else ""
    write_section(
        section,
        f"{title}, adaptation under changed contrast: oasis_t1, mean Dice (%) of the seven structures, "
        f"± deviation over cases.{told}",
        HEADER if choice else [column for column in HEADER if column not in ("chosen", "not adapted")],
        table(rows, choice),
    )
    write_section(
        f"{section}, claims",
        "What is said without labels against the Dice: measures of every check of every case, the gate, and the "
        "verdict on results without adaptation and on adapted ones that were kept. Collapsed: a Dice below half of "
        "source-only's on native scans.",
        claims.HEADER,
        claims_table(rows),
    )


if __name__ == "__main__":
    sys.exit(told(main))
