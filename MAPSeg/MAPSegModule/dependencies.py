"""What the worker needs and Slicer does not bring: installed with consent when the user presses a button.

Nothing here loads PyTorch into Slicer: what is installed is read from the packages' metadata, and the device is tried
in a process of its own. (The PyTorch extension itself imports PyTorch after it has installed it.)
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from . import backend_folder, texts

OLDEST = (5, 11)
"""Slicer's version, with the previews of 5.12: older ones have another Python, or no ``slicer.packaging``."""
TORCH = "torch>=2.9"
REQUIREMENTS = Path(__file__).parents[1] / "Resources" / "requirements.txt"
WHEELS_SETTING = "MAPSeg/WheelFolder"
"""Application setting: a folder of wheel files, for sites without internet."""

_TRY_DEVICES = """
import json, torch
told = {"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": "", "works": False, "why": ""}
kind = told["kind"] = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else ""
try:
    if kind:
        told["gpu"] = torch.cuda.get_device_name() if kind == "cuda" else "Apple GPU"
        conv = torch.nn.Conv3d(4, 4, 3).to(kind)
        told["works"] = bool(conv(torch.ones(1, 4, 8, 8, 8, device=kind)).sum().isfinite().item())
    elif torch.version.cuda:
        told["why"] = "no NVIDIA GPU, or its driver is missing"
    else:
        told["why"] = "this PyTorch is built for the CPU"
except Exception as error:
    told["why"] = (str(error).strip().splitlines() or [type(error).__name__])[0]
print(json.dumps(told))
"""


def unsuited() -> str:
    """Why nothing here works in this Slicer, in a sentence; empty where it does."""
    version = (slicer.app.majorVersion, slicer.app.minorVersion)
    if version >= OLDEST:
        return ""
    told = _("MAPSeg needs Slicer 5.12 or later, and this is {version}: install a newer Slicer.")
    return told.format(version="{}.{}".format(*version))


def missing() -> list[str]:
    """Requirements that are not met, as pip knows them."""
    return [wanted for wanted in (TORCH, *requirements()) if not _met(wanted)]


def requirements() -> list[str]:
    """The lines of ``Resources/requirements.txt``."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def ensure(wheels: str = "") -> bool:
    """Make sure that the worker can run; asks before anything is installed. False when the user declines.

    Args:
        wheels: folder of wheel files for sites without internet; the application setting when empty.

    Raises:
        RuntimeError: the installation failed or is not possible; the message says why and what to do.
    """
    if told := unsuited():
        raise RuntimeError(told)
    wanted = missing()
    if not wanted:
        return True
    if TORCH in wanted and (sys.platform, platform.machine()) == ("darwin", "x86_64"):
        raise RuntimeError(
            _(
                "This Slicer is built for Intel Macs, for which there is no PyTorch 2.9 or later; "
                "on Apple silicon, use `mapseg` in a native Python."
            )
        )
    wheels = wheels or str(slicer.util.settingsValue(WHEELS_SETTING, ""))
    installed = _from_wheels(wanted, wheels) if wheels else _from_internet(wanted)
    importlib.invalidate_caches()
    try_devices.cache_clear()
    if installed and missing():
        raise RuntimeError(
            _("These packages are still missing: {names}. Restart Slicer and try again.").format(
                names=", ".join(missing())
            )
        )
    return installed


def describe_device(device: str, environment: dict[str, str]) -> str:
    """Which device will be used and why, in one sentence.

    Args:
        environment: of a worker (:func:`.job.worker_environment`). Where :func:`try_devices` has not been called with
            it before, a process is started, which takes seconds.
    """
    told = try_devices(frozenset(environment.items()))
    if told is None:
        return _("PyTorch does not start here; reinstall it with the PyTorch extension.")
    threads = texts.counted(told["threads"], _("{n} thread"), _("{n} threads"))
    cpu = _("CPU, {threads}").format(threads=threads)
    if device == "cpu":
        return _("{cpu}, as chosen.").format(cpu=cpu)
    if told["works"] and device in ("auto", told["kind"]):
        return _("{gpu}, tried and working.").format(gpu=told["gpu"])
    if device == "mps" != told["kind"]:
        reason = _("no Apple GPU")
    elif device == "cuda" and told["kind"] == "mps":
        reason = _("no NVIDIA GPU")
    else:
        reason = told["why"] or _("a trial on {gpu} failed").format(gpu=told["gpu"])
    if device == "auto":
        return _("{cpu}: {reason}.").format(cpu=cpu, reason=reason)
    return _("Not available here ({reason}); choose Automatic or Processor.").format(reason=reason)


@cache
def try_devices(environment: frozenset[tuple[str, str]]) -> dict | None:
    """What a process in that environment found when it tried PyTorch's devices; None when PyTorch did not start."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_DEVICES],
            stdin=subprocess.DEVNULL,  # that of a program with windows may be no handle to pass on
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # of warnings, with paths in them
            timeout=120,
            env=dict(environment),
            cwd=backend_folder(),  # from where Python imports first: not from among somebody's scans
            check=False,
            **({"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}),
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def _met(requirement: str) -> bool:
    name, least = requirement.split(">=")
    return _numbers(_version(name)) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def _from_wheels(wanted: list[str], folder: str) -> bool:
    if not Path(folder).is_dir():
        raise RuntimeError(_("The folder of wheel files, {folder}, does not exist.").format(folder=folder))
    if not _agreed(wanted, folder):
        return False
    with _constraints() as constraints:
        offline = ["--no-index", "--find-links", folder, "--constraint", constraints]
        try:
            slicer.util.pip_install([*offline, *wanted])
        except Exception as error:
            raise RuntimeError(
                _("{folder} lacks what is needed: {error}").format(folder=folder, error=error)
            ) from error
    return True


def _from_internet(wanted: list[str]) -> bool:
    if TORCH in wanted:
        try:
            import PyTorchUtils
        except ModuleNotFoundError as error:
            raise RuntimeError(
                _("Install the PyTorch extension in the Extensions Manager, restart Slicer, and try again.")
            ) from error
        minimum = TORCH.removeprefix("torch")
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=True, torchVersionRequirement=minimum
        )
        if torch is None:
            return False
    rest = [name for name in wanted if name != TORCH]
    if rest:
        # Asked here: that users decline, pip_ensure() tells by nothing but the words of its error.
        if not _agreed(rest, _("the internet")):
            return False
        import slicer.packaging

        with _constraints() as constraints:
            slicer.packaging.pip_ensure(
                rest, constraints=constraints, prompt_install=False, requester="MAPSeg"
            )
    return True


def _agreed(wanted: list[str], origin: str) -> bool:
    question = _("MAPSeg needs {names}. Install them from {origin}?")
    question = question.format(names=", ".join(wanted), origin=origin)
    return slicer.util.confirmOkCancelDisplay(texts.literal(question))


@contextmanager
def _constraints() -> Iterator[str]:
    """A file that keeps pip from replacing what Slicer brings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        kept = [name for name in ("numpy", "scipy", "SimpleITK") if _version(name)]
        path.write_text("".join(f"{name}=={_version(name)}\n" for name in kept), encoding="utf-8")
        yield str(path)


def _version(name: str) -> str:
    """Of a package; empty where it is not there, or only half of it."""
    try:
        return metadata.version(name) or ""
    except Exception:  # which ones half a package raises is up to the version of Python
        return ""
