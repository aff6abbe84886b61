"""Every option, with its unit and bounds: validated before anything runs.

Section numbers refer to the paper (arXiv 2303.09373).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from .errors import InputError
from .windows import RESERVED


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text):
        raise ValueError("letters, digits and . _ + - only, beginning with a letter or digit")
    if RESERVED.match(text):
        raise ValueError("Windows keeps this name for a device")
    return text


Name = Annotated[str, Field(max_length=100), AfterValidator(_name)]
"""Of a model, and so of a file."""


def _given(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("a path is empty")
    if isinstance(value, (str, Path)) and "\0" in str(value):  # the system's calls would raise
        raise ValueError("a path holds a null character")
    return value


GivenPath = Annotated[Path, BeforeValidator(_given)]
"""A path in a file or a call: an empty text would become the current folder."""
GivenName = Annotated[str, BeforeValidator(_given)]
"""A name or a path that may be left out: an empty text would count as left out."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Byte = Annotated[int, Field(ge=0, le=255)]
Preset = Literal["tiny", "small", "paper"]
"""Name of an architecture."""
Contrast = Literal["t1", "t2", "random", "mixed"]
"""Of images synthesised from label maps; see :mod:`MAPSegLib.synthesis`."""


class Options(BaseModel):
    """Base of all options: unknown names are errors, numbers finite, and values do not change once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(Options):
    """Sizes of the encoder and the segmentation head (section 3). The defaults are the paper's."""

    width: int = Field(default=512, ge=4, le=1024, description="channels of the encoder")
    depth: int = Field(default=8, ge=1, le=16, description="residual blocks of the encoder")
    head_width: int = Field(default=512, ge=4, le=1024, description="channels of the ASPP head")
    up_channels: int = Field(default=64, ge=4, le=256, description="channels at full resolution")
    detail: int = Field(
        default=0,
        ge=0,
        le=64,
        description="channels at full resolution taken from the patch itself; 0: as published",
    )
    dilations: tuple[int, int, int] = Field(
        default=(4, 8, 16), description="of the ASPP branches, in feature cells"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    curve_knots: int = Field(
        default=0, ge=0, le=64, description="pieces of the intensity curve before the encoder; 0: none"
    )
    patch: int = Field(default=96, ge=16, le=256, multiple_of=8, description="edge of a local patch, voxels")
    global_size: int = Field(
        default=96, ge=16, le=256, multiple_of=8, description="edge of the resized whole scan, voxels"
    )

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        """GroupNorm splits the encoder's channels into 32 groups and the head's into 8; fewer form one group."""
        for name, groups in {"width": 32, "head_width": 8, "up_channels": 8, "detail": 8}.items():
            channels = getattr(self, name)
            if channels >= groups and channels % groups:
                raise ValueError(f"{name} must be less than {groups}, or a multiple of {groups}")
        if self.head_width == 8:
            raise ValueError("head_width must not be 8: pooled, each group would hold a single value")
        return self


ARCHITECTURES: dict[str, Architecture] = {
    "paper": Architecture(),
    "small": Architecture(
        width=96,
        depth=3,
        head_width=64,
        up_channels=16,
        detail=8,
        dilations=(2, 4, 8),
        patch=64,
        global_size=64,
    ),
    "tiny": Architecture(
        width=16, depth=2, head_width=16, up_channels=8, dilations=(1, 2, 4), patch=32, global_size=32
    ),
}


class Preprocessing(Options):
    """From a scan to the network's input: canonical RAS, working spacing, foreground box, intensities."""

    spacing: tuple[float, float, float] = Field(default=(1.0, 1.0, 1.0), description="working grid, mm")
    modality: Literal["mr", "ct"] = "mr"
    percentile: float = Field(
        default=99.5, gt=50, le=100, description="MR: foreground percentile that becomes 1"
    )
    window: tuple[float, float] = Field(
        default=(-200.0, 300.0), description="CT: Hounsfield units that become 0 and 1"
    )

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if any(not 0.1 <= s <= 20 for s in self.spacing):
            raise ValueError("spacing must lie between 0.1 and 20 mm")
        if not self.window[0] < self.window[1]:
            raise ValueError("window must rise")
        return self

    @property
    def grid(self) -> str:
        """The spacing in mm as text, such as ``1 x 1 x 1``."""
        return " x ".join(f"{mm:g}" for mm in self.spacing)


class Label(Options):
    """One structure of a model: its value in label maps, what is known of it, and how viewers show and code it."""

    value: int = Field(ge=1, le=65535)
    name: str = Field(min_length=1)
    color: tuple[Byte, Byte, Byte] = (128, 128, 128)
    mirror: int | None = Field(
        default=None, description="value of the same structure on the other side of the body"
    )
    terminology: str | None = Field(default=None, description="SNOMED CT code, scheme^code^meaning")
    one_sided: bool | None = Field(
        default=None, description="whether it lies to one side without a mirror image, as the liver does"
    )
    one_piece: bool | None = Field(
        default=None,
        description="whether it is one piece, so that islands go; absent where that is not known",
    )

    @property
    def sideless(self) -> str:
        """Its name without the side, where it has a mirror image: the two share it."""
        return self.name.removeprefix("left ").removeprefix("right ") if self.mirror else self.name


class Compute(Options):
    """What a job computes on."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: Threads | None = Field(
        default=None, description="CPU threads; as many as PyTorch takes when absent"
    )

    def for_inference(self) -> InferenceOptions:
        """The options of a segmentation on the same device."""
        return InferenceOptions(**self.model_dump(include=set(Compute.model_fields)))


class InferenceOptions(Compute):
    """How a scan is segmented."""

    overlap: float = Field(
        default=0.5, ge=0, le=0.9, description="share of a window that its neighbour repeats"
    )
    mirror: bool = Field(
        default=True, description="average with the mirrored scan's result, where anatomy has two sides"
    )
    batch: int = Field(default=4, ge=1, le=64, description="windows at once")
    islands: bool = Field(
        default=False,
        description="keep small parts that lie apart from their structure, also of what is one piece",
    )


Accumulate = Annotated[
    int, Field(ge=1, le=1024, description="micro-batches that a process computes before it moves the weights")
]
EmaDecay = Annotated[
    Annotated[float, Field(ge=0, lt=1)] | Literal["small", "large"],
    Field(description="share of the teacher that a step leaves, or the name of a published schedule"),
]


class LossOptions(Compute):
    """What the loss of a step reads, in source training and in any adaptation: masks, and weights beside L_seg."""

    mask_ratio: float = Field(
        default=0.7, gt=0, lt=1, description="share of a masked patch's cubes set to zero"
    )
    mask_cube: int = Field(default=8, ge=1, description="edge of a masked cube in the local patch, voxels")
    global_weight: float = Field(
        default=0.05, ge=0, description="gamma: weight of the whole-scan segmentation term"
    )
    cosine_weight: float = Field(
        default=0.025, ge=0, description="delta: weight of the local-global cosine term"
    )


class TrainingOptions(LossOptions):
    """Supervised training on the source (section 3.4's warm-up; losses of sections 3.2 and 3.3)."""

    steps: int = Field(default=5000, ge=1)
    patches: int = Field(default=4, ge=1, le=64, description="local patches a micro-batch, of one scan")
    accumulate: Accumulate = 1
    masked_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the patches whose cubes are masked"
    )
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    muon_rate: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="learning rate of Muon for the large convolutions; 0: AdamW for all",
    )
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=100, ge=0, description="steps of linear learning-rate warm-up")
    foreground_share: float = Field(
        default=0.5, ge=0, le=1, description="patches centred on a labelled structure"
    )
    balance: float = Field(
        default=0.0, ge=0, le=1, description="class balance of cross-entropy; fades out by 60 % of steps"
    )
    augmentation: Literal["standard", "strong"] = Field(
        default="standard",
        description="strong: other contrasts and blurs as well, so that shapes count, not intensities",
    )
    reuse: int = Field(default=1, ge=1, le=16, description="steps on each drawn scan")
    ema_half_life: int = Field(default=200, ge=1, description="half-life of the averaged weights, steps")
    validate_every: int = Field(default=250, ge=1, description="steps between validations")
    patience: int = Field(
        default=0, ge=0, description="validations without a gain before an early stop; 0 never stops"
    )
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    seed: int = Field(default=0, ge=0, lt=2**63)


class PretrainingStep(Compute):
    """What a step of masked multi-scale autoencoding reads (section 3.1)."""

    scans: int = Field(
        default=4, ge=1, le=64, description="scans a micro-batch: the whole of each, and a local patch"
    )
    accumulate: Accumulate = 1
    mask_ratio: float = Field(default=0.7, gt=0, lt=1, description="share of the cubes set to zero")
    mask_cube: int = Field(
        default=8,
        ge=1,
        description="edge of a masked cube in the local patch, voxels; half of it in the whole",
    )
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)


class PretrainingOptions(PretrainingStep):
    """Masked multi-scale autoencoding (section 3.1); the defaults are the paper's 300 epochs of 2,000 samples."""

    steps: int = Field(default=150_000, ge=1)
    warmup: int = Field(default=500, ge=0, description="steps of linear learning-rate warm-up")
    reuse: int = Field(default=1, ge=1, le=16, description="steps on each drawn set of scans")
    picture_every: int = Field(default=1000, ge=0, description="steps between pictures; 0 makes none")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")


class StepOptions(LossOptions):
    """What a step of any adaptation reads: its views, its loss, its optimiser and its teacher."""

    patches: int = Field(default=1, ge=1, le=32, description="local patches a micro-batch, of each domain")
    accumulate: Accumulate = 1
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    ema_decay: EmaDecay = 0.9
    confidence: float = Field(
        default=0.9, gt=0, lt=1, description="tau of eta, the quality of a pseudo-label"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)


class AdaptationBase(StepOptions):
    """What every adaptation to unlabelled target scans can be told."""

    steps: int = Field(default=150, ge=1, description="at most this many steps")
    minutes: float = Field(
        default=2.5, gt=0, description="at most this long, per scan; segmenting comes after"
    )
    check_every: int = Field(default=10, ge=1, description="steps between label-free checks")
    preview_seconds: float = Field(default=20.0, ge=0, description="seconds between previews; 0 makes none")
    patience: int = Field(default=5, ge=1, description="checks without a gain before an early stop")
    curve_knots: int = Field(
        default=16,
        ge=0,
        le=64,
        description="pieces of the learnt intensity curve; 0 learns none, and nor do the presets paper and v2",
    )
    curve_rate: float = Field(default=5e-3, gt=0, lt=1, description="learning rate of the intensity curve")
    search: bool = Field(
        default=True, description="look for an intensity curve to start from; needs curve_knots"
    )
    gate: bool = Field(
        default=True, description="keep the source-only result where adaptation is not better supported"
    )
    gate_margin: float = Field(
        default=0.03,
        ge=0,
        description="gain in the label-free score that a curve and a scan must show; none where five scans or more "
        "gain together",
    )


class AdaptationOptions(AdaptationBase):
    """Test-time (source-free) adaptation: target terms only (section 3.6)."""

    plain_weight: float = Field(default=0.5, ge=0, description="beta: weight of the unmasked student's term")


class CentralisedOptions(AdaptationBase):
    """Adaptation with labelled source data at hand (section 3.4). The defaults are the paper's where it has any."""

    preset: Literal["paper", "v2", "plus"] = Field(
        default="paper", description="which terms with which weights, and how scans are changed: see RECIPES"
    )
    warmup: int = Field(
        default=1000, ge=0, description="the first steps, on the source alone; 0 if the model knows it well"
    )
    steps: int = Field(default=5000, ge=1, description="at most this many steps, the warm-up included")
    minutes: float = Field(
        default=120.0, gt=0, description="at most this long, per scan; segmenting comes after"
    )
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    ema_decay: EmaDecay = "small"
    check_every: int = Field(default=100, ge=1, description="steps between label-free checks")
    patience: int = Field(default=10, ge=1, description="checks without a gain before an early stop")

    @model_validator(mode="after")
    def _check(self) -> CentralisedOptions:
        if self.warmup >= self.steps:
            raise ValueError(
                f"a warm-up of {self.warmup} steps leaves none of {self.steps} to adapt in; give both"
            )
        return self


class Views(NamedTuple):
    """Weights of a domain's plain and masked views."""

    plain: float
    masked: float


class Recipe(NamedTuple):
    """Weights of both domains' views, and what is done to the intensities in them."""

    source: Views
    target: Views
    strong: bool = False
    """Whether the source's scans, and the target as the student sees it, are shown in other contrasts as well."""
    matched: bool = False
    """Whether half of the source's scans get a target scan's intensities by structure, where there is one at hand."""
    curve: bool = False
    """Whether an intensity curve is looked for and learnt, before the network on the target's side alone."""


RECIPES = {
    "paper": Recipe(source=Views(plain=0.5, masked=0.5), target=Views(plain=0.0, masked=1.0)),
    "v2": Recipe(source=Views(plain=0.0, masked=1.0), target=Views(plain=0.5, masked=0.5)),
    "plus": Recipe(
        source=Views(plain=0.5, masked=0.5),
        target=Views(plain=0.5, masked=0.5),
        strong=True,
        matched=True,
        curve=True,
    ),
}
"""Centralised adaptation (section 3.4): as published, as the authors revised it, and ours.

A domain's loss is the sum over its views v of

    w_v [L_seg(f(x_v), y) + 2 gamma L_seg(f(X_v), Y) + 2 delta L_cos(x_v, X_v)].

With beta = 0.5 this is the paper's loss, L_GLC included. The revision is told for the patches' terms only; that its
global-local terms follow the same views is our reading.
"""
WARMUP = Views(plain=0.5, masked=0.5)
"""The source's views during the warm-up, when there are no others."""

EMA_SCHEDULES = {
    "small": ((1000, 0.99), (3000, 0.999), (math.inf, 0.9999)),
    "large": ((1000, 0.999), (math.inf, 0.9999)),
}
"""The teacher's decay up to a step after the warm-up, for encoders with a small or a large pretraining.

Made for thousands of steps: in a short run such a teacher would hardly move.
"""


def check_path(path: str | Path) -> Path:
    """Expand ``~``, where it names a user's folder, and return an absolute path, which does not end in ``..``.

    Raises:
        InputError: it is empty, which would be the current folder; or it begins in that, which has been removed.
    """
    if not str(path).strip():
        raise InputError("A path is empty.", "Give a file or a folder.")
    try:
        found = Path(os.path.expanduser(path)).absolute()
        return Path(os.path.realpath(found)) if found.name == ".." else found  # results are named after it
    except FileNotFoundError as error:
        raise InputError(
            f"{path} cannot be found, as the current folder is no longer there.", "Change to another folder."
        ) from error
