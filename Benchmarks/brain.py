"""``mapseg segment`` on real adult T1 scans: Dice and HD95 per structure, time and memory of the whole command.

    python -m Benchmarks.brain --data FOLDER [--model brain-t1] [--release]

Scans: the eight of ``oasis_t1`` (manual labels, another protocol) and the two labelled ones of ``demo``. With
``--release`` the model becomes the embedded one: in half precision, with these scores in its card.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from MAPSegLib.metrics import dice_scores, evaluate_pair
from MAPSegLib.models import load_card, load_model, resolve, save_model
from MAPSegLib.synthesis import merge_parcels
from MAPSegLib.volumes import Volume, read_labels

from . import oasis
from .commands import told
from .costs import measured, peak_gib
from .tables import write_section
from .uda.report import spread

EMBEDDED = Path(__file__).resolve().parent.parent / "Resources" / "Models"
TRAINED_ON = "20 anatomical label maps of adults, published with SynthSeg (Apache-2.0)"
DESCRIPTIONS = {
    "brain-t1": "31 structures of the adult brain on T1-weighted MR, whole heads or brain-extracted",
    "brain-mr": "31 structures of the adult brain on MR of any contrast, whole heads or brain-extracted",
}
REFERENCES = {"oasis_t1": "manual, Neuromorphometrics protocol", "demo": "FreeSurfer"}
DEMO = {"fs_norm_T1": "fs_aparc_a2009s_aseg", "vxm_adult_T1_brain": "vxm_adult_aseg"}


def segment(scan: Path, model: str, folder: Path) -> tuple[Volume, float, float]:
    """Run the command line on one scan: its label map, seconds from start to exit, and peak resident GiB."""
    command = [sys.executable, "-m", "MAPSegLib.cli", "segment", model, str(scan), "-o", str(folder / "out")]
    memory = folder / "memory"
    started = time.monotonic()
    done = subprocess.run(measured(command, memory), stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    result = next((folder / "out").glob("*_seg.nii.gz"))
    return read_labels(result), seconds, peak_gib(memory)


def swapped(prediction: np.ndarray, reference: np.ndarray, pairs: list[tuple[int, int]]) -> bool:
    """Whether the result would fit the reference better with left and right exchanged."""
    exchange = np.arange(max(65536, prediction.max() + 1))
    for left, right in pairs:
        exchange[left], exchange[right] = right, left
    values = [value for pair in pairs for value in pair]
    straight = np.nanmean(list(dice_scores(prediction, reference, values).values()))
    crossed = np.nanmean(list(dice_scores(exchange[prediction], reference, values).values()))
    return bool(crossed > straight)


def release(model: str, means: dict[str, list[float]]) -> Path:
    """Keep a model as the embedded one of its name, with its description, its licence and its scores.

    Args:
        means: per test set, the mean Dice (%) of the seven structures of every scan.
    """
    network, card = load_model(resolve(model))
    scores: dict[str, object] = {
        name: {
            "scans": len(dice),
            "mean_dice_of_seven": round(float(np.mean(dice)) / 100, 3),
            "deviation": round(float(np.std(dice, ddof=1)) / 100, 3),
            "reference": REFERENCES[name],
        }
        for name, dice in means.items()
    }
    scores["command"] = "python -m Benchmarks.brain"
    provenance = card.provenance | {"data": TRAINED_ON}
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    said = {"description": DESCRIPTIONS[card.name], "license": "Apache-2.0"}
    card = card.model_copy(update={"scores": scores, "provenance": provenance} | said)
    return save_model(EMBEDDED / f"{card.name}.safetensors", half, card, overwrite=True)


def main() -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds oasis_t1 and demo")
    parser.add_argument("--model", default="brain-t1")
    parser.add_argument("--release", action="store_true", help="make the model the embedded one of its name")
    arguments = parser.parse_args()
    card = load_card(resolve(arguments.model), choice=True)
    pairs = [
        (label.value, label.mirror) for label in card.labels if label.mirror and label.value < label.mirror
    ]

    cases = [
        (name, oasis.image_path(arguments.data, name), oasis.load_pair(arguments.data, name)[1])
        for name in oasis.SCANS
    ]
    for image, labels in DEMO.items():
        folder = arguments.data / "demo"
        reference = read_labels(folder / f"{labels}.nii.gz").array
        cases.append((image, folder / f"{image}.nii.gz", merge_parcels(reference)))

    rows: dict[str, list[dict]] = {}
    costs = []
    for name, path, reference in cases:
        with tempfile.TemporaryDirectory() as folder:
            prediction, seconds, memory = segment(path, arguments.model, Path(folder))
        costs.append((seconds, memory))
        truth = Volume(reference, prediction.affine)
        rows[name] = evaluate_pair(prediction, truth, card.labels)
        mean = oasis.mean_dice(prediction.array, reference)
        side = "SWAPPED" if swapped(prediction.array, reference, pairs) else "sides right"
        print(
            f"{name}: mean of seven {100 * mean:.1f}, {seconds:.1f} s, {memory:.2f} GiB, {side}", flush=True
        )

    table = []
    for structure, values in oasis.STRUCTURES.items():
        line = [structure]
        for names in (oasis.SCANS, tuple(DEMO)):
            dice = [100 * row["dice"] for n in names for row in rows[n] if row["value"] in values]
            distance = [row["hd95_mm"] for n in names for row in rows[n] if row["value"] in values]
            line += [spread(dice), f"{np.nanmean(distance):.2f}"]
        table.append(line)
    mean_line = ["**mean of the seven**"]
    means = {
        name: [
            float(np.nanmean([100 * row["dice"] for row in rows[n] if row["value"] in oasis.SEVEN_VALUES]))
            for n in scans
        ]
        for name, scans in (("oasis_t1", oasis.SCANS), ("demo", tuple(DEMO)))
    }
    for dice in means.values():
        mean_line += [f"**{spread(dice)}**", ""]
    table.insert(7, mean_line)
    seconds, memory = zip(*costs, strict=True)
    write_section(
        "brain" if card.name == "brain-t1" else f"brain {card.name}",
        f"Embedded model {card.name} on real T1 scans: Dice (%) and HD95 (mm), mean ± deviation over "
        f"scans and sides, of the mean over scans. The whole command took {np.median(seconds):.1f} s (median; at most "
        f"{max(seconds):.1f} s) and at most {max(memory):.2f} GiB.",
        ["structure", "oasis_t1 (8) Dice", "HD95", "demo (2) Dice", "HD95"],
        table,
    )
    if arguments.release:
        print(f"wrote {release(arguments.model, means)}")


if __name__ == "__main__":
    sys.exit(told(main))
