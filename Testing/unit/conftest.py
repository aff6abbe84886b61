"""What several modules of these tests start from."""

from pathlib import Path

import pytest
from federated_cases import make_place


@pytest.fixture
def place(tmp_path) -> Path:
    """The folder of a federation: its start model, and the scans of its sites."""
    return make_place(tmp_path)
