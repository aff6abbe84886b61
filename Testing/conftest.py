"""Fixtures shared by all tests. Real scans are optional: their folder comes from the variable MAPSEG_DATA."""

import os
import sys
from pathlib import Path

# Before anything imports torch: in networks as small as these, threads wait longer for each other than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for two, they sleep while they wait: on busy cores they would use up seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest

# For what is shared in Testing; last, so that what is installed is what is tested.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_terminal_summary(terminalreporter):
    """What tests measured (``record_property``), whichever process they ran in."""
    reports = [r for r in terminalreporter.stats.get("passed", []) if r.when == "call"]
    measured = [f"{what}: {value}" for report in reports for what, value in report.user_properties]
    if measured:
        terminalreporter.section("measured")
        for line in measured:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans; the test is skipped without one."""
    folder = os.environ.get("MAPSEG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real scans: set MAPSEG_DATA to their folder")
    return Path(folder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folders images/ and labels/ with three cases of a ball."""
    from Testing import ball

    folder = tmp_path_factory.mktemp("data")
    ball.write_balls(folder)
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> dict:
    """Result of a short training on them."""
    from Testing import ball

    return ball.train_on(data, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(trained) -> Path:
    return Path(trained["model"])
