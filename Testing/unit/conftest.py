"""What several modules of these tests start from."""

from pathlib import Path

import pytest
from federated_cases import make_place
from model_file_cases import tiny

from MAPSegLib.models import save_model


@pytest.fixture
def place(tmp_path) -> Path:
    """The folder of a federation: its start model, and the scans of its sites."""
    return make_place(tmp_path)


@pytest.fixture
def saved(tmp_path) -> Path:
    """The file of a tiny model."""
    model, card = tiny()
    return save_model(tmp_path / "tiny.safetensors", model.state_dict(), card)
