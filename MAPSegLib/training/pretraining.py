"""Masked multi-scale autoencoding: an encoder learns anatomy from unlabelled scans of all domains (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from .. import distributed
from ..config import PretrainingOptions, PretrainingStep
from ..datasets import cut_patches
from ..domains import Domains
from ..losses import masked_error
from ..masking import cube_mask
from ..networks.autoencoder import Autoencoder
from ..pictures import Reconstruction
from ..reports import CHECKPOINT
from .loop import Loop, Record, Report, Reused, take_steps, warmup_cosine

SHOWN = 4
"""Domains on a picture, at most."""

Picture = Callable[[int, list[Reconstruction]], None]
"""Called as ``picture(step, rows)``."""


def pretrain(
    model: Autoencoder,
    domains: Domains,
    options: PretrainingOptions,
    folder: Path,
    report: Report,
    picture: Picture | None = None,
) -> Autoencoder:
    """Train ``model`` in place and return it.

    ``folder`` gets ``checkpoint.pt`` (resumed from when it exists) and ``metrics.jsonl``.

    Args:
        report: told ``progress`` at every step.
        picture: given reconstructions of the same scans every ``picture_every`` steps, and at the end.
    """
    loop = Loop(
        model, options, ema_decay=None, rate=warmup_cosine(options.warmup, options.steps), betas=(0.9, 0.95)
    )
    loop.resume(folder / CHECKPOINT)
    wanted = picture is not None and options.picture_every > 0 and distributed.rank() == 0
    samples = _samples(model, domains, options.seed) if wanted else []
    scans = Reused(lambda generator: [domains.draw(generator) for _ in range(options.scans)], options.reuse)

    def losses() -> dict[str, Tensor]:
        return reconstruction_losses(loop, *view_scans(loop, scans(loop)), options)

    def show(record: Record) -> None:
        if wanted and (loop.step % options.picture_every == 0 or loop.step == options.steps):
            picture(loop.step, [row for sample in samples for row in _rebuild(loop, *sample, options)])

    take_steps(loop, losses, options, folder, report, "pretrain", show)
    return model.eval()


def view_scans(loop: Loop, scans: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A local patch and the resized whole of each scan (X, Y, Z): (B, 1, p, p, p) and (B, 1, G, G, G)."""
    views = [_views(loop.model, scan, loop.generator) for scan in scans]
    patches, wholes = (torch.cat(parts).to(loop.device) for parts in zip(*views, strict=True))
    return patches, wholes


def reconstruction_losses(
    loop: Loop, patches: Tensor, wholes: Tensor, options: PretrainingStep
) -> dict[str, Tensor]:
    """The errors of what was hidden: of patches (B, 1, p, p, p), and of whole scans (B, 1, G, G, G).

    A cube of the whole has half the edge of a patch's, as it stands for more of the anatomy.
    """
    keeps = _masks(patches, wholes, options, loop.generator)
    with loop.autocast():
        rebuilt = loop.model(patches * keeps[0], wholes * keeps[1])
    return {
        name: masked_error(mine, image, keep)
        for name, mine, image, keep in zip(
            ("local", "global"), rebuilt, (patches, wholes), keeps, strict=True
        )
    }


def _masks(
    patches: Tensor, wholes: Tensor, options: PretrainingStep, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Where voxels of patches and wholes stay visible."""
    cubes = options.mask_cube, max(1, options.mask_cube // 2)
    local, whole = (
        cube_mask(tuple(images.shape), cube, options.mask_ratio, generator).to(images.device)
        for images, cube in zip((patches, wholes), cubes, strict=True)
    )
    return local, whole


def _views(model: Autoencoder, image: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """A local patch of a scan at full resolution, and the whole of it resized."""
    a = model.architecture
    batch = cut_patches(image, 1, a.patch, a.global_size, generator)
    return batch.patches, batch.whole


def _samples(model: Autoencoder, domains: Domains, seed: int) -> list[tuple[str, Tensor, Tensor]]:
    """Name, patch and whole of a scan of each domain: the same ones whenever the training is continued."""
    generator = Generator().manual_seed(seed + 1)
    return [(name, *_views(model, draw(generator), generator)) for name, draw in domains.domains[:SHOWN]]


@torch.inference_mode()
def _rebuild(
    loop: Loop, name: str, patch: Tensor, whole: Tensor, options: PretrainingOptions
) -> list[Reconstruction]:
    """What the network makes of one scan, under the same masks each time."""
    keeps = _masks(patch, whole, options, Generator().manual_seed(options.seed))
    with loop.autocast():
        shown = [(image * keep).to(loop.device) for image, keep in zip((patch, whole), keeps, strict=True)]
        rebuilt = [result.cpu() for result in loop.model(*shown)]
    return [
        Reconstruction(
            f"{name}, {view}",
            *(part[0, 0].numpy() for part in (image, image * keep, torch.where(keep, image, mine))),
        )
        for view, image, keep, mine in zip(("patch", "whole"), (patch, whole), keeps, rebuilt, strict=True)
    ]
