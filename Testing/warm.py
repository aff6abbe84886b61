"""Workers that start at once, forked from a process that has imported PyTorch: most of what a short run would take.

From there on they are processes as others are, and children of the test's own. What is about the start itself, or is
measured, starts as for users.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
popen = subprocess.Popen
"""The real one."""
_OWN_PATH = os.environ.get("PYTHONPATH", "")
IMPORTED = ("nibabel", "scipy.ndimage", "SimpleITK", "MAPSegLib.tasks.scans", "MAPSegLib.tasks.training")
IMPORTED += ("MAPSegLib.training.adaptation", "MAPSegLib.training.source")
"""What workers of these tests import, some of it late."""
_ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of Linux."""
workers: set[int] = set()
"""Numbers of all processes that were started here."""


def start(command, **options):
    """``subprocess.Popen``; workers with the Python path of this process are forked."""
    path = (options.get("env") or os.environ).get("PYTHONPATH", "")
    known = (_OWN_PATH, os.pathsep.join(filter(None, (str(ROOT), _OWN_PATH))))
    if list(command[1:3]) != ["-m", "MAPSegLib.worker"] or path not in known:
        return popen(command, **options)
    return Forked(command[3:], **options)


class Forked:
    """As much of ``Popen`` as is used of a worker's."""

    def __init__(
        self, arguments, stdin, stdout, stderr, env=None, cwd=None, text=False, start_new_session=False
    ):
        assert stdin == stdout == subprocess.PIPE
        self.returncode: int | None = None
        (their_input, into), (out, their_output) = os.pipe(), os.pipe()
        log, their_log = os.pipe() if stderr == subprocess.PIPE else (None, os.dup(stderr.fileno()))
        theirs = [their_input, their_output, their_log]
        asked = {"arguments": arguments, "environment": dict(env or os.environ)}
        asked |= {"folder": str(cwd or Path.cwd()), "session": start_new_session}
        self.pid = _fork(json.dumps(asked).encode(), theirs)
        workers.add(self.pid)
        for end in theirs:
            os.close(end)
        kind = "" if text else "b"
        self.stdin, self.stdout = os.fdopen(into, "w" + kind), os.fdopen(out, "r" + kind)
        self.stderr = None if log is None else os.fdopen(log, "r" + kind)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@cache
def source() -> tuple[socket.socket, subprocess.Popen]:
    """The process that workers are forked from, once it is ready."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "Testing.warm", str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_OWN_PATH, str(ROOT))))}
    process = popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment | {"PYTHONUTF8": "1"},
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    assert ours.recv(16) == b"ready"
    return ours, process


def _fork(asked: bytes, files: list[int]) -> int:
    """A new worker's number. Its parent ends at once, and this process, as the next that adopts, gets the orphan."""
    prctl, (ours, _) = ctypes.CDLL(None).prctl, source()
    prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    try:
        socket.send_fds(ours, [asked], files)
        return int(ours.recv(16))
    finally:
        prctl(_ADOPT_ORPHANS, 0, 0, 0, 0)


def serve(theirs: socket.socket) -> None:
    """Fork workers for as long as anybody asks; each of them ends in here as well."""
    from MAPSegLib import distributed, worker

    for module in IMPORTED:
        import_module(module)
    gc.freeze()
    theirs.send(b"ready")
    while True:
        asked, files, *_ = socket.recv_fds(theirs, 1 << 18, 3)
        if not asked:
            return
        number, tell = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                break
            os.write(tell, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        theirs.send(os.read(number, 16))
        for end in (number, tell, *files):
            os.close(end)
    theirs.close()
    chosen = json.loads(asked)
    if chosen["session"]:
        os.setsid()
    for place, end in enumerate(files):
        os.dup2(end, place)
    for end in (number, tell, *files):
        os.close(end)
    os.environ.clear()
    os.environ.update(chosen["environment"])
    os.chdir(chosen["folder"])
    distributed.end(worker.main(chosen["arguments"]))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
