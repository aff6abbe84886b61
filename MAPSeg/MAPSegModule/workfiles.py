"""Names of working folders and files: whose a folder is, and what every system takes as the name of a file."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from pathlib import Path

from MAPSegLib.windows import RESERVED

_LONGEST = 80
"""Letters of a file's name: 255 are the limit, of which endings and numbers take some, and folders on Windows."""
_HOST = re.sub(r"\W+", "_", platform.node(), flags=re.ASCII)
_GONE = 87
"""What Windows answers about a process that does not exist: an invalid parameter."""


def own(prefix: str) -> str:
    """The name of this process's folder, by which it is known after a crash; machines may share a disk."""
    return f"{prefix}-{_HOST}-{os.getpid()}"


def remove_abandoned(parent: str | Path, prefix: str) -> None:
    """Delete the folders that processes of this machine left in ``parent`` when they were ended or crashed."""
    name = re.compile(rf"{re.escape(prefix)}-{_HOST}-(\d{{1,9}})(-.*)?")
    for folder in Path(parent).glob(f"{prefix}-*"):
        found = name.fullmatch(folder.name)
        if found and not _lives(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)  # what is held now goes at a later start


def file_stem(name: str) -> str:
    """A file's name, without its ending, for what users have named: on Windows, readers take plain letters only."""
    stem = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:_LONGEST].strip("._") or "volume"
    return f"volume_{stem}" if RESERVED.match(stem) else stem


def _lives(number: int) -> bool:
    if os.name == "nt":  # where os.kill() would end it
        return _lives_on_windows(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _lives_on_windows(number: int) -> bool:
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    handle = kernel.OpenProcess(0x1000, False, number)  # to ask no more than whether it is there
    if handle:
        kernel.CloseHandle(handle)
    return bool(handle) or ctypes.get_last_error() != _GONE
