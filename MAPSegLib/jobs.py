"""Jobs: what a front end asks for, validated whole before anything runs.

A job is one JSON object whose ``task`` names its kind; :func:`parse_job` reads it from a file. While it runs, a job
tells events, which are plain dictionaries; ``python -m MAPSegLib.worker job.json`` prints each as a JSON line:

``started``   the first line of a worker: its ``pid`` and ``version``
``progress``  ``stage``, ``step``, ``steps``, ``seconds_left`` (None while unknown); where they apply ``scan``,
              ``losses`` (by name) and ``eta`` (share of sure voxels in the pseudo-labels). Stages: ``read``,
              ``search`` (for an intensity curve), ``adapt``, ``segment``, ``train``, ``pretrain``, ``evaluate``,
              ``review``, ``synthesise``, and ``round``, of a ``site`` and with a ``round``
``preview``   ``file``, a label map of the adaptation so far, with its ``scan`` and ``step``; it goes with the next one
``scan``      a scan is done and its files are written: what the result will say of it, under ``entry``
``log``       ``message``, something to know
``error``     ``kind`` (input, memory, cancelled, error), ``message``, ``advice``; with ``scan``, only that scan failed
``result``    the last line of a job that ended: ``task``, ``files``, ``failed`` scans, and what the task adds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .config import (
    AdaptationBase,
    AdaptationOptions,
    CentralisedOptions,
    Contrast,
    GivenName,
    GivenPath,
    InferenceOptions,
    Name,
    Options,
    Preprocessing,
    Preset,
    PretrainingOptions,
    TrainingOptions,
)
from .errors import InputError, first_problem
from .reports import read_json

Emit = Callable[[dict[str, Any]], None]
"""Receives every event of a job."""
Report = Callable[..., None]
"""Called by the work itself as ``report(event, **fields)``; raises Cancelled or Stopped when it is to end."""


Scans = Annotated[
    tuple[GivenPath, ...],
    Field(min_length=1, description="scans, DICOM series folders, folders of scans, data sets, or manifests"),
]
LabelValue = Annotated[int, Field(ge=0, le=65535)]


class SegmentJob(Options):
    """Segment scans with a model."""

    task: Literal["segment"] = "segment"
    model: str = Field(description="name or file of a model")
    scans: Scans
    output: GivenPath = Field(description="folder, or for one scan the label map's file name")
    uncertainty: bool = Field(
        default=False, description="write maps of one minus the probability of the label given"
    )
    probabilities: bool = Field(
        default=False, description="write maps of the probability of every structure, 0 to 255"
    )
    overwrite: bool = False
    options: InferenceOptions = InferenceOptions()


_BESIDE_A_SOURCE = CentralisedOptions.model_fields.keys() - AdaptationOptions.model_fields.keys()


class AdaptJob(Options):
    """Adapt a model to unlabelled scans of one domain, and segment them.

    With a source, real or synthesised, adaptation trains on it as well, and ``options`` are those of
    :class:`~MAPSegLib.config.CentralisedOptions`.
    """

    task: Literal["adapt"] = "adapt"
    model: str = Field(description="name or file of the source model")
    scans: Scans
    output: GivenPath = Field(description="folder, or for one scan the label map's file name")
    uncertainty: bool = False
    save_model: bool = Field(default=False, description="keep the adapted model as adapted_model.safetensors")
    overwrite: bool = False
    source: GivenPath | None = Field(default=None, description="labelled scans: folder, data set or manifest")
    source_labels: GivenPath | None = Field(
        default=None, description="folder of their label maps, where the source is a folder of scans alone"
    )
    source_from_labels: GivenPath | None = Field(
        default=None, description="instead, folder of label maps to synthesise source images from"
    )
    source_contrast: Contrast = Field(default="t1", description="of the synthesised images")
    options: SerializeAsAny[AdaptationBase] = Field(default=AdaptationOptions(), validate_default=True)

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_setting(cls, value: Any, info: ValidationInfo) -> AdaptationBase:
        given = value.model_dump(exclude_unset=True) if isinstance(value, AdaptationBase) else value
        centralised = info.data.get("source") or info.data.get("source_from_labels")
        if not centralised and isinstance(given, Mapping):
            alone = [name for name in given if name in _BESIDE_A_SOURCE]
            if alone:
                raise ValueError(f"{alone[0]} needs labelled source data (source, or source_from_labels)")
        return (CentralisedOptions if centralised else AdaptationOptions).model_validate(given)

    @model_validator(mode="after")
    def _check(self) -> AdaptJob:
        if self.source and self.source_from_labels:
            raise ValueError("give either source or source_from_labels")
        if self.source_labels and not self.source:
            raise ValueError("source_labels need a source")
        if self.source_contrast != "t1" and not self.source_from_labels:
            raise ValueError("source_contrast is that of images synthesised by source_from_labels")
        return self

    @property
    def has_source(self) -> bool:
        """Whether adaptation has labelled scans, or synthesised ones, to train on as well."""
        return isinstance(self.options, CentralisedOptions)


def _check_contrast(job: TrainJob | PretrainJob) -> None:
    if job.contrast != "t1" and not job.from_labels:
        raise ValueError("contrast is that of images synthesised by from_labels")


class TrainJob(Options):
    """Train a source model, on images with labels or on images synthesised from label maps."""

    task: Literal["train"] = "train"
    output: GivenPath = Field(
        description="folder for NAME.safetensors and metrics.jsonl, and, meanwhile, a checkpoint"
    )
    name: Name
    images: GivenPath | None = Field(default=None, description="labelled scans: folder, data set or manifest")
    labels: GivenPath | None = Field(
        default=None, description="folder of their label maps, where images is a folder of scans alone"
    )
    from_labels: GivenPath | None = Field(
        default=None, description="folder of label maps to synthesise images from"
    )
    contrast: Contrast = Field(default="t1", description="of the synthesised images")
    label_table: GivenName | None = Field(
        default=None, description="JSON file of structures, or brain for the built-in one"
    )
    preset: Preset | None = Field(default=None, description="architecture; small by default")
    init: GivenName | None = Field(
        default=None,
        description="model to start from, whose labels and sizes are kept; or a pretrained encoder",
    )
    preprocessing: Preprocessing | None = None
    holdout: int = Field(
        default=0, ge=0, description="cases kept back to choose the best weights by their Dice"
    )
    description: str = ""
    license: str = ""
    overwrite: bool = False
    options: TrainingOptions = TrainingOptions()

    @model_validator(mode="after")
    def _check(self) -> TrainJob:
        if (self.from_labels is None) == (self.images is None) or (self.labels and not self.images):
            raise ValueError("give either images and labels, or from_labels")
        if self.init and (self.preset or self.preprocessing):
            raise ValueError("init brings its own preset and preprocessing")
        _check_contrast(self)
        if self.options.patience and not self.holdout:
            raise ValueError("patience needs cases to validate on (holdout)")
        return self


class PretrainJob(Options):
    """Pretrain an encoder on unlabelled scans, on images synthesised from label maps, or on both."""

    task: Literal["pretrain"] = "pretrain"
    output: GivenPath = Field(
        description="folder for NAME.safetensors, metrics.jsonl and pictures, and, meanwhile, a checkpoint"
    )
    name: Name
    domains: tuple[GivenPath, ...] = Field(
        default=(),
        description="folders of scans or data sets, one a domain, or manifests that state any; drawn equally often",
    )
    from_labels: GivenPath | None = Field(
        default=None, description="folder of label maps to synthesise images from: one more domain"
    )
    contrast: Contrast = Field(default="t1", description="of the synthesised images")
    preset: Preset = Field(default="small", description="architecture")
    preprocessing: Preprocessing = Preprocessing()
    description: str = ""
    license: str = ""
    overwrite: bool = False
    options: PretrainingOptions = PretrainingOptions()

    @model_validator(mode="after")
    def _check(self) -> PretrainJob:
        if not self.domains and self.from_labels is None:
            raise ValueError("give folders of scans, or from_labels")
        _check_contrast(self)
        return self


class EvaluateJob(Options):
    """Score label maps against references."""

    task: Literal["evaluate"] = "evaluate"
    prediction: GivenPath = Field(description="label map, or a folder of them")
    reference: GivenPath = Field(description="label map, folder of them, named alike, data set or manifest")
    output: GivenPath = Field(description="folder for metrics.json and metrics.csv")
    model: GivenName | None = Field(
        default=None, description="whose structures to score; all in the references by default"
    )
    mapping: dict[LabelValue, LabelValue] | None = Field(
        default=None, description="reference value to label value"
    )
    overwrite: bool = False


class ReviewJob(Options):
    """Draw the label maps of a segmentation or an adaptation over their scans, and put them on a page."""

    task: Literal["review"] = "review"
    results: GivenPath = Field(description="folder of the results, or the report in it")
    overwrite: bool = False


class ManifestJob(Options):
    """List the cases of data sets, in whatever layouts, in one manifest."""

    task: Literal["manifest"] = "manifest"
    places: tuple[GivenPath, ...] = Field(
        min_length=1, description="folders of scans, data sets or manifests"
    )
    labels: GivenPath | None = Field(
        default=None, description="folder of the label maps, where the only place is a folder of scans alone"
    )
    output: GivenPath = Field(description="the manifest, a JSON file")
    overwrite: bool = False

    @model_validator(mode="after")
    def _check(self) -> ManifestJob:
        if self.labels and len(self.places) > 1:
            raise ValueError("labels are those of one folder of scans")
        if self.output.suffix != ".json":
            raise ValueError("the name of a manifest ends in .json")
        return self


class SynthesiseJob(Options):
    """Draw images from label maps."""

    task: Literal["synthesise"] = "synthesise"
    label_maps: GivenPath = Field(description="label map with FreeSurfer codes, or a folder of them")
    output: GivenPath = Field(description="folder for images/ and labels/")
    contrast: Contrast = "t1"
    count: int = Field(default=1, ge=1, description="images of each label map")
    seed: int = Field(default=0, ge=0, lt=2**63)
    spacing: float = Field(default=1.0, ge=0.1, le=20, description="of the images, mm")
    overwrite: bool = False


class ImportJob(Options):
    """Turn a checkpoint of the paper's authors into a model, or a pretrained one into an encoder."""

    task: Literal["import"] = "import"
    checkpoint: GivenPath
    name: Name
    output: GivenPath | None = Field(default=None, description="folder; the user's models by default")
    label_table: GivenName | None = None
    preprocessing: Preprocessing = Preprocessing()
    patch: int = Field(default=96, ge=16, le=256, multiple_of=8, description="edge of a local patch, voxels")
    license: str = ""
    overwrite: bool = False


class SimulateJob(Options):
    """Run all sites of a federation in this process, one after another: to try a plan, and to measure it."""

    task: Literal["simulate"] = "simulate"
    plan: GivenPath = Field(description="JSON file with a plan (MAPSegLib.federated.plan)")
    sites: GivenPath = Field(description="JSON file with every site's scans: images, and a source's labels")
    output: GivenPath = Field(description="folder for the model, rounds.json, and a folder for each site")
    overwrite: bool = False


class DemoJob(Options):
    """Show segmentation and adaptation on the head that the nilearn package carries."""

    task: Literal["demo"] = "demo"
    output: GivenPath
    minutes: float = Field(default=3.0, gt=0, description="at most this long adapting")
    overwrite: bool = False


Job = Annotated[
    SegmentJob
    | AdaptJob
    | TrainJob
    | PretrainJob
    | EvaluateJob
    | ReviewJob
    | ManifestJob
    | SynthesiseJob
    | ImportJob
    | SimulateJob
    | DemoJob,
    Field(discriminator="task"),
]


def build_job(content: Mapping[str, Any]) -> Job:
    """Validate a job.

    Raises:
        InputError: it is not a job; the message names the first field that is wrong.
    """
    try:
        return TypeAdapter(Job).validate_python(content)
    except ValidationError as error:
        raise InputError(f"The job cannot be run: {first_problem(error, tagged=True)}.") from error


def parse_job(path: str | Path) -> Job:
    """Read and validate a job file.

    Raises:
        InputError: missing, not JSON, or not a job.
    """
    content = read_json(Path(path), "a job")
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON file with a job.")
    return build_job(content)


def read_mapping(path: Path) -> dict[int, int]:
    """The reference values and label values in a JSON file. Raises InputError: missing, or not such a file."""
    try:
        return TypeAdapter(dict[LabelValue, LabelValue]).validate_python(read_json(path, "a mapping"))
    except ValidationError as error:
        raise InputError(
            f"{path} is not a mapping: {first_problem(error)}.",
            'It should hold {"10": 1}: reference values, and label values, from 0 to 65535.',
        ) from error
