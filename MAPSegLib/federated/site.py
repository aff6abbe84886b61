"""A site in a round: it receives weights, trains its own terms on its own scans, and answers with its teacher's change.

A source trains the labelled terms, plain and masked, with the global-local ones; a target the pseudo-labelled terms;
in a pretraining both rebuild their scans (sections 3.1, 3.4 and 3.6). Student and EMA teacher both start a round from
the weights received, as those are an average of teachers; the optimiser's moments stay at the site from round to round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..augmentation import published_source
from ..config import RECIPES
from ..datasets import ScanSource, resize_whole
from ..domains import Domains, UnlabelledScans
from ..errors import InputError
from ..jobs import Report
from ..manifests import domains, manifest_in, scans_by_domain
from ..networks.autoencoder import Autoencoder
from ..networks.segmenter import Segmenter
from ..preprocessing import prepare
from ..tasks.earlier import stamps_of
from ..tasks.reading import tell_notes
from ..training.loop import Loop
from ..training.pretraining import reconstruction_losses, view_scans
from ..training.terms import SourceTerms, TargetTerms, ema_decay
from ..volumes import read_image
from .exchange import Update, Weights, difference, fingerprint, to_half, to_tensors
from .plan import Federation
from .scans import SiteData, find


class _Material:
    """A site's scans, and what a step makes of them."""

    scans: int
    notes: Sequence[Mapping[str, Collection[Path]]]
    """What is to know of scans, and of which."""
    terms: Callable[[Loop], dict[str, Tensor]]

    def begin(self, loop: Loop) -> None:
        """Told at the start of a round, when the loop has the round's weights."""


def build_network(federation: Federation) -> nn.Module:
    """The network that all sites train, with weights of the plan's seed."""
    card = federation.card
    torch.manual_seed(federation.plan.options.seed)
    if federation.plan.task == "pretrain":
        return Autoencoder(card.architecture)
    network = Segmenter(card.architecture, card.labels)
    network.curve.requires_grad_(False)  # a model that was adapted has one, which does not suit all sites
    return network


class Site:
    """One site of a federation.

    Args:
        name: as the plan has it.
        data: the site's scans.
        folder: keeps the optimiser, the teacher and the random state after every round, so that a site that was
            killed goes on with the next round.
        report: told ``log``.

    Raises:
        InputError: the plan does not know the site, or its scans do not fit its role.
    """

    def __init__(self, federation: Federation, name: str, data: SiteData, folder: Path, report: Report):
        self.federation, self.member = federation, federation.plan.member(name)
        self.material = self._material(data, report)
        self.own = data.options.model_dump(exclude_unset=True)
        self.checkpoint = folder / f"federation-{federation.digest}.pt"
        self.loop = self._last_loop()

    def train_round(self, number: int, weights: Weights, report: Report) -> Update:
        """Train the plan's steps from ``weights``, keep a checkpoint, and answer.

        A round that was trained before, from the same weights on the same files, gets the same answer: whoever asked
        has been killed.

        Args:
            report: told ``progress`` at every step; raising from it ends the round, and the site keeps its last one.

        Raises:
            InputError: the weights are not finite, or not those of this federation's network, or the checkpoint cannot
                be written.
        """
        asked = {"round": number, "weights": fingerprint(weights), "files": self.files}
        if self.loop.extra.get("asked") == asked:
            answer = self.loop.extra["answer"]
            return Update(to_half(answer["difference"]), self.material.scans, answer["losses"])
        if number == 1 and self.loop.step:  # the federation began anew
            self.loop = self._new_loop()
        try:
            return self._train(asked, to_tensors(weights), report)
        except BaseException:
            self.loop = self._last_loop()
            raise

    def _train(self, asked: dict, start: dict[str, Tensor], report: Report) -> Update:
        number, loop, steps = asked["round"], self.loop, self.federation.plan.steps
        # An answer would not be finite either: FLARE's noise waits for ever for numbers in it.
        if not all(tensor.isfinite().all() for tensor in start.values()):
            raise InputError(
                f"Round {number} brought numbers that are not finite.", "Tell who runs the server."
            )
        try:
            for network in (loop.model, loop.ema):
                network.load_state_dict(start)
        except RuntimeError as error:
            raise InputError(
                f"Round {number} brought weights of another architecture than the plan's.",
                "Get a new start kit from the coordinator.",
            ) from error
        self.material.begin(loop)
        sums: dict[str, float] = defaultdict(float)
        for step in range(1, steps + 1):
            losses = loop.update(lambda: self.material.terms(loop))
            for term, value in losses.items():
                sums[term] += value / steps
            report(
                "progress",
                stage="round",
                site=self.member.name,
                round=number,
                step=step,
                steps=steps,
                losses=losses,
                seconds_left=None,
            )
        change = difference(loop.ema, start)
        answer = {"difference": {k: torch.from_numpy(v) for k, v in change.items()}, "losses": dict(sums)}
        loop.extra = {"asked": asked, "answer": answer}
        loop.save(self.checkpoint)
        return Update(change, self.material.scans, dict(sums))

    def _last_loop(self) -> Loop:
        """As the last round left it, or a new one."""
        loop = self._new_loop()
        if self.checkpoint.exists():
            loop.load(self.checkpoint)
        return loop

    def _new_loop(self) -> Loop:
        options = self.federation.plan.options
        place = self.federation.plan.sites.index(self.member)
        options = options.model_copy(update=self.own | {"seed": options.seed + place})
        pretrains = self.federation.plan.task == "pretrain"
        return Loop(
            build_network(self.federation),
            options,
            ema_decay=None if pretrains else ema_decay(options, 0),
            betas=(0.9, 0.95) if pretrains else (0.9, 0.999),
        )

    def _material(self, data: SiteData, report: Report) -> _Material:
        plan, card = self.federation.plan, self.federation.card
        labelled = plan.task == "adapt" and self.member.role == "source"
        try:
            found = find(data, card.labels if labelled else None)
        except InputError as error:
            raise InputError(f"{self.member.name}: {error.message}", error.advice) from error
        files = [file for case in found.cases for file in case if file]
        self.files = stamps_of([*files, *manifest_in(data.images)])
        for note in found.notes:
            report("log", message=f"{self.member.name}: {note}")
        if labelled:
            material = _Source(self.federation, found.cases, domains(data.images))
        elif plan.task == "pretrain":
            material = _Unlabelled(self.federation, scans_by_domain([data.images]))
        else:
            material = _Target(self.federation, [image for image, _ in found.cases])
        for notes in material.notes:
            tell_notes(notes, report, settled=True)
        return material


class _Source(_Material):
    def __init__(self, federation: Federation, pairs: Sequence[tuple[Path, Path]], stated: dict[Path, str]):
        card, options = federation.card, federation.plan.options
        source = ScanSource(pairs, card.labels, card.preprocessing, published_source, stated)
        self.scans, self.notes = len(pairs), [source.notes]
        self.terms = SourceTerms(options, source, RECIPES[options.preset])


class _Target(_Material):
    """Unlabelled scans, each with where its structures are thought to be: patches are cut about them."""

    def __init__(self, federation: Federation, files: Sequence[Path]):
        options = federation.plan.options
        scans = [prepare(read_image(file), federation.card.preprocessing) for file in files]
        self.images, self.scans = [scan.image for scan in scans], len(scans)
        notes = defaultdict(list)
        for file, scan in zip(files, scans, strict=True):
            for note in scan.notes:
                notes[note].append(file)
        self.notes = [notes]
        self.guesses: dict[int, Tensor] = {}
        self.of_target = TargetTerms(options, RECIPES[options.preset], federation.card.preprocessing.spacing)

    def begin(self, loop: Loop) -> None:
        self.guesses.clear()
        self.loop = loop

    def terms(self, loop: Loop) -> dict[str, Tensor]:
        return self.of_target(loop, self)[0]

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        index = int(torch.randint(len(self.images), (), generator=generator))
        if index not in self.guesses:
            self.guesses[index] = self._guess(self.images[index])
        return self.images[index], self.guesses[index]

    def _guess(self, image: Tensor) -> Tensor:
        """What the teacher sees in the scan as a whole, made small: rough, and one patch's work."""
        teacher = self.loop.ema
        size = teacher.architecture.global_size
        with torch.inference_mode(), self.loop.autocast():
            whole = resize_whole(image, size).to(self.loop.device)
            features = teacher.features(whole)
            classes = teacher.decode(features, features, whole).argmax(1)
        size = list(image.shape)
        return F.interpolate(classes[None].float().cpu(), size, mode="nearest-exact")[0, 0].to(torch.int16)


class _Unlabelled(_Material):
    def __init__(self, federation: Federation, scans: Mapping[str, Sequence[Path]]):
        preprocessing, self.options = federation.card.preprocessing, federation.plan.options
        sources = {name: UnlabelledScans(files, preprocessing) for name, files in scans.items()}
        for source in sources.values():  # a bad scan is told now, and not in some round
            for file in source.files:
                source.prepared(file)
        self.scans = sum(map(len, scans.values()))
        self.notes = [source.notes for source in sources.values()]
        self.domains = Domains(
            [(name, source.draw) for name, source in sources.items()], preprocessing.spacing
        )

    def terms(self, loop: Loop) -> dict[str, Tensor]:
        scans = [self.domains.draw(loop.generator) for _ in range(self.options.scans)]
        return reconstruction_losses(loop, *view_scans(loop, scans), self.options)
