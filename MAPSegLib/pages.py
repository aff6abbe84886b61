"""What the pages for people share: HTML for a light or a dark screen, without scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from . import __version__

DISCLAIMER = "Research software: not for clinical use."
_STYLE = """
:root { color-scheme: light dark; --face: #fff; --card: #f5f7f9; --ink: #1f2328; --soft: #5b6570; --line: #dde2e7;
  --before: #9aa5b1; --after: #1f6feb; --warn: #9a3412; --good: #15703a; }
@media (prefers-color-scheme: dark) { :root { --face: #15191e; --card: #1d232a; --ink: #e6e9ed; --soft: #9aa3ad;
  --line: #343b44; --before: #5d6772; --after: #6cb2ff; --warn: #ff9d5c; --good: #5fd38a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--face); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
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
td.middle { text-align: center; }
td.bars { width: 34%; min-width: 9rem; }
td.bars i { display: block; height: .38rem; border-radius: 2px; background: var(--before); margin: .12rem 0; }
td.bars i + i { background: var(--after); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .88rem; }
"""


def document(title: str, body: str, made: str) -> str:
    """A page.

    Args:
        body: HTML.
        made: with what, for the footer; plain text.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
<footer>MAPSeg {__version__}, {escape(made)} {DISCLAIMER}</footer>
</main>
</body>
</html>
"""


def figures(tiles: Iterable[tuple[object, str]]) -> str:
    """Numbers, each with what it is of."""
    return f'<div class="figures">{"".join(f"<div><b>{n}</b><span>{text}</span></div>" for n, text in tiles)}</div>'


def verdict(trusted: bool, reason: str) -> str:
    """A verdict and its reason, plain text."""
    return f'<div class="verdict{"" if trusted else " warn"}">{escape(reason)}</div>'


def swatch(color: tuple[int, int, int] | None) -> str:
    """A structure's colour before its name."""
    return f'<i class="swatch" style="background:rgb{color}"></i>' if color else ""
