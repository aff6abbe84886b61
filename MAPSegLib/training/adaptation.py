"""Adaptation to target scans without labels (sections 3.2, 3.4 and 3.6), with a labelled source beside them or without.

The EMA teacher labels whole patches; the student learns those labels from masked and plain patches, and the
source's labels from its scans (:mod:`MAPSegLib.training.terms`). The step that is kept, and whether it is kept at
all, is decided by measures that training does not touch (:mod:`MAPSegLib.quality`). The paper chooses by Dice on
source validation scans minus half the mean loss on the pseudo-labels; the target's part of it is a loss that falls
while results get worse, and source scans would have to be set aside, so both settings are judged alike here.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from .. import distributed
from ..config import AdaptationBase, InferenceOptions
from ..datasets import Source
from ..errors import Stopped
from ..inference import Segmentation, segment_scan
from ..networks.segmenter import Segmenter
from ..preprocessing import Scan, restore
from ..quality import Assessment, assess_scan, better, needed_gain
from ..reports import CHECKPOINT, RECORD
from .contrast import search_curve
from .loop import Clock, Loop, Record, Report
from .terms import Centralised, SourceFree, Terms, ema_decay

if TYPE_CHECKING:
    from ..models import ModelCard

Preview = Callable[[int, np.ndarray, int], None]
"""Called as ``preview(scan index, label values on the native grid, step)``."""


class Aside:
    """A segmentation that waits until all scans have theirs, with its maps compressed.

    Those of a hundred scans would be gigabytes.
    """

    def __init__(self, segmentation: Segmentation):
        found = {name: getattr(segmentation, name) for name in ("labels", "uncertainty")}
        self.maps = {
            name: (zlib.compress(np.ascontiguousarray(array), 1), array.dtype, array.shape)
            for name, array in found.items()
            if array is not None
        }
        self.rest = replace(segmentation, labels=np.empty(0), uncertainty=None)

    def taken(self) -> Segmentation:
        """The segmentation as it was, a new one each time."""
        maps = {
            name: np.frombuffer(zlib.decompress(packed), dtype).reshape(shape)
            for name, (packed, dtype, shape) in self.maps.items()
        }
        return replace(self.rest, notes=[*self.rest.notes], **maps)


@dataclass(frozen=True)
class ScanResult:
    """One scan before and after adaptation, and which of the two the gate supports."""

    sides: dict[str, Aside]
    """By whether they are the ``source``'s or ``adapted``."""
    assessment_source: Assessment
    assessment_adapted: Assessment
    chosen: str
    reason: str

    @property
    def source(self) -> Segmentation:
        return self.sides["source"].taken()

    @property
    def adapted(self) -> Segmentation:
        return self.sides["adapted"].taken()

    @property
    def segmentation(self) -> Segmentation:
        return self.sides[self.chosen].taken()

    @property
    def assessment(self) -> Assessment:
        return self.assessment_adapted if self.chosen == "adapted" else self.assessment_source


@dataclass
class Adapted:
    """The adapted model (the best step), how it came about, and the scans' results.

    ``history`` has an entry per label-free check: step, measures, losses, eta (total and per class), and whether
    it was ``kept`` as the best so far. Step 0 is there twice when a curve was tried: without it, and with it
    (``curve``: "found").
    Of several processes, the first one alone has the results.
    """

    model: Segmenter
    steps: int
    best_step: int
    history: list[dict] = field(default_factory=list)
    results: list[ScanResult] = field(default_factory=list)


def adapt(
    model: Segmenter,
    card: ModelCard,
    scans: Sequence[Scan],
    options: AdaptationBase,
    folder: Path,
    report: Report,
    preview: Preview | None = None,
    uncertainty: bool = False,
    source: Source | None = None,
) -> Adapted:
    """Adapt a source model to target scans and segment them with the best step, or the source where that is better.

    ``folder`` gets ``checkpoint.pt`` (resumed from when it exists) and ``metrics.jsonl``.

    Args:
        model: the source model; not changed.
        card: the source model's.
        scans: one or several of one target domain, prepared as the card says.
        options: :class:`~MAPSegLib.config.CentralisedOptions` with a ``source``, else
            :class:`~MAPSegLib.config.AdaptationOptions`.
        report: told ``progress`` at every step; raising :class:`~MAPSegLib.errors.Stopped` keeps the best so far.
        preview: given label maps while adaptation goes on.
        source: labelled scans to train on as well; without them adaptation is source-free.

    Raises:
        MemoryExhausted: segmenting did not fit anywhere.
    """
    terms: Terms = (
        SourceFree(options) if source is None else Centralised(options, source, card.preprocessing.spacing)
    )
    loop = Loop(terms.student(model), options, ema_decay(options, terms.warmup), rates=terms.rates)
    checkpoint = folder / CHECKPOINT
    loop.resume(checkpoint)
    record = Record(folder / RECORD, loop.step)
    run = _Run(loop, model, card, scans, terms, options, record, checkpoint)
    run.go(report, preview)
    best = loop.ema
    best.load_state_dict(loop.extra["best"])
    results: list[ScanResult] = []

    def segment() -> None:
        sides = []
        for index, scan in enumerate(scans):
            report("progress", stage="segment", step=index, steps=len(scans), seconds_left=None)
            sides.append(
                [_judged(network, card, scan, loop.inference, uncertainty) for network in (model, best)]
            )
        results.extend(_gated(sides, options))

    distributed.on_first(segment)
    return Adapted(best, loop.step, loop.extra["best_step"], loop.extra["history"], results)


@dataclass
class _Run:
    """The steps of one adaptation, and the label-free checks between them."""

    loop: Loop
    source: Segmenter
    card: ModelCard
    scans: list[Scan]
    terms: Terms
    options: AdaptationBase
    record: Record
    checkpoint: Path
    shown: float = float("-inf")

    def go(self, report: Report, preview: Preview | None) -> None:
        loop, options = self.loop, self.options
        budget = 60 * options.minutes * len(self.scans)
        clock = Clock(loop.step, loop.extra)

        def in_time() -> bool:
            return clock.total() < budget

        if loop.step == 0:
            without = self._check({}, {}, preview)
            if not self._find_contrast(without, report, preview, in_time):
                return

        while loop.step < options.steps and self._hopeful() and distributed.on_first(in_time):
            eta: dict = {}

            def losses(eta: dict = eta) -> dict[str, Tensor]:
                terms, measured = self.terms(loop, self)
                if not eta:  # the step's first micro-batch stands for all
                    eta.update(measured)
                return terms

            values = loop.update(losses)

            def told(values: dict = values, eta: dict = eta) -> bool:
                left = min(clock.left(loop.step, options.steps), max(0.0, budget - clock.total()))
                # a copy, as the next check records them: whoever is told may change what it was given
                fields = {"seconds_left": left, "losses": dict(values), "eta": eta.get("total")}
                try:
                    report("progress", stage="adapt", step=loop.step, steps=options.steps, **fields)
                except Stopped:
                    return False
                return True

            if not distributed.on_first(told):
                return
            if loop.step % options.check_every == 0 or loop.step in (self.terms.warmup, options.steps):
                if loop.step >= self.terms.warmup:  # nothing has been learnt of the target before
                    self._check(values, eta, preview)
                loop.save(self.checkpoint)

    def _find_contrast(
        self, without: list[float], report: Report, preview: Preview | None, in_time: Callable[[], bool]
    ) -> bool:
        """Start from the curve found on the first scan, if the scans together gain by it what the gate asks for.

        Args:
            without: scores of the scans without a curve.

        Returns: whether to go on; the user may have had enough.
        """
        loop, scan, stopped = self.loop, self.scans[0], []
        if not self.terms.searches:
            return True

        def told(done: int, total: int) -> bool:
            try:
                report("progress", stage="search", step=done, steps=total, seconds_left=None)
            except Stopped:
                stopped.append(done)
            return in_time() and not stopped

        image, mm = scan.image, scan.grid.working_spacing
        asked = (loop.ema, self.card, image, mm, loop.generator, loop.inference.precision, told)
        curve, enough = distributed.on_first(lambda: (search_curve(*asked), bool(stopped)))
        before = [network.curve.values.detach().clone() for network in (loop.model, loop.ema)]
        known, guess = loop.extra["best_score"], loop.extra["guess"]
        self._set_curves([curve, curve])
        self._check({}, {}, preview, without)
        loop.extra["waited"] = 0  # for a gain of steps, of which none has been taken
        if loop.extra["best_score"] <= known:
            self._set_curves(before)
            loop.extra["guess"] = guess
        return not enough

    def _set_curves(self, curves: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for network, values in zip((self.loop.model, self.loop.ema), curves, strict=True):
                network.curve.values.copy_(values)

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """A target scan, and the class indices that the last check found in it."""
        index = int(torch.randint(len(self.scans), (), generator=generator))
        return self.scans[index].image, self.loop.extra["guess"][index]

    def _check(
        self, losses: dict, eta: dict, preview: Preview | None, without: list[float] | None = None
    ) -> list[float]:
        """Judge on every scan, without labels, what would be kept; remember it when it beats the best.

        Args:
            eta: of the teacher's labels; empty where none were made.
            without: of a curve that was found, the scans' scores before, by which it has to pass the gate.

        Returns: the scans' scores.
        """
        loop = self.loop
        kept = self.terms.kept(loop.ema, self.source)
        judged = distributed.on_first(
            lambda: [assess_scan(kept, self.card, scan, loop.inference) for scan in self.scans]
        )
        loop.ema.to(loop.device)  # where memory ran out, segmenting has moved it
        names = judged[0][0].measures
        entry = {name: sum(a.measures[name] for a, _ in judged) / len(judged) for name in names}
        entry |= {"losses": losses, "eta": eta.get("total"), "eta_per_class": eta.get("per_class", {})}
        scores, needed = [a.measures["score"] for a, _ in judged], 0.0
        if without is not None:
            entry["curve"] = "found"
            gained = [after - before for before, after in zip(without, scores, strict=True)]
            needed = needed_gain(gained, self.options.gate_margin)
        entry["kept"] = entry["score"] > loop.extra.get("best_score", float("-inf")) + needed
        self.record.add(loop.step, **entry)
        loop.extra.setdefault("history", []).append({"step": loop.step, **entry})
        loop.note(kept, entry["kept"], best_score=entry["score"])
        loop.extra["guess"] = [classes.to(torch.int16) for _, classes in judged]
        every = self.options.preview_seconds
        if preview and every and time.monotonic() - self.shown >= every:
            self._show(preview)
        return scores

    def _show(self, preview: Preview) -> None:
        values = np.array([0, *(label.value for label in self.card.labels)])
        for index, (scan, classes) in enumerate(zip(self.scans, self.loop.extra["guess"], strict=True)):
            preview(index, restore(values[classes.numpy()], scan.grid), self.loop.step)
        self.shown = time.monotonic()

    def _hopeful(self) -> bool:
        return self.loop.extra.get("waited", 0) < self.options.patience


Judged = tuple[Aside, Assessment]


def _judged(
    model: Segmenter, card: ModelCard, scan: Scan, inference: InferenceOptions, uncertainty: bool
) -> Judged:
    started = time.monotonic()
    segmentation = segment_scan(model, card.labels, scan, inference, uncertainty=uncertainty)
    verdict = assess_scan(model, card, scan, inference, segmentation.classes)[0]
    segmentation.seconds = time.monotonic() - started
    segmentation.classes = None  # judged
    return Aside(segmentation), verdict


def _gated(sides: Sequence[Sequence[Judged]], options: AdaptationBase) -> list[ScanResult]:
    """Of each scan the adapted model's result where the label-free score says that it is better, else the source's."""
    scores = [[verdict.measures["score"] for _, verdict in pair] for pair in sides]
    needed = needed_gain([after - before for before, after in scores], options.gate_margin)
    results = []
    for (source, adapted), (before, after) in zip(sides, scores, strict=True):
        passes = better(source[1], adapted[1], needed)
        chosen = "adapted" if passes or not options.gate else "source"
        told = "better supported" if passes else "not better supported"
        if passes and after < before + options.gate_margin:
            told += ", by all scans together"
        elif not passes and after >= before + needed:
            told = "better supported, but unlike the source's result not to be trusted"
        reason = (
            f"Adaptation is {told} (score {before:.3f} to {after:.3f})."
            if options.gate
            else "The gate is off."
        )
        both = {"source": source[0], "adapted": adapted[0]}
        results.append(ScanResult(both, source[1], adapted[1], chosen, reason))
    return results
