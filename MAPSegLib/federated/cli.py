"""The ``mapseg federate`` commands. As in :mod:`MAPSegLib.cli`, all else is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="federate",
    help="Adapt or pretrain with scans of several sites, none of which leaves its site.",
    no_args_is_help=True,
)


@app.command()
def simulate(
    plan: Annotated[Path, typer.Argument(help="JSON file with the plan.", metavar="PLAN")],
    sites: Annotated[Path, typer.Option(help="JSON file with every site's scans.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Run all sites of a plan on this machine, one after another, without a network."""
    from .. import console

    job = {"plan": plan, "sites": sites, "output": output, "overwrite": overwrite}
    raise typer.Exit(console.run("simulate", job, None, None))
