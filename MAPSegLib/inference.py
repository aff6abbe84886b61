"""Segment a scan: global features once, distinct foreground windows in batches, labels in pieces.

The published procedure resizes and encodes the whole scan again for every window, visits the windows at a
volume's end several times, and keeps all classes of the whole volume. Here memory grows with one row of
windows: a plane that no further window touches is turned into labels at once.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from .config import InferenceOptions, Label
from .datasets import crop, resize_whole
from .devices import is_out_of_memory, pick_device, precision_context, prepare_process
from .errors import MemoryExhausted
from .networks.segmenter import Segmenter, mirrored_classes, sample_global
from .pieces import islands_told, remove_islands
from .preprocessing import Grid, Scan, interpolate_along, interpolation_weights, prepare, to_native
from .volumes import Volume

if TYPE_CHECKING:
    from .models import ModelCard

T = TypeVar("T")

PLANES = 2
"""Planes of a scan that become classes at once: as much as a CPU's caches hold."""
NOTHING = 1e4
"""Logit of the background where no window lies."""

Progress = Callable[[int, int], None]


@dataclass
class Segmentation:
    """A label map on the scan's own grid, and what is known of it without a reference.

    Attributes:
        labels: label values, unsigned integers, native shape.
        volumes_ml: per label value; 0 where the structure was not found.
        confidence: mean probability of the voxels of each structure found, those of islands among them.
        uncertainty: one minus the probability of the label given, float32, native shape; None unless asked for. Where
            an island was removed, it is that at least.
        probabilities: of the structures in the labels' order, uint8 (255 is 1), native shape and one axis more; None
            unless asked for. They show islands, too.
        notes: what the user should know (a fallback taken), a sentence each.
        seconds: that the result took, with judging it.
        classes: class indices on the working grid, int16, with all islands: they count when a result is judged.
    """

    labels: np.ndarray
    volumes_ml: dict[int, float]
    confidence: dict[int, float]
    uncertainty: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    classes: Tensor | None = field(default=None, repr=False)


def segment_volume(
    model: Segmenter, card: ModelCard, volume: Volume, options: InferenceOptions
) -> Segmentation:
    """Segment one scan with a model and its card.

    Raises:
        MemoryExhausted: neither smaller batches nor the CPU were enough.
    """
    started = time.monotonic()
    scan = prepare(volume, card.preprocessing)
    result = segment_scan(model, card.labels, scan, options)
    result.seconds = time.monotonic() - started
    return result


def segment_scan(
    model: Segmenter,
    labels: tuple[Label, ...],
    scan: Scan,
    options: InferenceOptions,
    *,
    uncertainty: bool = False,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> Segmentation:
    """As :func:`segment_volume`, for a scan that is prepared already.

    Args:
        uncertainty: whether to map it.
        probabilities: whether to keep those of every structure, a byte each in every voxel.
        progress: told windows done and all of them.

    Raises:
        MemoryExhausted: as there.
    """

    def run(device: torch.device, batch: int) -> Segmentation:
        working: list[Tensor] = []

        def watched() -> Iterator[tuple[int, Tensor]]:
            for start, sides in class_logits(model.to(device), scan.image, device, batch, options, progress):
                piece = _both(sides)
                # argmax takes three times as long
                working.append(piece.max(0).indices.to("cpu", torch.int16))
                yield start, piece

        result = _label(watched(), labels, scan.grid, uncertainty, probabilities, options.islands)
        result.classes = torch.cat(working)
        result.notes += scan.notes
        return result

    result, notes = run_with_notes(run, options)
    result.notes += notes
    return result


def predict_classes(
    model: Segmenter, image: Tensor, options: InferenceOptions, progress: Progress | None = None
) -> Tensor:
    """Class indices, int16 (X, Y, Z) on the working grid of ``image``. Raises MemoryExhausted."""

    def run(device: torch.device, batch: int) -> Tensor:
        pieces = class_logits(model.to(device), image, device, batch, options, progress)
        found = (_both(sides) if len(sides) > 1 else sides[0] for _, sides in pieces)
        # at once to the CPU: the device has room for one row of windows
        return torch.cat([piece.max(0).indices.to("cpu", torch.int16) for piece in found])

    return run_with_notes(run, options)[0]


def run_with_notes(run: Callable[[torch.device, int], T], options: InferenceOptions) -> tuple[T, list[str]]:
    """Try the options' batch, then halves of it, then one window at a time on the CPU.

    Returns:
        what ``run(device, batch)`` returned, and a sentence for every fallback.

    Raises:
        MemoryExhausted: none of these was enough.
    """
    prepare_process(options.threads)
    device, batch, notes = pick_device(options.device), options.batch, []
    while True:
        try:
            return run(device, batch), notes
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if batch > 1:
            batch //= 2
            notes.append(f"Memory ran out on {device.type}; continued with {batch} window(s) at once.")
        elif device.type != "cpu":
            device = torch.device("cpu")
            notes.append("The GPU's memory was too small; continued on the CPU.")
        else:
            raise MemoryExhausted(
                "Not enough memory for this scan, even one window at a time on the CPU.",
                "Close other programs, or crop the scan.",
            )


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of distinct windows that cover ``length`` with at least the given overlap, evenly spread."""
    if length <= window:
        return [0]
    count = 1 + -(-(length - window) // max(1, int(window * (1 - overlap))))
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def window_rows(image: Tensor, window: int, overlap: float) -> list[list[tuple[int, int, int]]]:
    """Corners of the windows that hold foreground: a list for every first voxel along the first axis."""
    x_starts, *across = [window_starts(n, window, overlap) for n in image.shape]
    corners = [[(x, y, z) for y, z in itertools.product(*across)] for x in x_starts]
    return [[corner for corner in row if _holds_foreground(image, corner, window)] for row in corners]


def gaussian_window(window: int) -> Tensor:
    """Weights (window, window, window), 1 at the centre, small but never zero at the corners."""
    line = torch.exp(-0.5 * ((torch.arange(window) - (window - 1) / 2) / (window / 8)) ** 2).clamp(min=1e-3)
    return line[:, None, None] * line[None, :, None] * line[None, None, :]


@torch.inference_mode()
def class_logits(
    model: Segmenter,
    image: Tensor,
    device: torch.device,
    batch: int,
    options: InferenceOptions,
    progress: Progress | None = None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Logits of a prepared scan, a few planes along the first axis at a time: the weighted means of all windows.

    Where the labels name their mirror images, every window is also shown mirrored, under the mirrored whole
    (``options.mirror``); it is the probabilities of both sides that are to be averaged.

    Args:
        image: (X, Y, Z) on the working grid, in [0, 1]; the first axis runs left to right.

    Yields:
        first plane, and logits (classes, planes, Y, Z), for consecutive pieces that cover the scan: those of the scan
        and, where windows are shown mirrored, those of the mirrored one, mirrored back.
    """
    model.eval()
    window = model.architecture.patch
    shape = torch.tensor(image.shape)
    starts = window_starts(image.shape[0], window, options.overlap)
    rows = window_rows(image, window, options.overlap)
    padded = [max(n, window) for n in image.shape]
    weight = gaussian_window(window).to(device)
    twin = mirrored_classes(model.labels) if options.mirror else None
    small = resize_whole(image, model.architecture.global_size).to(device)
    with precision_context(device, options.precision):
        whole = model.features(small if twin is None else torch.cat([small, small.flip(2)]))
    total, done = sum(map(len, rows)), 0
    # sums for a row of windows, channels last as the maps; the second ones are of the mirrored windows
    sums = [torch.zeros(window, *padded[1:], model.blended, device=device) for _ in whole]
    weights = torch.zeros(window, *padded[1:], device=device)
    for i, row in enumerate(rows):
        x = starts[i]
        for corners in _shared_out(row, batch):
            patches = torch.stack([crop(image, corner, window) for corner in corners])[:, None].to(device)
            low = (torch.tensor(corners) / shape).to(device)
            high = ((torch.tensor(corners) + window) / shape).to(device)
            with precision_context(device, options.precision):
                maps = [_maps(model, patches, whole[:1], low, high)]
                if twin is not None:
                    maps.append(_maps(model, patches.flip(2), whole[1:], *_flip(low, high)).flip(2))
            for k, (_, y, z) in enumerate(corners):
                place = slice(None), slice(y, y + window), slice(z, z + window)
                for side, seen in zip(sums, maps, strict=True):
                    side[place].addcmul_(seen[k].movedim(0, -1), weight[..., None])
                weights[place] += weight
            done += len(corners)
            if progress:
                progress(done, total)
        finished = min(window, starts[i + 1] - x if i + 1 < len(starts) else image.shape[0] - x)
        for first in range(0, finished, PLANES):
            piece = slice(first, min(first + PLANES, finished)), *map(slice, image.shape[1:])
            sides = [_mean_logits(model, side[piece], weights[piece]) for side in sums]
            yield x + first, sides if twin is None else [sides[0], sides[1][twin]]
        if i + 1 < len(rows):  # in place: fresh memory costs more than all that is done with it
            for buffer in (*sums, weights):
                buffer[: window - finished] = buffer[finished:].clone()
                buffer[window - finished :] = 0


def _mean_logits(model: Segmenter, sums: Tensor, weights: Tensor) -> Tensor:
    """(classes, planes, Y, Z), of weighted sums of maps (planes, Y, Z, channels) and the sum of weights."""
    unseen = weights == 0
    share = 1 / weights.masked_fill(unseen, 1)[..., None]
    logits = model.blended_logits((sums * share).movedim(-1, 0)[None])[0]
    logits[0].masked_fill_(unseen, NOTHING)
    return logits


def _both(sides: list[Tensor]) -> Tensor:
    """Mean probabilities of the sides that :func:`class_logits` yields."""
    return sum(side.softmax(0) for side in sides) / len(sides)


def _shared_out(row: list, batch: int) -> list[list]:
    """The row in as few batches as that takes, of nearly equal length: a window alone takes longer."""
    pieces = -(-len(row) // batch)
    edges = [i * len(row) // pieces for i in range(pieces + 1)] if pieces else []
    return [row[a:b] for a, b in itertools.pairwise(edges)]


def _maps(model: Segmenter, patches: Tensor, whole: Tensor, low: Tensor, high: Tensor) -> Tensor:
    features = model.features(patches)
    return model.to_blend(features, sample_global(whole, low, high, features.shape[2:]), patches)


def _flip(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Corners of patches in the mirrored scan, as shares of it."""
    mirrored_low, mirrored_high = low.clone(), high.clone()
    mirrored_low[:, 0], mirrored_high[:, 0] = 1 - high[:, 0], 1 - low[:, 0]
    return mirrored_low, mirrored_high


def _holds_foreground(image: Tensor, corner: tuple[int, int, int], window: int) -> bool:
    return bool((image[tuple(slice(c, c + window) for c in corner)] > 0).any())


def _label(
    slabs: Iterator[tuple[int, Tensor]],
    labels: tuple[Label, ...],
    grid: Grid,
    uncertainty: bool,
    probabilities: bool,
    islands: bool,
) -> Segmentation:
    """Interpolate slabs of probabilities to the scan's own voxels and take the likeliest class of each.

    Args:
        islands: whether to keep those of structures that are one piece (:mod:`.pieces`).
    """
    values = np.array([0, *(label.value for label in labels)])
    values = values.astype(np.min_scalar_type(int(values.max())))
    boxed = np.zeros(grid.box_shape, values.dtype)
    doubt = np.zeros(grid.box_shape, np.float32) if uncertainty else None
    shares = np.zeros((len(labels), *grid.box_shape), np.uint8) if probabilities else None
    count, mass = np.zeros(len(values)), np.zeros(len(values))
    for row, probability in _rows_on_box(slabs, grid):
        best, index = (t.cpu().numpy() for t in probability.max(0))
        boxed[row] = values[index]
        if doubt is not None:
            doubt[row] = 1 - best
        if shares is not None:
            shares[:, row] = (255 * probability[1:]).round().cpu().numpy()
        flat = index.ravel()
        count += np.bincount(flat, minlength=len(values))
        mass += np.bincount(flat, best.ravel(), minlength=len(values))
    voxels = Counter(dict(zip(values.tolist(), count.astype(int).tolist(), strict=True)))
    moved, split = (Counter(), []) if islands else remove_islands(boxed, labels, doubt)
    for (value, other), number in moved.items():
        voxels[value] -= number
        voxels[other] += number
    found = [i for i in range(1, len(values)) if count[i]]
    return Segmentation(
        labels=to_native(boxed, grid),
        volumes_ml={label.value: voxels[label.value] * grid.native_voxel_ml for label in labels},
        confidence={int(values[i]): float(mass[i] / count[i]) for i in found},
        notes=islands_told(moved, split, voxels, labels, grid.native_voxel_ml),
        uncertainty=to_native(doubt, grid) if doubt is not None else None,
        probabilities=None if shares is None else np.stack([to_native(share, grid) for share in shares], -1),
    )


def _rows_on_box(slabs: Iterator[tuple[int, Tensor]], grid: Grid) -> Iterator[tuple[int, Tensor]]:
    """Planes of the native box, in order: (index, probabilities (classes, Y, Z))."""
    along = interpolation_weights(grid.working_shape[0], grid.box_shape[0])
    across = [interpolation_weights(grid.working_shape[a], grid.box_shape[a]) for a in (1, 2)]
    touched = [row.nonzero().flatten() for row in along]
    first = [int(t[0]) for t in touched]
    last = [int(t[-1]) for t in touched]
    kept: dict[int, Tensor] = {}
    row = 0
    for start, slab in slabs:
        for plane in range(slab.shape[1]):
            kept[start + plane] = _resize_plane(slab[:, plane], across, grid)
            while row < len(last) and last[row] <= start + plane:
                weights = along[row, first[row] : last[row] + 1].tolist()
                mixed = sum(w * kept[first[row] + k] for k, w in enumerate(weights))
                yield row, mixed
                row += 1
            for old in [k for k in kept if row < len(first) and k < first[row]]:
                del kept[old]


def _resize_plane(plane: Tensor, across: list[Tensor], grid: Grid) -> Tensor:
    for axis, matrix in enumerate(across, 1):
        if grid.working_shape[axis] != grid.box_shape[axis]:
            plane = interpolate_along(matrix.to(plane.device), plane.contiguous(), axis)
    return plane
