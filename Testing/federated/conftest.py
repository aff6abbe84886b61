"""A project of one source and two targets, with the stand-ins for the work itself."""

import shutil
import socket

import pytest

pytest.importorskip("nvflare", reason="needs NVIDIA FLARE: pip install 'mapseg[federated]'")

from MAPSegLib.federated.flare_project import write_project
from MAPSegLib.federated.plan import Plan

SITES = {"hospital-a": "source", "hospital-b": "target", "hospital-c": "target"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_scans(folder, count=2):
    """Files that are listed; nothing opens them."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"scan{number}.nii.gz").touch()
    return folder


def make_plan(folder, **changes):
    model = folder / "start.safetensors"
    model.write_bytes(b"weights")
    content = {
        "name": "demo",
        "model": model,
        "rounds": 4,
        "steps": 1,
        "sites": [{"name": name, "role": role} for name, role in SITES.items()],
        "min_sites": 2,
        "round_timeout": 60,
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
