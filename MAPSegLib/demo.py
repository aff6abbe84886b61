"""The whole way on one head that needs no download: segment, meet a foreign contrast, adapt, judge.

The head is the MNI152 T1 average that the nilearn package carries, together with its grey and white matter maps.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import AdaptationOptions, InferenceOptions, Label
from .demo_page import FORMULA, kept, number, page
from .errors import InputError
from .jobs import Report
from .metrics import dice_scores, mean
from .pages import DISCLAIMER
from .pictures import Curve, Panel, curves, overlay
from .reports import replacing, write_json, write_text
from .tasks.outputs import output_folder, refuse_existing
from .volumes import Volume, write_volume

if TYPE_CHECKING:
    from .inference import Segmentation
    from .models import ModelCard
    from .networks.segmenter import Segmenter
    from .quality import Assessment
    from .training.adaptation import Adapted

TISSUES = {
    "grey matter": (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58),
    "white matter": (2, 41, 7, 46),
}
"""FreeSurfer codes: cerebral and cerebellar cortex and the seven deep nuclei; cerebral and cerebellar white matter."""
MIXED = (16, 28, 60)
"""Brain stem and ventral diencephalon mix both tissues: their voxels are left out of the comparison."""
FILES = {
    "report": "report.html",
    "image": "mni152_t1.nii.gz",
    "labels": "mni152_t1_seg.nii.gz",
    "foreign": "mni152_foreign.nii.gz",
    "source": "mni152_foreign_seg_source.nii.gz",
    "adapted": "mni152_foreign_seg_adapted.nii.gz",
    "chosen": "mni152_foreign_seg.nii.gz",
    "overlay": "overlay_t1.png",
    "comparison": "overlay_foreign.png",
    "curves": "curves.png",
    "curves_dark": "curves_dark.png",
    "results": "demo.json",
}
CURVES = (
    Curve("loss", "Loss", "of the student on the teacher's labels"),
    Curve("eta", "Confidence η", "share of voxels the teacher is sure of"),
    Curve("agreement", "Agreement", "with the mirrored scan's result; not trained on"),
)


@dataclass(frozen=True)
class Structure:
    """A structure, or a pair of them: volumes in ml (one, or left and right), and Dice with the T1 result."""

    name: str
    color: tuple[int, int, int]
    volumes: tuple[float, ...]
    source: float
    adapted: float


@dataclass(frozen=True)
class Findings:
    """What the demo found; ``agreement`` and the structures' Dice are with the model's own result on the T1.

    ``tissue_dice`` is with the wheel's tissue maps, ``agreement`` the mean over structures on the foreign contrast by
    side (``source``, ``adapted``), ``verdicts`` are on ``t1`` and both sides, ``seconds`` those of ``segment`` and
    ``adapt``.
    """

    card: ModelCard
    structures: tuple[Structure, ...]
    tissue_dice: dict[str, float]
    agreement: dict[str, float]
    chosen: str
    gate: str
    verdicts: dict[str, Assessment]
    steps: int
    best_step: int
    history: list[dict[str, Any]]
    seconds: dict[str, float]

    def record(self) -> dict[str, Any]:
        """All of it as plain values, the model by its name."""
        return {
            "disclaimer": DISCLAIMER,
            **vars(self),
            "card": self.card.name,
            "structures": [vars(s) for s in self.structures],
            "verdicts": {name: vars(verdict) for name, verdict in self.verdicts.items()},
        }


def run_demo(
    output: Path,
    minutes: float = 3.0,
    overwrite: bool = False,
    report: Report = lambda event, **fields: None,
    model: str | Path = "brain-t1",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Segment the MNI152 head, show the model the same head in a foreign contrast, and adapt to it.

    Writes label maps, pictures, ``demo.json`` and a self-contained ``report.html`` into ``output``.

    Args:
        output: a folder; made if there is none.
        minutes: of adaptation.
        overwrite: replace what an earlier demo left there.
        report: told of progress, as ``report("progress", stage=..., step=..., steps=..., ...)``.
        model: name or file of a model whose label values are FreeSurfer's codes.
        say: given the results, in lines of text, as they come.

    Returns:
        what ``demo.json`` holds (:meth:`Findings.record`), and ``files``.

    Raises:
        InputError: the extra ``demo`` is not installed, the folder holds results already or cannot be written, or
            the model cannot be used.
        MemoryExhausted: segmenting did not fit anywhere.
    """
    missing = [name for name in ("matplotlib", "nilearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"The demo needs {' and '.join(missing)}.", 'Install: pip install "mapseg[demo]"')

    from .models import load_model, resolve

    files = {name: output / file for name, file in FILES.items()}
    refuse_existing(files.values(), overwrite)
    network, card = load_model(resolve(model))
    with output_folder(output):
        for name in ("report", "results"):
            files[name].unlink(missing_ok=True)  # an earlier demo's, whose label maps are replaced
        try:
            findings, panels = _explore(network, card, minutes, files, overwrite, report, say)
            _write_findings(findings, panels, files, overwrite)
        except BaseException:
            if not overwrite:  # none was there, and any that stayed would keep the same command from running
                for path in files.values():
                    with suppress(OSError):
                        path.unlink()
            raise
    say(f"\nLabel maps, pictures and the report: {files['report']}")
    return {**findings.record(), "files": [str(path) for path in files.values()]}


def _explore(
    network: Segmenter,
    card: ModelCard,
    minutes: float,
    files: dict[str, Path],
    overwrite: bool,
    report: Report,
    say: Callable[[str], None],
) -> tuple[Findings, list[Panel]]:
    from .inference import segment_scan
    from .preprocessing import prepare
    from .quality import assess_scan

    head, tissue = load_head()
    write_volume(files["image"], head.array, head, overwrite)
    say(f"{DISCLAIMER}\n\nThe MNI152 head, 1 mm T1, segmented by {card.name}:")

    def progress(step: int, steps: int) -> None:
        report("progress", stage="segment", step=step, steps=steps, seconds_left=None)

    options, started = InferenceOptions(), time.monotonic()
    scan = prepare(head, card.preprocessing)
    native = segment_scan(network, card.labels, scan, options, progress=progress)
    seconds = {"segment": time.monotonic() - started}
    verdict, _ = assess_scan(network, card, scan, options, native.classes)
    write_volume(files["labels"], native.labels, head, overwrite)
    scores = tissue_dice(native.labels, tissue)
    for line in _volume_lines(native.volumes_ml, card.labels):
        say(line)
    say("Dice with the tissue maps: " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
    say(f"{verdict.reason}\n\nThe same head in a foreign contrast, x to {FORMULA}:")

    foreign = foreign_contrast(head)
    write_volume(files["foreign"], foreign.array, head, overwrite)
    started = time.monotonic()
    adapted = _adapt(network, card, foreign, minutes, report)
    seconds["adapt"] = time.monotonic() - started
    outcome = adapted.results[0]
    sides = {"source": outcome.source, "adapted": outcome.adapted, "chosen": outcome.segmentation}
    for name, segmentation in sides.items():
        write_volume(files[name], segmentation.labels, head, overwrite)
    structures = compare(card.labels, native, outcome.source.labels, outcome.adapted.labels)
    findings = Findings(
        card=card,
        structures=structures,
        tissue_dice=scores,
        agreement={side: mean(getattr(s, side) for s in structures) for side in ("source", "adapted")},
        chosen=outcome.chosen,
        gate=outcome.reason,
        verdicts={"t1": verdict, "source": outcome.assessment_source, "adapted": outcome.assessment_adapted},
        steps=adapted.steps,
        best_step=adapted.best_step,
        history=[{**row, "loss": row["losses"].get("loss")} for row in adapted.history],
        seconds=seconds,
    )
    for line in _agreement_lines(findings):
        say(line)
    return findings, [
        Panel("T1", head, native.labels),
        Panel("Foreign contrast, before", foreign, outcome.source.labels),
        Panel("Foreign contrast, adapted", foreign, outcome.adapted.labels),
    ]


def _adapt(network: Segmenter, card: ModelCard, foreign: Volume, minutes: float, report: Report) -> Adapted:
    from .preprocessing import prepare
    from .training.adaptation import adapt

    scan = prepare(foreign, card.preprocessing)
    with tempfile.TemporaryDirectory(prefix="mapseg-", ignore_cleanup_errors=True) as name:
        return adapt(network, card, [scan], AdaptationOptions(minutes=minutes), Path(name), report)


def load_head() -> tuple[Volume, np.ndarray]:
    """The T1 in [0, 1] and its tissues: 1 grey, 2 white, where that is likelier than the other and than neither."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    image = load_mni152_template(resolution=1)
    grey, white = (
        np.asarray(load(resolution=1).dataobj, np.float32)
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    tissue = np.argmax([1 - grey - white, grey, white], axis=0).astype(np.uint8)
    array = np.asarray(image.dataobj, np.float32)
    return Volume(array, image.affine.astype(float)), tissue


def foreign_contrast(volume: Volume) -> Volume:
    """The scan with intensities x, scaled to [0, 1], replaced by 0.5 + 0.5 sin(2 pi x - 0.6); background stays 0.

    The curve rises, falls and rises: tissues swap their order, which no brightness setting could do.
    """
    inside = volume.array > 0
    x = np.clip(volume.array / np.percentile(volume.array[inside], 99.5), 0, 1)
    array = np.where(inside, 0.5 + 0.5 * np.sin(2 * np.pi * x - 0.6), 0).astype(np.float32)
    return Volume(array, volume.affine)


def tissue_dice(labels: np.ndarray, tissue: np.ndarray) -> dict[str, float]:
    """Dice of the structures' tissues (``TISSUES``) with a map of them, outside what is ``MIXED``; same shape."""
    compared = ~np.isin(labels, MIXED)
    grouped = np.zeros(labels.shape, np.uint8)
    for value, codes in enumerate(TISSUES.values(), start=1):
        grouped[np.isin(labels, codes)] = value
    scores = dice_scores(grouped[compared], tissue[compared], range(1, 1 + len(TISSUES)))
    return dict(zip(TISSUES, scores.values(), strict=True))


def compare(
    table: Sequence[Label], native: Segmentation, source: np.ndarray, adapted: np.ndarray
) -> tuple[Structure, ...]:
    """Volumes of the native result, and how well two other results agree with it; the sides' Dice averaged."""
    values = [label.value for label in table]
    scores = [dice_scores(labels, native.labels, values) for labels in (source, adapted)]
    return tuple(
        Structure(
            name,
            pair[0].color,
            tuple(native.volumes_ml[label.value] for label in pair),
            *(mean(score[label.value] for label in pair) for score in scores),
        )
        for name, pair in _pairs(table).items()
    )


# --- what is told -----------------------------------------------------------------------------------------------


def _pairs(table: Sequence[Label]) -> dict[str, list[Label]]:
    """Labels by name without the side, left first."""
    pairs: dict[str, list[Label]] = {}
    for label in sorted(table, key=lambda label: label.name.startswith("right ")):
        pairs.setdefault(label.sideless, []).append(label)
    return pairs


def _volume_lines(volumes: dict[int, float], table: Sequence[Label]) -> Iterable[str]:
    yield f"  {'volume in ml':<28}{'left':>9}{'right':>9}"
    for name, pair in _pairs(table).items():
        middle = "" if len(pair) > 1 else "     "  # between both columns
        yield f"  {name:<28}{middle}" + "".join(f"{volumes[label.value]:9.1f}" for label in pair)


def _agreement_lines(found: Findings) -> Iterable[str]:
    yield f"  {'Dice with the T1 result':<28}{'before':>9}{'adapted':>9}"
    for s in found.structures:
        yield f"  {s.name:<28}{number(s.source):>9}{number(s.adapted):>9}"
    yield f"  {'mean':<28}{number(found.agreement['source']):>9}{number(found.agreement['adapted']):>9}"
    yield f"{found.steps} steps in {found.seconds['adapt']:.0f} s, the best after step {found.best_step}."
    yield f"Kept: the {kept(found)} result. {found.gate}"
    yield found.verdicts[found.chosen].reason


# --- what is written --------------------------------------------------------------------------------------------


def _write_findings(
    found: Findings, panels: Sequence[Panel], files: dict[str, Path], overwrite: bool
) -> None:
    with replacing(files["overlay"], overwrite) as path:
        overlay(panels[:1], found.card.labels, path)
    with replacing(files["comparison"], overwrite) as path:
        overlay(panels, found.card.labels, path)
    for name, theme in (("curves", "light"), ("curves_dark", "dark")):
        with replacing(files[name], overwrite) as path:
            curves(found.history, CURVES, path, found.best_step, theme)
    write_json(files["results"], found.record(), overwrite)
    pictures = {name: path.read_bytes() for name, path in files.items() if path.suffix == ".png"}
    write_text(files["report"], page(found, pictures), overwrite)
