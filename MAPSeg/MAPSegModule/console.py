"""What ``MAPSegLogic`` does: runs without the panel, blocking or behind the window."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import fields

import slicer

from MAPSegLib.errors import InputError

from . import dependencies
from .parameters import Parameters
from .run import Run

_INTERVAL = 50
"""Milliseconds between looks at a run that goes on behind the window."""
_behind: dict[object, Run] = {}
"""Runs behind the window by their timers: kept here, as callers may drop what they are given."""


def parameters_of(model: str, adapt: bool, options: dict) -> Parameters:
    """Options by their names; what the parameters do not know goes to the backend, which refuses what it does not."""
    known = {field.name for field in fields(Parameters)} - {"model", "adapt", "options"}
    own = {name: value for name, value in options.items() if name in known}
    return Parameters(str(model), adapt, **own, options={k: v for k, v in options.items() if k not in known})


def begin(
    volumeNodes,
    parameters: Parameters,
    wait: bool = True,
    onProgress: Callable[[Run], None] | None = None,
    onFinished: Callable[[Run], None] | None = None,
) -> Run:
    """Start a run, and wait for it or let a timer follow it. See ``MAPSegLogic`` for arguments and errors."""
    if missing := dependencies.missing():
        raise RuntimeError(
            f"Missing packages: {', '.join(missing)}. Call MAPSegLogic().installDependencies() first."
        )
    nodes = list(volumeNodes) if isinstance(volumeNodes, Iterable) else [volumeNodes]
    for node in nodes:
        if not isinstance(node, slicer.vtkMRMLVolumeNode):
            told = f"{node.GetName() if hasattr(node, 'GetName') else node} is no volume node."
            raise InputError(told, "Give nodes of volumes; slicer.util.getNode() finds them by their names.")
    run = Run(nodes, parameters)
    if onProgress is not None:
        mine = weakref.ref(run)  # a signal that held its own run would keep that, and its files
        run.changed.connect(lambda: onProgress(mine()))
    if onFinished is not None:
        run.finished.connect(onFinished)
    run.start()
    if not wait:
        _follow(run)
        return run
    run.wait()
    if not run.segmentations:
        run.clean()  # whoever gets an error has no run to clean
        raise RuntimeError(
            run.error or next((item.message for item in run.items if item.message), "It failed.")
        )
    return run


def _follow(run: Run) -> None:
    import qt

    timer = qt.QTimer()
    timer.setInterval(_INTERVAL)

    def look() -> None:
        # Qt keeps what a timer calls for good: a run in here would keep its files as long.
        if not _behind[timer].poll():
            timer.stop()
            _behind.pop(timer, None)

    timer.connect("timeout()", look)
    _behind[timer] = run
    timer.start()
