"""The report of the demo: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from .pages import DISCLAIMER, document, figures, swatch, verdict

if TYPE_CHECKING:
    from .demo import Findings, Structure

FORMULA = "0.5 + 0.5 sin(2 pi x - 0.6)"


def page(found: Findings, pictures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        pictures: PNG files by name: overlay, comparison, curves, curves_dark.
    """
    before, after = found.agreement["source"], found.agreement["adapted"]
    chosen = found.verdicts[found.chosen]
    formula = FORMULA.replace("pi", "π").replace("-", "−")
    tiles = [
        *((number(dice), f"Dice of {name} with the tissue map") for name, dice in found.tissue_dice.items()),
        (number(before), "agreement on the foreign contrast, before"),
        (number(after), "after adaptation"),
    ]
    body = f"""<h1>One head, two contrasts</h1>
<p class="soft">What <code>mapseg demo</code> found with the model {escape(found.card.name)}.</p>
<p><span class="badge">{DISCLAIMER}</span></p>
{figures(tiles)}

<h2>The contrast that the model knows</h2>
<p>The MNI152 T1 average of 152 adults at 1 mm, segmented in {found.seconds["segment"]:.1f} s.</p>
{_image(pictures["overlay"], "The T1 with its structures in three planes")}
{verdict(found.verdicts["t1"].trusted, found.verdicts["t1"].reason)}
<div class="scroll"><table class="narrow">
<tr><th>volume in ml</th><th>left</th><th>right</th></tr>
{"".join(_volumes(s) for s in found.structures)}
</table></div>
<p class="soft">Dice with the tissue maps: grey matter is both cortices and the deep nuclei, white matter that of
cerebrum and cerebellum; the maps call a voxel what is likeliest there. Brain stem and ventral diencephalon mix both and
are left out. The average blurs the folds of the cortex, so even a perfect result would stay below 1.</p>

<h2>A contrast that it has never seen</h2>
<p>Every intensity x became {formula}: the curve rises and falls twice, so that tissues swap their order
of brightness. The model adapted to this one scan, without labels, for {found.steps} steps in
{found.seconds["adapt"]:.0f} s; the weights after step {found.best_step} were the best by the measures that adaptation
does not train on.</p>
<div class="verdict"><b>Kept: the {kept(found)} result.</b> {escape(found.gate)}</div>
{verdict(chosen.trusted, chosen.reason)}
{_image(pictures["comparison"], "The T1, the foreign contrast before and after adaptation, with their structures")}
<div class="scroll"><table>
<tr><th>Dice with the T1 result</th><th>before</th><th>adapted</th><th></th></tr>
{"".join(_agreement(s.name, s.color, s.source, s.adapted) for s in found.structures)}
{_agreement("mean", None, before, after)}
</table></div>
<p class="soft">This is agreement with the model's own result on the T1, not with a reference: it says what the change
of contrast cost and what adaptation brought back. The adaptation never sees it.</p>

<h2>How the adaptation went</h2>
{_curves(pictures)}
"""
    made = f"model {found.card.name} ({found.card.license or 'no licence stated'})."
    return document("MAPSeg demo", body, f"{made} Everything was computed on this machine.")


def kept(found: Findings) -> str:
    """The side that the gate chose, in words."""
    return "adapted" if found.chosen == "adapted" else "source model's"


def number(value: float) -> str:
    """Three decimals, or a dash for what is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _image(png: bytes, text: str) -> str:
    return f'<img src="{_data(png)}" alt="{escape(text)}">'


def _curves(pictures: Mapping[str, bytes]) -> str:
    dark = f'<source srcset="{_data(pictures["curves_dark"])}" media="(prefers-color-scheme: dark)">'
    light = _image(pictures["curves"], "Loss, confidence and agreement over the steps")
    return f"<picture>{dark}{light}</picture>"


def _volumes(s: Structure) -> str:
    cells = "".join(f"<td>{v:.1f}</td>" for v in s.volumes)
    if len(s.volumes) == 1:
        cells = f'<td colspan="2" class="middle">{s.volumes[0]:.1f}</td>'
    return f"<tr><td>{swatch(s.color)}{escape(s.name)}</td>{cells}</tr>\n"


def _agreement(name: str, color: tuple[int, int, int] | None, before: float, after: float) -> str:
    widths = (0.0 if math.isnan(v) else 100 * v for v in (before, after))
    bars = "".join(f'<i style="width:{width:.1f}%"></i>' for width in widths)
    return (
        f"<tr{'' if color else ' class=mean'}><td>{swatch(color)}{escape(name)}</td>"
        f'<td>{number(before)}</td><td>{number(after)}</td><td class="bars">{bars}</td></tr>\n'
    )
