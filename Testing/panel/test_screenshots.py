"""The pictures of the documentation: taken on purpose alone, and of what they are named after."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from Testing.host import screenshots

ROOT = Path(__file__).resolve().parents[2]


def test_help_takes_no_pictures():
    done = subprocess.run(
        [sys.executable, "-m", "Testing.host.screenshots", "--help"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0 and "--output" in done.stdout


def test_a_run_that_ended_is_not_pictured_as_running():
    stage = object.__new__(screenshots.Stage)
    status = SimpleNamespace(statusLabel=SimpleNamespace(text="No memory."))
    stage.panel = SimpleNamespace(running=False, ui=status)
    with pytest.raises(RuntimeError, match="ended too early: No memory."):
        stage.reach(lambda: False)
