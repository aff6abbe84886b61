"""The published procedures against ours, in turn, on the same weights and scan: time, memory, labels.

    python -m Benchmarks.speed [--model brain-t1] [--data FOLDER] [--scans 1000 1001 1002] [--pairs 3] [--steps 4]
    python -m Benchmarks.speed --untrained paper [--data FOLDER] [--pairs 1]

The scan to time is the first of ``oasis_t1``, or without --data the MNI152 head of the nilearn package (``pip install
'mapseg[demo]'``). For timing it is put amid a canvas that is to the model's patch as the published 256 to 96, so
that the published windows number 64 (27 of them distinct); Dice is measured on the canvas and on scans as they are.
Ours is measured twice: as a scan is segmented, which leaves the empty margin out, with its own overlap of windows; and
with the 27 windows of the published procedure on the whole canvas.
With --untrained a network of that preset and random weights is timed instead, on the scan at 1 mm: for `paper` that is
the published network on its published canvas, an hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from MAPSegLib.config import ARCHITECTURES, AdaptationOptions, InferenceOptions, Preprocessing
from MAPSegLib.datasets import cut_patches
from MAPSegLib.devices import has_fast_bf16, prepare_process
from MAPSegLib.inference import predict_classes, segment_scan, window_rows
from MAPSegLib.levels import Levels, foreground_bounds
from MAPSegLib.models import ModelCard, load_model, resolve
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.preprocessing import Scan, prepare, restore
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import target_losses, with_curve
from MAPSegLib.volumes import Volume, read_image

from . import oasis, published
from .commands import told
from .costs import measured, peak_gib
from .tables import write_section

OPTIONS = InferenceOptions(device="cpu", mirror=False)
SPARSE = OPTIONS.model_copy(update={"overlap": 0.15})
"""Three windows along each edge of the canvas, whatever the patch: the published ones without their repeats."""


def _foreground(image: Tensor) -> tuple[slice, slice, slice]:
    """The box that a scan is cropped to before it is segmented."""
    return tuple(map(slice, *foreground_bounds(Levels(0, 1, None, (image > 0).numpy()), (0, 0, 0))))


def segment_foreground(model: Segmenter, image: Tensor) -> Tensor:
    """Class indices (X, Y, Z) of a prepared image; background where it is empty all along an edge."""
    classes = torch.zeros(image.shape, dtype=torch.long)
    box = _foreground(image)
    classes[box] = predict_classes(model, image[box], OPTIONS).long()
    return classes


def segment_sparsely(model: Segmenter, image: Tensor) -> Tensor:
    """Class indices (X, Y, Z) of a prepared image."""
    return predict_classes(model, image, SPARSE).long()


PROCEDURES: dict[str, Callable[[Segmenter, Tensor], Tensor]] = {
    "published": published.segment,
    "ours": segment_foreground,
    "sparse": segment_sparsely,
}
HEADER = ["measure", "published", "ours", "ours, published windows"]


def load_scan(data: Path | None, name: str) -> Volume:
    """The scan ``name`` of ``oasis_t1``, or the MNI152 head."""
    if data:
        return read_image(oasis.image_path(data, name))
    from MAPSegLib.demo import load_head

    return load_head()[0]


def in_turn(pairs: int, *actions: Callable[[], object]) -> list[list[float]]:
    """Seconds of every action, a list for each: A B A B ..., so that a machine's moods hit all alike."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(pairs):
        for action, taken in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            taken.append(time.perf_counter() - started)
    return seconds


def ratio(published_values: list[float], our_values: list[float]) -> str:
    """The median of the pairs' ratios, and their range."""
    ratios = [a / b for a, b in zip(published_values, our_values, strict=True)]
    return f"{median(ratios):.1f} times, {min(ratios):.1f}–{max(ratios):.1f}"


def time_inference(model: Segmenter, image: Tensor, pairs: int) -> tuple[list[str], dict[str, Tensor]]:
    """A line of the table, and the class indices of all procedures, the first of which the others are set against."""
    patch = model.architecture.patch
    for name in PROCEDURES:  # what only the first call costs
        PROCEDURES[name](model, image[tuple(slice((n - patch) // 2, (n + patch) // 2) for n in image.shape)])
    results: dict[str, Tensor] = {}

    def action(name: str) -> Callable[[], None]:
        return lambda: results.update({name: PROCEDURES[name](model, image)})

    theirs, *ours = in_turn(pairs, *(action(name) for name in PROCEDURES))
    cells = [f"{median(seconds):.2f} s ({ratio(theirs, seconds)})" for seconds in ours]
    return ["whole scan", f"{median(theirs):.2f} s", *cells], results


def time_untrained(preset: str, card: ModelCard, volume: Volume, pairs: int) -> None:
    """Write the section of a network of that size with random weights, for the labels of ``card``."""
    torch.manual_seed(0)
    model = Segmenter(ARCHITECTURES[preset], card.labels)
    image = published.on_canvas(prepare(volume, Preprocessing()).image, model.architecture.patch)
    prepare_process()
    seconds, _ = time_inference(model, image, pairs)
    write_section(
        f"speed {preset}",
        f"Inference as in `speed`, with a network of the preset `{preset}` "
        f"({sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, random weights), on a canvas of "
        f"{' × '.join(map(str, image.shape))} voxels; {pairs} measurement(s) of each in turn, on "
        f"{torch.get_num_threads()} CPU thread(s).",
        HEADER,
        [seconds, count_windows(model.architecture.patch, image)],
    )


def count_windows(patch: int, image: Tensor) -> list[str]:
    """A line of the table: windows that go through the network."""
    visited = published.windows(tuple(image.shape), patch)
    ours = [(image[_foreground(image)], OPTIONS), (image, SPARSE)]
    counts = [str(sum(map(len, window_rows(part, patch, options.overlap)))) for part, options in ours]
    return ["windows", f"{len(visited)}, of which {len(set(visited))} distinct", *counts]


def time_adaptation(model: Segmenter, image: Tensor, pairs: int, steps: int) -> list[str]:
    """A line of the table: steps of test-time adaptation in a second, one patch each."""
    actions = [_published_steps(model, image, steps), _our_steps(model, image, steps)]
    for action in actions:
        action()
    theirs, ours = in_turn(pairs, *actions)
    rates = [f"{steps / median(seconds):.2f} /s" for seconds in (theirs, ours)]
    return ["adaptation, steps", rates[0], f"{rates[1]} ({ratio(theirs, ours)})", ""]


def _published_steps(model: Segmenter, image: Tensor, steps: int) -> Callable[[], None]:
    options, a = AdaptationOptions(), model.architecture
    student = copy.deepcopy(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        student.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    generator = torch.Generator().manual_seed(0)

    def action() -> None:
        for _ in range(steps):
            batch = cut_patches(image, 1, a.patch, a.global_size, generator)
            published.adaptation_step(student, teacher, optimizer, batch, options, generator)

    return action


def _our_steps(model: Segmenter, image: Tensor, steps: int) -> Callable[[], None]:
    options, a = AdaptationOptions(patches=1, device="cpu"), model.architecture
    loop = Loop(
        with_curve(model, options.curve_knots),
        options,
        ema_decay=options.ema_decay,
        rates={"curve.": options.curve_rate},
    )

    def action() -> None:
        for _ in range(steps):
            batch = cut_patches(image, options.patches, a.patch, a.global_size, loop.generator)
            loop.update(lambda batch=batch: target_losses(loop, batch, options)[0])

    return action


def agreement_lines(model: Segmenter, card: ModelCard, scan: Scan) -> list[list[str]]:
    """Lines of the table: share of voxels that bf16 and fp32 label alike, on the scan's own grid."""
    bf16, fp32 = (
        segment_scan(model, card.labels, scan, OPTIONS.model_copy(update={"precision": precision})).labels
        for precision in ("bf16", "fp32")
    )
    alike, labelled = bf16 == fp32, (bf16 > 0) | (fp32 > 0)
    shares = {
        "all voxels": alike.mean(),
        "foreground box": scan.grid.boxed(alike).mean(),
        "labelled voxels": alike[labelled].mean() if labelled.any() else np.nan,
    }
    return [
        [f"bf16 labels equal fp32 labels, {where}", "", f"{100 * s:.2f} %", ""] for where, s in shares.items()
    ]


def memory_line(model: str, data: Path | None, name: str) -> list[str]:
    """A line of the table: peak resident memory of a process that does nothing else."""
    command = [sys.executable, "-m", "Benchmarks.speed", "--model", model, "--scans", name]
    command += ["--data", str(data)] if data else []
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        memory = Path(folder, "memory")
        for procedure in PROCEDURES:
            subprocess.run(measured([*command, "--alone", procedure], memory), check=True)
            peaks.append(peak_gib(memory))
    return ["peak memory", *(f"{peak:.2f} GiB" for peak in peaks)]


def dice_lines(
    model: Segmenter, card: ModelCard, data: Path, names: list[str], on_canvas: dict[str, Tensor]
) -> list[list[str]]:
    """Lines of the table: mean Dice of the seven structures by all procedures, as scans are and on the canvas."""
    values = np.array([0, *(label.value for label in card.labels)])
    plain: dict[str, list[float]] = {name: [] for name in PROCEDURES}
    centred: dict[str, float] = {}
    for index, name in enumerate(names):
        volume, reference = oasis.load_pair(data, name)
        scan = prepare(volume, card.preprocessing)

        def score(classes: Tensor, scan: Scan = scan, reference: np.ndarray = reference) -> float:
            return 100 * oasis.mean_dice(restore(values[classes.numpy()], scan.grid), reference)

        for procedure, run in PROCEDURES.items():
            plain[procedure].append(score(run(model, scan.image)))
            if index == 0:
                centred[procedure] = score(_off_canvas(on_canvas[procedure], scan.image.shape))
    rows = {
        f"Dice, the scan on the canvas ({names[0]})": list(centred.values()),
        f"Dice, {len(names)} scans as they are": [float(np.mean(scores)) for scores in plain.values()],
    }
    return [[label, *(f"{score:.2f}" for score in scores)] for label, scores in rows.items()]


def _off_canvas(classes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`published.on_canvas`; background where the scan was cut off."""
    pads: list[int] = []
    for n, edge in zip(reversed(shape), reversed(classes.shape), strict=True):
        low = (edge - n) // 2  # where it was put there: rounded down, also of what is cut off
        pads += [-low, n - edge + low]
    return torch.nn.functional.pad(classes, pads)


def main() -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="brain-t1")
    parser.add_argument("--data", type=Path, help="folder that holds oasis_t1")
    parser.add_argument("--scans", nargs="+", default=list(oasis.SCANS[:3]), choices=oasis.SCANS)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of either procedure")
    parser.add_argument("--steps", type=int, default=4, help="adaptation steps in one measurement")
    parser.add_argument("--alone", choices=PROCEDURES, help="run one procedure and nothing else")
    parser.add_argument("--untrained", choices=ARCHITECTURES, help="time a network of this size alone")
    arguments = parser.parse_args()
    model, card = load_model(resolve(arguments.model))
    if arguments.untrained:
        time_untrained(
            arguments.untrained, card, load_scan(arguments.data, arguments.scans[0]), arguments.pairs
        )
        return
    scan = prepare(load_scan(arguments.data, arguments.scans[0]), card.preprocessing)
    patch = model.architecture.patch
    image = published.on_canvas(scan.image, patch)
    if arguments.alone:
        PROCEDURES[arguments.alone](model, image)
        return

    prepare_process()  # the published procedure gets the faster memory too
    inference, results = time_inference(model, image, arguments.pairs)
    rows = [inference, count_windows(patch, image)]
    rows.append(memory_line(arguments.model, arguments.data, arguments.scans[0]))
    rows += agreement_lines(model, card, scan)
    if arguments.data:
        rows += dice_lines(model, card, arguments.data, arguments.scans, results)
    rows.append(time_adaptation(model, scan.image, arguments.pairs, arguments.steps))
    precision = "bf16" if has_fast_bf16(torch.device("cpu")) else "fp32"
    what = f"{arguments.scans[0]} of oasis_t1" if arguments.data else "the MNI152 head"
    shape = " × ".join(map(str, image.shape))
    write_section(
        "speed",
        f"The published procedure (fp32, batch 1) and ours ({precision}, batch {OPTIONS.batch}) with the weights of "
        f"{card.name} (windows of {patch}³), in turn, {arguments.pairs} times, on {torch.get_num_threads()} CPU "
        f"threads, without mirroring: {what} on a canvas of {shape} voxels, of which ours leaves the empty margin out. "
        "Medians; in brackets how many times faster, pair by pair: median and range.",
        HEADER,
        rows,
    )


if __name__ == "__main__":
    sys.exit(told(main))
