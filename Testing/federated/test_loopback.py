"""Real processes over mutual TLS on this machine: killed, restarted, and strangers among them."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from MAPSegLib.federated.kits import read_kit
from MAPSegLib.federated.processes import owner

from .conftest import SITES, make_kits, make_scans

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX does")

DELIVERY = {
    "__content_type__",
    "__audit_event_id__",
    "__cookie_jar__",
    "__task_name__",
    "__task_id__",
    "__msg_root_id__",
    "__peer_ctx__",
    "__peer_props__",
    "fl_client",
}
"""FLARE's headers of a site's answer on arrival."""
SENDER = {
    "__run_num__",
    "__identity_name__",
    "__fqsn__",
    "__is_leaf__",
    "__client_name__",
    "__current_job_id__",
}
"""Of these, what it says of the sender: the job's number and the site's name."""


class Federation:
    """Runs kits as processes, and ends all of them."""

    def __init__(self, kits, scans):
        self.kits, self.scans, self.running = kits, scans, {}

    def command(self, kit):
        command = [sys.executable, "-m", "MAPSegLib.cli", "federate", "run", str(kit)]
        if kit.name in SITES:
            command += ["--images", str(self.scans)]
        if SITES.get(kit.name) == "source":
            command += ["--labels", str(self.scans)]
        return command

    def start(self, name):
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
        }
        with open(self.log(name), "a") as log:
            self.running[name] = subprocess.Popen(
                self.command(self.kits / name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.kits,
            )

    def log(self, name):
        return self.kits / f"{name}.log"

    def kill(self, name):
        """As a power cut would: no chance to say good-bye."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def until(self, condition, patience=200.0):
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                logs = (f"== {name}\n{self.log(name).read_text()}" for name in ("admin", "server", *SITES))
                pytest.fail("nothing happens any more\n" + "\n".join(logs))
            time.sleep(0.1)

    def stop(self):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        # The processes of jobs end by themselves when their parents have.
        for name in ("server", *SITES):
            worker = owner(self.kits / name / "work.pid")
            if worker:
                with contextlib.suppress(psutil.TimeoutExpired):
                    worker.wait(30)
                    continue
                worker.kill()


@pytest.fixture
def federation(tmp_path):
    kits = make_kits(tmp_path, privacy={"percentile": {"percentile": 0, "gamma": 0.4}})
    (kits / "hospital-a" / "flare" / "local" / "privacy.json").unlink()  # one site without the filter
    made = Federation(kits, make_scans(tmp_path / "scans", 3))
    try:
        yield made
    finally:
        made.stop()


def refuse_strangers(federation, folder):
    """Kits of another project, and none at all, against the server that runs."""
    kit = read_kit(federation.kits / "server")
    stranger = make_kits(folder, server={"host": kit.host, "port": kit.port}) / "hospital-c"
    result = subprocess.run(federation.command(stranger), capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    assert f"The server {kit.host}:{kit.port} is not the one of this kit" in result.stderr
    assert result.stderr.count("\n") == 1

    # It trusts the server, but the server does not trust it.
    authority = Path("flare", "startup", "rootCA.pem")
    shutil.copyfile(federation.kits / "hospital-c" / authority, stranger / authority)
    result = subprocess.run(federation.command(stranger), capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    assert f"The server {kit.host}:{kit.port} refused this kit's certificate" in result.stderr

    # Without a certificate nobody is answered.
    context = ssl.create_default_context(cafile=stranger / authority)
    with (
        socket.create_connection((kit.host, kit.port), 30) as plain,
        context.wrap_socket(plain, server_hostname=kit.host) as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert secure.recv(1) == b""


@pytest.mark.timeout(600)
def test_a_training_outlives_its_sites_and_its_server(federation, tmp_path):
    kits = federation.kits
    for name in SITES:
        (kits / name / "pause.txt").write_text("3")
    for name in ("server", *SITES, "admin"):
        federation.start(name)

    federation.until((kits / "hospital-b" / "started-2").exists)
    federation.kill("hospital-b")
    federation.start("hospital-b")
    refuse_strangers(federation, tmp_path / "other")

    federation.until((kits / "hospital-a" / "started-3").exists)
    federation.kill("server")
    federation.start("server")

    federation.until(lambda: federation.running["admin"].poll() is not None)
    log = federation.log("admin").read_text()
    assert federation.running["admin"].returncode == 0, log
    assert "Lost the server" in log and "The training is done." in log
    work = kits / "server" / "work"
    assert (work / "demo.safetensors").is_file()
    history = json.loads((work / "state.json").read_text())["history"]
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert "hospital-b" not in history[1]["sites"]
    assert history[0]["sites"] == history[-1]["sites"] == list(SITES)
    arrived = [json.loads(line) for line in (work / "arrived.jsonl").read_text().splitlines()]
    assert len(arrived) == sum(len(entry["sites"]) for entry in history)
    assert first_differences(arrived) == pytest.approx(
        {"hospital-a": 0.5, "hospital-b": 0.4, "hospital-c": 0.4}, abs=1e-3
    )
    for message in arrived:
        check_message(message)


def test_a_site_answers_no_other_site(federation):
    kits = federation.kits
    file = kits / "hospital-c" / "flare" / "local" / "resources.json"
    resources = json.loads(file.read_text())
    resources["components"].append({"id": "curious", "path": "standin.Curious", "args": {}})
    file.write_text(json.dumps(resources))
    federation.start("server")
    federation.start("hospital-b")
    federation.until(lambda: "Connected to the server" in federation.log("hospital-b").read_text())
    federation.start("hospital-c")
    federation.until((kits / "told.txt").exists)
    assert (kits / "told.txt").read_text() == "None"
    assert "Refused a message from hospital-c" in federation.log("hospital-b").read_text()


def first_differences(arrived):
    """The largest in round 1, by site: where there is the filter, it was clipped."""
    return {
        message["__headers__"]["__peer_props__"]["__identity_name__"]: message["DXO"]["data"]["a"]["largest"]
        for message in arrived[: len(SITES)]
    }


def check_message(message):
    """All that a site's answer holds on arrival: three things of ours, and the names that FLARE delivers by."""
    headers = message.pop("__headers__")
    assert set(headers) == DELIVERY
    assert headers["__peer_ctx__"] == {}
    sender = headers["__peer_props__"]
    assert set(sender) == SENDER
    arrays = message["DXO"].pop("data")
    assert {name: (array["shape"], array["dtype"]) for name, array in arrays.items()} == {
        "a": ([3], "float16"),
        "b": ([1], "float16"),
    }
    meta = message["DXO"].pop("meta")
    assert list(meta.pop("losses")) == ["loss"]
    if sender["__identity_name__"] == "hospital-a":
        assert meta == {"scans": 3}
    else:
        assert meta == {"scans": 3, "filter_history": ["LargestDifferences"]}
    assert message == {"DXO": {"kind": "WEIGHT_DIFF"}}
