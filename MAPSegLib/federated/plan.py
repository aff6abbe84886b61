"""The plan of a federated training: one JSON file that everyone agrees on before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from ..config import Options
from ..errors import InputError
from ..jobs import Name, first_problem
from ..reports import read_json

SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]


class PlannedSite(Options):
    """A site and what it brings: labelled scans (source) or scans alone (target)."""

    name: SiteName
    role: Literal["source", "target"]


class ServerAddress(Options):
    """Where the sites find the server."""

    host: str = Field(min_length=1, description="name or address that every site reaches the server under")
    port: int = Field(8002, ge=1, le=65535)
    valid_days: int = Field(360, ge=1, le=360, description="how long the certificates hold")


class PercentileFilter(Options):
    """Send only the largest differences: FLARE's PercentilePrivacy."""

    percentile: float = Field(10, ge=0, le=100, description="differences below this percentile become 0")
    gamma: float = Field(0.01, gt=0, description="the others are clipped to this size")


class NoiseFilter(Options):
    """Send a noisy share of the differences: FLARE's SVTPrivacy (sparse vector technique)."""

    fraction: float = Field(0.1, gt=0, le=1, description="share of the differences that is sent")
    epsilon: float = Field(0.1, gt=0, description="privacy budget of their choice; smaller is noisier")
    noise_var: float = Field(0.1, gt=0, description="privacy budget of each value sent; smaller is noisier")
    gamma: float = Field(1e-5, gt=0, description="differences are clipped to this size first")
    tau: float = Field(1e-6, gt=0, description="size that a difference must have to be chosen")


class PrivacyOptions(Options):
    """Filters on what leaves a site, applied at the site in this order."""

    percentile: PercentileFilter | None = None
    noise: NoiseFilter | None = None


class Plan(Options):
    """Who trains what, and for how long."""

    name: Name
    model: Path = Field(description="file of the start model")
    rounds: int = Field(ge=1)
    steps: int = Field(ge=1, description="of each site, per round")
    sites: tuple[PlannedSite, ...] = Field(min_length=1)
    min_sites: int = Field(1, ge=1, description="answers that a round needs")
    round_timeout: float = Field(3600, gt=0, description="seconds that a round waits for late sites")
    server: ServerAddress | None = None
    privacy: PrivacyOptions = PrivacyOptions()

    @model_validator(mode="after")
    def _check(self) -> Plan:
        names = [site.name for site in self.sites]
        if len(set(names)) < len(names):
            raise ValueError("two sites share a name")
        if self.min_sites > len(names):
            raise ValueError("min_sites is more than the sites there are")
        return self


def load_plan(path: Path) -> Plan:
    """Read a plan; the model's path is taken from the plan's folder.

    Raises:
        InputError: missing, not JSON, or not a plan; the message names the first field that is wrong.
    """
    content = read_json(path, "a plan")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path} is not a plan: {first_problem(error)}.") from error
    return plan.model_copy(update={"model": path.parent / plan.model})
