"""A step of centralised adaptation (preset ``paper``), against its formula computed as it is written, in turn.

    python -m Benchmarks.step [--sizes small] [--classes 4] [--pairs 5]

Literal: fp32, batch 1, and for every term of the sum a pass of its own through encoder and head. By view: one pass for
each of the three views, which serves all of its terms. Ours: a domain's views in one pass, bf16 where the processor
computes it. All move the same weights from the same patches of noise, as time and sums do not ask what is shown. The
losses are compared in fp32, before the first step.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from MAPSegLib.config import ARCHITECTURES, RECIPES, CentralisedOptions, Label
from MAPSegLib.datasets import PatchBatch, cut_patches
from MAPSegLib.devices import has_fast_bf16, prepare_process
from MAPSegLib.masking import cube_mask
from MAPSegLib.networks.segmenter import Segmenter, sample_global
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import domain_losses, pseudo_label

from .speed import in_turn, ratio
from .tables import write_section

OPTIONS = CentralisedOptions(device="cpu", warmup=0, ema_decay=0.99)
HEADER = ["size", "parameters", "literal", "by view", "ours", "ours, fp32", "loss, largest difference"]


@dataclass
class View:
    """Patches and whole of one domain, plain or masked, for one network."""

    network: Segmenter
    batch: PatchBatch
    patches: Tensor
    whole: Tensor

    def passed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f(x), f(X), and the features of both under the patch: one pass for all of a view's terms."""
        f = self.network
        local, whole = f.features(self.patches), f.features(self.whole)
        under = sample_global(whole, self.batch.low, self.batch.high, local.shape[2:])
        return f.decode(local, under, self.patches), f.decode(whole, whole, self.whole), local, under


def l_seg(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy minus soft Dice of the structures present, one operation after the other."""
    probability = logits.softmax(1)
    hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = 2 * (probability * hot).sum(axes) / (probability.sum(axes) + hot.sum(axes))
    return F.cross_entropy(logits, target) - dice[1:][hot.sum(axes)[1:] > 0].mean()


def l_cos(local: Tensor, under: Tensor) -> Tensor:
    """One minus the cosine of the features, mean over cells."""
    return 1 - F.cosine_similarity(local, under, dim=1).mean()


def views_of(network: Segmenter, batch: PatchBatch, generator: Generator) -> tuple[View, View]:
    """A domain's plain and masked view, with the masks that our step draws."""
    options = OPTIONS
    masks = [
        cube_mask(tuple(images.shape), cube, options.mask_ratio, generator)
        for images, cube in ((batch.patches, options.mask_cube), (batch.whole, options.mask_cube // 2))
    ]
    masked = View(network, batch, batch.patches * masks[0], batch.whole * masks[1])
    return View(network, batch, batch.patches, batch.whole), masked


def literal_loss(
    student: Segmenter,
    teacher: Segmenter,
    source: PatchBatch,
    target: PatchBatch,
    generator: Generator,
    by_view: bool,
) -> Tensor:
    """The sum of section 3.4, L_GLC of 3.3 included.

    Args:
        by_view: use a view's pass for all of its terms; else each term makes its own.
    """
    gamma, delta, beta = OPTIONS.global_weight, OPTIONS.cosine_weight, 0.5
    plain, masked = views_of(student, source, generator)
    hidden = views_of(student, target, generator)[1]
    with torch.no_grad():
        labels, whole_labels, _, _ = View(teacher, target, target.patches, target.whole).passed()
        pseudo, pseudo_whole = labels.argmax(1), whole_labels.argmax(1)
    total = torch.zeros(())
    for view, weight, one, whole in (
        (plain, beta, source.target, source.whole_target),
        (masked, beta, source.target, source.whole_target),
        (hidden, 1.0, pseudo, pseudo_whole),
    ):
        kept = view.passed() if by_view else None
        passed: Callable[[], tuple[Tensor, ...]] = (lambda kept=kept: kept) if by_view else view.passed
        total = total + weight * l_seg(passed()[0], one)
        total = total + 2 * weight * gamma * l_seg(passed()[1], whole)
        total = total + 2 * weight * delta * l_cos(*passed()[2:])
    return total


def our_terms(loop: Loop, source: PatchBatch, target: PatchBatch) -> dict[str, Tensor]:
    """The terms of a step on given patches."""
    recipe = RECIPES["paper"]
    terms = domain_losses(loop, source, recipe.source, OPTIONS, "source")
    labelled, _ = pseudo_label(loop, target, OPTIONS.confidence)
    return terms | domain_losses(loop, labelled, recipe.target, OPTIONS, "target")


def batches(network: Segmenter, seed: int) -> tuple[PatchBatch, PatchBatch]:
    """A labelled patch of a source and one of a target, of noise."""
    generator = Generator().manual_seed(seed)
    a, pair = network.architecture, []
    for _ in range(2):
        image = torch.rand(*(3 * [a.patch + 16]), generator=generator)
        classes = (image * network.classes).long().clamp(max=network.classes - 1)
        pair.append(cut_patches(image, 1, a.patch, a.global_size, generator, classes))
    return pair[0], pair[1]


def measure(size: str, classes: int, pairs: int) -> list[str]:
    """A line of the table."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[size].model_copy(update={"dropout": 0.0})
    labels = [Label(value=value, name=f"structure {value}") for value in range(1, classes)]
    model = Segmenter(architecture, labels).train()
    source, target = batches(model, 1)

    ours = {
        precision: Loop(
            copy.deepcopy(model), OPTIONS.model_copy(update={"precision": precision}), ema_decay=0.99
        )
        for precision in ("auto", "fp32")
    }
    difference = 0.0
    loop = ours["fp32"]
    loop.model.train()
    for seed in range(3):
        drawn = batches(model, 10 + seed)
        loop.generator.manual_seed(seed)
        mine = sum(our_terms(loop, *drawn).values())
        for by_view in (False, True):
            generator = Generator().manual_seed(seed)
            theirs = literal_loss(loop.model, loop.ema, *drawn, generator, by_view)
            difference = max(difference, abs(float(mine.detach()) - float(theirs.detach())))

    def literal(by_view: bool) -> Callable[[], None]:
        student, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()
        optimizer = torch.optim.AdamW(student.parameters(), OPTIONS.learning_rate)
        generator = Generator().manual_seed(0)

        def action() -> None:
            loss = literal_loss(student, teacher, source, target, generator, by_view)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    old.mul_(0.99).add_(new, alpha=0.01)

        return action

    actions = [literal(False), literal(True)]
    actions += [
        lambda loop=loop: loop.update(lambda: our_terms(loop, source, target)) for loop in ours.values()
    ]
    for action in actions:
        action()
    slow, views, *fast = in_turn(pairs, *actions)
    count = sum(parameter.numel() for parameter in model.parameters())
    cells = [f"{median(seconds):.2f} s ({ratio(slow, seconds)})" for seconds in (views, *fast)]
    return [size, f"{count / 1e6:.1f} M", f"{median(slow):.2f} s", *cells, f"{difference:.0e}"]


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(ARCHITECTURES), default=["small"])
    parser.add_argument("--classes", type=int, default=4, help="background included")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each")
    arguments = parser.parse_args(words)
    prepare_process()  # the literal formula gets the faster memory too
    rows = [measure(size, arguments.classes, arguments.pairs) for size in arguments.sizes]
    precision = "bf16" if has_fast_bf16(torch.device("cpu")) else "fp32"
    write_section(
        "step",
        f"A step of centralised adaptation, preset `paper`: {arguments.classes} classes, one patch of each domain, "
        f"{torch.get_num_threads()} CPU threads, in turn, {arguments.pairs} times; ours in {precision}. Medians; in "
        "brackets how many times faster than the literal formula, pair by pair: median and range.",
        HEADER,
        rows,
    )


if __name__ == "__main__":
    main()
