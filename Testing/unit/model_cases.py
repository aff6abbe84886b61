"""Models small enough to run in milliseconds, and what they are trained on, for the tests of all that uses networks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from MAPSegLib.config import Architecture, Label, Preprocessing
from MAPSegLib.models import ModelCard
from MAPSegLib.networks.segmenter import Segmenter

PAIRED = (
    Label(value=10, name="left thalamus", mirror=49),
    Label(value=16, name="brain stem"),
    Label(value=49, name="right thalamus", mirror=10),
)
SIDES = (
    Label(value=10, name="left thalamus", mirror=49),
    Label(value=17, name="left hippocampus", mirror=53),
    Label(value=49, name="right thalamus", mirror=10),
    Label(value=53, name="right hippocampus", mirror=17),
)
SINGLE = (Label(value=3, name="dark"), Label(value=7, name="middle"), Label(value=300, name="bright"))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ignore(event, **fields) -> None:
    """A report that nobody reads."""


class Blobs:
    """Labelled scans made up at every draw."""

    def __init__(self):
        self.drawn = 0

    def draw(self, generator):
        self.drawn += 1
        image = torch.rand(20, 18, 22, generator=generator) * 0.9 + 0.05
        return image, (image * 4).long()


def tiny_architecture(**changes) -> Architecture:
    sizes = dict(width=4, depth=1, head_width=4, up_channels=4, dilations=(1, 2, 3), patch=16, global_size=16)
    return Architecture(**sizes | changes)


def tiny_model(labels=PAIRED, seed=0, **changes) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(tiny_architecture(**changes), labels).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two networks have the same weights, to the bit."""
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def records(path: Path) -> list[dict]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def card_of(model: Segmenter, spacing=(1.0, 1.0, 1.0), priors=None) -> ModelCard:
    return ModelCard(
        name="tiny",
        architecture=model.architecture,
        preprocessing=Preprocessing(spacing=spacing),
        labels=model.labels,
        priors=priors or {},
    )


class Thresholds(torch.nn.Module):
    """A segmenter that can be followed by hand: a voxel's class is the level that its intensity is next to.

    ``side`` classes follow: every class but 0 is split at the share ``middle`` of the scan's first axis, which the
    model, as a real one, can know from the global view only. ``pull`` shifts intensities by the global view's.
    """

    def __init__(
        self, levels=(0.0, 0.4, 0.7, 1.0), sided=False, middle=0.5, pull=0.0, sharpness=200.0, patch=16
    ):
        super().__init__()
        self.levels = torch.tensor(levels).view(1, -1, 1, 1, 1)
        self.labels = ()  # no structure names its mirror image
        self.sided, self.middle, self.pull, self.sharpness = sided, middle, pull, sharpness
        self.architecture = SimpleNamespace(patch=patch, global_size=patch, curve_knots=0)
        self.blended = self.classes = len(levels) + (len(levels) - 1) * sided
        self.batches = []

    def features(self, x):
        self.batches.append(len(x))
        n = x.shape[2]
        place = (torch.arange(n) + 0.5) / n
        return torch.cat([x, place.view(1, 1, n, 1, 1).expand_as(x)], 1)

    def decode(self, local, under, patches):
        logits = -self.sharpness * (local[:, :1] + self.pull * under[:, :1] - self.levels) ** 2
        if not self.sided:
            return logits
        right = (under[:, 1:] > self.middle).float() * 1e3
        left, other = logits[:, 1:] - right, logits[:, 1:] - (1e3 - right)
        return torch.cat([logits[:, :1], left, other], 1)

    def to_blend(self, local, under, patches):
        return self.decode(local, under, patches)

    def blended_logits(self, maps):
        return maps

    def classify(self, image):
        """What it makes of a prepared image (X, Y, Z), without windows; only where nothing pulls or splits."""
        return (image[None] - self.levels.view(-1, 1, 1, 1)).abs().argmin(0)


def sided(**changes) -> Thresholds:
    """Two structures told by intensity, and left from right by the place in the whole scan; no third level."""
    return Thresholds(levels=(0.0, 0.5, 1.0), sided=True, **changes)
