"""What the sites of a federation agree on. Written by whoever coordinates it; where a site's scans are is not in it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..config import (
    ARCHITECTURES,
    Name,
    Options,
    Preprocessing,
    Preset,
    PretrainingStep,
    StepOptions,
)
from ..errors import InputError, first_problem
from ..models import ModelCard, load_card, resolve
from ..reports import read_json

Role = Literal["source", "target"]


class FederatedStep(StepOptions):
    """A step of federated adaptation; see :data:`~MAPSegLib.config.RECIPES` for the preset."""

    preset: Literal["paper", "v2", "plus"] = "paper"
    patches: int = Field(default=2, ge=1, le=32, description="local patches a step")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="share of the teacher that a step leaves; what a site sends is its teacher"
    )


def _site_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", text):
        raise ValueError("small letters, digits and - only, beginning with a letter or digit")
    return text


SiteName = Annotated[str, Field(max_length=60), AfterValidator(_site_name)]


class Member(Options):
    """A site, as the others know it."""

    name: SiteName
    role: Role = Field(
        default="target", description="source: has labelled scans; target: has unlabelled ones"
    )
    credit: str | None = Field(
        default=None, description="how the model card names the site, where it agrees to be named there"
    )


class ServerAddress(Options):
    """Where the sites find the server."""

    host: str = Field(min_length=1, description="name or address that every site reaches the server under")
    port: int = Field(default=8002, ge=1, le=65535)
    valid_days: int = Field(default=360, ge=1, le=360, description="how long the certificates hold")


class PercentileFilter(Options):
    """Send only the largest differences: FLARE's PercentilePrivacy."""

    percentile: float = Field(
        default=10, ge=0, le=100, description="differences below this percentile become 0"
    )
    gamma: float = Field(default=0.01, gt=0, description="the others are clipped to this size")


class NoiseFilter(Options):
    """Send a noisy share of the differences: FLARE's SVTPrivacy (sparse vector technique)."""

    fraction: float = Field(
        default=0.1, gt=0, le=1, description="share of the differences to draw; some are drawn twice"
    )
    epsilon: float = Field(
        default=0.1, gt=0, description="privacy budget of their choice; smaller is noisier"
    )
    noise_var: float = Field(
        default=0.1, gt=0, description="privacy budget of each value sent; smaller is noisier"
    )
    gamma: float = Field(default=1e-5, gt=0, description="differences are clipped to this size first")
    tau: float = Field(default=1e-6, gt=0, description="size that a difference must have to be chosen")


class PrivacyOptions(Options):
    """Filters on what leaves a site, applied at the site in this order."""

    percentile: PercentileFilter | None = None
    noise: NoiseFilter | None = None

    @property
    def filters(self) -> list[PercentileFilter | NoiseFilter]:
        """Those that are asked for, in the order in which they are applied."""
        return [options for options in (self.percentile, self.noise) if options]


class Plan(Options):
    """A federation, validated whole before anything is sent."""

    name: Name = Field(description="of the model that comes out")
    task: Literal["adapt", "pretrain"] = Field(
        default="adapt", description="pretrain: masked autoencoding on every site's scans, whatever its role"
    )
    model: str | None = Field(default=None, description="to adapt: name or file of the model to start from")
    preset: Preset = Field(default="small", description="to pretrain: architecture")
    preprocessing: Preprocessing = Field(default=Preprocessing(), description="to pretrain: of the scans")
    sites: tuple[Member, ...] = Field(min_length=1)
    rounds: int = Field(default=20, ge=1)
    steps: int = Field(default=20, ge=1, description="of training at a site, in a round")
    min_sites: int = Field(default=1, ge=1, description="a round with fewer answers is repeated")
    minutes: float = Field(default=60.0, gt=0, description="a round waits this long for late sites")
    server: ServerAddress | None = Field(default=None, description="needed for start kits, not to simulate")
    privacy: PrivacyOptions = PrivacyOptions()
    license: str = Field(default="", description="of the resulting weights; goes into the model card")
    options: SerializeAsAny[StepOptions | PretrainingStep] = Field(
        default=FederatedStep(), validate_default=True
    )

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_task(cls, value: object, info: ValidationInfo) -> StepOptions | PretrainingStep:
        given = value.model_dump(exclude_unset=True) if isinstance(value, Options) else value
        kind = PretrainingStep if info.data.get("task") == "pretrain" else FederatedStep
        return kind.model_validate(given)

    @model_validator(mode="after")
    def _check(self) -> Plan:
        names = [site.name for site in self.sites]
        if len(set(names)) < len(names):
            raise ValueError("two sites share a name")
        if self.name.lower() == "state":  # some systems take names for one that differ in case alone
            raise ValueError("the file of a model called state would be the coordinator's own")
        if self.min_sites > len(names):
            raise ValueError(f"min_sites is {self.min_sites}, but there are {len(names)} sites")
        if (self.model is None) == (self.task == "adapt"):
            raise ValueError("an adaptation needs a model to start from, and a pretraining takes none")
        for name in ("preset", "preprocessing"):
            if self.task == "adapt" and getattr(self, name) != Plan.model_fields[name].default:
                raise ValueError(f"{name} is a pretraining's; an adaptation has that of its model")
        if self.task == "adapt" and {site.role for site in self.sites} != {"source", "target"}:
            raise ValueError("an adaptation needs a site with the role source and one with the role target")
        return self

    def member(self, name: str) -> Member:
        """Raises InputError where the plan knows no such site."""
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites)
        raise InputError(f"The federation has no site {name}; it has {known}.", "Check the site's name.")


class Federation(Options):
    """A plan with all that is needed to train by it; nothing in it names a file."""

    plan: Plan
    card: ModelCard = Field(description="of the model to start from")

    @property
    def digest(self) -> str:
        """A short name that no other federation has."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def read_plan(path: Path) -> Plan:
    """Read a plan from a JSON file; a model file in it may be relative to the plan.

    Raises:
        InputError: missing, not JSON, or a value that cannot be; the message names it.
    """
    content = read_json(path, "a plan")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path} is not a plan: {first_problem(error)}.") from error
    if plan.model and (path.parent / plan.model).is_file():
        plan = plan.model_copy(update={"model": str((path.parent / plan.model).absolute())})
    return plan


def agree(plan: Plan) -> Federation:
    """The federation of a plan. Raises InputError where its model cannot be used."""
    if plan.task == "adapt":
        file = resolve(plan.model)
        return Federation(plan=plan.model_copy(update={"model": file.stem}), card=load_card(file))
    card = ModelCard(
        kind="encoder",
        name=plan.name,
        architecture=ARCHITECTURES[plan.preset],
        preprocessing=plan.preprocessing,
    )
    return Federation(plan=plan, card=card)
