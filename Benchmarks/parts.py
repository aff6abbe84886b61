"""The paper's ablation: masked autoencoding, masked pseudo-labels, global-local collaboration, with and without each.

    python -m Benchmarks.parts TASK --data FOLDER --work FOLDER [--seeds 0 1 2] [--rows ...] [--preset cpu]

Every row is a training on the source; with masked pseudo-labels, the preset ``paper`` adapts its model after it. Scored
on the test scans, without a gate. Folders and options are those of ``Benchmarks.uda``, whose ``source-only`` and
``paper`` are two of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from MAPSegLib import api
from MAPSegLib.config import ARCHITECTURES, RECIPES
from MAPSegLib.errors import InputError
from MAPSegLib.models import load_encoder, load_model, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.tasks.findings import ADAPTED_MODEL
from MAPSegLib.volumes import find_scans

from .tables import write_section
from .uda.__main__ import GRID as UDA
from .uda.grid import Bench, Grid
from .uda.methods import Scores, fresh_model, score, source_model
from .uda.report import Cells, comparison
from .uda.tasks import Size, Task, adaptation_options, training_options


class Row(NamedTuple):
    """Which parts a training has."""

    mae: bool = True
    """Masked autoencoding before: as many steps as on the source, on the scans of both domains."""
    pseudo: bool = True
    """Masked pseudo-labels of the target, after the training on the source."""
    collaboration: bool = True
    """Whole scans beside patches: their features in the head, and their two terms of the loss."""
    ratio: float = 0.7
    """Share of masked cubes, in autoencoding and after."""
    scans: int | None = None
    """Target scans to adapt to; all when absent."""


ROWS = {
    "nothing": Row(mae=False, pseudo=False, collaboration=False),
    "MPL": Row(mae=False, collaboration=False),
    "MAE": Row(pseudo=False, collaboration=False),
    "GLC": Row(mae=False, pseudo=False),
    "GLC + MPL": Row(mae=False),
    "MAE + GLC": Row(pseudo=False),
    "MAE + MPL": Row(collaboration=False),
    "all": Row(),
    "all, half masked": Row(ratio=0.5),
    "all, nine tenths masked": Row(ratio=0.9),
    "all, 10 target scans": Row(scans=10),
    "all, 5 target scans": Row(scans=5),
}
SHARED = {"GLC": ("source-only", "final"), "GLC + MPL": ("paper", "adapted")}
"""Rows that are methods of ``Benchmarks.uda``, and which of their results."""
HEADER = ["parts", "seeds", "Dice", "HD95 (mm)", "Dice less all parts"]


@contextmanager
def apart(together: bool) -> Iterator[None]:
    """Unless ``together``: the head sees none of the whole scan's features."""
    if together:
        yield
        return
    maps = Segmenter.maps  # training and segmenting both go through it

    def local(self: Segmenter, features: Tensor, under: Tensor, patches: Tensor) -> Tensor:
        return maps(self, features, torch.zeros_like(under), patches)

    with patch.object(Segmenter, "maps", local):
        yield


def _loss(row: Row) -> dict[str, float]:
    known = {"mask_ratio": row.ratio}
    return known if row.collaboration else known | {"global_weight": 0.0, "cosine_weight": 0.0}


def _initial(bench: Bench, row: Row) -> Path:
    """Random weights, those of the encoder replaced by pretrained ones where the row has them."""
    fresh = fresh_model(bench)
    if not row.mae:
        return fresh
    folder = bench.place("parts") / f"mae-{row.ratio:g}"
    path = folder / "model.safetensors"
    if path.exists():
        return path
    place, size = bench.material, bench.size
    known: dict[str, Any] = {"domains": [place / "target" / "images"]}
    if bench.task.synthetic:
        known["from_labels"] = place / "source" / "labels"
    else:
        known["domains"].append(place / "source" / "images")
    known |= {
        "steps": size.train_steps,
        "scans": 2 * size.patches,
        "mask_ratio": row.ratio,
        "seed": bench.seed,
    }
    known |= {"learning_rate": 1e-3, "warmup": min(50, size.train_steps // 4), "reuse": 2, "picture_every": 0}
    with patch.dict(ARCHITECTURES, small=size.architecture):
        grid = {"spacing": bench.task.spacing}
        api.pretrain(folder, "encoder", preset="small", preprocessing=grid, overwrite=True, **known)
    model, card = load_model(fresh)
    load_encoder(folder / "encoder.safetensors", model)
    return save_model(path, model.state_dict(), card)


def _source_model(bench: Bench, row: Row) -> Path:
    """Trained on the source, unless another row has done it already."""
    if row == Row(mae=False, pseudo=row.pseudo):
        return source_model(bench, strong=False)[0]
    name = f"source{'-mae' * row.mae}{'' if row.collaboration else '-local'}-{row.ratio:g}"
    folder, place = bench.place("parts") / name, bench.material / "source"
    path = folder / "model.safetensors"
    if not path.exists():
        known: dict[str, Any] = {"labels": place / "labels", "images": place / "images"}
        if bench.task.synthetic:
            known = {"from_labels": place / "labels"}
        known |= training_options(bench.size, bench.seed) | _loss(row)
        api.train(folder, "model", init=_initial(bench, row), **known)
    return path


def _result(bench: Bench, name: str) -> Scores:
    row = ROWS[name]
    if bench.size.models:
        raise InputError(
            "Models that are there already cannot be trained in parts.", "Choose --preset scratch."
        )
    if name in SHARED:
        method, result = SHARED[name]
        return UDA.cell(bench, method)["results"][result]
    folder = bench.place("parts") / name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
    with apart(row.collaboration):
        model = _source_model(bench, row)
        if row.pseudo:
            known = bench.source | adaptation_options(bench.size, "paper", bench.seed) | _loss(row)
            scans = find_scans(bench.material / "target" / "images")[: row.scans]
            api.adapt(model, scans, folder, save_model=True, overwrite=True, **known)
            model = folder / ADAPTED_MODEL
        return score(bench, model, folder / "test")


def options_of(size: Size, name: str, seed: int) -> dict[str, Any]:
    """What a row's figures depend on."""
    return {
        "training": training_options(size, seed),
        "adaptation": adaptation_options(size, "paper", seed),
        "recipe": RECIPES["paper"]._asdict(),
        "row": ROWS[name]._asdict(),
    }


def run_row(bench: Bench, name: str) -> dict[str, Any]:
    """Test scores of a row."""
    return {"results": {"final": _result(bench, name)}}


def write_results(section: str, task: Task, size: Size, cells: Cells, path: Path) -> None:
    """The section of a task."""
    write_section(
        section,
        f"The paper's ablation, {task.title}: Dice (%) and HD95 (mm) on the test scans, ungated, mean ± deviation over "
        f"seeds. {size.train_steps} steps on the source, of autoencoding before them as many where there is any, and "
        f"with MPL {size.adapt_steps} of the preset `paper` after them. Rows with fewer target scans (or all, where "
        "there are no more) adapt to those alone; autoencoding has seen all.",
        HEADER,
        comparison(cells, ROWS, "all"),
        path,
    )


GRID = Grid("parts", "rows", list(ROWS), options_of, run_row, write_results)


if __name__ == "__main__":
    sys.exit(GRID.main(__doc__))
