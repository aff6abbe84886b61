"""What a notebook calls: every function builds the job that the command line builds, and runs it in this process.

Each returns the job's result, a dictionary (see :mod:`MAPSegLib.jobs`); scans that failed among others are listed
under ``failed``. Options are those of :mod:`MAPSegLib.config`, given by name. ``report`` receives every event.

One call at a time: random numbers and settings of PyTorch, which a call sets, are shared by the threads of a process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from .errors import Cancelled, InputError, MAPSegError, Stopped
from .jobs import Emit, build_job
from .models import list_models
from .worker import explained, run_job

__all__ = ["adapt", "evaluate", "list_models", "pretrain", "review", "segment", "train"]

PathLike = str | os.PathLike


def segment(
    model: PathLike,
    scans: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    uncertainty: bool = False,
    probabilities: bool = False,
    overwrite: bool = False,
    report: Emit | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Segment scans with a model; the same call, made again, goes on with those that have no result yet.

    Args:
        model: name (see :func:`list_models`) or file.
        scans: a scan, a DICOM series folder, a folder of scans, a data set, a manifest, or several of them.
        output: folder, or the label map's file name for one scan.
        uncertainty: write maps of one minus the probability of the label given.
        probabilities: write maps with a fourth axis, the structures in the order of the result's ``labels``, whose
            probabilities go from 0 to 255.
        overwrite: do all scans again, and replace results that are there; other jobs' are refused otherwise.
        report: called with every event, a dictionary; ``print`` shows what goes on.
        options: of :class:`~MAPSegLib.config.InferenceOptions`.

    Returns:
        what report.json holds of these scans (under ``scans`` a dictionary for each, with ``file``, ``output``,
        ``trusted``, ``reason``, ``structures``, ...; those that did not come through under ``failed``), and
        ``files``, all that were written. Paths are text.

    Raises:
        InputError: an option, the model or every scan cannot be used, or results are there already.
        MemoryExhausted: no scan fits into memory.
    """
    return _run(
        report,
        task="segment",
        model=str(path_of(model, "model")),
        scans=_several(scans, "scans"),
        output=path_of(output, "output"),
        uncertainty=uncertainty,
        probabilities=probabilities,
        overwrite=overwrite,
        options=options,
    )


def adapt(
    model: PathLike,
    scans: PathLike | Iterable[PathLike],
    output: PathLike,
    *,
    source: PathLike | None = None,
    source_labels: PathLike | None = None,
    source_from_labels: PathLike | None = None,
    source_contrast: str = "t1",
    uncertainty: bool = False,
    save_model: bool = False,
    overwrite: bool = False,
    report: Emit | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Adapt a model to unlabelled scans of one domain and segment them; the gate keeps the better supported result.

    Args:
        source: labelled scans to train on as well: a folder, a data set or a manifest.
        source_labels: folder of their label maps, where ``source`` is a folder of scans alone.
        source_from_labels: instead, a folder of label maps to synthesise source images from.
        source_contrast: of the synthesised images: ``t1``, ``t2``, ``random`` or ``mixed``.
        save_model: keep the adapted model beside the results.
        options: of :class:`~MAPSegLib.config.AdaptationOptions`, or with a source of
            :class:`~MAPSegLib.config.CentralisedOptions`.

    Other arguments, what is returned (and of each scan which result was ``chosen``), and what is raised, as for
    :func:`segment`.
    """
    return _run(
        report,
        task="adapt",
        model=str(path_of(model, "model")),
        scans=_several(scans, "scans"),
        output=path_of(output, "output"),
        uncertainty=uncertainty,
        source=_maybe(source, "source"),
        source_labels=_maybe(source_labels, "source_labels"),
        source_from_labels=_maybe(source_from_labels, "source_from_labels"),
        source_contrast=source_contrast,
        save_model=save_model,
        overwrite=overwrite,
        options=options,
    )


def train(
    output: PathLike,
    name: str,
    *,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    from_labels: PathLike | None = None,
    contrast: str = "t1",
    label_table: PathLike | None = None,
    preset: str | None = None,
    init: PathLike | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    holdout: int = 0,
    description: str = "",
    license: str = "",
    overwrite: bool = False,
    report: Emit | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a source model; a training that was killed continues where ``output`` holds its checkpoint.

    Args:
        output: folder for the model and its record.
        name: of the model, and so of its file.
        images, labels: folders of scans and of their label maps, named alike; or a data set or manifest alone.
        from_labels: instead, a folder of label maps to synthesise images from.
        contrast: of the synthesised images: ``t1``, ``t2``, ``random`` or ``mixed``.
        label_table: JSON file, or ``brain``. Otherwise the structures are those found in the label maps or, with
            ``from_labels``, FreeSurfer's (``brain``).
        preset: ``tiny``, ``small`` (the default) or ``paper``.
        init: model to start from, or a pretrained encoder (see :func:`pretrain`).
        preprocessing: of :class:`~MAPSegLib.config.Preprocessing`.
        holdout: cases kept back to choose the best weights.
        options: of :class:`~MAPSegLib.config.TrainingOptions`.

    Other arguments as for :func:`segment`; ``description`` and ``license`` go into the card.

    Returns:
        under ``model`` the model's file, which :func:`segment` takes, and under ``files`` all that were written.

    Raises:
        InputError: options or data cannot be used, or results are there already.
    """
    return _run(
        report,
        task="train",
        output=path_of(output, "output"),
        name=name,
        images=_maybe(images, "images"),
        labels=_maybe(labels, "labels"),
        from_labels=_maybe(from_labels, "from_labels"),
        contrast=contrast,
        label_table=None if label_table is None else str(path_of(label_table, "label_table")),
        preset=preset,
        init=None if init is None else str(path_of(init, "init")),
        preprocessing=preprocessing,
        holdout=holdout,
        description=description,
        license=license,
        overwrite=overwrite,
        options=options,
    )


def pretrain(
    output: PathLike,
    name: str,
    *,
    domains: PathLike | Iterable[PathLike] = (),
    from_labels: PathLike | None = None,
    contrast: str = "t1",
    preset: str = "small",
    preprocessing: Mapping[str, Any] | None = None,
    description: str = "",
    license: str = "",
    overwrite: bool = False,
    report: Emit | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Pretrain an encoder by masked autoencoding; :func:`train` starts from it with ``init``.

    A pretraining that was killed continues where ``output`` holds its checkpoint.

    Args:
        output: folder for the encoder, its record and its pictures.
        name: of the encoder, and so of its file.
        domains: a folder of unlabelled scans, a data set or a manifest, or several: each is a domain, unless it is a
            manifest that states some; domains are drawn equally often.
        from_labels: a folder of label maps to synthesise images from, one more domain.
        contrast: of these images: ``t1``, ``t2``, ``random`` or ``mixed``.
        preset: ``tiny``, ``small`` or ``paper``.
        preprocessing: of :class:`~MAPSegLib.config.Preprocessing`.
        options: of :class:`~MAPSegLib.config.PretrainingOptions`.

    Other arguments, what is returned (under ``model`` the encoder's file), and what is raised, as for :func:`train`.
    """
    return _run(
        report,
        task="pretrain",
        output=path_of(output, "output"),
        name=name,
        domains=_several(domains, "domains"),
        from_labels=_maybe(from_labels, "from_labels"),
        contrast=contrast,
        preset=preset,
        preprocessing=preprocessing or {},
        description=description,
        license=license,
        overwrite=overwrite,
        options=options,
    )


def evaluate(
    prediction: PathLike,
    reference: PathLike,
    output: PathLike,
    *,
    model: PathLike | None = None,
    mapping: Mapping[int, int] | None = None,
    overwrite: bool = False,
    report: Emit | None = None,
) -> dict[str, Any]:
    """Score label maps against references: Dice, 95 % Hausdorff distance in mm, and volume error.

    Args:
        prediction: a label map, or a folder of them.
        reference: its reference, or a folder, data set or manifest with one, named alike, for each.
        output: folder for metrics.json and metrics.csv.
        model: whose structures are scored; all in the references otherwise.
        mapping: reference value to label value, where the two follow different protocols.

    Returns:
        what metrics.json holds (under ``summary`` a dictionary of means for each structure, under ``scans`` one for
        each structure of each scan, ...), and ``files``, all that were written. What is undefined is None.

    Raises:
        InputError: nothing to pair, no pair that can be read, or results are there already. One label map without a
            reference, or that cannot be read, stops no other: it is under ``failed``.
    """
    return _run(
        report,
        task="evaluate",
        prediction=path_of(prediction, "prediction"),
        reference=path_of(reference, "reference"),
        output=path_of(output, "output"),
        model=None if model is None else str(path_of(model, "model")),
        mapping=mapping,
        overwrite=overwrite,
    )


def review(results: PathLike, *, overwrite: bool = False, report: Emit | None = None) -> dict[str, Any]:
    """Draw the label maps of :func:`segment` or :func:`adapt` over their scans, and put them on a page.

    Needs matplotlib (extra ``demo``).

    Args:
        results: folder that these wrote, or a report in it.

    Returns:
        ``files``: the page, ``review.html`` in that folder, and its pictures; ``failed``: scans that are not to be
        drawn.

    Raises:
        InputError: no report, no scan that can be drawn, matplotlib is missing, or a page is there already.
    """
    return _run(report, task="review", results=path_of(results, "results"), overwrite=overwrite)


def path_of(given: Any, what: str) -> str | Path:
    """A path in whatever form; ``what`` it is of goes into the message."""
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return Path(os.fsdecode(given))
    named = repr(given) if given is None or isinstance(given, int | float | bytes) else type(given).__name__
    raise InputError(
        f"{what}: {named} is not a path.",
        "Give text, or a path of pathlib. Images in memory: save them first, or give them to a Predictor.",
    )


def _maybe(given: Any, what: str) -> str | Path | None:
    return None if given is None else path_of(given, what)


def _several(given: Any, what: str) -> list[str | Path]:
    """Paths, one of them given alone."""
    alone = isinstance(given, str | bytes) or not isinstance(given, Iterable)
    return [path_of(one, what) for one in ([given] if alone else given)]


def _run(report: Emit | None, **content: Any) -> dict[str, Any]:
    if report is not None and not callable(report):
        raise InputError(
            f"report: {report!r} is not a function.", "Give one that takes an event, such as print."
        )
    broken: list[Exception] = []
    stopped: list[Stopped] = []

    def emit(event: dict[str, Any]) -> None:
        try:
            if report:
                report(event)
        except Exception as failure:
            if isinstance(failure, Stopped) and content["task"] == "adapt":
                stopped.append(failure)  # heeded between steps: what comes before and after them goes on
                return
            broken.append(failure)  # no scan's: it ends the job, and is raised as it is
            raise Cancelled("Cancelled.") from failure

    try:
        job = build_job(content)
        with nullcontext() if job.task in ("evaluate", "review") else _settings_kept():
            return run_job(job, emit, lambda: bool(stopped))
    except MAPSegError:
        if broken:
            raise broken[0] from None
        raise
    except Exception as failure:
        raise explained(failure) from failure


def _settings_kept() -> AbstractContextManager:
    from .devices import settings_kept  # PyTorch, which scoring does without, and drawing sets nothing of

    return settings_kept()
