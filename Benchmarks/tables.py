"""A table on the terminal, and the same table in a benchmark's own section of RESULTS.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from MAPSegLib.reports import write_text

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "# Measured results\n\nEvery section is written by the command that it names.\n"


def write_section(
    name: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    path: Path = RESULTS,
    command: str | None = None,
) -> None:
    """Print a table, and put it in place of the section ``name`` of the results, or at their end.

    The section also says when, on which machine and with which command it was made.

    Args:
        caption: what is measured, in Markdown.
        rows: cells, as many in each row as ``header`` has.
        command: what to run to get the table again; the running command when absent.
    """
    table = Table(*(_plain(cell) for cell in header), title=_plain(caption))
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    Console().print(table)
    made = f"{datetime.date.today().isoformat()}; {machine()}; `{command or running_command()}`"
    section = (
        f"<!-- {name} -->\n## {name}\n\n{caption}\n\n{markdown(header, rows)}\n\n{made}\n<!-- /{name} -->\n"
    )
    text = path.read_text(encoding="utf-8") if path.exists() else TITLE
    old = re.compile(rf"<!-- {re.escape(name)} -->\n.*?<!-- /{re.escape(name)} -->\n", re.DOTALL)
    text = old.sub(lambda _: section, text) if old.search(text) else f"{text}\n{section}"
    write_text(path, text, overwrite=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    lines = [header, ["---"] * len(header), *rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError("every row needs as many cells as the header")
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine() -> str:
    """Processor, cores and memory."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*: (.+)$", information.read_text(encoding="utf-8"), re.MULTILINE)
        cpu = found.group(1) if found else cpu
    text = f"{cpu}, {os.cpu_count()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        text += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
    return text


def running_command() -> str:
    """The command being run, as it can be run again elsewhere: of absolute paths, the last part."""
    spec = sys.modules["__main__"].__spec__
    start = (
        ["python", "-m", spec.name.removesuffix(".__main__")] if spec else ["python", Path(sys.argv[0]).name]
    )
    return shlex.join([*start, *map(_shortened, sys.argv[1:])])


def _shortened(word: str) -> str:
    option, sign, value = word.rpartition("=")
    return option + sign + (Path(value).name if Path(value).is_absolute() else value)


def _plain(text: str) -> str:
    return text.replace("**", "").replace("`", "").replace("[", "\\[")
