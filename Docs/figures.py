"""Draw the pictures of ``method.md`` into ``Docs/figures``, from the MNI152 head that the nilearn package carries.

Run from the root of a checkout: ``python -m Docs.figures``, or with the names of the pictures to draw.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from MAPSegLib.augmentation import bounding_box
from MAPSegLib.config import AdaptationOptions, InferenceOptions
from MAPSegLib.datasets import PatchBatch, crop, resize_whole
from MAPSegLib.demo import FILES, foreign_contrast, load_head, run_demo
from MAPSegLib.inference import segment_volume
from MAPSegLib.masking import cube_mask
from MAPSegLib.metrics import dice_scores
from MAPSegLib.models import ModelCard, load_card, load_model, resolve
from MAPSegLib.networks.segmenter import Segmenter, sample_global
from MAPSegLib.pictures import as_seen, tint
from MAPSegLib.preprocessing import Scan, canonical, prepare
from MAPSegLib.training.adaptation import adapt
from MAPSegLib.training.contrast import search_curve
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import SourceFree, ema_decay, pseudo_label
from MAPSegLib.volumes import read_image, read_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent / "figures"
MODEL = "brain-t1"
PLACE = (0.52, 0.55, 0.45)
"""Centre of the patch that is shown, as shares of the foreground box: the deep nuclei, more of one side."""
STEPS = 40
INK, FAINT, FRAME, LINE = "#e8ebee", "#9aa3ad", "#ff9d5c", "#6cb2ff"
VEIL = (38, 50, 64)
"""Colour of hidden cubes, which are zero to the network."""
DPI = 150


# --- what is shown ----------------------------------------------------------------------------------------------


def cut(model: Segmenter, image: Tensor) -> PatchBatch:
    """The patch about ``PLACE`` and the whole scan, as the networks get them."""
    a = model.architecture
    size = torch.tensor(image.shape)
    corner = (torch.tensor(PLACE) * size - a.patch / 2).round().long().clamp(min=0)
    corner = torch.minimum(corner, size - a.patch)
    patch = crop(image, corner.tolist(), a.patch)[None, None]
    whole = resize_whole(image, a.global_size)
    return PatchBatch(patch, whole, (corner / size)[None], ((corner + a.patch) / size)[None])


def masks(batch: PatchBatch, options: AdaptationOptions) -> tuple[Tensor, Tensor]:
    """Where voxels of the patch and of the whole stay, as training draws it."""
    generator = torch.Generator().manual_seed(options.seed)
    cubes = options.mask_cube, options.mask_cube // 2
    patch, whole = (
        cube_mask(tuple(image.shape), cube, options.mask_ratio, generator)
        for image, cube in zip((batch.patches, batch.whole), cubes, strict=True)
    )
    return patch, whole


def scan_and_model() -> tuple[Segmenter, ModelCard, Scan]:
    """The embedded model and the head, prepared for it."""
    model, card = load_model(resolve(MODEL))
    return model.eval(), card, prepare(load_head()[0], card.preprocessing)


# --- the pictures -----------------------------------------------------------------------------------------------


def contrast() -> Figure:
    """What the demonstration finds: in a contrast that the model knows, and before and after it adapts to another."""
    table = load_card(resolve(MODEL)).labels
    shown = (
        ("in the contrast that it has learnt", "image", "labels"),
        ("in another one", "foreign", "source"),
        ("after it has adapted", "foreign", "adapted"),
    )
    figure, cells = canvas(1, 3)
    with tempfile.TemporaryDirectory(prefix="mapseg-") as folder:
        run_demo(folder)
        for cell, (title, scan, labels) in zip(cells[0], shown, strict=True):
            image, found = (
                torch.from_numpy(canonical(read(Path(folder) / FILES[name]))[0].copy())
                for read, name in ((read_image, scan), (read_labels, labels))
            )
            box = bounding_box(image > 0)
            plane = int(PLACE[2] * image[box].shape[2])
            grey(cell, image[box], plane, title, white=float(image.max()))
            cell.imshow(
                tint(as_seen(found[box][:, :, plane].numpy(), "axial"), table), interpolation="nearest"
            )
    return figure


def views() -> Figure:
    """A patch and the whole scan, plain and masked."""
    model, _, scan = scan_and_model()
    batch, options = cut(model, scan.image), AdaptationOptions()
    keep, keep_whole = masks(batch, options)
    share, p, g = (
        f"{100 * options.mask_ratio:.0f} %",
        model.architecture.patch,
        model.architecture.global_size,
    )
    figure, cells = canvas(1, 4)
    titles = (
        f"the whole, made {g}³",
        f"{share} of its {options.mask_cube // 2}³ cubes hidden",
        f"the patch, {p}³ voxels",
        f"{share} of its {options.mask_cube}³ cubes hidden",
    )
    planes = middle_of_patch(batch)
    shown = (
        (batch.whole, None, planes[1]),
        (batch.whole, keep_whole, planes[1]),
        (batch.patches, None, planes[0]),
        (batch.patches, keep, planes[0]),
    )
    for cell, (image, kept, plane), title in zip(cells[0], shown, titles, strict=True):
        grey(cell, image[0, 0], plane, title)
        if kept is not None:
            veil(cell, kept[0, 0], plane)
    frame(cells[0][0], batch, g)
    edge(cells[0][2])
    return figure


@torch.inference_mode()
def global_local() -> Figure:
    """Features of the whole and of the patch, and the labels that the head makes of both."""
    model, card, scan = scan_and_model()
    batch = cut(model, scan.image)
    local, whole = model.encode(batch.patches, batch.whole)
    under = sample_global(whole, batch.low, batch.high, local.shape[2:])
    labels = model.decode(local, under, batch.patches).argmax(1)[0]
    colours = principal_colours(whole, local, under)
    plane, whole_plane = middle_of_patch(batch)
    figure, cells = canvas(2, 3)
    grey(cells[0][0], batch.whole[0, 0], whole_plane, "the whole scan X")
    frame(cells[0][0], batch, model.architecture.global_size)
    coloured(cells[0][1], colours[0], whole_plane / model.architecture.global_size, "g(X)")
    frame(cells[0][1], batch, whole.shape[-1])
    coloured(cells[0][2], colours[2], plane / model.architecture.patch, "g(X), read under x")
    edge(cells[0][2])
    grey(cells[1][0], batch.patches[0, 0], plane, "the patch x")
    edge(cells[1][0])
    coloured(cells[1][1], colours[1], plane / model.architecture.patch, "g(x)")
    grey(cells[1][2], batch.patches[0, 0], plane, "f(x) = h(g(x) ⊕ g(X) under x)")
    overlay(cells[1][2], labels, plane, card)
    return figure


@torch.inference_mode()
def step() -> Figure:
    """What teacher and student see in one step of adaptation to the demo's foreign contrast."""
    model, card, _ = scan_and_model()
    options = AdaptationOptions()
    terms = SourceFree(options)
    loop = Loop(terms.student(model), options, ema_decay(options, terms.warmup), rates=terms.rates)
    scan = prepare(foreign_contrast(load_head()[0]), card.preprocessing)
    mm = scan.grid.working_spacing
    found = search_curve(loop.ema, card, scan.image, mm, loop.generator, loop.inference.precision)
    for network in (loop.model, loop.ema):
        network.eval().curve.values.copy_(found)
    batch = cut(model, scan.image).to(loop.device)
    labelled, eta = pseudo_label(loop, batch, options.confidence)
    keep, keep_whole = (kept.to(loop.device) for kept in masks(batch, options))
    patch, whole = batch.patches * keep, batch.whole * keep_whole
    local, features = loop.model.encode(patch, whole)
    under = sample_global(features, batch.low, batch.high, local.shape[2:])
    answer = loop.model.decode(local, under, patch).argmax(1)
    whole_answer = loop.model.decode(features, features, whole).argmax(1)

    figure, cells = canvas(2, 4, left=0.32)
    plane, whole_plane = middle_of_patch(batch)
    rows = (
        ("patch", batch.patches, labelled.target, keep, answer, plane),
        ("whole", batch.whole, labelled.whole_target, keep_whole, whole_answer, whole_plane),
    )
    titles = (
        "the teacher sees",
        f"its labels, η = {eta['total']:.2f}",
        "the student sees",
        "its answer, before the step",
    )
    for row, (name, seen, given, kept, reached, at) in enumerate(rows):
        for column, labels in enumerate((None, given, None, reached)):
            cell = cells[row][column]
            grey(cell, seen[0, 0], at, titles[column] if row == 0 else "", white=0.7)
            if column > 1:
                veil(cell, kept[0, 0], at)
            if labels is not None:
                overlay(cell, labels[0], at, card)
        cells[row][0].text(
            -0.06, 0.5, name, transform=cells[row][0].transAxes, color=FAINT, fontsize=9, rotation=90,
            ha="right", va="center",
        )  # fmt: skip
    return figure


def adaptation() -> Figure:
    """Losses, eta and label-free checks of a real adaptation, and the Dice that the method does not know."""
    model, card, _ = scan_and_model()
    head = load_head()[0]
    foreign = foreign_contrast(head)
    reference = segment_volume(model, card, head, InferenceOptions()).labels
    values = [label.value for label in card.labels]
    told: list[dict] = []
    dice: list[tuple[int, float]] = []

    def report(event: str, **fields) -> None:
        if fields.get("stage") == "adapt":
            told.append({"step": fields["step"], "eta": fields["eta"], **fields["losses"]})

    def preview(index: int, labels: np.ndarray, step: int) -> None:
        scores = dice_scores(labels, reference, values).values()
        dice.append((step, float(np.nanmean(list(scores)))))

    options = AdaptationOptions(steps=STEPS, minutes=60, check_every=5, patience=STEPS, preview_seconds=1e-9)
    with tempfile.TemporaryDirectory(prefix="mapseg-") as folder:
        adapted = adapt(model, card, [foreign], options, Path(folder), report, preview)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    checks = [json.loads(line) for line in lines]
    return draw_record(told, checks, dice, adapted.best_step)


def draw_record(
    told: Sequence[dict], checks: Sequence[dict], dice: Sequence[tuple[int, float]], best_step: int
) -> Figure:
    """The four plots of :func:`adaptation`."""
    figure = Figure((8.2, 4.5), dpi=DPI, facecolor="black")
    steps = [row["step"] for row in told]
    place = [row["step"] for row in checks]
    plots = (
        ("Loss", "of the student, on the teacher's labels", steps, [r["loss"] for r in told]),
        ("η", "share of voxels that the teacher is sure of", steps, [r["eta"] for r in told]),
        ("Score", "agreement when mirrored, less odd shapes; decides", place, [r["score"] for r in checks]),
        ("Dice", "with the result on the T1; unknown to the method", *zip(*dice, strict=True)),
    )
    for index, (title, about, x, y) in enumerate(plots):
        cell = figure.add_axes((0.07 + 0.5 * (index % 2), 0.58 - 0.49 * (index // 2), 0.41, 0.29))
        cell.set_facecolor("black")
        if index < 2:
            cell.plot(x, y, color=LINE, linewidth=0.9, alpha=0.45)
            cell.plot(x, smooth(y), color=LINE, linewidth=2)
        else:
            cell.plot(x, y, color=LINE, linewidth=2, marker=".", markersize=7)
            cell.set_ylim(-0.35 if index == 2 else -0.03, 1.0)
            cell.axvline(best_step, color=FRAME, linewidth=1.2, linestyle="--")
            cell.text(best_step - 0.6, 0.1, "kept", color=FRAME, fontsize=9, ha="right")
            cell.text(1, 0.4, "the curve is found", color=FAINT, fontsize=9)
        cell.set_xlim(-1, STEPS + 1)
        cell.text(0, 1.2, title, transform=cell.transAxes, color=INK, fontsize=11.5)
        cell.text(0, 1.07, about, transform=cell.transAxes, color=FAINT, fontsize=9)
        cell.tick_params(colors=FAINT, labelsize=8.5, length=0)
        cell.grid(color="#2a3038", linewidth=0.8)
        cell.set_axisbelow(True)
        cell.spines[:].set_visible(False)
        if index > 1:
            cell.set_xlabel("step", color=FAINT, fontsize=9)
    return figure


def smooth(values: Sequence[float], width: int = 7) -> np.ndarray:
    """A running mean, over fewer values at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


# --- drawing ----------------------------------------------------------------------------------------------------


def canvas(rows: int, columns: int, left: float = 0.1) -> tuple[Figure, list[list[Axes]]]:
    """A black figure of square cells, 8.2 inches wide."""
    width, gap, top, bottom = 8.2, 0.1, 0.34, 0.1
    size = (width - left - gap * columns) / columns
    height = rows * size + (rows - 1) * (top if columns == 3 else gap) + top + bottom
    figure = Figure((width, height), dpi=DPI, facecolor="black")
    cells: list[list[Axes]] = []
    for row in range(rows):
        y = height - top - size - row * (size + (top if columns == 3 else gap))
        cells.append(
            [
                figure.add_axes(
                    ((left + column * (size + gap)) / width, y / height, size / width, size / height)
                )
                for column in range(columns)
            ]
        )
    for cell in sum(cells, []):
        cell.set_facecolor("black")
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    return figure, cells


def middle_of_patch(batch: PatchBatch) -> tuple[int, int]:
    """The axial plane that is shown: index in the patch, and in the whole."""
    patch, whole = batch.patches.shape[-1], batch.whole.shape[-1]
    low, high = float(batch.low[0, 2]), float(batch.high[0, 2])
    return patch // 2, int((low + high) / 2 * whole)


def grey(cell: Axes, image: Tensor, plane: int, title: str, white: float = 1.0) -> None:
    """An axial plane of (X, Y, Z) in [0, 1]."""
    shown = as_seen(image[:, :, plane].float().cpu().numpy(), "axial")
    cell.imshow(shown, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    cell.set_title(title, color=INK, fontsize=9.5, loc="left", pad=5)


def veil(cell: Axes, keep: Tensor, plane: int) -> None:
    """Paint over what is hidden, given where voxels stay (X, Y, Z)."""
    hidden = ~as_seen(keep[:, :, plane].cpu().numpy(), "axial")
    colour = np.zeros((*hidden.shape, 4), np.uint8)
    colour[hidden] = (*VEIL, 255)
    cell.imshow(colour, interpolation="nearest")


def overlay(cell: Axes, classes: Tensor, plane: int, card: ModelCard) -> None:
    """Class indices (X, Y, Z) over what is drawn already, in the model's colours."""
    values = np.array([0, *(label.value for label in card.labels)])[classes[:, :, plane].cpu().numpy()]
    cell.imshow(tint(as_seen(values, "axial"), card.labels), interpolation="nearest")


def coloured(cell: Axes, colours: np.ndarray, share: float, title: str) -> None:
    """An axial plane, at a share of the height, of colours (X, Y, Z, 3)."""
    plane = colours[:, :, int(share * colours.shape[2])]
    cell.imshow(np.stack([as_seen(plane[..., c], "axial") for c in range(3)], -1), interpolation="nearest")
    cell.set_title(title, color=INK, fontsize=9.5, loc="left", pad=5)


def principal_colours(*maps: Tensor) -> list[np.ndarray]:
    """Feature maps (1, C, d, h, w) as colours: their three principal components, common to all of them."""
    rows = [m[0].flatten(1).T.float() for m in maps]
    joined = torch.cat(rows)
    mean = joined.mean(0)
    axes = torch.linalg.svd(joined - mean, full_matrices=False).Vh[:3]
    places = [(r - mean) @ axes.T for r in rows]
    low, high = (torch.cat(places).quantile(q, 0) for q in (0.02, 0.98))
    return [
        ((place - low) / (high - low)).clamp(0, 1).view(*m.shape[2:], 3).numpy()
        for place, m in zip(places, maps, strict=True)
    ]


def frame(cell: Axes, batch: PatchBatch, cells: int) -> None:
    """The patch's place, on a plane of ``cells`` by ``cells`` that shows the whole."""
    low, high = (edge[0] * cells for edge in (batch.low, batch.high))
    corner = (cells - float(high[0]) - 0.5, cells - float(high[1]) - 0.5)
    size = (float(high[0] - low[0]), float(high[1] - low[1]))
    cell.add_patch(Rectangle(corner, *size, fill=False, edgecolor=FRAME, linewidth=1.6))


def edge(cell: Axes) -> None:
    """Frame a cell as what lies at the patch's place."""
    for spine in cell.spines.values():
        spine.set(visible=True, color=FRAME, linewidth=1.6)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


PICTURES: dict[str, Callable[[], Figure]] = {
    "contrast": contrast,
    "views": views,
    "global-local": global_local,
    "step": step,
    "adaptation": adaptation,
}


def main() -> None:
    """Draw the pictures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all by default")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        save(PICTURES[name](), FOLDER / f"{name}.png")
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
