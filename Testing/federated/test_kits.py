"""Start kits: what is in them, what they allow, and the sentences for what cannot run."""

import contextlib
import datetime
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.fuel.utils.log_utils import LoggerNameFilter, get_obj_logger
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.security.logging import secure_format_exception
from typer.testing import CliRunner

from MAPSegLib.cli import app
from MAPSegLib.errors import InputError
from MAPSegLib.federated import flare_project
from MAPSegLib.federated.flare_privacy import NoisyDifferences
from MAPSegLib.federated.flare_project import write_project
from MAPSegLib.federated.flare_run import check_server, run_kit
from MAPSegLib.federated.kits import choose_data, kit_plan, local_data, read_kit
from MAPSegLib.federated.plan import read_plan
from MAPSegLib.federated.processes import holding, owner

from .conftest import SITES, make_plan, make_scans


def mapseg(*arguments):
    return CliRunner().invoke(app, ["federate", *map(str, arguments)])


def test_init_writes_a_kit_for_everyone(tmp_path):
    plan, start = make_plan(tmp_path), (tmp_path / "start.safetensors").read_bytes()
    content = plan.model_dump(mode="json") | {"model": "start.safetensors"}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    result = mapseg("init", tmp_path / "plan.json", "-o", tmp_path / "kits")
    assert result.exit_code == 0, result.output
    kits = {folder.name: read_kit(folder) for folder in (tmp_path / "kits").iterdir()}
    assert {name: kit.kind for name, kit in kits.items()} == {
        "server": "server",
        "admin": "admin",
        **dict.fromkeys(SITES, "site"),
    }
    assert {name: kit.role for name, kit in kits.items() if kit.role} == SITES
    for name in ("server", *SITES):
        assert (tmp_path / "kits" / name / "start.safetensors").read_bytes() == start
        assert kit_plan(tmp_path / "kits" / name).model == str(tmp_path / "kits" / name / "start.safetensors")


def test_kits_that_cannot_be_written_leave_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as disk:
        disk.setattr(flare_project, "_write_admin", full)
        with pytest.raises(InputError, match="kits cannot be written: no space left"):
            write_project(make_plan(tmp_path), tmp_path / "kits")
    assert not (tmp_path / "kits").exists()
    assert len(write_project(make_plan(tmp_path), tmp_path / "kits")) == 2 + len(SITES)


def test_keys_are_each_participants_own(untouched):
    keys = list(untouched.rglob("*.key"))
    assert {key.relative_to(untouched).parts[0] for key in keys} == {"server", "admin", *SITES}
    assert len({key.read_bytes() for key in keys}) == len(keys)
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    assert all(kit.stat().st_mode & 0o077 == 0 for kit in untouched.iterdir())
    # The authority's key would make further kits.
    with_key = {
        file for file in untouched.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()
    }
    assert with_key == set(keys)


def test_a_site_runs_only_classes_of_its_own_list(untouched):
    workspace = Workspace(str(untouched / "hospital-b" / "flare"), site_name="hospital-b")
    guard = ComponentPathAuthorizer()
    guard.authorize_component_config({"path": "standin.StandInExecutor"}, workspace=workspace)
    for path in (
        "subprocess.Popen",
        "nvflare.app_common.np.np_trainer.NPTrainer",
        "standin.StandInController",
    ):
        with pytest.raises(UnsafeComponentError):
            guard.authorize_component_config({"path": path}, workspace=workspace)


def test_a_site_grants_only_jobs_and_sends_no_log(untouched):
    for name in SITES:
        local = untouched / name / "flare" / "local"
        rules = json.loads((local / "authorization.json").read_text())
        assert rules["permissions"] == {"project_admin": {"submit_job": "any", "manage_job": "any"}}
        resources = json.loads((local / "resources.json").read_text())
        assert resources["allow_log_streaming"] is False
        assert not any("log" in part["path"].lower() for part in resources["components"])


def test_filters_stand_in_the_sites_kits(untouched):
    for name in SITES:
        privacy = json.loads((untouched / name / "flare" / "local" / "privacy.json").read_text())
        (scope,) = privacy["scopes"]
        assert [entry["path"].rsplit(".")[-1] for entry in scope["task_result_filters"]] == [
            "LargestDifferences",
            "NoisyDifferences",
        ]
        assert scope["task_result_filters"][0]["args"] == {"percentile": 50, "gamma": 0.01}
        assert privacy["default_scope"] == scope["name"]


def test_the_terminal_shows_our_own_lines_only(untouched):
    config = json.loads((untouched / "hospital-b" / "flare" / "local" / "log_config.json").read_text())
    (ours,) = config["handlers"]["consoleHandler"]["filters"]
    settings = {name: value for name, value in config["filters"][ours].items() if name != "()"}
    shown = LoggerNameFilter(**settings).filter
    flares = get_obj_logger(NoisyDifferences())  # which tells of its noise
    for name, ours in (("MAPSegLib.federated", True), (flares.name, False), ("nvflare.private", False)):
        assert shown(logging.makeLogRecord({"name": name, "levelno": logging.ERROR})) is ours, name


def test_the_job_carries_no_code(untouched):
    files = {file.name for file in (untouched / "admin" / "job").rglob("*") if file.is_file()}
    assert files == {"meta.json", "config_fed_server.json", "config_fed_client.json"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"server": None}, "names no server"),
        (
            {"sites": [{"name": "server", "role": "source"}, {"name": "b", "role": "target"}]},
            "No site can be called server",
        ),
        ({"server": {"host": "my_server"}}, "host cannot be 'my_server'"),
        ({"server": {"host": "::1"}}, "host cannot be '::1'"),
        ({"server": {"host": "server." * 9 + "org"}}, r"cannot hold the server's host server\..*at most 64"),
        ({"name": "Zürich"}, "cannot hold the name Zürich"),
        ({"name": "n" * 65}, "cannot hold the name n*. Give"),
    ],
)
def test_plans_that_make_no_kits(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        write_project(make_plan(tmp_path, **changes), tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


def test_what_flare_could_not_make_is_told(tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise ValueError("no entropy")

    monkeypatch.setattr(flare_project.CertBuilder, "build", fail)
    with pytest.raises(InputError, match=r"FLARE could not make the start kits: (.|\n)*no entropy"):
        write_project(make_plan(tmp_path), tmp_path / "kits")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "kits").exists()


def test_kits_need_the_start_model_and_an_empty_folder(tmp_path):
    plan = make_plan(tmp_path)
    with pytest.raises(InputError, match="is not empty"):
        write_project(plan, tmp_path)
    (tmp_path / "start.safetensors").unlink()
    with pytest.raises(InputError, match="does not exist"):
        write_project(plan, tmp_path / "kits")


def test_a_plan_that_is_none(tmp_path):
    (tmp_path / "plan.json").write_text('{"name": "demo"}')
    with pytest.raises(InputError, match="is not a plan"):
        read_plan(tmp_path / "plan.json")


class TestData:
    def test_is_named_once(self, kits, tmp_path):
        images = make_scans(tmp_path / "scans")
        assert choose_data(kits / "hospital-b", images) == (2, [])
        assert choose_data(kits / "hospital-b") == (2, [])
        assert local_data(kits / "hospital-b").images == images

    def test_options_of_a_site_stay_and_no_others_are_written(self, kits, tmp_path):
        file = kits / "hospital-b" / "data.json"
        choose_data(kits / "hospital-b", make_scans(tmp_path / "scans"))
        assert set(json.loads(file.read_text())) == {"images", "labels"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"options": {"threads": 3}}))
        choose_data(kits / "hospital-b", make_scans(tmp_path / "others"))
        options = local_data(kits / "hospital-b").options
        assert options.threads == 3 and options.model_fields_set == {"threads"}

    def test_was_not_named(self, kits):
        with pytest.raises(InputError, match="has not named its scans"):
            choose_data(kits / "hospital-b")

    @pytest.mark.parametrize("name", ["hospital-a", "hospital-b"])
    def test_in_a_kit_without_its_start_model(self, kits, tmp_path, name):
        (kits / name / "start.safetensors").unlink()
        scans = make_scans(tmp_path / "scans")
        with pytest.raises(InputError, match=r"start\.safetensors"):
            choose_data(kits / name, scans, scans)

    @pytest.mark.parametrize("name", ["hospital-a", "hospital-b"])
    def test_of_an_empty_folder(self, kits, tmp_path, name):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError):
            choose_data(kits / name, tmp_path / "empty")
        assert not (kits / name / "data.json").exists()

    def test_of_a_source_needs_labels(self, kits, tmp_path):
        images = make_scans(tmp_path / "scans")
        with pytest.raises(InputError):
            choose_data(kits / "hospital-a", images)
        labels = make_scans(tmp_path / "labels")
        assert choose_data(kits / "hospital-a", images, labels) == (2, [])
        more = make_scans(tmp_path / "more", values=(0, 1, 2, 7))
        assert choose_data(kits / "hospital-a", images, more)[1] == [
            "The model has no 7; they count as background."
        ]
        fewer = make_scans(tmp_path / "fewer", values=(0, 1))
        with pytest.raises(InputError, match=r"No label map of this site holds 2 \(bright\)"):
            choose_data(kits / "hospital-a", images, fewer)
        choose_data(kits / "hospital-a", images, labels)
        moved = labels.rename(tmp_path / "moved")
        with pytest.raises(InputError):
            choose_data(kits / "hospital-a")
        assert choose_data(kits / "hospital-a", labels=moved) == (2, [])

    def test_may_lie_beside_the_file_that_names_them(self, kits, monkeypatch):
        kit = kits / "hospital-b"
        make_scans(kit / "scans")
        (kit / "data.json").write_text('{"images": "scans"}')
        for place in (kit, kit / "flare"):  # as the start and the work of a job
            monkeypatch.chdir(place)
            assert choose_data(kit)[0] == 2 and local_data(kit).images == kit / "scans"

    def test_of_a_target_ignores_labels_and_says_so(self, kits, tmp_path):
        images, labels = make_scans(tmp_path / "scans"), make_scans(tmp_path / "labels")
        count, notes = choose_data(kits / "hospital-b", images, labels)
        assert count == 2 and "label maps are ignored" in notes[0]
        assert local_data(kits / "hospital-b").labels is None

    def test_refuses_the_start(self, kits, tmp_path):
        result = mapseg("run", kits / "hospital-a", "--images", make_scans(tmp_path / "scans"))
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def expire(file):
    """Replace a certificate by one of last year."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=400)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, start, start + datetime.timedelta(days=360)
    )
    file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return start + datetime.timedelta(days=360)


@pytest.mark.parametrize(
    ("name", "file"), [("server", "server.crt"), ("hospital-b", "client.crt"), ("admin", "client.crt")]
)
def test_an_expired_certificate_is_told(kits, tmp_path, name, file):
    day = expire(kits / name / "flare" / "startup" / file)
    images = ["--images", make_scans(tmp_path / "scans")] if name == "hospital-b" else []
    result = mapseg("run", kits / name, *images)
    assert result.exit_code == 2
    assert f"expired on {day:%Y-%m-%d}" in result.stderr


@pytest.mark.parametrize("name, side", [("server", "server"), ("hospital-b", "client"), ("admin", "client")])
def test_a_key_that_does_not_fit_is_told(kits, name, side):
    key = kits / name / "flare" / "startup" / f"{side}.key"
    for damage in (lambda: key.write_text("damaged"), key.unlink):
        damage()
        result = mapseg("run", kits / name)
        assert result.exit_code == 2, result.stderr
        assert f"{side}.key is missing or damaged" in result.stderr and result.stderr.count("\n") == 1


def test_a_port_in_use_is_told(kits):
    port = read_kit(kits / "server").port
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        result = mapseg("run", kits / "server")
    assert result.exit_code == 2
    assert f"Port {port} is in use" in result.stderr
    assert owner(kits / "server" / "run.pid") is None


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.0\r\n", b""])
def test_another_program_on_the_servers_port_refuses_no_certificate(kits, greeting):
    """Neither does a firewall that hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(greeting)

        threading.Thread(target=answer, daemon=True).start()
        site = kits / "hospital-b"
        kit = read_kit(site).model_copy(update={"host": "127.0.0.1", "port": other.getsockname()[1]})
        assert check_server(site, kit) is False


def test_a_path_with_a_space_is_told(kits, tmp_path):
    shutil.copytree(kits / "server", tmp_path / "my server")
    result = mapseg("run", tmp_path / "my server")
    assert result.exit_code == 2 and "space in its path" in result.stderr


def test_only_sites_have_scans(kits, tmp_path):
    result = mapseg("run", kits / "server", "--images", tmp_path)
    assert result.exit_code == 2 and "Only a site has scans" in result.stderr


def test_a_folder_that_is_no_kit(tmp_path):
    result = mapseg("run", tmp_path)
    assert result.exit_code == 2 and "is not a start kit" in result.stderr


def test_a_kit_runs_in_a_folder_of_its_own(kits, tmp_path, monkeypatch):
    """A job's Python imports from the current folder first."""
    seen = []
    monkeypatch.setattr(MainProcessMonitor, "run", lambda **_: seen.append(Path.cwd()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert run_kit(Path("kits", "server")) == 0
    assert seen == [kits.resolve() / "server" / "work"]


def test_a_site_answers_with_no_text_of_an_error(kits, tmp_path, monkeypatch):
    failure = OSError(errno.ENOSPC, "No space left on device", str(kits))
    said = []
    known = ClientRequestProcessors.request_processors
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(known))
    monkeypatch.setattr(MainProcessMonitor, "run", lambda **_: said.append(secure_format_exception(failure)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("NVFLARE_SECURE_LOGGING", "")
    monkeypatch.chdir(tmp_path)
    assert run_kit(kits / "hospital-b", make_scans(tmp_path / "scans")) == 0
    assert said == ["<class 'OSError'>"]


def test_a_kit_runs_once(kits):
    file = kits / "server" / "run.pid"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        file.write_text(f"{sleeper.pid} {psutil.Process(sleeper.pid).create_time()}")
        result = mapseg("run", kits / "server")
        assert result.exit_code == 2 and f"in use by process {sleeper.pid}" in result.stderr
        assert f"process {sleeper.pid}" in mapseg("status", kits / "server").stdout
        assert "Stopped" in mapseg("stop", kits / "server").stdout
        assert not psutil.pid_exists(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert "Not running" in mapseg("status", kits / "server").stdout
    with holding(file):
        assert owner(file) is not None
    assert not file.exists()


def test_a_site_that_runs_keeps_its_scans_when_it_is_started_again(kits, tmp_path):
    site, images = kits / "hospital-b", make_scans(tmp_path / "scans")
    choose_data(site, images)
    with holding(site / "run.pid"):
        (site / "run.pid").write_text(f"{os.getppid()} {psutil.Process(os.getppid()).create_time()}")
        result = mapseg("run", site, "--images", make_scans(tmp_path / "others"))
    assert result.exit_code == 2 and "in use by process" in result.stderr
    assert local_data(site).images == images


def test_flare_is_absent(kits, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = mapseg("run", kits / "server")
    assert result.exit_code == 2
    assert result.stderr == 'Error: NVIDIA FLARE is not installed. Run: pip install "mapseg[federated]"\n'
