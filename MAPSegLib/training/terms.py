"""What a step of adaptation minimises: target terms alone, or with those of a labelled source beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import augmentation as aug
from ..config import (
    EMA_SCHEDULES,
    RECIPES,
    WARMUP,
    AdaptationOptions,
    CentralisedOptions,
    Recipe,
    StepOptions,
    Views,
)
from ..datasets import Matched, PatchBatch, Recoloured, Source, cut_patches
from ..losses import cosine_loss, segmentation_loss
from ..networks.segmenter import Segmenter, sample_global
from .loop import Loop
from .views import show

FOREGROUND_SHARE = 0.5
"""Of the patches, cut about a structure: one of the labels', or one that the last check found."""


class Terms(Protocol):
    """A setting of adaptation."""

    warmup: int
    """Steps before the target takes part."""
    searches: bool
    """Whether an intensity curve is looked for first."""
    rates: dict[str, float]
    """Learning rates of parameters by the start of their names."""

    def student(self, model: Segmenter) -> Segmenter:
        """The network to train, from a source model that stays as it is."""
        ...

    def kept(self, teacher: Segmenter, source: Segmenter) -> Segmenter:
        """What is judged, and kept if it is the best so far."""
        ...

    def __call__(self, loop: Loop, target: Source) -> tuple[dict[str, Tensor], dict]:
        """The terms of one step.

        Args:
            target: the unlabelled scans, each with the class indices that the last check found.

        Returns:
            the terms by name, and eta of the teacher's labels (total, and per class present; empty without them).
        """
        ...


def with_curve(model: Segmenter, knots: int) -> Segmenter:
    """A copy of ``model`` with an identity intensity curve before its encoder, unless it has one.

    Without knots its curve, if it has one, stays as it is.
    """
    if model.architecture.curve_knots or not knots:
        copied = copy.deepcopy(model)
        copied.curve.requires_grad_(bool(knots))
        return copied
    architecture = model.architecture.model_copy(update={"curve_knots": knots})
    new = Segmenter(architecture, model.labels)
    missing, unexpected = new.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and missing == ["curve.values"]
    return new


def draw_batch(loop: Loop, scans: Source, options: StepOptions) -> PatchBatch:
    """Patches of one scan drawn from ``scans``."""
    a = loop.model.architecture
    image, classes = scans.draw(loop.generator)
    return cut_patches(
        image, options.patches, a.patch, a.global_size, loop.generator, classes, FOREGROUND_SHARE
    )


def recoloured(batch: PatchBatch, generator: torch.Generator) -> PatchBatch:
    """The batch in another look: one for its patches and the whole scan, as they are one image.

    The whole gets its contrast alone: at its resolution, blur and noise of the scan are hardly seen.
    """
    look = aug.Look.draw(generator)
    patches = torch.stack([look(patch[0].cpu(), generator)[None] for patch in batch.patches])
    whole = look.contrast(batch.whole[0, 0].cpu())[None, None]
    return replace(batch, patches=patches.to(batch.patches.device), whole=whole.to(batch.whole.device))


@dataclass
class SourceFree:
    """Test-time adaptation (section 3.6): the target's terms, and an intensity curve that learns faster."""

    options: AdaptationOptions

    def __post_init__(self) -> None:
        self.warmup = 0
        self.searches = self.options.search and bool(self.options.curve_knots)
        self.rates = {"curve.": self.options.curve_rate}

    def student(self, model: Segmenter) -> Segmenter:
        return with_curve(model, self.options.curve_knots)

    def kept(self, teacher: Segmenter, source: Segmenter) -> Segmenter:
        """The teacher with weights halfway back to the source model's, but for its curve.

        Nothing but its own labels holds a student without a source, and of what it learns some is drift: halfway, more
        is gained and less is lost (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
        """
        halfway, start = copy.deepcopy(teacher), source.state_dict()
        with torch.no_grad():
            for name, weight in halfway.named_parameters():
                if not name.startswith("curve."):
                    weight.lerp_(start[name].to(weight.device), 0.5)
        return halfway

    def __call__(self, loop: Loop, target: Source) -> tuple[dict[str, Tensor], dict]:
        return target_losses(loop, draw_batch(loop, target, self.options).to(loop.device), self.options)


@dataclass
class SourceTerms:
    """The labelled source's part of adaptation (section 3.4)."""

    options: StepOptions
    source: Source
    recipe: Recipe

    def __post_init__(self) -> None:
        if self.recipe.strong:
            self.source = Recoloured(self.source)

    def __call__(
        self, loop: Loop, views: Views | None = None, target: Source | None = None
    ) -> dict[str, Tensor]:
        """The terms of one step.

        Args:
            views: their weights, where not the recipe's.
            target: scans to take intensities from, if the recipe does and they are at hand.
        """
        source = self.source
        if self.recipe.matched and target is not None:
            source = Matched(source, _Seen(target, loop.model.curve, loop.device), loop.model.classes)
        batch = draw_batch(loop, source, self.options).to(loop.device)
        with loop.model.uncurved():
            return domain_losses(loop, batch, views or self.recipe.source, self.options, "source")


@dataclass
class TargetTerms:
    """The unlabelled target's part of adaptation beside a source (section 3.4)."""

    options: StepOptions
    recipe: Recipe
    spacing: tuple[float, float, float]
    """Of the working grid, mm."""

    def __call__(self, loop: Loop, target: Source) -> tuple[dict[str, Tensor], dict]:
        """The terms of one step, and eta of the teacher's labels."""
        weights, options = self.recipe.target, self.options
        batch = draw_batch(loop, _Moved(target, torch.tensor(self.spacing)), options).to(loop.device)
        batch, eta = pseudo_label(loop, batch, options.confidence)
        if not self.recipe.strong:
            return domain_losses(loop, batch, weights, options, "target"), eta
        # The teacher labelled the scan as it is. The student sees it as the source would look, then as that might.
        patches, whole = (aug.kept_inside(x, loop.model.curve(x)) for x in (batch.patches, batch.whole))
        batch = replace(batch, patches=patches, whole=whole)
        batch = recoloured(batch, loop.generator)
        with loop.model.uncurved():
            return domain_losses(loop, batch, weights, options, "target"), eta


@dataclass
class Centralised:
    """Adaptation beside a labelled source (section 3.4): a warm-up on the source alone, then both domains."""

    options: CentralisedOptions
    source: Source
    spacing: tuple[float, float, float]
    """Of the target's working grid, mm."""

    def __post_init__(self) -> None:
        options, recipe = self.options, RECIPES[self.options.preset]
        self.warmup, self.knots = options.warmup, options.curve_knots if recipe.curve else 0
        self.searches = options.search and bool(self.knots)
        self.rates = {"curve.": options.curve_rate} if recipe.curve else {}
        self.of_source = SourceTerms(options, self.source, recipe)
        self.of_target = TargetTerms(options, recipe, self.spacing)

    def student(self, model: Segmenter) -> Segmenter:
        return with_curve(model, self.knots)

    def kept(self, teacher: Segmenter, source: Segmenter) -> Segmenter:
        return teacher

    def __call__(self, loop: Loop, target: Source) -> tuple[dict[str, Tensor], dict]:
        if loop.step < self.warmup:
            return self.of_source(loop, WARMUP), {}
        terms = self.of_source(loop, target=target)
        more, eta = self.of_target(loop, target)
        return terms | more, eta


@dataclass
class _Seen:
    """The target's scans as the encoder sees them, through the intensity curve, which the source does not pass."""

    scans: Source
    curve: nn.Module
    device: torch.device

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image, classes = self.scans.draw(generator)
        with torch.no_grad():
            return aug.kept_inside(image, self.curve(image.to(self.device)).cpu()), classes


@dataclass
class _Moved:
    """The target's scans with the geometric augmentation that both domains share."""

    scans: Source
    spacing: Tensor

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return aug.published_geometry(*self.scans.draw(generator), self.spacing, generator)


def ema_decay(options: StepOptions, warmup: int) -> Callable[[int], float]:
    """The teacher's decay at a step. During the warm-up it is 0, so that the teacher starts as the student."""

    def decay(step: int) -> float:
        if step < warmup:
            return 0.0
        if not isinstance(options.ema_decay, str):
            return options.ema_decay
        return next(share for until, share in EMA_SCHEDULES[options.ema_decay] if step - warmup < until)

    return decay


def pseudo_label(loop: Loop, batch: PatchBatch, confidence: float) -> tuple[PatchBatch, dict]:
    """The batch with the teacher's labels, from whole patches and the whole scan; and their eta."""
    teacher = loop.ema
    with torch.inference_mode():
        with loop.autocast():
            features, whole = teacher.encode(batch.patches, batch.whole)
            under = sample_global(whole, batch.low, batch.high, features.shape[2:])
            views = (features, under, batch.patches), (whole, whole, batch.whole)
            maps = [teacher.to_blend(*view) for view in views]
        # In fp32: rounded to bf16, some of them would be tied.
        logits, whole_logits = (teacher.blended_logits(each.float()) for each in maps)
        probability, label = logits.softmax(1).max(1)
        whole_label = whole_logits.argmax(1)
    label, whole_label = label.clone(), whole_label.clone()  # out of inference mode, for autograd to keep
    inside = batch.inside()
    eta = _eta(probability[inside], label[inside], teacher.classes, confidence)
    return replace(batch, target=label, whole_target=whole_label), eta


def _eta(probability: Tensor, label: Tensor, classes: int, threshold: float) -> dict:
    """Share of voxels (N,) whose teacher probability reaches the threshold: of all, and of each class given."""
    sure = probability >= threshold
    count = torch.bincount(label, minlength=classes)
    hits = torch.bincount(label[sure], minlength=classes)
    # in two copies from a GPU, as each would be waited for
    shares, counts = (hits / count).tolist(), count.tolist()
    per_class = {c: share for c, (share, n) in enumerate(zip(shares, counts, strict=True)) if n}
    return {"total": float(sure.float().mean()), "per_class": per_class}


def target_losses(
    loop: Loop, batch: PatchBatch, options: AdaptationOptions
) -> tuple[dict[str, Tensor], dict]:
    """L_seg of masked and plain patches against the teacher's labels, and the global-local terms.

    Patches: all are masked for the first term; the first half is shown plain as well.

    Returns:
        the terms, and eta of the teacher's labels (total, and per class present).
    """
    batch, eta = pseudo_label(loop, batch, options.confidence)
    masked = len(batch.patches)
    plain = -(-masked // 2) if options.plain_weight else 0
    views = show(loop, batch, plain, masked, options, masked_whole_only=True)
    terms = {"masked": segmentation_loss(views.logits[plain:], batch.target)}
    if plain:
        terms["plain"] = options.plain_weight * segmentation_loss(views.logits[:plain], batch.target[:plain])
    if views.whole_logits is not None:
        whole = segmentation_loss(views.whole_logits, batch.whole_target)
        terms["global"] = 2 * options.global_weight * whole
    if options.cosine_weight:
        alike = cosine_loss(views.local_features[plain:], views.global_features[plain:])
        terms["cosine"] = 2 * options.cosine_weight * alike
    return terms, eta


def domain_losses(
    loop: Loop, batch: PatchBatch, weights: Views, options: StepOptions, domain: str
) -> dict[str, Tensor]:
    """Sum over the views v of w_v [L_seg(f(x_v), y) + 2 gamma L_seg(f(X_v), Y) + 2 delta L_cos(x_v, X_v)].

    Every patch is shown in every view that has a weight, all in one pass (sections 3.3 and 3.4).

    Args:
        batch: with labels, true ones or the teacher's.
        weights: of the views (see :data:`~MAPSegLib.config.RECIPES`).
        domain: goes before the terms' names.
    """
    count = len(batch.patches)
    shown = {name: weight for name, weight in weights._asdict().items() if weight}
    views = show(loop, batch, count * ("plain" in shown), count * ("masked" in shown), options)
    terms: dict[str, Tensor] = {}
    for place, (name, weight) in enumerate(shown.items()):
        part = slice(place * count, (place + 1) * count)
        terms[f"{domain}_{name}"] = weight * segmentation_loss(views.logits[part], batch.target)
        if views.whole_logits is not None:
            whole = segmentation_loss(views.whole_logits[place : place + 1], batch.whole_target)
            terms[f"{domain}_{name}_global"] = 2 * options.global_weight * weight * whole
        if options.cosine_weight:
            alike = cosine_loss(views.local_features[part], views.global_features[part])
            terms[f"{domain}_{name}_cosine"] = 2 * options.cosine_weight * weight * alike
    return terms
