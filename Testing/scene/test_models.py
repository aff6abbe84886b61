"""The models that the module offers."""

import pytest
import torch
from MAPSegModule.models import InputError, add_model, find_entry, list_entries

from MAPSegLib.config import ARCHITECTURES, Preprocessing
from MAPSegLib.models import ModelCard, save_model


def test_pretrained_encoders_are_not_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    folder = tmp_path / "models"
    folder.mkdir()
    card = ModelCard(
        kind="encoder", name="seen", architecture=ARCHITECTURES["tiny"], preprocessing=Preprocessing()
    )
    path = save_model(folder / "seen.safetensors", {"encoder.x": torch.zeros(1)}, card)
    assert "seen" not in [entry.name for entry in list_entries()]
    for use in (find_entry, add_model):
        with pytest.raises(InputError, match="pretrained encoder, which cannot segment"):
            use(path)
