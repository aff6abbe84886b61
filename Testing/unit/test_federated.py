"""A federation's rounds without an engine: what a site sends, what is averaged, what is refused, what a kill costs."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import SINGLE, card_of, tiny_model

from MAPSegLib import api
from MAPSegLib.augmentation import published_source
from MAPSegLib.config import RECIPES
from MAPSegLib.datasets import ScanSource
from MAPSegLib.errors import Cancelled, InputError
from MAPSegLib.federated import coordinator as server
from MAPSegLib.federated.coordinator import CLIP, STATE, Coordinator
from MAPSegLib.federated.exchange import Update, to_half, to_tensors
from MAPSegLib.federated.plan import Plan, agree, read_plan
from MAPSegLib.federated.scans import SiteData
from MAPSegLib.federated.site import Site
from MAPSegLib.jobs import build_job
from MAPSegLib.models import load_card, load_encoder, load_model, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import SourceTerms
from MAPSegLib.volumes import Volume, write_volume
from MAPSegLib.worker import run_job

SITES = ({"name": "a", "role": "source"}, {"name": "b", "role": "target"}, {"name": "c", "role": "target"})
STEP = {"mask_cube": 4, "patches": 1, "device": "cpu", "precision": "fp32", "threads": 1}


def ignore(event, **fields):
    pass


def write_scan(folder: Path, name: str, seed: int, labelled: bool = False) -> None:
    generator = np.random.default_rng(seed)
    array = generator.random((18, 17, 19), dtype=np.float32) * 100
    like = Volume(array, np.diag([-1.0, 1.0, 1.0, 1.0]))
    write_volume(folder / f"{name}{'_img' if labelled else ''}.nii.gz", array, like)
    if labelled:
        values = np.array([0, *(label.value for label in SINGLE)], np.uint16)
        write_volume(folder / f"{name}_label.nii.gz", values[(array // 25.01).astype(int)], like)


@pytest.fixture
def place(tmp_path) -> Path:
    """A start model, and folders a (two labelled scans), b (one scan) and c (three scans)."""
    model = tiny_model(SINGLE)
    save_model(tmp_path / "start.safetensors", model.state_dict(), card_of(model))
    for site, count in (("a", 2), ("b", 1), ("c", 3)):
        (tmp_path / site).mkdir()
        for i in range(count):
            write_scan(tmp_path / site, f"{site}{i}", 10 * ord(site) + i, labelled=site == "a")
    return tmp_path


def plan_of(place: Path, **changes) -> Plan:
    content = {
        "name": "fed",
        "model": str(place / "start.safetensors"),
        "sites": SITES,
        "rounds": 2,
        "steps": 2,
    }
    return Plan.model_validate(content | {"options": STEP} | changes)


def pretraining(**changes) -> Plan:
    options = {"mask_cube": 4, "scans": 2, "device": "cpu", "precision": "fp32"}
    content = {"name": "enc", "task": "pretrain", "preset": "tiny", "sites": SITES, "rounds": 2, "steps": 1}
    return Plan.model_validate(content | {"options": options} | changes)


def site_of(place: Path, name: str, plan: Plan | None = None, report=ignore, **data) -> Site:
    scans = SiteData(**{"images": place / name, "options": {"device": "cpu", "precision": "fp32"}} | data)
    folder = place / f"work-{name}"
    folder.mkdir(exist_ok=True)
    return Site(agree(plan or plan_of(place)), name, scans, folder, report)


def simulate(place: Path, output: Path, emit=lambda event: None, plan: dict | None = None, **changes):
    content = json.loads(plan_of(place, **changes).model_dump_json()) if plan is None else plan
    (place / "plan.json").write_text(json.dumps(content))
    local = {"device": "cpu", "precision": "fp32", "threads": 1}
    sites = {name: {"images": name, "options": local} for name in "abc"}
    (place / "sites.json").write_text(json.dumps(sites))
    job = {"task": "simulate", "plan": place / "plan.json", "sites": place / "sites.json", "output": output}
    return run_job(build_job(job), emit)


def change_of(coordinator: Coordinator, value: float) -> dict[str, np.ndarray]:
    return {n: np.full(tuple(t.shape), value, np.float16) for n, t in coordinator.weights.items()}


# --- what a site does and sends ---------------------------------------------------------------------------------------


def test_a_source_sends_what_its_teacher_changed_in_the_rounds_steps(place):
    plan = plan_of(place)
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    update = site_of(place, "a").train_round(1, weights, ignore)

    model = Segmenter(agree(plan).card.architecture, SINGLE)
    model.load_state_dict(to_tensors(weights))
    loop = Loop(copy.deepcopy(model), plan.options, ema_decay=plan.options.ema_decay)
    pairs = [(place / "a" / f"a{i}_img.nii.gz", place / "a" / f"a{i}_label.nii.gz") for i in range(2)]
    scans = ScanSource(pairs, SINGLE, agree(plan).card.preprocessing, published_source)
    step = SourceTerms(plan.options, scans, RECIPES["paper"])
    losses = [loop.update(lambda: step(loop))["loss"] for _ in range(plan.steps)]

    assert update.losses["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    for name, before in model.state_dict().items():
        expected = (loop.ema.state_dict()[name] - before).numpy()
        np.testing.assert_allclose(update.difference[name], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name, scans", [("a", 2), ("b", 1), ("c", 3)])
def test_nothing_but_differences_a_count_and_losses_leaves_a_site(place, name, scans):
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    update = site_of(place, name).train_round(1, weights, ignore)
    assert set(vars(update)) == {"difference", "scans", "losses"} and update.scans == scans
    assert {k: v.shape for k, v in update.difference.items()} == {k: v.shape for k, v in weights.items()}
    assert {v.dtype for v in update.difference.values()} == {np.dtype(np.float16)}
    assert any(array.any() for array in update.difference.values())
    assert all(isinstance(value, float) for value in update.losses.values())
    domain = "source" if name == "a" else "target"
    assert {term.split("_")[0] for term in update.losses} == {domain, "loss"}


def test_a_federation_tells_sites_nothing_of_the_coordinators_files(place):
    assert str(place) not in agree(plan_of(place)).model_dump_json()


def test_a_site_answers_a_round_again_with_what_it_has(place):
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    first = site_of(place, "b").train_round(1, weights, ignore)
    told = []
    again = site_of(place, "b").train_round(1, weights, lambda event, **_: told.append(event))
    assert not told and again.losses == first.losses and again.scans == first.scans
    assert all(np.array_equal(first.difference[n], again.difference[n]) for n in weights)


def test_a_round_that_was_ended_leaves_a_site_as_the_last_one_did(place):
    """The server asks again, and the same process goes on."""
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    other = {name: array * np.float16(1.01) for name, array in weights.items()}
    straight = site_of(place, "b")
    straight.train_round(1, weights, ignore)
    whole = straight.train_round(2, other, ignore)
    straight.checkpoint.unlink()

    def end(event, **_):
        raise Cancelled("Cancelled.")

    site = site_of(place, "b")
    site.train_round(1, weights, ignore)
    with pytest.raises(Cancelled):
        site.train_round(2, other, end)
    again = site.train_round(2, other, ignore)
    assert all(np.array_equal(array, whole.difference[name]) for name, array in again.difference.items())


def test_the_curve_of_a_model_that_was_adapted_is_not_trained(place):
    curved = tiny_model(SINGLE, curve_knots=4)
    save_model(place / "start.safetensors", curved.state_dict(), card_of(curved), overwrite=True)
    change = site_of(place, "b").train_round(1, to_half(curved.state_dict()), ignore).difference
    assert not change["curve.values"].any() and any(array.any() for array in change.values())


def test_a_federation_that_begins_anew_finds_a_site_as_new(place):
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    site = site_of(place, "b")
    first = site.train_round(1, weights, ignore)
    site.train_round(2, {name: array * np.float16(1.01) for name, array in weights.items()}, ignore)
    again = site.train_round(1, weights, ignore)
    assert all(np.array_equal(first.difference[n], again.difference[n]) for n in weights)


def test_a_target_looks_for_structures_where_its_teacher_sees_them(place, monkeypatch):
    site = site_of(place, "c")
    halves = torch.zeros(1, len(SINGLE) + 1, 16, 16, 16)
    halves[:, 1, :8] = halves[:, 2, 8:] = 1.0
    monkeypatch.setattr(site.loop.ema, "decode", lambda *_: halves)
    site.material.begin(site.loop)
    image, guess = site.material.draw(torch.Generator().manual_seed(0))
    assert guess.shape == image.shape == (18, 17, 19)
    assert (guess[:9] == 1).all() and (guess[9:] == 2).all()


# --- what a site refuses ----------------------------------------------------------------------------------------------


def test_a_source_without_labels_is_refused(place):
    with pytest.raises(InputError, match="A source needs labelled scans"):
        site_of(place, "a", images=place / "b")


def test_an_empty_folder_is_refused(place):
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        site_of(place, "b", images=place / "empty")


def test_labels_at_a_target_are_not_read_and_it_is_said(place):
    told = []
    site = site_of(place, "b", images=place / "a", report=lambda event, **f: told.append(f["message"]))
    assert told == ["b: The label maps are ignored: this site trains without."]
    assert site.material.scans == 2


def test_a_structure_that_no_label_map_of_a_source_holds_is_named(place):
    like = Volume(np.zeros((18, 17, 19), np.uint16), np.diag([-1.0, 1.0, 1.0, 1.0]))
    for i in range(2):
        values = np.where(np.indices(like.array.shape)[0] > 9, 7, 12).astype(np.uint16)
        write_volume(place / "a" / f"a{i}_label.nii.gz", values, like, overwrite=True)
    with pytest.raises(InputError, match=r"holds 3 \(dark\), 300 \(bright\)"):
        site_of(place, "a")


def test_values_that_the_model_lacks_are_told(place):
    like = Volume(np.zeros((18, 17, 19), np.uint16), np.diag([-1.0, 1.0, 1.0, 1.0]))
    values = np.array([3, 7, 300, 12], np.uint16)[np.indices(like.array.shape).sum(0) % 4]
    write_volume(place / "a" / "a1_label.nii.gz", values, like, overwrite=True)
    told = []
    site_of(place, "a", report=lambda event, **f: told.append(f["message"]))
    assert told == ["a: the model has no 12; they count as background."]


def test_an_unknown_site_and_weights_of_another_network_are_refused(place):
    with pytest.raises(InputError, match="The federation has no site z; it has a, b, c"):
        site_of(place, "z")
    other = to_half(tiny_model(SINGLE, width=8).state_dict())
    with pytest.raises(InputError, match="Round 1 brought weights of another architecture"):
        site_of(place, "b").train_round(1, other, ignore)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"sites": [*SITES, SITES[0]]}, "two sites share a name"),
        ({"min_sites": 4}, "min_sites is 4, but there are 3 sites"),
        ({"name": "state"}, "a model called state"),
        ({"model": None}, "an adaptation needs a model"),
        ({"sites": SITES[:1]}, "needs a site with the role source and one with the role target"),
        ({"options": {"preset": "best"}}, "preset: Input should be"),
        ({"rounds": 0}, "rounds"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_plan_gets_one_sentence_that_names_the_fault(place, changes, told):
    content = {"name": "fed", "model": "start.safetensors", "sites": SITES} | changes
    (place / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_plan(place / "plan.json")
    assert told in caught.value.message and "\n" not in caught.value.message


def test_a_model_file_may_be_relative_to_the_plan(place):
    content = {"name": "fed", "model": "start.safetensors", "sites": SITES}
    (place / "plan.json").write_text(json.dumps(content))
    assert agree(read_plan(place / "plan.json")).card.name == "tiny"


# --- what is averaged -------------------------------------------------------------------------------------------------


def test_the_average_is_weighted_by_scans(place):
    coordinator = Coordinator(plan_of(place), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    updates = {n: Update(change_of(coordinator, v), s, {}) for n, v, s in (("a", 0.5, 6), ("b", 0.25, 2))}
    entry = coordinator.absorb(updates, 1.0, {"c": "its disk is full"})
    for name, tensor in coordinator.weights.items():
        assert torch.allclose(tensor - before[name], torch.tensor((0.5 * 6 + 0.25 * 2) / 8), atol=1e-6)
    assert entry["averaged"] and entry["sites"]["c"] == {"used": False, "reason": "its disk is full"}
    assert entry["sites"]["a"]["share"] == 0.75 and entry["sites"]["b"]["share"] == 0.25


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_left_out(place, poison):
    coordinator = Coordinator(plan_of(place), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    bad = change_of(coordinator, 0.25)
    next(iter(bad.values())).flat[0] = poison
    entry = coordinator.absorb(
        {"a": Update(change_of(coordinator, 0.5), 1, {}), "b": Update(bad, 100, {})}, 1.0
    )
    assert entry["sites"]["b"]["reason"] == "rejected: numbers that are not finite"
    assert all(torch.allclose(t - before[n], torch.tensor(0.5)) for n, t in coordinator.weights.items())


def test_an_answer_much_larger_than_the_others_is_made_smaller(place):
    coordinator = Coordinator(plan_of(place), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    sent = {"a": 0.01, "b": 0.01, "c": 100.0}
    entry = coordinator.absorb({n: Update(change_of(coordinator, v), 1, {}) for n, v in sent.items()}, 1.0)
    assert entry["sites"]["c"]["kept"] == pytest.approx(CLIP * 0.01 / 100, rel=1e-2)
    assert entry["sites"]["a"]["kept"] == 1.0
    expected = torch.tensor((0.01 + 0.01 + CLIP * 0.01) / 3)
    assert all(torch.allclose(t - before[n], expected, atol=1e-4) for n, t in coordinator.weights.items())


def test_an_answer_that_learnt_nothing_does_not_cancel_the_others(place):
    coordinator = Coordinator(plan_of(place), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    sent = {"a": 0.25, "b": 0.0, "c": 0.0}
    entry = coordinator.absorb({n: Update(change_of(coordinator, v), 1, {}) for n, v in sent.items()}, 1.0)
    assert [entry["sites"][n]["kept"] for n in "abc"] == [1.0, 1.0, 1.0]
    expected = torch.tensor(0.25 / 3)
    assert all(torch.allclose(t - before[n], expected, atol=1e-4) for n, t in coordinator.weights.items())


@pytest.mark.parametrize("kind", [np.float64, np.int64, "U1", np.longdouble])
def test_an_answer_of_another_precision_is_left_out(place, kind):
    coordinator = Coordinator(plan_of(place), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    odd = {n: np.full(tuple(t.shape), 9, kind) for n, t in coordinator.weights.items()}
    entry = coordinator.absorb(
        {"a": Update(change_of(coordinator, 0.5), 1, {}), "b": Update(odd, 1, {})}, 1.0
    )
    assert entry["sites"]["b"]["reason"] == "rejected: numbers that are not of half precision"
    assert all(torch.allclose(t - before[n], torch.tensor(0.5)) for n, t in coordinator.weights.items())


def test_the_device_is_the_plans_unless_the_site_has_chosen_one(place):
    plan = plan_of(place, options=STEP | {"device": "cpu", "precision": "bf16", "threads": 1})
    told = []
    for options in ({}, {"precision": "fp32"}):
        inference = site_of(place, "b", plan, options=options).loop.inference
        told.append((inference.device, inference.precision, inference.threads))
    assert told == [("cpu", "bf16", 1), ("cpu", "fp32", 1)]


def test_other_parameters_and_no_scans_are_left_out_and_too_few_answers_end_no_round(place):
    coordinator = Coordinator(plan_of(place, min_sites=2), place)
    before = {name: tensor.clone() for name, tensor in coordinator.weights.items()}
    odd = change_of(coordinator, 1.0)
    odd.popitem()
    updates = {n: Update(change_of(coordinator, 1.0), s, {}) for n, s in (("a", 5), ("b", 0))}
    entry = coordinator.absorb(updates | {"c": Update(odd, 1, {})}, 1.0)
    assert not entry["averaged"] and coordinator.round == 1
    assert entry["sites"]["b"]["reason"] == "rejected: no scans"
    assert entry["sites"]["c"]["reason"] == "rejected: weights of another architecture"
    assert all(torch.equal(t, before[n]) for n, t in coordinator.weights.items())


def test_a_coordinator_goes_on_where_it_was_killed(place):
    coordinator = Coordinator(plan_of(place), place)
    coordinator.absorb({"a": Update(change_of(coordinator, 0.5), 1, {"loss": 1.0})}, 1.0)
    again = Coordinator(plan_of(place), place)
    assert again.round == 2 and again.history == coordinator.history
    assert all(torch.equal(t, again.weights[n]) for n, t in coordinator.weights.items())
    with pytest.raises(InputError, match="holds the state of another federation"):
        Coordinator(plan_of(place, rounds=3), place)
    (place / STATE).write_bytes(b"broken")
    with pytest.raises(InputError, match="is damaged"):
        Coordinator(plan_of(place), place)


# --- a whole federation -----------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("MAPSegLib.tasks.federation.find_spec", lambda name: None)
    with pytest.raises(InputError, match="FLARE's, which is not installed"):
        simulate(place, tmp_path / "out", privacy={"noise": {}})
    assert not (tmp_path / "out").exists()
