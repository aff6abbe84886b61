"""Supervised training on the source: masked and unmasked patches, with the global-local terms (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .. import distributed
from ..augmentation import uniform
from ..config import TrainingOptions
from ..datasets import PatchBatch, Source, cut_patches
from ..losses import cosine_loss, segmentation_loss
from ..networks.segmenter import Segmenter
from ..quality import validation_dice
from ..reports import CHECKPOINT
from .loop import Loop, Record, Report, Reused, take_steps, warmup_cosine
from .views import show


def source_losses(loop: Loop, batch: PatchBatch, options: TrainingOptions) -> dict[str, Tensor]:
    """L_seg of the patches, the last ``masked_share`` of them masked, and the global-local terms.

    The published recipe shows every patch twice, whole and masked. Different patches for the two cost half and have the
    same expected gradient (of Dice, which is a ratio over all patches, nearly). What is left of the share after whole
    patches is drawn for.
    """
    masked, rest = divmod(options.masked_share * len(batch.patches), 1)
    masked = int(masked) + (rest > 0 and uniform(0, 1, loop.generator) < rest)
    views = show(loop, batch, len(batch.patches) - masked, masked, options)
    balance = options.balance * max(0.0, 1 - loop.step / (0.6 * options.steps))
    terms = {"segmentation": segmentation_loss(views.logits, batch.target, balance)}
    if views.whole_logits is not None:
        wholes = batch.whole_target.expand(len(views.whole_logits), -1, -1, -1)
        terms["global"] = options.global_weight * segmentation_loss(views.whole_logits, wholes, balance)
    if options.cosine_weight:
        alike = cosine_loss(views.local_features, views.global_features)
        terms["cosine"] = options.cosine_weight * alike
    return terms


class Trained(NamedTuple):
    """What a training made."""

    model: Segmenter
    """The averaged weights; where there is a validation set, the best validated ones."""
    steps: int
    """Taken by then."""
    dice: float | None
    """Of these on the validation set, mean over scans and structures, 0 to 1."""


def train(
    model: Segmenter,
    source: Source,
    options: TrainingOptions,
    folder: Path,
    report: Report,
    validation: Sequence[tuple[Tensor, Tensor]] = (),
) -> Trained:
    """Train ``model``.

    ``folder`` gets ``checkpoint.pt`` (resumed from when it exists) and ``metrics.jsonl``.

    Args:
        source: labelled scans.
        validation: prepared images and class indices, both (X, Y, Z).
        report: told ``progress`` at every step.
    """
    a = model.architecture
    loop = Loop(
        model,
        options,
        ema_decay=0.5 ** (1 / options.ema_half_life),
        rate=warmup_cosine(options.warmup, options.steps),
        betas=(0.9, 0.95),
        young=True,
        muon_rate=options.muon_rate,
    )
    loop.resume(folder / CHECKPOINT)
    drawn = Reused(source.draw, options.reuse)

    def terms() -> dict[str, Tensor]:
        image, target = drawn(loop)
        batch = cut_patches(
            image, options.patches, a.patch, a.global_size, loop.generator, target, options.foreground_share
        )
        return source_losses(loop, batch.to(loop.device), options)

    def judge(record: Record) -> None:
        if validation and (loop.step % options.validate_every == 0 or loop.step == options.steps):
            _validate(loop, validation, record)

    def enough() -> bool:
        return bool(options.patience) and loop.extra.get("waited", 0) >= options.patience

    take_steps(loop, terms, options, folder, report, "train", judge, enough)
    if validation and "best" in loop.extra:
        loop.ema.load_state_dict(loop.extra["best"])
    return Trained(loop.ema, loop.extra.get("best_step", loop.step), loop.extra.get("best_dice"))


def _validate(loop: Loop, validation: Sequence[tuple[Tensor, Tensor]], record: Record) -> None:
    dice = distributed.on_first(lambda: validation_dice(loop.ema, validation, loop.inference))
    loop.ema.to(loop.device)  # where memory ran out, segmenting has moved it
    record.add(loop.step, validation_dice=dice)
    loop.note(loop.ema, dice > loop.extra.get("best_dice", -1.0), best_dice=dice)
