"""What a process takes: a peak of memory that is its own.

Of a child, the system tells the largest memory that its process ever had, and that begins as a part of its parent: a
benchmark that has scored scans would count as its commands' memory. So a small process starts them, and asks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's own affair, and waited for
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, setsigdef=[signal.SIGINT])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(command: Sequence[str], memory: Path) -> list[str]:
    """A command that does what ``command``, a program by its path, does, and tells :func:`peak_gib` its memory."""
    return [sys.executable, "-I", "-S", "-c", _START, str(memory), *command]


def peak_gib(memory: Path) -> float:
    """Peak resident memory of a command that has ended, in GiB (Linux)."""
    return int(memory.read_text(encoding="utf-8")) / 2**20
