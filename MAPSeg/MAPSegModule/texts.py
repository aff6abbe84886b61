"""Words for numbers: what the panel says about models, times and sizes. No Qt, no scene."""

from __future__ import annotations

from html import escape
from typing import Any

from slicer.i18n import tr as _

GOOD, WARNING, BAD = "#2e9e4f", "#c77700", "#d64541"
"""Colours that can be read on light and on dark."""


def marked(color: str, mark: str, text: str) -> str:
    """A sentence behind a coloured sign, as rich text; the sign says it without the colour, too."""
    return f'<span style="color:{color}">{mark}</span>&nbsp; {escape(text)}'


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


def mean_dice(card: dict[str, Any]) -> float | None:
    """The measured Dice of a model, averaged over its test sets; None where nothing was measured."""
    found = []
    for scores in card.get("scores", {}).values():
        if isinstance(scores, dict):
            value = next((scores[key] for key in ("mean_dice", "dice", "mean") if key in scores), None)
            if isinstance(value, dict):
                numbers = [each for each in value.values() if isinstance(each, (int, float))]
                value = sum(numbers) / len(numbers) if numbers else None
            if isinstance(value, (int, float)):
                found.append(value)
    return sum(found) / len(found) if found else None


def modality(card: dict[str, Any]) -> str:
    """MR or CT."""
    return card.get("preprocessing", {}).get("modality", "mr").upper()


def model_line(card: dict[str, Any]) -> str:
    """What a model does, in one short line."""
    labels = card.get("labels", [])
    count = _("1 structure") if len(labels) == 1 else _("{n} structures").format(n=len(labels))
    parts = [count, modality(card)]
    dice = mean_dice(card)
    if dice is not None:
        parts.append(_("Dice {dice:.2f}").format(dice=dice))
    return "  ·  ".join(parts)


def model_card(card: dict[str, Any]) -> str:
    """Structures, training data, scores and licence of a model, as rich text of a few lines."""
    names = [label["name"] for label in card.get("labels", [])]
    shown = ", ".join(names[:4]) + (_(" and {n} more").format(n=len(names) - 4) if len(names) > 4 else "")
    provenance = card.get("provenance", {})
    data = provenance.get("data") or provenance.get("adapted_from") or _("not stated")
    if provenance.get("adapted_from"):
        data = _("adapted from {model}").format(model=provenance["adapted_from"])
    dice = mean_dice(card)
    rows = [
        (_("Labels"), shown),
        (_("Trained on"), str(data)),
        (_("Measured Dice"), _("none measured") if dice is None else f"{dice:.2f}"),
        (_("Licence"), card.get("license") or _("not stated")),
    ]
    described = escape(card.get("description", ""))
    lines = [described] if described else []
    lines += [f"<b>{escape(name)}:</b> {escape(value)}" for name, value in rows]
    return "<br>".join(lines)


def searchable(name: str, card: dict[str, Any]) -> str:
    """All the words under which a model can be found."""
    provenance = " ".join(str(value) for value in card.get("provenance", {}).values())
    labels = " ".join(label["name"] for label in card.get("labels", []))
    return f"{name} {modality(card)} {card.get('description', '')} {labels} {provenance}".casefold()
