"""What is told of results: the verdict and the volumes as they are, and nothing of a scan that failed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from model_cases import PAIRED, card_of, tiny_model
from volume_cases import noise_scan

from MAPSegLib import windows
from MAPSegLib.errors import InputError, MemoryExhausted
from MAPSegLib.inference import Segmentation
from MAPSegLib.jobs import SegmentJob
from MAPSegLib.quality import Assessment
from MAPSegLib.tasks.earlier import begin
from MAPSegLib.tasks.findings import Findings
from MAPSegLib.tasks.outputs import ScanOutputs

SCANS = [Path(f"/scans/{name}.nii.gz") for name in ("one", "two", "three")]
VOLUME = noise_scan((4, 5, 6))
LABELS = np.zeros((4, 5, 6), np.uint8)


@pytest.fixture
def told() -> list[dict]:
    return []


@pytest.fixture
def findings(tmp_path, told) -> Findings:
    job = SegmentJob(model="tiny", scans=SCANS, output=tmp_path)
    outputs = ScanOutputs.plan(tmp_path, SCANS)
    begun = begin(job, outputs, SCANS, [], [])

    def report(event, **fields):
        told.append({"event": event} | fields)

    return Findings(job, card_of(tiny_model()), outputs, report, begun)


def add(findings: Findings, scan: Path, verdict: Assessment) -> None:
    """A result in which the last structure was not found."""
    values = [label.value for label in PAIRED]
    volumes = dict(zip(values, (1.5, 0.25, 0.0), strict=True))
    found = Segmentation(LABELS, volumes, dict(zip(values[:2], (0.9, 0.8), strict=True)))
    file = findings.volume(findings.outputs.label_map(scan), found.labels, VOLUME)
    findings.add(findings.entry(scan, file, found, verdict))


def test_what_is_not_to_be_trusted_is_told_as_such_wherever_it_is_told(findings, told, tmp_path):
    add(findings, SCANS[0], Assessment(True, "Consistent.", {"agreement": 0.9}))
    add(findings, SCANS[1], Assessment(False, "Not to be trusted.", {"agreement": 0.2}))
    result = findings.finish()
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    events = [each["entry"] for each in told if each["event"] == "scan"]
    for entries in (result["scans"], written["scans"], events):
        assert [entry["trusted"] for entry in entries] == [True, False]
        assert [entry["reason"] for entry in entries] == ["Consistent.", "Not to be trusted."]
        assert [entry["measures"]["agreement"] for entry in entries] == [0.9, 0.2]
    with (tmp_path / "volumes.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["trusted"] for row in rows] == 3 * ["True"] + 3 * ["False"]
    assert [row["structure"] for row in rows[:3]] == [label.name for label in PAIRED]
    assert [float(row["volume_ml"]) for row in rows[:3]] == [1.5, 0.25, 0.0]


def test_a_structure_that_was_not_found_has_no_confidence(findings):
    add(findings, SCANS[0], Assessment(True, "", {}))
    structures = findings.finish()["scans"][0]["structures"]
    assert [each["confidence"] for each in structures] == [0.9, 0.8, None]


def test_of_a_scan_that_fails_nothing_is_kept_and_the_others_go_on(findings, told, tmp_path):
    add(findings, SCANS[0], Assessment(True, "", {}))
    with findings.isolated(SCANS[1]):
        findings.volume(findings.outputs.label_map(SCANS[1]), LABELS, VOLUME)
        raise MemoryError
    with findings.isolated(SCANS[2]):
        add(findings, SCANS[2], Assessment(True, "", {}))
    result = findings.finish()
    assert [entry["file"] for entry in result["scans"]] == [str(SCANS[0]), str(SCANS[2])]
    assert [failure["scan"] for failure in result["failed"]] == [str(SCANS[1])]
    maps = sorted(path.name for path in tmp_path.glob("*.nii.gz"))
    assert maps == ["one_seg.nii.gz", "three_seg.nii.gz"]
    assert sorted(Path(file).name for file in result["files"] if file.endswith(".gz")) == maps
    assert [each["event"] for each in told] == ["scan", "error", "scan"]


def test_where_no_scan_comes_through_the_first_failure_is_the_answer(findings, tmp_path):
    for scan, error in zip(SCANS, (MemoryError(), ValueError("odd"), ValueError("odd")), strict=True):
        with findings.isolated(scan):
            findings.volume(findings.outputs.label_map(scan), LABELS, VOLUME)
            raise error
    assert not list(tmp_path.iterdir())
    with pytest.raises(MemoryExhausted, match="one"):
        findings.finish()


def test_a_report_that_cannot_be_written_costs_the_entry(findings, monkeypatch):
    def full(path, rows, overwrite):
        raise InputError("No space is left.")

    monkeypatch.setattr("MAPSegLib.tasks.findings.write_csv", full)
    monkeypatch.setattr(windows, "ON", False)
    with pytest.raises(InputError):
        add(findings, SCANS[0], Assessment(True, "", {}))
    assert not findings.scans
