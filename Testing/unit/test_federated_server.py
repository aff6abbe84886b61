"""A federation's coordinator: its plan, what it averages, what it leaves out, and what a kill costs it."""

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from federated_cases import SITES, plan_of

from MAPSegLib.errors import InputError
from MAPSegLib.federated import coordinator as server
from MAPSegLib.federated.coordinator import CLIP, ROUNDS, STATE, Coordinator
from MAPSegLib.federated.exchange import Update
from MAPSegLib.federated.plan import agree, read_plan
from MAPSegLib.models import load_model, save_model


def change_of(coordinator: Coordinator, value: float) -> dict[str, np.ndarray]:
    return {n: np.full(tuple(t.shape), value, np.float16) for n, t in coordinator.weights.items()}


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"sites": [*SITES, SITES[0]]}, "two sites share a name"),
        ({"sites": [*SITES, {"name": "Hospital_D"}]}, "sites.3.name: small letters, digits and - only"),
        ({"min_sites": 4}, "min_sites is 4, but there are 3 sites"),
        ({"name": "state"}, "a model called state"),
        ({"name": "State"}, "a model called state"),
        ({"model": None}, "an adaptation needs a model"),
        ({"preset": "tiny"}, "preset is a pretraining's"),
        ({"preprocessing": {"modality": "ct"}}, "preprocessing is a pretraining's"),
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


def test_the_model_that_comes_out_calls_no_site_foreign(place, tmp_path):
    """Whose scans look unlike those of the start model's training, as a front end tells by ``intensity``."""
    network, card = load_model(place / "start.safetensors")
    known = card.model_copy(update={"priors": {"intensity": {"mean": [0.5]}, "trust": {"agreement": 0.7}}})
    save_model(place / "known.safetensors", network.state_dict(), known)
    coordinator = Coordinator(plan_of(place, model=str(place / "known.safetensors")), tmp_path)
    assert load_model(coordinator.finish())[1].priors == {"trust": {"agreement": 0.7}}


def test_a_federation_tells_sites_nothing_of_the_coordinators_files(place):
    assert str(place) not in agree(plan_of(place)).model_dump_json()


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


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_coordinator_that_goes_on_does_not_hold_the_file_of_its_state(place):
    """Windows would not let it be replaced."""
    coordinator = Coordinator(plan_of(place), place)
    coordinator.absorb({name: Update(change_of(coordinator, 0.5), 1, {}) for name in ("a", "b")}, 1.0)
    again = Coordinator(plan_of(place), place)
    assert again.round == 2 and STATE not in Path("/proc/self/maps").read_text(encoding="utf-8")


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


def test_what_a_killed_coordinator_was_writing_is_removed(place):
    left = [place / f".01234567-{name}" for name in (STATE, ROUNDS, "fed.safetensors")]
    for file in left:
        file.touch()
    Coordinator(plan_of(place), place)
    assert not any(file.exists() for file in left)


def test_no_round_that_was_kept_is_missing_from_the_record(place, monkeypatch):
    """However the coordinator ends between the two files."""
    coordinator = Coordinator(plan_of(place, rounds=1), place)

    def end(*_, **__):
        raise InputError("The disk is full.")

    monkeypatch.setattr(server, "write_json", end)
    with pytest.raises(InputError):
        coordinator.absorb({"a": Update(change_of(coordinator, 0.5), 1, {})}, 1.0)
    assert Coordinator(plan_of(place, rounds=1), place).round == 1


def test_a_full_disk_is_told_with_what_to_do_and_costs_no_round(place, monkeypatch):
    coordinator = Coordinator(plan_of(place), place)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="state.safetensors cannot be written: no space left") as caught:
            coordinator.absorb({"a": Update(change_of(coordinator, 0.5), 1, {})}, 1.0)
    assert caught.value.advice == "Free some space." and not (place / STATE).exists()
    assert Coordinator(plan_of(place), place).round == 1
