"""What the panel, the clipboard and files say of a result: the verdict and the numbers. No Qt."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from slicer.i18n import tr as _

from MAPSegLib.reports import no_formula

from . import texts
from .item import Item

_TOLD = ("volume", "segmentation", "model", "result", "trusted", "verdict")
"""What a CSV row says of the result that a structure belongs to."""


def is_kept(item: Item) -> bool:
    """Whether the result shown is the one that the gate kept, or the only one."""
    return item.shown == item.result.get("chosen", item.shown)


def verdict(item: Item, preview: Item | None = None) -> str:
    """Rich text on the result shown, on which of two the gate kept, and on what has changed since.

    Args:
        preview: what is in the slices in its place.
    """
    told = _statements(item)
    if preview is not None:
        seen = _("A preview of {name} is in the slices. What is said here is of an earlier result: {result}.")
        names = {"name": preview.present_name, "result": title(item)}
        told.insert(0, (texts.BUSY, "●", seen.format(**names)))
    return "<br>".join(texts.marked(*each) for each in told)


def title(item: Item) -> str:
    """What the list of results says."""
    adapted = _("{model}, adapted").format(model=item.model) if "chosen" in item.result else item.model
    return f"{item.present_name}  ·  {adapted}"


def as_text(item: Item) -> str:
    """The table of the result shown, in the form that spreadsheets take, below what is to be known of it."""
    lines = [
        (_("Volume"), item.present_name),
        (_("Model"), item.model),
        (_("Result"), item.shown),
        (_("Verdict"), _plain_verdict(item)),
        (_("Label value"), _("Structure"), _("Volume, ml"), _("Confidence")),
        *((_value(row), row["structure"], *numbers(row)) for row in item.report.get("structures", [])),
    ]
    return "\n".join("\t".join(map(no_formula, line)) for line in lines) + "\n"


def as_csv(items: Iterable[Item]) -> str:
    """The tables of the results shown of several volumes."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*_TOLD, "value", "structure", "volume_ml", "confidence"])
    for item in items:
        told = [
            item.present_name,
            item.segmentation_name,
            item.model,
            item.shown,
            bool(item.report.get("trusted")),
            _plain_verdict(item),
        ]
        for row in item.report.get("structures", []):
            measured = [row["volume_ml"], row.get("confidence", "")]
            cells = [*told, _value(row), row["structure"], *measured]
            writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def numbers(row: dict[str, Any]) -> tuple[str, str]:
    """Volume and confidence of a structure, as the table shows them."""
    confidence = row.get("confidence")
    volume = row["volume_ml"]
    told = f"{volume:.2f}" if volume < 10 else f"{volume:.1f}"
    told = "<0.01" if 0 < volume < 0.01 else told
    return told, _percent(confidence) if is_number(confidence) else "–"


def is_number(value: Any) -> bool:
    """Whether a report gives a value at all."""
    return isinstance(value, (int, float)) and not math.isnan(value)


def _value(row: dict[str, Any]) -> str:
    """Of a structure in label maps: without it, nobody could read one that was exported."""
    return str(row.get("value", ""))


def _percent(share: float) -> str:
    """Rounded down: what lies below a limit is not to look as if it reached it, nor 100 % as if there were no doubt."""
    return f"{math.floor(round(100 * share, 6))}%"


def _plain_verdict(item: Item) -> str:
    return " ".join(sentence.strip() for _color, _mark, sentence in _statements(item))


def _statements(item: Item) -> list[tuple[str, str, str]]:
    """Colour, sign and sentence of what is to be said of a result."""
    result, side = item.result, item.report
    reason = side.get("reason", "")
    if not is_kept(item):
        reason = _("This is the result that was not kept. {reason}").format(reason=reason)
    if side.get("trusted"):
        told = [(texts.GOOD, "✓", _("Plausible. {reason}").format(reason=reason))]
    else:
        told = [(texts.WARNING, "!", _("Do not rely on it. {reason}").format(reason=reason))]
    if "chosen" in result:
        kept = _("Adapted result kept.") if result["chosen"] == "adapted" else _("Source-only result kept.")
        told.append((texts.BUSY, "⇄", f"{kept} {result.get('gate', '')}"))
    if item.volume_changed:
        changed = _("The volume has changed since; this result is of what it was before.")
        told.append((texts.WARNING, "!", changed))
    if item.resized:
        resized = _("The voxels have another size since; these volumes are of what they had before.")
        told.append((texts.WARNING, "!", resized))
    if item.apart:
        apart = _("Volume and labels lie under different transforms: they do not cover each other.")
        told.append((texts.WARNING, "!", apart))
    if item.edited:
        edited = _("The labels were edited since; these numbers are of the result before.")
        told.append((texts.WARNING, "!", edited))
    return told + [(texts.QUIET, "–", note) for note in side.get("notes", [])]
