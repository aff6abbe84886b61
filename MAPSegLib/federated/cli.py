"""``mapseg federate``: start kits, and running what they are for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, MAPSegError
from ..reports import printable
from ..worker import explained

app = typer.Typer(
    help="Train across sites whose scans stay where they are (NVIDIA FLARE).", no_args_is_help=True
)
KitFolder = Annotated[Path, typer.Argument(help="Folder of a start kit.", metavar="KIT")]


@app.command()
def init(
    plan: Annotated[Path, typer.Argument(help="JSON file with the plan.", metavar="PLAN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the start kits.")],
) -> None:
    """Write a start kit for the server, one for the administrator, and one for each site."""
    with _telling():
        _need_flare()
        from .flare_project import write_project
        from .plan import read_plan

        for kit in write_project(read_plan(plan), output):
            typer.echo(f"wrote {kit}")
        typer.echo("Send each site its own kit over a secure channel: it holds the site's key.")


@app.command()
def run(
    kit: KitFolder,
    images: Annotated[
        Path | None, typer.Option(help="At a site: folder, data set or manifest of its scans.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="At a source site: folder of the label maps, named alike.")
    ] = None,
) -> None:
    """Run what a start kit is for: the server, a site, or (administrator) the training.

    A site remembers its scans: they are named once. Whatever was stopped or killed continues with the same command.
    """
    with _telling():
        _need_flare()
        from .flare_run import run_kit, say
        from .kits import read_kit

        content = read_kit(kit)
        if content.kind != "site" and (images or labels):
            raise InputError("Only a site has scans of its own.", "Leave --images and --labels out.")
        if content.kind == "admin":
            from .flare_admin import follow

            follow(kit, say)
            return
        code = run_kit(kit, images, labels)
        sys.stdout.flush()
        os._exit(code)  # FLARE's threads do not end by themselves


@app.command()
def status(kit: KitFolder) -> None:
    """Say whether a kit runs here; with the administrator's kit, which sites are there and how far the training is."""
    with _telling():
        _need_flare()
        from .kits import read_kit

        if read_kit(kit).kind == "admin":
            from .flare_admin import show

            show(kit, typer.echo)
            return
        process = _owner(kit)
        typer.echo(f"Running, process {process.pid}." if process else "Not running.")


@app.command()
def stop(kit: KitFolder) -> None:
    """Stop what runs from a kit here; with the administrator's kit, the training. It can be continued."""
    with _telling():
        _need_flare()
        from . import processes
        from .kits import read_kit

        if read_kit(kit).kind == "admin":
            from .flare_admin import stop_training

            stop_training(kit, typer.echo)
            return
        process = _owner(kit)
        if process:
            processes.stop(process)
        typer.echo("Stopped." if process else "Not running.")


@app.command()
def simulate(
    plan: Annotated[Path, typer.Argument(help="JSON file with the plan.", metavar="PLAN")],
    sites: Annotated[Path, typer.Option(help="JSON file with every site's scans.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Run all sites of a plan on this machine, one after another, without a server or a network.

    It needs FLARE only if the plan names privacy filters.
    """
    from .. import console

    job = {"plan": plan, "sites": sites, "output": output, "overwrite": overwrite}
    raise typer.Exit(console.run("simulate", job, None, None))


def _owner(kit: Path):
    from .flare_run import RUNNING
    from .processes import owner

    return owner(kit / RUNNING)


def _need_flare() -> None:
    from importlib.util import find_spec

    if find_spec("nvflare") is None:
        raise InputError("NVIDIA FLARE is not installed.", 'Run: pip install "mapseg[federated]"')


@contextmanager
def _telling() -> Iterator[None]:
    """Failures that users meet become one sentence and their exit code."""
    try:
        yield
    except (MAPSegError, OSError) as failure:
        error = explained(failure)
        typer.echo(printable(f"Error: {error}"), err=True)
        raise typer.Exit(error.exit_code) from failure
    except KeyboardInterrupt as error:
        typer.echo("Cancelled. What runs on other machines goes on.", err=True)
        raise typer.Exit(4) from error
