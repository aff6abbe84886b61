"""Running the commands in process, and looking at what they left."""

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from typer.testing import CliRunner

from MAPSegLib import console
from MAPSegLib.cli import app

CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


def mapseg(*arguments, code=0):
    """Run a command; returns its output and its errors, each as one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stdout.split()), " ".join(result.stderr.split())


def refused(*arguments, code=2):
    """The message of a command that must fail without a traceback."""
    _, text = mapseg(*arguments, code=code)
    assert "Traceback" not in text and "Error: " in text
    return text


def card_on_a_terminal(name, monkeypatch):
    """What ``mapseg models NAME`` shows a person."""
    screen = console._Console(color_system=None, width=200, file=io.StringIO())
    monkeypatch.setattr(screen.file, "isatty", lambda: True)
    monkeypatch.setattr(console, "_out", screen)
    assert console.show_models(name) == 0
    return screen.file.getvalue()


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def labels_of(path):
    return np.asarray(nib.load(path).dataobj)


def other_codes(folder):
    """A folder with a label map whose values no prior knows."""
    (folder / "codes").mkdir()
    codes = np.zeros((8, 8, 8), np.int16)
    codes[2:6, 2:6, 2:6] = 20_000
    nib.save(nib.Nifti1Image(codes, np.eye(4)), folder / "codes" / "a.nii.gz")
    return folder / "codes"
