"""What a site of a federation does and sends, what it refuses, and what a kill costs it."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federated_cases import STEP, plan_of, pretraining, write_scan
from model_cases import SINGLE, card_of, ignore, tiny_model

from MAPSegLib.augmentation import published_source
from MAPSegLib.config import RECIPES
from MAPSegLib.datasets import ScanSource
from MAPSegLib.errors import Cancelled, InputError
from MAPSegLib.federated.exchange import to_half, to_tensors
from MAPSegLib.federated.plan import Plan, agree
from MAPSegLib.federated.scans import SiteData
from MAPSegLib.federated.site import Site
from MAPSegLib.models import load_model, save_model
from MAPSegLib.networks.segmenter import Segmenter
from MAPSegLib.training.loop import Loop
from MAPSegLib.training.terms import SourceTerms
from MAPSegLib.volumes import Volume, read_image, write_volume


def site_of(place: Path, name: str, plan: Plan | None = None, report=ignore, **data) -> Site:
    scans = SiteData(**{"images": place / name, "options": {"device": "cpu", "precision": "fp32"}} | data)
    folder = place / f"work-{name}"
    folder.mkdir(exist_ok=True)
    return Site(agree(plan or plan_of(place)), name, scans, folder, report)


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


def test_a_site_answers_a_round_again_with_what_it_has(place):
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    first = site_of(place, "b").train_round(1, weights, ignore)
    told = []
    again = site_of(place, "b").train_round(1, weights, lambda event, **_: told.append(event))
    assert not told and again.losses == first.losses and again.scans == first.scans
    assert all(np.array_equal(first.difference[n], again.difference[n]) for n in weights)


def test_other_scans_are_trained_on_where_a_round_is_asked_again(place):
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    first = site_of(place, "b").train_round(1, weights, ignore)
    for scan in (place / "b").iterdir():
        scan.unlink()
    write_scan(place / "b", "b0", seed=1)
    again = site_of(place, "b").train_round(1, weights, ignore)
    assert again.losses != first.losses


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


def test_the_domains_that_a_sites_manifest_states_are_drawn_alike(place):
    own = {"a0": "first", "a1": "second"}
    cases = [
        {"image": f"a/{name}_img.nii.gz", "label": f"a/{name}_label.nii.gz", "domain": domain}
        for name, domain in own.items()
    ]
    (place / "a.json").write_text(
        json.dumps({"cases": [*cases, {"image": "b/b0.nii.gz", "domain": "first"}]})
    )
    (place / "labelled.json").write_text(json.dumps({"cases": cases}))
    material = site_of(place, "a", pretraining(), images=place / "a.json").material
    assert [name for name, _ in material.domains.domains] == ["first (a.json)", "second (a.json)"]
    assert material.scans == 3
    labelled = site_of(place, "a", images=place / "labelled.json").material
    assert labelled.terms.source.groups == [[0], [1]]


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


def test_the_device_is_the_plans_unless_the_site_has_chosen_one(place):
    plan = plan_of(place, options=STEP | {"device": "cpu", "precision": "bf16", "threads": 1})
    told = []
    for options in ({}, {"precision": "fp32"}):
        inference = site_of(place, "b", plan, options=options).loop.inference
        told.append((inference.device, inference.precision, inference.threads))
    assert told == [("cpu", "bf16", 1), ("cpu", "fp32", 1)]


# --- what a site refuses ----------------------------------------------------------------------------------------------


def test_a_source_without_labels_is_refused(place):
    with pytest.raises(InputError, match="A source needs labelled scans"):
        site_of(place, "a", images=place / "b")


def test_an_empty_folder_is_refused(place):
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        site_of(place, "b", images=place / "empty")


@pytest.mark.parametrize(
    "name, plan",
    [("a", plan_of), ("b", plan_of), ("b", lambda place: pretraining())],
    ids=["source", "target", "pretraining"],
)
def test_scans_that_look_like_another_modality_are_told_where_they_lie(place, name, plan):
    scans = [path for path in (place / name).iterdir() if "label" not in path.name]
    for path in scans:
        scan = read_image(path)
        write_volume(path, scan.array * 10 - 1000, scan, overwrite=True)
    told = []
    site_of(place, name, plan(place), report=lambda event, **f: told.append(f.get("message", "")))
    names = ", ".join(sorted(path.name for path in scans))
    assert f"{names}: Its values go far below 0, as those of CT do, but it is taken for MR." in told


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
    with pytest.raises(InputError, match=r"^a: No label map of this site holds 3 \(dark\), 300 \(bright\)"):
        site_of(place, "a")


def test_values_that_the_model_lacks_are_told(place):
    like = Volume(np.zeros((18, 17, 19), np.uint16), np.diag([-1.0, 1.0, 1.0, 1.0]))
    values = np.array([3, 7, 300, 12], np.uint16)[np.indices(like.array.shape).sum(0) % 4]
    write_volume(place / "a" / "a1_label.nii.gz", values, like, overwrite=True)
    told = []
    site_of(place, "a", report=lambda event, **f: told.append(f["message"]))
    assert told == ["a: The model has no 12; they count as background."]


def test_an_unknown_site_and_weights_of_another_network_are_refused(place):
    with pytest.raises(InputError, match="The federation has no site z; it has a, b, c"):
        site_of(place, "z")
    other = to_half(tiny_model(SINGLE, width=8).state_dict())
    with pytest.raises(InputError, match="Round 1 brought weights of another architecture"):
        site_of(place, "b").train_round(1, other, ignore)


def test_weights_that_are_not_finite_are_refused_and_the_site_goes_on(place):
    """Trained on, they would come back in the answer, where a filter that adds noise waits for numbers for ever."""
    weights = to_half(load_model(place / "start.safetensors")[0].state_dict())
    site = site_of(place, "b")
    with pytest.raises(InputError, match="Round 1 brought numbers that are not finite"):
        site.train_round(1, weights | {next(iter(weights)): next(iter(weights.values())) * np.nan}, ignore)
    answer = site.train_round(1, weights, ignore).difference
    assert all(np.isfinite(array).all() for array in answer.values())
