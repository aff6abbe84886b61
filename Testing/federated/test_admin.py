"""The administrator's side, against a session that plays a server."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="needs NVIDIA FLARE: pip install 'mapseg[federated]'")

from nvflare.fuel.flare_api.api_spec import JobNotRunning

from MAPSegLib.errors import Cancelled, InputError, MAPSegError
from MAPSegLib.federated import flare_admin
from MAPSegLib.federated.flare_server import PROGRESS

from .conftest import SITES


class Server:
    """A session with a server.

    Args:
        ends: what each job that is submitted leaves when it ends; None for one that is aborted.
    """

    def __init__(self, *ends, sites=SITES, running=None, listed=()):
        self.ends, self.sites = list(ends), list(sites)
        self.running, self.listed = running, list(listed)
        self.submitted, self.aborted, self.looks = [], [], 0
        self.told = {"round": 2, "rounds": 4}

    def get_connected_client_list(self):
        return [SimpleNamespace(name=name) for name in self.sites]

    def get_system_info(self):
        return SimpleNamespace(job_info=[SimpleNamespace(job_id=self.running)] if self.running else [])

    def list_jobs(self, name_prefix):
        assert name_prefix == "demo"
        return [*self.listed, *([{"job_id": self.running, "status": "RUNNING"}] if self.running else [])]

    def submit_job(self, folder):
        assert Path(folder, "meta.json").is_file()
        self.submitted.append(folder)
        return "job"

    def get_job_status(self, job):
        self.looks += 1
        if self.looks % 2:
            return "RUNNING"
        return "FINISHED:ABORTED" if self.ends[0] is None else "FINISHED:COMPLETED"

    def do_app_command(self, job, command, data):
        if self.told is None:
            raise JobNotRunning("it starts")
        return self.told

    def download_job_result(self, job, scratch):
        self.running = None
        place = Path(scratch, job, "workspace")
        place.mkdir(parents=True)
        (place / PROGRESS).write_text(json.dumps(self.ends.pop(0)))
        return str(place.parent)

    def abort_job(self, job):
        self.aborted.append(job)


@pytest.fixture
def connect(monkeypatch):
    def connect(server):
        @contextlib.contextmanager
        def session(folder, say):
            yield server

        monkeypatch.setattr(flare_admin, "_session", session)
        monkeypatch.setattr(flare_admin, "_POLL", 0.0)
        monkeypatch.setattr(flare_admin, "check_server", lambda folder, kit: server is not None)
        return server

    return connect


@pytest.fixture
def said():
    return []


DONE = {"done": True, "model": "demo.safetensors", "round": 5, "rounds": 4}


def test_a_training_is_submitted_and_followed_to_its_end(untouched, connect, said):
    server = connect(Server(DONE))
    flare_admin.follow(untouched / "admin", said.append)
    assert len(server.submitted) == 1
    assert said == [
        "3 of 3 sites are connected.",
        "Round 2 of 4.",
        "The training is done. The model is at the server: demo.safetensors",
    ]


@pytest.mark.parametrize(
    "found", [{"running": "job"}, {"listed": [{"job_id": "job", "status": "SUBMITTED"}]}]
)
def test_a_training_that_runs_is_not_submitted_again(untouched, connect, said, found):
    server = connect(Server(DONE, **found))
    flare_admin.follow(untouched / "admin", said.append)
    assert not server.submitted and said[-1].startswith("The training is done.")


def test_what_a_killed_server_left_behind_does_not_run(untouched, connect, said):
    server = connect(Server(DONE, listed=[{"job_id": "old", "status": "RUNNING"}]))
    flare_admin.follow(untouched / "admin", said.append)
    assert len(server.submitted) == 1


def test_a_training_begins_without_a_site_that_stays_away(untouched, connect, said, monkeypatch):
    monkeypatch.setattr(flare_admin, "_LATECOMERS", 0.0)
    connect(Server(DONE, sites=["hospital-a", "hospital-b", "stranger"]))
    flare_admin.follow(untouched / "admin", said.append)
    assert said[0] == "2 of 3 sites are connected. Missing: hospital-c."


def test_a_training_that_does_not_get_on_ends_with_its_problem(untouched, connect, said):
    stuck = {"problem": "no site answers", "round": 3, "rounds": 4}
    server = connect(Server(stuck, stuck, stuck, stuck, DONE))
    with pytest.raises(MAPSegError, match="makes no progress: no site answers"):
        flare_admin.follow(untouched / "admin", said.append)
    assert len(server.submitted) == 4  # the first one had reached a new round


def test_a_training_that_gets_on_slowly_is_continued(untouched, connect, said):
    server = connect(Server(*({"problem": "late", "round": n, "rounds": 9} for n in range(2, 8)), DONE))
    flare_admin.follow(untouched / "admin", said.append)
    assert len(server.submitted) == 7 and said[-1].startswith("The training is done.")


def test_a_training_that_somebody_stopped_is_no_failure(untouched, connect, said):
    connect(Server(None))
    with pytest.raises(Cancelled, match="was stopped"):
        flare_admin.follow(untouched / "admin", said.append)


@pytest.mark.parametrize(
    "state, line",
    [
        ({"running": "job"}, "Round 2 of 4."),
        ({"running": None}, "No training is running."),
        ({"running": "job", "told": None}, "The training is starting."),
        ({"running": "job", "told": {"round": 5, "rounds": 4}}, "All 4 rounds are complete."),
    ],
)
def test_status_tells_the_sites_and_the_round(untouched, connect, said, state, line):
    server = connect(Server(sites=["hospital-b"]))
    vars(server).update(state)
    flare_admin.show(untouched / "admin", said.append)
    assert said == [
        "hospital-a (source): not connected",
        "hospital-b (target): connected",
        "hospital-c (target): not connected",
        line,
    ]


def test_stop_ends_the_job_that_runs(untouched, connect, said):
    server = connect(Server(running="job"))
    flare_admin.stop_training(untouched / "admin", said.append)
    assert server.aborted == ["job"] and said[0].startswith("Stopped.")


def test_stop_without_a_training(untouched, connect, said):
    server = connect(Server(listed=[{"job_id": "old", "status": "RUNNING"}]))
    flare_admin.stop_training(untouched / "admin", said.append)
    assert not server.aborted and said == ["No training is running."]


@pytest.mark.parametrize("action", [flare_admin.show, flare_admin.stop_training])
def test_a_server_that_is_not_there(untouched, connect, said, action):
    connect(None)
    with pytest.raises(InputError, match="does not answer"):
        action(untouched / "admin", said.append)
