"""The models that the module offers."""

import shutil

import pytest
from MAPSegModule import models, texts
from MAPSegModule.parameters import Parameters

from MAPSegLib.errors import InputError
from Testing.model_cards import with_card


def changed(model, target, change):
    """A copy of a model file with another card."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, target)
    with_card(target, change)


def test_embedded_models_come_with_their_cards():
    [entry] = [one for one in models.list_entries() if one.name == "brain-t1"]
    assert entry.embedded and entry.card["license"] == "Apache-2.0" and len(entry.card["labels"]) == 31
    with pytest.raises(InputError, match="comes with MAPSeg"):
        models.remove(entry)
    assert entry.path.is_file()


@pytest.mark.parametrize(
    ("dice", "told"), [([], ""), ([0.8], "  ·  Dice 0.80"), ([0.8, 0.701, 0.75], "  ·  Dice 0.70–0.80")]
)
def test_a_model_s_line_tells_its_worst_and_its_best_test_set(dice, told):
    scores = {f"set {i}": {"mean_dice": value, "scans": 8} for i, value in enumerate(dice)}
    assert texts.model_line({"labels": [{}, {}], "scores": scores}) == f"2 structures  ·  MR{told}"


def test_models_are_added_and_removed(model):
    entry = models.add_model(model, "mine")
    assert not entry.embedded and models.find_entry("mine") == entry and entry in models.list_entries()
    assert models.find_entry(model).path == model
    for taken in ("mine", "brain-t1"):
        with pytest.raises(InputError, match="already"):
            models.add_model(model, taken)
    models.remove(entry)
    assert not entry.path.exists()
    with pytest.raises(InputError, match=r"Unknown model mine; known: brain, brain-mr, brain-t1"):
        models.find_entry("mine")


def test_a_file_that_is_no_entry_is_not_replaced(model):
    """A damaged one, or on many disks one whose name differs by case."""
    there = models.user_folder() / "mine.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"damaged")
    with pytest.raises(InputError, match="already"):
        models.add_model(model, "mine")
    assert there.read_bytes() == b"damaged"
    with pytest.raises(InputError, match="for a device"):
        models.add_model(model, "Aux")


@pytest.mark.parametrize("name", ["GE/T2", "..", "../out", "GE\\T2", "C:T2", "T2?", ".hidden", "", " "])
def test_names_that_are_no_file_names_are_refused(model, name):
    with pytest.raises(InputError, match="model's name"):
        models.add_model(model, name)
    assert not list(models.user_folder().parent.rglob("*"))


@pytest.mark.parametrize("name", ["x" * 250, "ä" * 130])
def test_names_that_are_too_long_for_a_file_are_told(model, name):
    with pytest.raises(InputError, match="is too long for a file"):
        models.add_model(model, name)
    with pytest.raises(InputError, match="Unknown model"):
        models.find_entry(name)
    assert "do not exist" in Parameters(str(model), adapt=True, source_folder=2 * name).problem()


def test_files_that_cannot_segment_are_not_offered(model):
    folder = models.user_folder()
    changed(model, folder / "encoder.safetensors", lambda card: card.update(kind="encoder", labels=[]))
    changed(model, folder / "damaged.safetensors", lambda card: card.pop("labels"))
    changed(model, folder / "newer.safetensors", lambda card: card.update(format_version=99))
    (folder / "text.safetensors").write_text("no model")
    shutil.copyfile(model, folder / "good.safetensors")
    assert [one.name for one in models.list_entries() if not one.embedded] == ["good"]
    for name, told in (("encoder", "pretrained encoder"), ("damaged", "damaged"), ("newer", "format 99")):
        with pytest.raises(InputError, match=told):
            models.find_entry(folder / f"{name}.safetensors")
        with pytest.raises(InputError, match=told):
            models.add_model(folder / f"{name}.safetensors", "other")


def test_of_one_scan_there_is_no_plural():
    scores = {"a": {"dice": 0.9, "scans": 1}}
    for scans, told in ((1, "1 scan without labels, starting from brain"), (2, "2 scans without labels")):
        card = {"labels": [{"name": "x"}], "provenance": {"adapted_from": "brain", "scans": scans}}
        assert told in texts.model_details(card | {"scores": scores})
        assert "0.90 (a, 1 scan)" in texts.model_details(card | {"scores": scores})
        assert texts.model_line(card).startswith("1 structure ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"license": 5},
        {"description": ["x"]},
        {"provenance": "x"},
        {"scores": "x"},
        {"labels": [{"value": 1, "name": 5}]},
        {"preprocessing": {"spacing": [1, 1, 1], "modality": 5}},
    ],
)
def test_a_card_that_cannot_be_shown_hides_no_other_model(model, wrong):
    changed(model, models.user_folder() / "odd.safetensors", lambda card: card.update(wrong))
    entries = models.list_entries()
    assert "odd" not in [entry.name for entry in entries] and entries
    with pytest.raises(InputError, match="damaged model card"):
        models.find_entry(models.user_folder() / "odd.safetensors")
