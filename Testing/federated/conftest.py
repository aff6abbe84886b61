"""A project of one source and two targets, with the stand-ins for the work itself."""

import shutil
import socket

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs NVIDIA FLARE: pip install 'mapseg[federated]'")

from MAPSegLib.config import Architecture, Label, Preprocessing
from MAPSegLib.federated.flare_project import write_project
from MAPSegLib.federated.plan import Plan
from MAPSegLib.models import ModelCard, save_model
from MAPSegLib.networks.segmenter import Segmenter

SITES = {"hospital-a": "source", "hospital-b": "target", "hospital-c": "target"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_scans(folder, count=2, values=(0, 1, 2)):
    """Tiny files that may be scans as well as label maps."""
    folder.mkdir(parents=True)
    array = np.resize(values, (4, 4, 4)).astype(np.uint8)
    for number in range(count):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"scan{number}.nii.gz")
    return folder


def make_plan(folder, **changes):
    model = folder / "start.safetensors"
    labels = (Label(value=1, name="dark"), Label(value=2, name="bright"))
    sizes = dict(width=4, depth=1, head_width=4, up_channels=4, dilations=(1, 2, 3), patch=16, global_size=16)
    network = Segmenter(Architecture(**sizes), labels)
    card = ModelCard(
        name="start", architecture=network.architecture, preprocessing=Preprocessing(), labels=labels
    )
    save_model(model, network.state_dict(), card, overwrite=True)
    content = {
        "name": "demo",
        "model": str(model),
        "rounds": 4,
        "steps": 1,
        "sites": [{"name": name, "role": role} for name, role in SITES.items()],
        "min_sites": 2,
        "minutes": 1,
        "options": {"patches": 1, "mask_cube": 4},
        "server": {"host": "localhost", "port": free_port()},
    }
    return Plan.model_validate(content | changes)


def make_kits(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(folder, **changes)
    write_project(
        plan, folder / "kits", "standin.StandInExecutor", "standin.StandInController", heartbeat=1.0
    )
    return folder / "kits"


@pytest.fixture(scope="session")
def untouched(tmp_path_factory):
    """Kits that no test writes to."""
    privacy = {"percentile": {"percentile": 50, "gamma": 0.01}, "noise": {"epsilon": 1}}
    return make_kits(tmp_path_factory.mktemp("project"), privacy=privacy)


@pytest.fixture
def kits(untouched, tmp_path):
    return shutil.copytree(untouched, tmp_path / "kits")
