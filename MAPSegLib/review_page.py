"""The page of a review: every result with its picture, those to look at first at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from .pages import DISCLAIMER, document, figures, swatch, verdict

if TYPE_CHECKING:
    from .tasks.review import Entry, Results, Shown

Colors = Mapping[int, tuple[int, int, int]]
"""Of structures, by their values."""


def page(found: Results, shown: Sequence[Shown], failed: Sequence[Mapping[str, str]]) -> str:
    """The page as HTML.

    Args:
        found: the report of the results.
        shown: of it, the scans that could be drawn.
        failed: those that could not, as jobs tell them; the report has those that have no result.
    """
    doubted = sum(not one.entry.trusted for one in shown)
    tiles = [(len(shown), "results"), (doubted, "not to be trusted")]
    if found.task == "adapt":
        tiles.append((sum(one.entry.chosen == "adapted" for one in shown), "kept the adapted result"))
    if lost := [*found.failed, *failed]:
        tiles.append((len(lost), "failed"))
    colors = {label.value: label.color for label in found.labels}
    ordered = sorted(shown, key=lambda one: (one.entry.trusted, one.entry.measures.get("score") or 0.0))
    body = f"""<h1>Results of {escape(found.model)}</h1>
<p class="soft">Those not to be trusted come first, then those with the lowest scores. Look at every one: the verdict
is a statistical judgement without a reference.</p>
<p><span class="badge">{DISCLAIMER}</span></p>
{figures(tiles)}
{"".join(_failure(one) for one in lost)}
{"".join(_scan(one, colors) for one in ordered)}
"""
    return document(f"Results of {found.model}", body, f"model {found.model}.")


def _failure(one: Mapping[str, str]) -> str:
    told = f"{one.get('message', '')} {one.get('advice', '')}".strip()
    return f'<div class="verdict warn">{escape(told)}</div>\n'


def _scan(one: Shown, colors: Colors) -> str:
    entry = one.entry
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in [entry.gate, *entry.notes] if note)
    name, picture = escape(entry.file.name), quote("/".join(one.picture.parts[-2:]))  # from the page on
    return f"""
<h2>{name}</h2>
{verdict(entry.trusted, entry.reason)}
{notes}
<img loading="lazy" src="{picture}" alt="{name} with its structures in three planes">
<details><summary>Volumes</summary>{_table(entry, colors)}</details>
"""


def _table(entry: Entry, colors: Colors) -> str:
    rows = []
    for row in entry.structures:
        sure = "-" if row.confidence is None else f"{row.confidence:.2f}"
        named = f"{swatch(colors.get(row.value))}{escape(row.structure)}"
        rows.append(f"<tr><td>{named}</td><td>{row.volume_ml:.2f}</td><td>{sure}</td></tr>\n")
    head = "<tr><th>structure</th><th>ml</th><th>confidence</th></tr>"
    return f'<div class="scroll"><table class="narrow">{head}\n{"".join(rows)}</table></div>'
