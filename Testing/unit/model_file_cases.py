"""A tiny model with a card, for tests of model files."""

import torch

from MAPSegLib.config import ARCHITECTURES, Label, Preprocessing
from MAPSegLib.models import ModelCard
from MAPSegLib.networks.segmenter import Segmenter

LABELS = (
    Label(value=10, name="left thalamus", mirror=49),
    Label(value=49, name="right thalamus", mirror=10),
    Label(value=16, name="brain stem"),
)


def tiny(labels=LABELS):
    torch.manual_seed(0)
    model = Segmenter(ARCHITECTURES["tiny"], labels).eval()
    card = ModelCard(
        name="tiny",
        architecture=ARCHITECTURES["tiny"],
        preprocessing=Preprocessing(spacing=(2, 2, 2)),
        labels=labels,
        priors={"extents": {"16": [[3.0, 0.2], [2.5, 0.2], [2.0, 0.1]]}},
    )
    return model, card


def logits(model):
    generator = torch.Generator().manual_seed(1)
    patches = torch.rand(2, 1, 32, 32, 32, generator=generator)
    whole = torch.rand(1, 1, 32, 32, 32, generator=generator)
    with torch.inference_mode():
        return model(patches, whole, torch.zeros(2, 3), torch.full((2, 3), 0.5))
