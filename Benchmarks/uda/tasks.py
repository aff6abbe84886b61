"""What is measured: tasks, their sizes, and every option that a training is given.

Every training on labels takes ``train_steps``. The adapting methods take ``adapt_steps`` more, and start from the model
of source-only; ``plus`` and ``test-time-strong`` from that of source-strong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAPSegLib.config import ARCHITECTURES, Architecture, Label, Options
from MAPSegLib.synthesis import brain_labels

from .. import oasis
from . import data

VERSION = 11
"""Raised with every change that changes figures, of the library, the scans or what a method starts from: results of
another are refused."""
TEST_TIME = ("test-time", "test-time-strong")
ADAPTING = (*TEST_TIME, "paper", "v2", "plus")
METHODS = ("source-only", "source-strong", *ADAPTING, "target-supervised")
STRONG = ("source-strong", "test-time-strong", "plus")
"""Those whose source training shows other contrasts as well: for ``plus`` that is part of the recipe."""


class Size(Options):
    """A preset of a task."""

    architecture: Architecture
    train_steps: int
    """On the labels of the source, or of the target for target-supervised."""
    adapt_steps: int
    """After it, of the adapting methods."""
    patches: int
    """A step, of each domain."""
    checks: int = 4
    """Label-free ones during an adaptation."""
    cases: int | None = None
    """At most this many in each part; all when absent."""
    models: tuple[str, str] | None = None
    """Source models that are there already, a plain one and one that knows other contrasts: source-only and
    source-strong are these, and target-supervised continues the second."""


def training_options(size: Size, seed: int, strong: bool = False) -> dict[str, Any]:
    """Of every supervised training: short ones from scratch, hence Muon, high rates and a quick average."""
    return {
        "steps": size.train_steps,
        "patches": size.patches,
        "learning_rate": 2e-3,
        "muon_rate": 0.02,
        "warmup": min(50, size.train_steps // 4),
        "ema_half_life": 40,
        "balance": 0.5,
        "foreground_share": 0.75,
        "reuse": 2,
        "augmentation": "strong" if strong else "standard",
        "checkpoint_every": 50,
        "seed": seed,
    }


def adaptation_options(size: Size, method: str, seed: int) -> dict[str, Any]:
    """Of every adaptation: ended by its steps, not by a clock.

    The published teachers are made for thousands of steps and would hardly move here, so all take the same quick one,
    and all the default learning rate of test-time adaptation.
    """
    options = {
        "steps": size.adapt_steps,
        "minutes": 1000.0,
        "patches": size.patches,
        "learning_rate": 1e-3,
        "ema_decay": 0.95,
        "check_every": max(1, size.adapt_steps // size.checks),
        "patience": size.checks,
        "preview_seconds": 0.0,
        "seed": seed,
    }
    return options if method in TEST_TIME else options | {"preset": method, "warmup": 0}


@dataclass(frozen=True)
class Task:
    """A source domain, a target domain and the structures that are scored."""

    title: str
    spacing: tuple[float, float, float]
    """Working grid, mm."""
    labels: tuple[Label, ...]
    structures: dict[str, tuple[int, ...]]
    """Label values that make up a line of the table."""
    write: Callable[[Path, Path, int | None], None]
    """Called as ``write(data folder, folder to fill, cases in each part)``."""
    sizes: dict[str, Size]
    synthetic: bool = False
    """Whether source images are drawn anew from label maps."""


def _labels(names: dict[int, str]) -> tuple[Label, ...]:
    return tuple(Label(value=value, name=name) for value, name in names.items())


def _single(names: dict[int, str]) -> dict[str, tuple[int, ...]]:
    return {name: (value,) for value, name in names.items()}


HEART = {200: "myocardium", 500: "left ventricle", 600: "right ventricle"}
HIPPOCAMPUS = {1: "anterior", 2: "posterior"}

SMALL = ARCHITECTURES["small"]
LEAN = SMALL.model_copy(update={"width": 32, "head_width": 32})
"""A seventh of the size of ``small``: what two cores train in minutes."""
CROP = LEAN.model_copy(
    update={"up_channels": 8, "dilations": (1, 2, 4), "patch": 32, "global_size": 32},
)

GPU = Size(architecture=SMALL, train_steps=6000, adapt_steps=2000, patches=4, checks=10)
SMOKE = Size(architecture=CROP, train_steps=4, adapt_steps=4, patches=1, checks=1, cases=3)

TASKS: dict[str, Task] = {
    "cardiac": Task(
        title="heart MR, bSSFP (patients 1–25) to LGE (1–25 unlabelled; test 26–35)",
        # Slices are 5 mm (LGE) to 8-13 mm (bSSFP) apart, 75-145 mm in all. At 1.5 mm in the plane a wall has 5 voxels
        # and 64 voxels span the ventricles. Through the plane 1.5 mm as well: the stack then fills a patch (at 5 mm
        # three quarters of it would be padding), and cubes that are masked, kernels and turns mean the same along
        # every axis. What lies between slices is interpolated, in labels too, and results return to the slices.
        spacing=(1.5, 1.5, 1.5),
        labels=_labels(HEART),
        structures=_single(HEART),
        write=data.write_cardiac,
        sizes={
            "cpu": Size(architecture=LEAN, train_steps=660, adapt_steps=160, patches=2),
            "gpu": GPU,
            "smoke": SMOKE,
        },
    ),
    "brain-contrast": Task(
        title="brains synthesised, T1-like (anatomies 1–10) to T2-like (11–16 unlabelled; test 17–20)",
        # 2 mm: a patch of 64 voxels then holds most of a brain, and a whole head takes few windows.
        spacing=(2.0, 2.0, 2.0),
        labels=brain_labels(),
        structures=oasis.SEVEN,
        write=data.write_brain,
        sizes={
            # To learn 31 structures takes two cores hours. Both models know the anatomies of all 20 label maps, and the
            # second one T2-like images of them: what the first one makes of the target is what this size measures.
            "cpu": Size(
                architecture=SMALL,
                train_steps=100,
                adapt_steps=100,
                patches=1,
                checks=2,
                models=("brain-t1", "brain-mr"),
            ),
            # From random weights, which the paper's ablation needs. It learns most structures, not the smallest.
            "scratch": Size(architecture=LEAN, train_steps=660, adapt_steps=100, patches=2),
            "gpu": GPU,
            "smoke": SMOKE,
        },
        synthetic=True,
    ),
    "hippocampus": Task(
        title=f"hippocampus, T1 (16 cases) to the curve {data.CURVE} (12 unlabelled; test 12)",
        spacing=(1.0, 1.0, 1.0),
        labels=_labels(HIPPOCAMPUS),
        structures=_single(HIPPOCAMPUS),
        write=data.write_hippocampus,
        sizes={
            "cpu": Size(architecture=CROP, train_steps=400, adapt_steps=100, patches=4),
            "gpu": GPU.model_copy(update={"train_steps": 3000, "adapt_steps": 1000}),
            "smoke": SMOKE,
        },
    ),
}
