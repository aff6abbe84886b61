"""The parts of the MAPSeg module. None of them loads PyTorch: that happens in the worker process (:mod:`.job`).

``signal``, ``models``, ``parameters``, ``job`` and ``queue`` are plain Python; ``preflight``, ``scene`` and ``run``
know MRML; ``panel`` and what it builds on know Qt.
"""

import sys
from pathlib import Path


def backend_folder() -> Path:
    """The folder that holds ``MAPSegLib``: beside the module when installed, the repository's top in a checkout."""
    beside = Path(__file__).resolve().parents[1]
    return beside if (beside / "MAPSegLib").is_dir() else beside.parent


if str(backend_folder()) not in sys.path:
    sys.path.append(str(backend_folder()))
