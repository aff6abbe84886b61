"""Run the server or a site from its start kit, in the foreground, until it is stopped.

What FLARE would answer with silence or a stack trace is checked first and told in one sentence: the certificate's
dates, the port, and whether server and site accept each other.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import ssl
import time
from argparse import Namespace
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509

from ..distributed import ignore_signals
from ..errors import InputError
from ..reports import printable, read_json, write_json
from .flare_project import SIGN_OF_LIFE
from .kits import Kit, choose_data, read_kit
from .processes import holding

RUNNING = "run.pid"
"""File of a kit that names the process which runs it."""
_PATIENCE = 10.0
"""Seconds to wait for the server's answer when asking whether it is there."""


def run_kit(folder: Path, images: Path | None = None, labels: Path | None = None) -> int:
    """Run the server or the site of a kit until it is stopped; returns the exit code.

    Args:
        images, labels: of a site; see :func:`~.kits.choose_data`.

    Raises:
        InputError: the scans, the certificate, the port or the server's refusal; the message says which.
    """
    folder = folder.resolve()
    kit = read_kit(folder)
    check_certificates(folder)
    if any(letter.isspace() for letter in str(folder)):
        raise InputError(
            "FLARE cannot run from a folder with a space in its path.", "Move the start kit elsewhere."
        )
    with holding(folder / RUNNING):
        if kit.kind == "server":
            check_port(kit.port)
            _place_jobs(folder)
            say(f"Server of {kit.project}, port {kit.port}; waiting for sites. Ctrl-C stops it.")
            return _run_flare(folder, "server", [])
        say(f"{kit.name}: checking the scans.")
        # not before this kit is held: a site that runs already would take other scans for its next job
        count, notes = choose_data(folder, images, labels)
        for line in (f"{kit.name}: {count} scans as {kit.role}.", *notes):
            say(line)
        if not check_server(folder, kit):
            say(f"The server {kit.host}:{kit.port} does not answer yet; waiting for it.")
        return _run_flare(folder, "client", [f"uid={kit.name}", f"heart_beat_interval={SIGN_OF_LIFE}"])


def check_certificates(folder: Path) -> None:
    """Check the dates of a kit's certificates, and their keys.

    Raises:
        InputError: one is not valid today, or is damaged, or has no key that fits.
    """
    now = datetime.now(timezone.utc)
    for file in sorted((folder / "flare" / "startup").iterdir()):
        if file.suffix not in (".crt", ".pem"):
            continue
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is damaged.", "Get the start kit again.") from error
        if now > certificate.not_valid_after_utc:
            raise InputError(
                f"The certificate of this kit expired on {certificate.not_valid_after_utc:%Y-%m-%d}.",
                "Ask the administrator for new start kits.",
            )
        if now < certificate.not_valid_before_utc:
            raise InputError(
                f"The certificate of this kit is valid from {certificate.not_valid_before_utc:%Y-%m-%d} on.",
                "Check this machine's clock.",
            )
        if file.suffix == ".crt":
            key = file.with_suffix(".key")
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(file, key)
            except OSError as error:
                raise InputError(f"{key} is missing or damaged.", "Get the start kit again.") from error


def check_port(port: int) -> None:
    """Check that the server can listen.

    Raises:
        InputError: the port is taken, or not allowed.
    """
    with socket.socket() as probe:
        if os.name == "posix":  # a port whose last connections still linger is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"Port {port} is in use by another program.",
                    "Stop that program, or the server that runs already.",
                ) from error
            raise InputError(f"Port {port} cannot be opened: {error.strerror}.") from error


def check_server(folder: Path, kit: Kit) -> bool:
    """Ask whether the server is there and accepts this kit; false where it is not there yet.

    Raises:
        InputError: the two do not accept each other's certificates.
    """
    for pause in (3.0, 0.0):  # a server that is being stopped hangs up as well: ask twice
        answer = _greet(folder, kit)
        if answer != b"":
            return answer is not None
        time.sleep(pause)
    raise InputError(
        f"The server {kit.host}:{kit.port} refused this kit's certificate.",
        "Ask the administrator for this project's start kit.",
    )


def _greet(folder: Path, kit: Kit) -> bytes | None:
    """The first byte that the server answers: none (empty) where it refuses us, None where it is not there."""
    startup = folder / "flare" / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.check_hostname = False  # as FLARE: a certificate of the project's authority, whatever the name
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        plain = socket.create_connection((kit.host, kit.port), _PATIENCE)
    except OSError:
        return None
    met = False
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=kit.host) as secure:
                met = True
                # The verdict on our certificate comes after the handshake. FLARE's server speaks HTTP: "not found".
                secure.sendall(f"GET / HTTP/1.1\r\nHost: {kit.host}\r\n\r\n".encode())
                return secure.recv(1)
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"The server {kit.host}:{kit.port} is not the one of this kit: {error.verify_message}.",
                "Ask the administrator for this project's start kit.",
            ) from error
        except (ssl.SSLError, ConnectionError) as error:
            # Without a handshake it is another program, or a firewall that hangs up; TLS 1.2 refuses within it.
            return b"" if met or "ALERT" in (getattr(error, "reason", None) or "") else None
        except OSError:
            return None


def _place_jobs(folder: Path) -> None:
    """Keep the jobs in the kit, by an absolute path as FLARE wants it; its default is one folder for all projects."""
    file = folder / "flare" / "local" / "resources.json"
    resources = read_json(file, "FLARE's resources")
    for part in resources["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = str((folder / "flare" / "jobs").resolve())
    write_json(file, resources, overwrite=True)


def say(text: str) -> None:
    """A line for whoever watches, like those of the log."""
    print(printable(f"{datetime.now():%H:%M:%S} {text}"), flush=True)


def _run_flare(folder: Path, kind: str, more: list[str]) -> int:
    """FLARE's own program, in this process: killing it leaves nothing behind that would have to be found."""
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    if kind == "server":
        from nvflare.private.fed.app.server.server_train import main
    else:
        from nvflare.private.fed.app.client.client_train import main

        from .flare_guard import forget_commands

        forget_commands()
        # What FLARE answers of a failure is then its kind: no text, no path.
        os.environ["NVFLARE_SECURE_LOGGING"] = "true"
    workspace = str((folder / "flare").resolve())
    (folder / "work").mkdir(exist_ok=True)
    # A job's Python looks for modules in this folder first: not among somebody's scans.
    os.chdir(folder / "work")
    arguments = Namespace(
        workspace=workspace,
        set=["secure_train=true", "org=mapseg", "config_folder=config", *more],
        local_rank=0,
        **{f"fed_{kind}": f"fed_{kind}.json"},
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return MainProcessMonitor.run(main_func=main, run_dir=workspace, args=arguments) or 0
    except KeyboardInterrupt:
        # A second one on the way out would leave the process to FLARE's threads, which do not end.
        ignore_signals()
        say("Stopped.")
        return 0
