"""Whole federations without an engine: what comes out, and what a kill costs."""

import json
from pathlib import Path

import pytest
import torch
from federated_cases import SITES, plan_of, pretraining
from model_cases import SINGLE

from MAPSegLib import api
from MAPSegLib.errors import Cancelled, InputError
from MAPSegLib.federated import coordinator as server
from MAPSegLib.jobs import build_job
from MAPSegLib.models import load_card, load_encoder, load_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.tasks.resume import LOCK, alone
from MAPSegLib.worker import run_job


def simulate(place: Path, output: Path, emit=lambda event: None, plan: dict | None = None, **changes):
    content = json.loads(plan_of(place, **changes).model_dump_json()) if plan is None else plan
    (place / "plan.json").write_text(json.dumps(content))
    local = {"device": "cpu", "precision": "fp32", "threads": 1}
    sites = {name: {"images": name, "options": local} for name in "abc"}
    (place / "sites.json").write_text(json.dumps(sites))
    job = {"task": "simulate", "plan": place / "plan.json", "sites": place / "sites.json", "output": output}
    return run_job(build_job(job), emit)


def test_the_model_that_comes_out_is_an_ordinary_one(place, tmp_path):
    sites = [SITES[0] | {"credit": "The A Hospital"}, *SITES[1:]]
    result = simulate(place, tmp_path / "out", sites=sites)
    model, card = load_model(result["model"])
    told = card.provenance["federation"]
    assert card.name == "fed" and card.labels == SINGLE and told["rounds"] == 2
    assert told["sites"] == [
        {"role": "source", "scans": 2, "name": "The A Hospital"},
        {"role": "target", "scans": 1},
        {"role": "target", "scans": 3},
    ]
    start = load_model(place / "start.safetensors")[0]
    changed = [
        not torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), start.state_dict().values(), strict=True)
    ]
    assert any(changed)
    segmented = api.segment(result["model"], place / "b", tmp_path / "seg", device="cpu")
    assert Path(segmented["scans"][0]["output"]).exists()
    rounds = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert rounds[0]["bytes_to_a_site"] == rounds[0]["sites"]["a"]["bytes"] > 0


@pytest.mark.parametrize("killed", [("a", 1, 1), ("b", 2, 1), ("c", 2, 2)])
def test_a_federation_that_was_killed_ends_as_one_that_was_not(place, tmp_path, killed):
    whole = simulate(place, tmp_path / "whole")

    def kill(event):
        if event["event"] == "progress" and (event.get("site"), event.get("round"), event["step"]) == killed:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        simulate(place, tmp_path / "parts", kill)
    parts = simulate(place, tmp_path / "parts")
    one, other = (load_model(result["model"])[0].state_dict() for result in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_encoder_is_pretrained_by_the_same_round(place, tmp_path):
    result = simulate(place, tmp_path / "out", plan=json.loads(pretraining().model_dump_json()))
    card = load_card(Path(result["model"]), encoder=True)
    assert card.kind == "encoder" and card.provenance["federation"]["task"] == "pretrain"
    assert {term for s in result["rounds"][0]["sites"].values() for term in s["losses"]} == {
        "local",
        "global",
        "loss",
    }
    load_encoder(Path(result["model"]), Segmenter(card.architecture, SINGLE))


def test_results_are_not_replaced_unasked_and_missing_scans_are_named(place, tmp_path):
    simulate(place, tmp_path / "out")
    with pytest.raises(InputError, match="already there"):
        simulate(place, tmp_path / "out")
    (place / "sites.json").write_text(json.dumps({"a": {"images": "a"}}))
    job = {
        "task": "simulate",
        "plan": place / "plan.json",
        "sites": place / "sites.json",
        "output": tmp_path / "o",
    }
    with pytest.raises(InputError, match="does not say where the scans of b are"):
        run_job(build_job(job), lambda event: None)
    assert not (tmp_path / "o").exists()


def test_a_folder_serves_one_simulation_at_a_time(place, tmp_path):
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out" / LOCK), pytest.raises(InputError, match="in use by another run"):
        simulate(place, tmp_path / "out")


def test_all_answers_rejected_end_a_simulation_with_the_reasons(place, tmp_path, monkeypatch):
    monkeypatch.setattr(server.Coordinator, "_fault", lambda self, update: "rejected: a test")
    with pytest.raises(InputError, match="Round 1 has fewer than 1 answers.*a: rejected: a test"):
        simulate(place, tmp_path / "out")


def test_privacy_filters_are_simulated(place, tmp_path):
    pytest.importorskip("nvflare", reason="needs NVIDIA FLARE: pip install 'mapseg[federated]'")
    clipped = {"percentile": {"percentile": 0, "gamma": 5e-5}}
    start = load_model(place / "start.safetensors")[0].state_dict()

    def largest(result):
        end = load_model(result["model"])[0].state_dict()
        return max(float((end[name] - start[name]).abs().max()) for name in end)

    two_rounds = 2 * 5e-5
    assert largest(simulate(place, tmp_path / "open")) > 3 * two_rounds
    assert 0 < largest(simulate(place, tmp_path / "clipped", privacy=clipped)) <= 1.01 * two_rounds


def test_privacy_filters_without_flare_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr("MAPSegLib.federated.simulation.find_spec", lambda name: None)
    with pytest.raises(InputError, match="FLARE's, which is not installed"):
        simulate(place, tmp_path / "out", privacy={"noise": {}})
    assert not (tmp_path / "out").exists()
