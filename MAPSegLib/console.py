"""What the ``mapseg`` command shows: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import distributed
from .errors import InputError, MAPSegError
from .pages import DISCLAIMER
from .reports import printable, read_json
from .worker import execute, explained, listen_for_stop

if TYPE_CHECKING:
    from .models import ModelCard

LOG_SECONDS = 60.0
"""Between two lines of progress, where they go to a file."""


class _Console(Console):
    """Shows names as they are: ``sub:x:y`` holds no emoji, and no terminal obeys one."""

    def __init__(self, **settings: Any):
        super().__init__(emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)


_out, _err = _Console(), _Console(stderr=True)
_TITLES = {
    "read": "Reading",
    "search": "Looking for a curve",
    "segment": "Segmenting",
    "adapt": "Adapting",
    "train": "Training",
    "pretrain": "Pretraining",
    "evaluate": "Scoring",
    "review": "Drawing",
    "synthesise": "Drawing",
    "round": "Training",
}


def run(task: str, content: dict[str, Any], flags: dict[str, Any] | None, options: Path | None) -> int:
    """Build a job from a command's arguments and run it; returns the exit code.

    Args:
        flags: options given one by one; None means not given. They win over those of the file ``options``.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    def load():
        from .jobs import build_job, read_mapping

        job = {"task": task, **content}
        if isinstance(job.get("mapping"), Path):
            job["mapping"] = read_mapping(job["mapping"])
        if flags is not None:
            more = read_json(options, "options") if options else {}
            if not isinstance(more, dict):
                raise InputError(
                    f"{options} is not a JSON file with options.", 'It should hold {"steps": 100}.'
                )
            job["options"] = {**more, **{key: value for key, value in flags.items() if value is not None}}
        return build_job(job)

    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    listens = task in ("adapt", "demo") and at_terminal and distributed.rank() == 0
    stopped = listen_for_stop() if listens else lambda: False
    with _Display() as display:
        return execute(load, display.emit, stopped)


class _Display:
    """Events as a progress bar, and the result as a table."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(
            *columns,
            console=_err,
            transient=True,
            disable=not _err.is_terminal,
            redirect_stdout=_out.is_terminal,  # else what is printed would join the bar on standard error
        )
        self.stage: tuple[str, str] | None = None
        self.bar: TaskID | None = None
        self.told: set[tuple[str, str]] = set()
        self.told_at = time.monotonic()

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress.disable:  # rich before 14.3 would write an empty line
            return
        with suppress(OSError):  # a bar whose terminal was closed; what is behind a pipe can still be told
            self.progress.stop()

    def emit(self, event: dict[str, Any]) -> None:
        with suppress(OSError):  # a log on a full disk, or a terminal that was closed, ends no job
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._advance(event)
        elif kind == "log":
            _err.print(escape(event["message"]), soft_wrap=True)
        elif kind == "error":
            self._tell(event)
        elif kind == "result":
            self._stop()
            with suppress(SystemExit):  # rich's answer to a reader that went away (`| head`): the job is done
                show_result(event)

    def _advance(self, event: dict[str, Any]) -> None:
        scan = Path(event["scan"]).name if event.get("scan") else event.get("site", "")
        if (event["stage"], scan) != self.stage:
            if self.bar is not None:
                self.progress.remove_task(self.bar)
            title = printable(f"{_TITLES.get(event['stage'], event['stage'].capitalize())} {scan}".rstrip())
            self.stage = (event["stage"], scan)
            self.bar = self.progress.add_task(title, total=event["steps"], note="")
        notes = []
        if event.get("seconds_left") is not None:
            notes.append(f"{_duration(event['seconds_left'])} left")
        if event.get("losses"):
            notes.append(f"loss {event['losses']['loss']:.3f}")
        if event.get("eta") is not None:
            notes.append(f"confident share {event['eta']:.2f}")
        self.progress.update(self.bar, completed=event["step"], total=event["steps"], note=", ".join(notes))
        if not _err.is_terminal and time.monotonic() - self.told_at >= LOG_SECONDS:
            self.told_at = time.monotonic()
            title = self.progress.tasks[-1].description
            line = f"{title} {event['step']}/{event['steps']}{''.join(f', {note}' for note in notes)}"
            _err.print(escape(line), highlight=False, soft_wrap=True)

    def _tell(self, event: dict[str, Any]) -> None:
        sentence = (event["message"], event["advice"])
        if sentence in self.told:  # of a scan, and then of the run, as no scan came through
            return
        self.told.add(sentence)
        title = "Cancelled" if event["kind"] == "cancelled" else "Error"
        text = f": {event['message']}"
        if event["message"] == "Cancelled.":
            text = "." if event["advice"] else ""
        line = f"[bold red]{title}[/]{escape(text)} {escape(event['advice'])}".rstrip()
        _err.print(line, highlight=False, soft_wrap=True)


def show_result(result: dict[str, Any]) -> None:
    """Print what a job made."""
    if result["task"] in ("segment", "adapt"):
        _show_scans(result)
    elif result["task"] == "evaluate":
        _show_scores(result)
    elif result["task"] == "simulate":
        _show_rounds(result)
    for file in result["files"][:10]:
        _out.print(f"wrote {escape(file)}", highlight=False, soft_wrap=True)
    if len(result["files"]) > 10:
        more = len(result["files"]) - 10
        _out.print(f"and {more} file{'s' * (more > 1)} more", highlight=False)
    if result["failed"]:
        names = ", ".join(Path(failure["scan"]).name for failure in result["failed"])
        text = f"[bold red]{len(result['failed'])} failed:[/] {escape(names)}"
        _err.print(text, highlight=False, soft_wrap=True)


def _show_scans(result: dict[str, Any]) -> None:
    if len(result["scans"]) == 1:
        table = Table("structure", box=None)
        table.add_column("ml", justify="right")
        table.add_column("confidence", justify="right")
        for row in result["scans"][0]["structures"]:
            sure = "" if row["confidence"] is None else f"{row['confidence']:.2f}"
            table.add_row(escape(row["structure"]), f"{row['volume_ml']:.2f}", sure)
        _out.print(table)
    shared = _shared_notes(result["scans"])
    for scan in result["scans"]:
        gate = f"kept the {scan['chosen']} result; " if "chosen" in scan else ""
        style = "green" if scan["trusted"] else "bold yellow"
        told = f"{escape(Path(scan['file']).name)}: {gate}[{style}]{escape(scan['reason'])}[/]"
        _out.print(told, highlight=False, soft_wrap=True)
        own = [note for note in scan["notes"] if note not in shared]
        for note in ([scan["gate"]] if "gate" in scan else []) + own:
            _out.print(f"  {escape(note)}", highlight=False, soft_wrap=True)
    for note in shared:
        _out.print(f"All: {escape(note)}", highlight=False, soft_wrap=True)
    if len(result["scans"]) > 1:
        folder = _quoted(Path(result["files"][-1]).parent)  # of the reports
        _out.print(f"To look at them: mapseg review {escape(folder)}", highlight=False, soft_wrap=True)
    _out.print(DISCLAIMER, style="dim")


def _quoted(path: Path) -> str:
    """A path as the computer's own shell takes it."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(str(path))


def _shared_notes(scans: list[dict[str, Any]]) -> list[str]:
    """What is to know of every one of several scans alike, such as of the source that all were adapted beside."""
    if len(scans) < 2:
        return []
    return [note for note in scans[0]["notes"] if all(note in scan["notes"] for scan in scans)]


def _show_scores(result: dict[str, Any]) -> None:
    table = Table("structure", box=None)
    for name in ("scans", "Dice", "HD95 mm", "volume error"):
        table.add_column(name, justify="right")
    for row in result["summary"]:
        cells = [row["dice"], row["hd95_mm"], row["volume_error"]]
        forms = ("{:.3f}", "{:.2f}", "{:+.1%}")
        texts = ["" if cell is None else form.format(cell) for cell, form in zip(cells, forms, strict=True)]
        missed = f", {row['missed']} missed" if row["missed"] else ""
        table.add_row(escape(row["structure"]), f"{row['scans']}{missed}", *texts)
    known = [row["dice"] for row in result["summary"] if row["dice"] is not None]
    if known:
        table.add_row("mean", "", f"{sum(known) / len(known):.3f}", style="bold")
    _out.print(table)


def _show_rounds(result: dict[str, Any]) -> None:
    table = Table("round", "site", "answer", box=None)
    for name in ("loss", "share", "norm", "MB"):
        table.add_column(name, justify="right")
    for entry in result["rounds"][-3:]:
        for name, site in entry["sites"].items():
            if site["used"]:
                numbers = (site["losses"]["loss"], site["share"], site["norm"], site["bytes"] / 1e6)
                cells = ["averaged", *(f"{number:.3g}" for number in numbers)]
            else:
                cells = [escape(site["reason"])]
            table.add_row(str(entry["round"]), escape(name), *cells)
    _out.print(table)


def show_models(name: str | None) -> int:
    """Print the models at hand, or the card of one, as JSON for other programs; returns the exit code."""
    from .models import list_models, load_card, resolve

    try:
        card = load_card(resolve(name), encoder=True, choice=True) if name else None
        known = [] if name else list_models()
    except (MAPSegError, OSError) as failure:
        error = explained(failure)
        _err.print(f"[bold red]Error[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        return error.exit_code
    if card:
        if _out.file.isatty():
            _print_card(card)
        else:
            # else it is some code page of Windows, which lacks most letters
            readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
            print(json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=not readable))
        return 0
    table = Table("name", "structures", "grid mm", "license", "description", box=None)
    for model, _, card in known:
        structures = "encoder only" if card.kind == "encoder" else str(len(card.labels))
        table.add_row(
            *map(escape, (model, structures, card.preprocessing.grid, card.license, card.description))
        )
    if not _out.is_terminal:
        _out.width = 1000  # a line for every model, as other programs want it
    _out.print(table)
    return 0


def _print_card(card: ModelCard) -> None:
    """What a person asks of a model."""
    sizes, origin = card.architecture, card.provenance
    trust = {} if card.members else card.priors.get("trust", {})  # each member has its own
    lines = {
        "structures": ", ".join(f"{label.name} ({label.value})" for label in card.labels)
        or "none: an encoder",
        "one of, by scan": ", ".join(card.members),
        "grid": f"{card.preprocessing.grid} mm, {card.preprocessing.modality.upper()}",
        "network": f"{sizes.width} channels, {sizes.depth} blocks, patches of {sizes.patch} voxels",
        "adapted from": _adapted(origin),
        "trained on": "; ".join(map(_material, _domains(origin)))
        + (f"; {origin['steps']} steps" if "steps" in origin else ""),
        "measured": "\n".join(f"{_spoken(name)}: {_spoken(found)}" for name, found in card.scores.items()),
        "trusted": ", ".join(
            f"{_spoken(name)} {'at most' if name == 'shape_deviation' else 'at least'} {limit}"
            for name, limit in trust.items()
        ),
        "license": card.license,
    }
    table = Table(title=escape(f"{card.name}: {card.description}".rstrip(": ")), box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, content in lines.items():
        if content:
            table.add_row(name, escape(content))
    _out.print(table, "[bold]Not for clinical use.[/]", highlight=False)


def _adapted(origin: dict[str, Any]) -> str:
    """What an adapted model started from, and how many scans kept its result."""
    if not origin.get("adapted_from"):
        return ""
    kept = f", {origin['kept']} of {origin['scans']} scans kept its result" if "kept" in origin else ""
    return f"{origin['adapted_from']}{kept}"


def _domains(origin: dict[str, Any]) -> list[dict[str, Any]]:
    """What is told of the scans of a model, by domain; a card may hold anything there."""
    told = origin.get("domains", [origin])
    return [domain for domain in told if isinstance(domain, dict)] if isinstance(told, list) else []


def _material(origin: dict[str, Any]) -> str:
    """The scans that a training saw, or one domain of a pretraining."""
    return ", ".join(str(origin[key]) for key in ("data", "images") if origin.get(key))


def _spoken(value: Any) -> str:
    """A name or a figure of a card, or several of them, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{_spoken(name)} {_spoken(found)}" for name, found in value.items())
    return str(value).replace("_", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )
