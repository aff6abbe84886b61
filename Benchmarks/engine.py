"""What a round costs beside training, over FLARE with mutual TLS on this machine, and whether it changes the result.

    python -m Benchmarks.engine [--runs tiny:2 small:2 small:5 wide:1] [--rounds 4] [--port 8202]
    python -m Benchmarks.engine --averages small:20 paper:20

Server, sites and administrator are processes of their own, started from kits as `Docs/federated.md` tells. The same
plan is simulated, which needs no engine: both must end with the same weights. Sites train on balls, as bytes and
seconds do not ask what is shown. All share this machine's cores, so that training takes longer than it would at a site.
The second command measures the server's part of a round with answers of noise from many sites, without FLARE.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import torch
from safetensors.torch import load_file

from MAPSegLib.config import ARCHITECTURES, Label, Preprocessing
from MAPSegLib.federated.coordinator import Coordinator
from MAPSegLib.federated.exchange import Update
from MAPSegLib.federated.plan import read_plan
from MAPSegLib.models import ModelCard, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.reports import read_json, write_json

from .tables import write_section

SIZES = ARCHITECTURES | {
    "wide": ARCHITECTURES["paper"].model_copy(
        update={"width": 256, "dilations": (1, 2, 4), "patch": 32, "global_size": 32}
    )
}
"""``wide``: large messages at little computing; half of the paper's width, and small patches."""
LABELS = (Label(value=1, name="dim"), Label(value=2, name="bright"))
SCANS = 3
HEADER = [
    "size",
    "parameters",
    "sites",
    "first round",
    "other rounds",
    "of it not training",
    "to a site",
    "from a site",
    "memory, server",
    "memory, site",
    "weights, largest difference",
]


def write_material(folder: Path) -> None:
    """A bright ball in a dim one, a few times: images/ and labels/."""
    shape = (34, 38, 32)
    distance = np.sqrt(((np.indices(shape) - np.reshape([n / 2 for n in shape], (3, 1, 1, 1))) ** 2).sum(0))
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(SCANS):
        classes = (distance < 13).astype(np.uint8) + (distance < 6 + number)
        noise = np.random.default_rng(number).normal(0, 8, shape)
        image = np.where(classes > 0, np.array([0, 100, 200])[classes] + noise, 0).astype(np.float32)
        for name, array in (("images", image), ("labels", classes)):
            nib.save(
                nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), folder / name / f"{number}.nii.gz"
            )


def write_plan(folder: Path, size: str, targets: int, rounds: int, port: int) -> None:
    """A start model with random weights, plan.json, and sites.json for the simulation."""
    torch.manual_seed(0)
    model = Segmenter(SIZES[size], LABELS)
    card = ModelCard(
        name="start",
        architecture=model.architecture,
        preprocessing=Preprocessing(spacing=(2, 2, 2)),
        labels=LABELS,
    )
    save_model(folder / "start.safetensors", model.state_dict(), card)
    names = {"source": "source"} | {f"target-{number}": "target" for number in range(targets)}
    plan = {
        "name": "model",
        "model": "start.safetensors",
        "rounds": rounds,
        "steps": 1,
        "options": {"patches": 1, "device": "cpu"},
        "sites": [{"name": name, "role": role} for name, role in names.items()],
        "min_sites": len(names),
        "server": {"host": "localhost", "port": port},
    }
    write_json(folder / "plan.json", plan)
    images, labels = {"images": str(folder / "images")}, {"labels": str(folder / "labels")}
    sites = {name: images | (labels if role == "source" else {}) for name, role in names.items()}
    write_json(folder / "sites.json", sites)


@dataclass
class Processes:
    """The kits' processes, and the most memory that each with its children took."""

    folder: Path
    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def start(self, kit: str, *more: str) -> None:
        command = federate("run", self.folder / "kits" / kit, *more)
        with (self.folder / f"{kit}.log").open("w", encoding="utf-8") as log:
            self.running[kit] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, kit: str) -> int:
        """Wait for a kit's process, watching all."""
        while self.running[kit].poll() is None:
            for name, process in self.running.items():
                with suppress(psutil.Error):
                    parent = psutil.Process(process.pid)
                    family = [parent, *parent.children(recursive=True)]
                    taken = sum(one.memory_info().rss for one in family)
                    self.peak[name] = max(self.peak.get(name, 0), taken)
            time.sleep(0.2)
        return self.running[kit].returncode

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


def federate(*words: object) -> list[str]:
    """A ``mapseg federate`` command."""
    return [sys.executable, "-m", "MAPSegLib.cli", "federate", *map(str, words)]


def trained(folder: Path, sites: Sequence[str]) -> dict[int, float]:
    """Seconds of each round from the first site's start of training to the last one's end, from the sites' logs."""
    begun: dict[int, list[float]] = {}
    ended: dict[int, list[float]] = {}
    for site in sites:
        for file in (folder / "kits" / site / "flare").glob("*/log.json"):
            for line in file.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                words = entry["message"].split()
                if entry["fullName"] != "MAPSegLib.federated" or words[0] != "Round":
                    continue
                moment = datetime.strptime(entry["asctime"], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                when = begun if words[2] == "training." else ended
                when.setdefault(int(words[1].strip(":")), []).append(moment)
    return {number: max(ended[number]) - min(begun[number]) for number in ended}


def measure(size: str, targets: int, rounds: int, port: int) -> list[str]:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_material(folder)
        write_plan(folder, size, targets, rounds, port)
        subprocess.run(federate("init", folder / "plan.json", "-o", folder / "kits"), check=True)
        simulate = federate("simulate", folder / "plan.json", "--sites", folder / "sites.json")
        subprocess.run([*simulate, "-o", folder / "simulated"], check=True)
        processes, sites = Processes(folder), list(read_json(folder / "sites.json", "sites"))
        try:
            processes.start("server")
            for site in sites:
                labels = ["--labels", str(folder / "labels")] if site == "source" else []
                processes.start(site, "--images", str(folder / "images"), *labels)
            processes.start("admin")
            if processes.wait("admin"):
                raise SystemExit((folder / "admin.log").read_text(encoding="utf-8"))
        finally:
            processes.stop()
        work = folder / "kits" / "server" / "work"
        ours, theirs = (load_file(place / "model.safetensors") for place in (folder / "simulated", work))
        difference = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
        told = read_json(work / "rounds.json", "rounds")
        training = trained(folder, sites)
    parameters = sum(tensor.numel() for tensor in theirs.values())
    return line(size, parameters, told, training, processes.peak, difference)


def line(
    size: str,
    parameters: int,
    rounds: Sequence[dict[str, Any]],
    training: dict[int, float],
    peak: dict[str, int],
    difference: float,
) -> list[str]:
    """What was measured, as cells."""
    others = [entry["seconds"] for entry in rounds[1:]]
    idle = [entry["seconds"] - training[entry["round"]] for entry in rounds[1:]]
    site = max(taken for name, taken in peak.items() if name not in ("server", "admin"))
    return [
        size,
        f"{parameters / 1e6:.1f} M",
        str(len(rounds[0]["sites"])),
        f"{rounds[0]['seconds']:.1f} s",
        f"{median(others):.1f} s",
        f"{median(idle):.1f} s ({min(idle):.1f}–{max(idle):.1f})",
        f"{rounds[0]['bytes_to_a_site'] / 1e6:.1f} MB",
        f"{rounds[0]['sites']['source']['bytes'] / 1e6:.1f} MB",
        f"{peak['server'] / 1e9:.2f} GB",
        f"{site / 1e9:.2f} GB",
        f"{difference:.0e}" if difference else "0",
    ]


def average(size: str, sites: int) -> list[str]:
    """A line of the second table: rounds that end with an answer of noise from every site."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_plan(folder, size, sites - 1, 3, 8202)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, start, peak = pool.submit(absorb, folder).result()
    return [size, str(sites), f"{median(seconds):.1f} s", f"{peak / 1e9:.1f} GB", f"{start / 1e9:.1f} GB"]


def absorb(folder: Path) -> tuple[list[float], int, int]:
    """Seconds of each round's end, resident bytes with all answers at hand, and at most. In a process of its own."""
    plan = read_plan(folder / "plan.json")
    coordinator = Coordinator(plan, folder)
    noise = np.random.default_rng(0)
    updates = {
        site.name: Update(
            {
                name: (1e-3 * noise.standard_normal(array.shape, np.float32)).astype(np.float16)
                for name, array in coordinator.payload().items()
            },
            SCANS,
            {},
        )
        for site in plan.sites
    }
    held, seconds = psutil.Process().memory_info().rss, []
    for _ in range(plan.rounds):
        started = time.monotonic()
        assert coordinator.absorb(updates, 0)["averaged"]
        seconds.append(time.monotonic() - started)
    return seconds, held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(text: str) -> tuple[str, int]:
    """A network's size, and how many sites."""
    size, _, sites = text.partition(":")
    if size not in SIZES:
        raise argparse.ArgumentTypeError(f"{size!r} is none of {', '.join(SIZES)}")
    return size, int(sites)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its section of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", nargs="+", type=run, default=[("tiny", 2), ("small", 2)], metavar="SIZE:TARGETS"
    )
    parser.add_argument(
        "--averages", nargs="+", type=run, metavar="SIZE:SITES", help="the server's part alone"
    )
    parser.add_argument("--rounds", type=int, default=4, help="two at least")
    parser.add_argument("--port", type=int, default=8202)
    arguments = parser.parse_args(words)
    if arguments.rounds < 2:
        parser.error("--rounds: two at least, as the first one is told apart")
    if arguments.averages:
        write_section(
            "engine, averaging",
            "The end of a round at the server: all answers checked, averaged and the state written. Median of three "
            "rounds. Memory: resident, with the answers that are held in half precision.",
            ["size", "sites", "a round's end", "peak memory", "of it model and answers"],
            [average(size, sites) for size, sites in arguments.averages],
        )
        return
    rows = [measure(size, targets, arguments.rounds, arguments.port) for size, targets in arguments.runs]
    write_section(
        "engine",
        "A federation over NVIDIA FLARE with mutual TLS, server and sites on one machine; a step a round. Medians of "
        "the rounds after the first; in brackets the range. Not training: sending, receiving, averaging, waiting. "
        "Weights: against the simulation of the same plan, which has no engine.",
        HEADER,
        rows,
    )


if __name__ == "__main__":
    main()
