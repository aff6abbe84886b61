"""The report of the demo: one HTML file with its pictures inside, for a light or a dark screen, without scripts."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from . import __version__
from .demo import DISCLAIMER, FORMULA, kept, number

if TYPE_CHECKING:
    from .demo import Findings, Structure
    from .quality import Assessment

_STYLE = """
:root { color-scheme: light dark; --face: #fff; --card: #f5f7f9; --ink: #1f2328; --soft: #5b6570; --line: #dde2e7;
  --before: #9aa5b1; --after: #1f6feb; --warn: #9a3412; --good: #15703a; }
@media (prefers-color-scheme: dark) { :root { --face: #15191e; --card: #1d232a; --ink: #e6e9ed; --soft: #9aa3ad;
  --line: #343b44; --before: #5d6772; --after: #6cb2ff; --warn: #ff9d5c; --good: #5fd38a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--face); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft, footer, th { color: var(--soft); }
.badge { display: inline-block; border: 1px solid var(--warn); color: var(--warn); border-radius: 99px;
  padding: .1rem .75rem; font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.figures div { background: var(--card); border-radius: 10px; padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: .85rem; }
.verdict { background: var(--card); border-left: 4px solid var(--good); border-radius: 0 10px 10px 0;
  padding: .7rem 1rem; margin: 1rem 0; max-width: 46rem; }
.verdict.warn { border-color: var(--warn); }
img { display: block; width: 100%; height: auto; border-radius: 10px; margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
table.narrow { max-width: 30rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
tr.mean td { font-weight: 600; }
i.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .55rem;
  border: 1px solid var(--line); vertical-align: -1px; }
td.bars { width: 34%; min-width: 9rem; }
td.bars i { display: block; height: .38rem; border-radius: 2px; background: var(--before); margin: .12rem 0; }
td.bars i + i { background: var(--after); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .88rem; }
"""


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
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MAPSeg demo</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>One head, two contrasts</h1>
<p class="soft">What <code>mapseg demo</code> found with the model {escape(found.card.name)}.</p>
<p><span class="badge">{DISCLAIMER}</span></p>
<div class="figures">{"".join(f"<div><b>{value}</b><span>{text}</span></div>" for value, text in tiles)}</div>

<h2>The contrast that the model knows</h2>
<p>The MNI152 T1 average of 152 adults at 1 mm, segmented in {found.seconds["segment"]:.1f} s.</p>
{_image(pictures["overlay"], "The T1 with its structures in three planes")}
{_verdict(found.verdicts["t1"])}
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
{_verdict(chosen)}
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

<footer>MAPSeg {__version__}, model {escape(found.card.name)} ({escape(found.card.license or "no licence stated")}).
Everything was computed on this machine. {DISCLAIMER}</footer>
</main>
</body>
</html>
"""


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _image(png: bytes, text: str) -> str:
    return f'<img src="{_data(png)}" alt="{escape(text)}">'


def _curves(pictures: Mapping[str, bytes]) -> str:
    dark = f'<source srcset="{_data(pictures["curves_dark"])}" media="(prefers-color-scheme: dark)">'
    light = _image(pictures["curves"], "Loss, confidence and agreement over the steps")
    return f"<picture>{dark}{light}</picture>"


def _verdict(verdict: Assessment) -> str:
    return f'<div class="verdict{"" if verdict.trusted else " warn"}">{escape(verdict.reason)}</div>'


def _swatch(color: tuple[int, int, int] | None) -> str:
    return f'<i class="swatch" style="background:rgb{color}"></i>' if color else ""


def _volumes(s: Structure) -> str:
    cells = "".join(f"<td>{v:.1f}</td>" for v in s.volumes)
    if len(s.volumes) == 1:
        cells = f'<td colspan="2">{s.volumes[0]:.1f}</td>'
    return f"<tr><td>{_swatch(s.color)}{escape(s.name)}</td>{cells}</tr>\n"


def _agreement(name: str, color: tuple[int, int, int] | None, before: float, after: float) -> str:
    widths = (0.0 if math.isnan(v) else 100 * v for v in (before, after))
    bars = "".join(f'<i style="width:{width:.1f}%"></i>' for width in widths)
    return (
        f"<tr{'' if color else ' class=mean'}><td>{_swatch(color)}{escape(name)}</td>"
        f'<td>{number(before)}</td><td>{number(after)}</td><td class="bars">{bars}</td></tr>\n'
    )
