"""Words for numbers: what the panel says about models, times and sizes. No Qt, no scene."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from slicer.i18n import tr as _

GOOD, WARNING, BAD, BUSY, QUIET = "#2a964a", "#c07200", "#e0504a", "#308cc6", "#808080"
"""Colours that can be read on light and on dark."""
_LONG = re.compile(r"[^\s/]{30}(?=[^\s/])")
"""The beginning of a word that a line may not hold: names of scans often have no spaces."""


def rich(text: str) -> str:
    """Plain text as rich text, in which long words may break: a label is never narrower than its longest one."""
    return escape(_LONG.sub("\\g<0>\u200b", text))


def marked(color: str, mark: str, text: str) -> str:
    """A sentence behind a coloured sign, as rich text; the sign says it without the colour, too."""
    return f'<span style="color:{color}">{mark}</span>&nbsp; {rich(text)}'


def literal(text: str) -> str:
    """Plain text for tool tips and dialogs, which take what looks like tags for rich text: names may hold such."""
    return f"<qt>{rich(text)}</qt>" if "<" in text or "&lt;" in text else text


def duration(seconds: float) -> str:
    """A span of time as a person would say it."""
    if seconds < 60:
        return _("{seconds} s").format(seconds=max(1, round(seconds)))
    if seconds < 3600:
        return _("{minutes} min {seconds:02d} s").format(
            minutes=int(seconds // 60), seconds=int(seconds % 60)
        )
    return _("{hours} h {minutes:02d} min").format(
        hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60)
    )


def counted(number: int, one: str, many: str) -> str:
    """``one`` or ``many`` of something, both with ``{n}`` in the place of the number."""
    return (one if number == 1 else many).format(n=number)


def measured(card: dict[str, Any]) -> list[tuple[str, float, int | None]]:
    """The Dice that was measured: name of the test set, mean, and number of scans where it is told."""
    found = []
    for name, scores in card.get("scores", {}).items():
        if isinstance(scores, dict):
            values = (value for key, value in scores.items() if "dice" in key.lower())
            mean = next((value for value in values if isinstance(value, (int, float))), None)
            if mean is not None:
                found.append((name, mean, scores.get("scans")))
    return found


def _told_dice(card: dict[str, Any]) -> str:
    told = []
    for name, mean, scans in measured(card):
        of = ", " + counted(scans, _("{n} scan"), _("{n} scans")) if scans else ""
        told.append(f"{mean:.2f} ({name}{of})")
    return "; ".join(told) or _("none measured")


def modality(card: dict[str, Any]) -> str:
    """MR or CT."""
    return card.get("preprocessing", {}).get("modality", "mr").upper()


def model_line(card: dict[str, Any]) -> str:
    """What a model does, in one short line: structures, modality, measured Dice, licence."""
    labels = card.get("labels", [])
    count = counted(len(labels), _("{n} structure"), _("{n} structures"))
    # From the worst test set to the best: a mean would look poor for a model that was tried on more kinds of scans.
    scores = [mean for _name, mean, _scans in measured(card)]
    ends = dict.fromkeys(f"{end:.2f}" for end in (min(scores), max(scores))) if scores else ()
    dice = _("Dice {dice}").format(dice="–".join(ends)) if ends else ""
    return "  ·  ".join(filter(None, (count, modality(card), dice, card.get("license"))))


def model_card(card: dict[str, Any]) -> str:
    """What a model is for and where it comes from, in two or three lines of rich text."""
    described = rich(card.get("description", "")).rstrip(".")
    origin = _("Trained on: {data}").format(data=_origin(card))
    return (f"{described}.<br>" if described else "") + rich(origin)


def model_details(card: dict[str, Any]) -> str:
    """All that a card says of structures, training data, scores and licence, as rich text."""
    names = ", ".join(label["name"] for label in card.get("labels", []))
    rows = [
        (_("Structures"), names),
        (_("Modality"), modality(card)),
        (_("Trained on"), _origin(card)),
        (_("Measured Dice"), _told_dice(card)),
        (_("Licence"), card.get("license") or _("not stated")),
    ]
    return "<br>".join(f"<b>{escape(name)}:</b> {escape(value)}" for name, value in rows)


def _origin(card: dict[str, Any]) -> str:
    provenance = card.get("provenance", {})
    if provenance.get("adapted_from"):
        scans = counted(provenance.get("scans", "?"), _("{n} scan"), _("{n} scans"))
        told = _("{scans} without labels, starting from {model}")
        return told.format(scans=scans, model=provenance["adapted_from"])
    return str(provenance.get("data") or _("not stated"))


def searchable(name: str, card: dict[str, Any]) -> str:
    """All the words under which a model can be found."""
    provenance = " ".join(str(value) for value in card.get("provenance", {}).values())
    labels = " ".join(label["name"] for label in card.get("labels", []))
    return f"{name} {modality(card)} {card.get('description', '')} {labels} {provenance}".casefold()
