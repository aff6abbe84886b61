"""Pictures for people: label maps over scans, curves, reconstructions. Needs matplotlib (extra ``demo``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import InputError
from .volumes import Volume, canonical, map_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .config import Label

Theme = Literal["light", "dark"]

_FILL = 0.4  # opacity of a structure's area; its outline is opaque
_DPI = 150
_SHOWN = 30  # voxels in a plane from which a structure can be seen there
_MM_PER_INCH = 46.0  # of anatomy on the picture, unless it would be narrow or large
_NARROW, _LARGE = 7.0, 12.0  # inches
_COLUMNS = 6  # of the legend, at most
_LETTER, _ENTRY = 0.068, 0.45  # inches that a letter in the legend takes, and what surrounds a name
_INK, _FAINT = "#e8ebee", "#9aa3ad"  # on the black of an overlay
_THEMES = {
    "light": {"face": "#ffffff", "ink": "#1f2328", "grid": "#dde2e7", "line": "#1f6feb", "best": "#c2410c"},
    "dark": {"face": "#15191e", "ink": "#e6e9ed", "grid": "#343b44", "line": "#6cb2ff", "best": "#ff9d5c"},
}
# Plane: the axis that it cuts, the axes along the picture's width and height, and what lies at its left and right edge.
_PLANES = {"axial": (2, 0, 1, "RL"), "coronal": (1, 0, 2, "RL"), "sagittal": (0, 1, 2, "PA")}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """A scan, a label map on its grid (X, Y, Z), and the title of the two."""

    title: str
    image: Volume
    labels: np.ndarray


@dataclass(frozen=True)
class Curve:
    """One plot of :func:`curves`: the key of its values in the record, a title, and what the values mean."""

    key: str
    title: str
    about: str = ""


@dataclass(frozen=True)
class Reconstruction:
    """An image (X, Y, Z) in canonical order, what was left visible of it, and the same with the gaps filled in."""

    title: str
    original: np.ndarray
    masked: np.ndarray
    filled: np.ndarray


def overlay(panels: Sequence[Panel], table: Sequence[Label], path: str | Path) -> Path:
    """Draw label maps over their scans in three orthogonal planes, in radiological convention.

    One panel becomes a row of planes; of several, each becomes a column. All are cut at the same places: near the
    middle of the first panel's structures, where a plane meets the most of them.

    Args:
        panels: scans on one grid with their label maps.
        table: names and colours of the label values; left and right of one colour share an entry of the legend.
        path: a PNG file; replaced if it exists.

    Returns:
        The path.

    Raises:
        InputError: a label map does not lie on its scan's grid, the scans' grids differ, or matplotlib is missing.
    """
    first = panels[0].image
    if any(p.labels.shape != first.shape or p.image.shape != first.shape for p in panels):
        raise InputError("A picture needs scans and label maps of one grid.")
    images, labels = (
        [canonical(replace(first, array=array))[0] for array in arrays]
        for arrays in ([p.image.array for p in panels], [p.labels for p in panels])
    )
    spacing = canonical(first)[1]
    box, cuts = _box(images[0], labels[0]), _cuts(labels[0], table)
    sizes = {
        name: [(box[a].stop - box[a].start) * spacing[a] for a in axes]
        for name, (_, *axes, _) in _PLANES.items()
    }
    legend = _legend(labels, table)
    figure, cells, columns = _canvas(len(panels), sizes, list(legend))
    from matplotlib.patheffects import withStroke

    edged = [withStroke(linewidth=2, foreground="black")]  # to be read on bright tissue
    for panel, image, values, column in zip(panels, images, labels, cells, strict=True):
        low, high = _window(image)
        for (name, (across, *_, edges)), cell in zip(_PLANES.items(), column, strict=True):
            where: list[Any] = [*box]
            where[across] = cuts[across]
            grey, drawn = (as_seen(a[tuple(where)], name) for a in (image, values))
            extent = (0, sizes[name][0], 0, sizes[name][1])
            cell.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
            cell.imshow(tint(drawn, table), extent=extent, interpolation="nearest")
            for side, (x, align) in zip(edges, ((0.01, "left"), (0.99, "right")), strict=True):
                cell.text(
                    x, 0.5, side, transform=cell.transAxes, color=_INK, fontsize=9, ha=align, va="center",
                    path_effects=edged,
                )  # fmt: skip
        column[0].set_title(panel.title, color=_INK, fontsize=11, loc="left", pad=8)
    _write_legend(figure, legend, columns)
    return _save(figure, path)


def curves(
    history: Sequence[Mapping[str, Any]],
    plots: Sequence[Curve],
    path: str | Path,
    best_step: int | None = None,
    theme: Theme = "light",
) -> Path:
    """Draw the record of an adaptation, a small plot per quantity.

    Args:
        history: one mapping per check, with ``step`` and the quantities; what a check lacks leaves a gap.
        plots: the quantities to draw.
        path: a PNG file; replaced if it exists.
        best_step: the step whose weights were taken, marked in every plot.
        theme: colours for a light or a dark page.

    Returns:
        The path.

    Raises:
        InputError: matplotlib is not installed.
    """
    look = _THEMES[theme]
    last = max([1, *(row["step"] for row in history)])
    figure = _figure(3.6 * len(plots), 2.8, look["face"])
    for i, plot in enumerate(plots):
        cell = figure.add_axes(((i + 0.15) / len(plots), 0.18, 0.8 / len(plots), 0.6), facecolor=look["face"])
        points = [(row["step"], row[plot.key]) for row in history if row.get(plot.key) is not None]
        cell.set_xlim(-0.02 * last, 1.02 * last)
        cell.xaxis.get_major_locator().set_params(integer=True)
        if points:
            cell.plot(*zip(*points, strict=True), color=look["line"], linewidth=1.8, marker=".")
        else:
            cell.set_yticks([])
            cell.text(
                0.5, 0.5, "not recorded", transform=cell.transAxes, ha="center", color=look["ink"], alpha=0.6
            )
        if points and best_step is not None:
            cell.axvline(best_step, color=look["best"], linewidth=1.3, linestyle="--")
            late = best_step > sum(cell.get_xlim()) / 2  # else the word would leave the picture
            cell.annotate(
                "best", (best_step, 1), xycoords=cell.get_xaxis_transform(), xytext=(-3 if late else 3, -10),
                textcoords="offset points", ha="right" if late else "left", color=look["best"], fontsize=8,
            )  # fmt: skip
        cell.set_title(plot.title, loc="left", color=look["ink"], fontsize=11, pad=19)
        cell.text(0, 1.05, plot.about, transform=cell.transAxes, color=look["ink"], alpha=0.75, fontsize=8)
        cell.set_xlabel("step", color=look["ink"], fontsize=8.5)
        cell.tick_params(colors=look["ink"], labelsize=8, length=0)
        cell.grid(color=look["grid"], linewidth=0.8)
        cell.set_axisbelow(True)
        cell.spines[:].set_visible(False)
        cell.margins(y=0.12)
    return _save(figure, path)


def reconstructions(rows: Sequence[Reconstruction], path: str | Path) -> Path:
    """Draw the middle planes of images, masked images and reconstructions, a row each, on one grey scale.

    Args:
        rows: intensities in [0, 1].
        path: a PNG file; replaced if it exists.

    Raises:
        InputError: matplotlib is not installed.
    """
    size, gap, left, top = 1.1, 0.04, 0.2, 0.5
    columns = [(plane, kind) for plane in _PLANES for kind in ("original", "masked", "filled")]
    width = left + len(columns) * (size + gap) + 2 * gap
    height = top + len(rows) * (size + 0.22)
    figure = _figure(width, height, "black")
    for r, row in enumerate(rows):
        y = height - top - (r + 1) * (size + 0.22) + 0.04
        figure.text(
            left / width, (y + size + 0.03) / height, row.title,
            color=_INK, fontsize=8, va="bottom", parse_math=False,
        )  # fmt: skip
        for c, (plane, kind) in enumerate(columns):
            image = getattr(row, kind)
            where: list[Any] = [slice(None)] * 3
            where[_PLANES[plane][0]] = image.shape[_PLANES[plane][0]] // 2
            x = left + c * (size + gap) + (c // 3) * gap
            cell = figure.add_axes((x / width, y / height, size / width, size / height), facecolor="black")
            cell.axis("off")
            cell.imshow(as_seen(image[tuple(where)], plane), cmap="gray", vmin=0, vmax=1)
            if r == 0:
                figure.text(
                    (x + size / 2) / width, 1 - 0.08 / height, f"{plane}\n{kind}" if c % 3 == 1 else f"\n{kind}",
                    color=_FAINT, fontsize=7.5, ha="center", va="top",
                )  # fmt: skip
    return _save(figure, path)


# --- anatomy ----------------------------------------------------------------------------------------------------


def _box(image: np.ndarray, labels: np.ndarray) -> list[slice]:
    """What is shown: the scan's own extent (without empty margins) and the structures, with a little air."""
    inside = (image > image.min() + 0.05 * (_window(image)[1] - image.min())) | (labels > 0)
    box = []
    for axis in range(3):
        filled = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        air = round(0.04 * len(filled))
        box.append(slice(max(0, int(filled[0]) - air), min(image.shape[axis], int(filled[-1]) + 1 + air)))
    return box


def _cuts(labels: np.ndarray, table: Sequence[Label]) -> list[int]:
    """Along each axis, the plane of the structures' middle third that shows the most of them; the most central one.

    Both sides count as one structure, or the plane between them would win with slivers of each.
    """
    pooled = {label.value: min(label.value, label.mirror or label.value) for label in table}
    rank = {value: i for i, value in enumerate(sorted(set(pooled.values())), start=1)}
    index = map_values(labels, {value: rank[shared] for value, shared in pooled.items()})
    cuts = []
    for axis in range(3):
        planes = np.moveaxis(index, axis, 0)
        filled = np.flatnonzero(planes.any(axis=(1, 2)))
        if filled.size == 0:
            cuts.append(len(planes) // 2)
            continue
        low, high = int(filled[0]), int(filled[-1])
        middle, reach = (low + high) // 2, (high - low) // 6
        near = sorted(range(middle - reach, middle + reach + 1), key=lambda i: abs(i - middle))
        cuts.append(max(near, key=lambda i: np.count_nonzero(np.bincount(planes[i].ravel())[1:] >= _SHOWN)))
    return cuts


def as_seen(cut: np.ndarray, plane: str) -> np.ndarray:
    """A canonical plane as rows from top to bottom; the patient's right on the left, and anterior on the right."""
    return (cut if plane == "sagittal" else cut[::-1]).T[::-1]


def _window(image: np.ndarray) -> tuple[float, float]:
    """Grey levels shown as black and white."""
    sample = image[::3, ::3, ::3]
    bright = sample[sample > sample.min()]
    low = float(sample.min())
    return low, float(np.percentile(bright, 99.5) if bright.size else image.max())


# --- colours ----------------------------------------------------------------------------------------------------


def tint(values: np.ndarray, table: Sequence[Label]) -> np.ndarray:
    """RGBA of a plane of labels: areas see-through, outlines opaque."""
    rgba = np.zeros((*values.shape, 4), np.uint8)
    for label in table:
        rgba[values == label.value] = (*label.color, round(255 * _FILL))
    edge = np.zeros(values.shape, bool)
    for axis in (0, 1):
        ahead, behind = (
            tuple(s if a == axis else slice(None) for a in (0, 1)) for s in (slice(1, None), slice(-1))
        )
        edge[behind] |= values[behind] != values[ahead]
        edge[ahead] |= values[behind] != values[ahead]
    rgba[edge & (rgba[..., 3] > 0), 3] = 255
    return rgba


def _legend(labels: Sequence[np.ndarray], table: Sequence[Label]) -> dict[str, Colour]:
    """Name and colour of the structures that occur, both sides as one where their colour is one."""
    present = set().union(*(np.unique(a).tolist() for a in labels))
    colors = {label.value: label.color for label in table}
    entries: dict[str, Colour] = {}
    for label in table:
        if label.value in present:
            name = label.sideless if colors.get(label.mirror) == label.color else label.name
            entries.setdefault(name, label.color)
    return entries


# --- canvas -----------------------------------------------------------------------------------------------------


def drawing() -> type[Figure]:
    """What figures are drawn with, without any display. Raises InputError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "Pictures need matplotlib.", 'Install it with: pip install "mapseg[demo]"'
        ) from error
    return Figure


def _figure(width: float, height: float, face: str) -> Figure:
    """An empty figure of a size in inches."""
    return drawing()((width, height), dpi=_DPI, facecolor=face)


def _canvas(
    panels: int, sizes: Mapping[str, Sequence[float]], names: Sequence[str]
) -> tuple[Figure, list[list[Axes]], int]:
    """A black figure at the scale of the anatomy, the axes of every panel's planes, and columns of the legend."""
    widths, heights = zip(*sizes.values(), strict=True)
    if panels == 1:
        columns, rows = list(widths), [max(heights)]
    else:
        columns, rows = [max(widths)] * panels, list(heights)
    scale = max(min(_MM_PER_INCH, sum(columns) / _NARROW), sum(columns) / _LARGE, sum(rows) / _LARGE)
    columns, rows = ([mm / scale for mm in edges] for edges in (columns, rows))
    gap, top = 0.12, 0.42
    apart = max(gap, (_NARROW - sum(columns)) / (len(columns) + 1))  # of a spine, too, names need room
    width = sum(columns) + apart * (len(columns) + 1)
    across = _legend_columns(names, width)
    bottom = 0.34 + 0.21 * -(-len(names) // across)
    height = sum(rows) + gap * (len(rows) - 1) + top + bottom
    figure = _figure(width, height, "black")
    cells, y = [[] for _ in range(panels)], height - top
    for r, row in enumerate(rows):
        x, y = apart, y - row
        for c, column in enumerate(columns):
            cell = figure.add_axes((x / width, y / height, column / width, row / height), facecolor="black")
            cell.axis("off")
            cells[c if panels > 1 else r].append(cell)
            x += column + apart
        y -= gap
    return figure, cells, across


def _legend_columns(names: Sequence[str], width: float) -> int:
    """As many as fit into a width in inches, filled one after the other."""
    for columns in range(min(_COLUMNS, len(names)), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(np.array(names, object), columns)]
        if sum(_LETTER * letters + _ENTRY for letters in longest) <= width:
            return columns
    return 1


def _write_legend(figure: Figure, legend: Mapping[str, Colour], columns: int) -> None:
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    handles = [Patch(facecolor=[c / 255 for c in colour], label=" ") for colour in legend.values()]
    if handles:
        drawn = figure.legend(
            handles=handles, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 0.22 / height),
            frameon=False, labelcolor=_INK, fontsize=8.5, handlelength=1, handleheight=1, borderaxespad=0,
        )  # fmt: skip
        # Only now: matplotlib would leave out a name that begins with "_".
        for text, name in zip(drawn.get_texts(), legend, strict=True):
            text.set(text=name, parse_math=False)
    note = "Radiological convention: the patient's right (R) is on the left of the picture."
    figure.text(0.5, 0.08 / height, note, color=_FAINT, fontsize=7.5, ha="center", va="bottom")


def _save(figure: Figure, path: str | Path) -> Path:
    figure.savefig(path, format="png", facecolor=figure.get_facecolor())
    return Path(path)
