"""Segment folders of scans without Slicer's window.

::

    Slicer --no-splash --no-main-window --python-script MAPSegBatch.py -- --input FOLDER --output FOLDER [--adapt]

It lies in a folder of its own: beside MAPSeg.py, Slicer would take it for a module.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from MAPSegModule.batch import main  # noqa: E402

arguments = sys.argv[1:]
if "--" in arguments:
    arguments = arguments[arguments.index("--") + 1 :]
# Without this, Slicer would stay open.
sys.exit(main(arguments))
