"""Images in memory, segmented one after the other by a model that is read once: for notebooks and pipelines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from .api import PathLike, path_of
from .config import InferenceOptions
from .errors import InputError, MAPSegError, first_problem
from .models import resolve
from .volumes import image_in_memory, in_memory
from .worker import explained


@dataclass(frozen=True)
class Prediction:
    """A result in memory: images of the library that the scan is of, on the same voxels.

    Attributes:
        labels: label values, 0 for background, in the smallest unsigned type that holds them.
        trusted: whether the result can be relied on, by measures without a reference.
        reason: why, in one sentence.
        measures: those of :class:`~MAPSegLib.quality.Assessment`.
        structures: for each of the model ``value``, ``structure`` (its name), ``volume_ml`` and ``confidence`` (mean
            probability of its voxels, NaN where it was not found).
        notes: what is to know beside, a sentence each.
        seconds: that it took.
        uncertainty: one minus the probability of the label given, float32; None unless asked for.
        probabilities: of the structures in the order of ``structures``, along a fourth axis (in SimpleITK,
            components), from 0 to 255; None unless asked for.
    """

    labels: Any = field(repr=False)
    trusted: bool
    reason: str
    measures: dict[str, float]
    structures: list[dict[str, Any]] = field(repr=False)
    notes: list[str]
    seconds: float
    uncertainty: Any = field(default=None, repr=False)
    probabilities: Any = field(default=None, repr=False)


class Predictor:
    """A model that stays in memory and segments images of nibabel or SimpleITK.

    It does what :func:`~MAPSegLib.api.segment` does with files, and as that leaves PyTorch's settings as they were. One
    call at a time.

    Args:
        model: name (see :func:`~MAPSegLib.api.list_models`) or file, that of an adapted model too.
        options: of :class:`~MAPSegLib.config.InferenceOptions`.

    Raises:
        InputError: the model or an option cannot be used.
    """

    def __init__(self, model: PathLike, **options: Any):
        from .tasks.candidates import load_candidates

        try:
            self._options = InferenceOptions(**options)
        except ValidationError as error:
            raise InputError(f"The options cannot be used: {first_problem(error)}.") from error
        with _told():
            self._candidates = load_candidates(resolve(path_of(model, "model")), self._options.device)

    def segment(self, image: Any, *, uncertainty: bool = False, probabilities: bool = False) -> Prediction:
        """Segment an image, which is left as it is.

        Args:
            image: a 3D image of nibabel (NIfTI, MGH) or SimpleITK.
            uncertainty, probabilities: whether to map them, too.

        Raises:
            InputError: the image cannot be segmented; what speaks against files does against images.
            MemoryExhausted: it does not fit into memory.
        """
        from .tasks.findings import structure_rows
        from .tasks.scans import segment_one

        started = time.monotonic()
        maps = {"uncertainty": uncertainty, "probabilities": probabilities}
        with _told():
            volume = image_in_memory(image)
            found, verdict = segment_one(self._candidates, volume, self._options, maps)
            asked = {kind: in_memory(getattr(found, kind), volume) for kind, wanted in maps.items() if wanted}
            return Prediction(
                labels=in_memory(found.labels, volume),
                trusted=verdict.trusted,
                reason=verdict.reason,
                measures=verdict.measures,
                structures=structure_rows(self._candidates[0].card.labels, found),
                notes=found.notes,
                seconds=time.monotonic() - started,
                **asked,
            )


@contextmanager
def _told() -> Iterator[None]:
    """With PyTorch as it starts; what nobody foresaw is told in a sentence."""
    from .devices import settings_kept

    try:
        with settings_kept():
            yield
    except MAPSegError:
        raise
    except Exception as failure:
        raise explained(failure) from failure
