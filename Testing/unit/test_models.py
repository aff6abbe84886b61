"""Models, the registry, and the import of the authors' checkpoints."""

import math
import re
import resource

import pytest
import torch
from model_file_cases import LABELS, logits, tiny

from MAPSegLib.checkpoints import import_checkpoint
from MAPSegLib.config import ARCHITECTURES, Label, Preprocessing
from MAPSegLib.errors import InputError, MAPSegError
from MAPSegLib.model_files import embedded_folders
from MAPSegLib.models import (
    ModelCard,
    list_models,
    load_card,
    load_encoder,
    load_model,
    members,
    resolve,
    save_model,
)
from MAPSegLib.networks.encoder import Encoder
from MAPSegLib.networks.segmenter import Segmenter
from Testing.model_cards import with_card


def test_a_model_returns_with_its_card(saved):
    model, card = tiny()
    loaded, loaded_card = load_model(saved)
    assert loaded_card == card == load_card(saved)
    assert card.name in repr(card) and len(repr(card)) < 800  # in a notebook
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


def test_the_same_model_makes_the_same_file(saved):
    before = saved.read_bytes()
    for _ in range(9):
        model, card = tiny()
        assert save_model(saved, model.state_dict(), card, overwrite=True).read_bytes() == before


def test_half_precision_on_disk_is_fp32_in_memory(tmp_path):
    model, card = tiny()
    half = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    path = save_model(tmp_path / "half.safetensors", half, card)
    loaded, _ = load_model(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert path.stat().st_size < 0.7 * sum(p.numel() * 4 for p in model.parameters())


def test_existing_models_are_kept(saved):
    before = saved.read_bytes()
    model, card = tiny()
    with pytest.raises(InputError, match="already exists"):
        save_model(saved, model.state_dict(), card)
    assert saved.read_bytes() == before
    save_model(saved, model.state_dict(), card, overwrite=True)


def test_a_full_disk_leaves_nothing(tmp_path):
    model, card = tiny()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save_model(tmp_path / "tiny.safetensors", model.state_dict(), card)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_models_are_found_by_name_and_by_path(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    mine = folder / "mine.safetensors"
    mine.write_bytes(saved.read_bytes())
    (folder / "broken.safetensors").write_bytes(b"broken")

    assert resolve("mine") == mine
    assert resolve(saved) == saved
    listed = {name: path for name, path, _ in list_models()}
    assert listed["mine"] == mine and "broken" not in listed
    with pytest.raises(InputError, match=r"Unknown model brian-t1; known: .*mine"):
        resolve("brian-t1")
    with pytest.raises(InputError, match=r"Unknown model brain-1\.5; known: .*mine"):
        resolve("brain-1.5")
    with pytest.raises(InputError, match="does not exist"):
        resolve(tmp_path / "absent.safetensors")


def test_a_file_of_the_same_name_does_not_hide_an_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    embedded = resolve("brain-t1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / embedded.name).write_bytes(embedded.read_bytes())
    assert resolve("brain-t1") == embedded


def test_a_model_that_is_being_written_is_not_listed(saved, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".0123abcd-whole.safetensors").write_bytes(saved.read_bytes())
    (tmp_path / "models" / ".0123abcd-half.safetensors").write_bytes(saved.read_bytes()[:99])
    assert not [name for name, *_ in list_models() if name.startswith(".")] and not caplog.messages


PUBLISHED = ARCHITECTURES["tiny"].model_copy(update={"dilations": ARCHITECTURES["paper"].dilations})
"""A small network of the authors': they dilate as the paper does."""


def authors_names(state, prefix):
    """Our state dict under the names of the published checkpoints."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"^encoder\.(\d+)\.", r"local_encoder.\1.basic_module.", key)
        renamed[prefix + re.sub(r"^head\.", "seg_decoder.classifier.", key)] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["student.", "teacher.", ""])
def test_published_checkpoints_give_the_same_logits(tmp_path, prefix):
    plain = tuple(Label(value=i, name=f"structure {i}") for i in (1, 2, 3))
    model = Segmenter(PUBLISHED, plain).eval()
    state = authors_names(model.state_dict(), prefix)
    state |= {
        f"{prefix}local_upsample.weight": torch.zeros(1),
        f"{prefix}final_norm_local_recon.bias": torch.zeros(1),
    }
    torch.save(state, tmp_path / "authors.pth")
    source, path = tmp_path / "authors.pth", tmp_path / "ours.safetensors"
    card = import_checkpoint(source, path, name="ours", patch=PUBLISHED.patch)
    assert card.architecture == PUBLISHED
    loaded, loaded_card = load_model(path)
    assert loaded_card.labels == plain
    assert torch.equal(logits(loaded), logits(model))


def test_the_teacher_is_imported_where_there_are_both(tmp_path):
    plain = (Label(value=1, name="structure 1"),)
    model = Segmenter(PUBLISHED, plain).eval()
    student = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    both = authors_names(student, "student.") | authors_names(model.state_dict(), "teacher.")
    torch.save({"state_dict": both}, tmp_path / "both.pth")
    path = tmp_path / "ours.safetensors"
    import_checkpoint(tmp_path / "both.pth", path, name="ours", patch=PUBLISHED.patch)
    assert torch.equal(logits(load_model(path)[0]), logits(model))


def encoder_file(tmp_path, seed=4):
    torch.manual_seed(seed)
    network = Encoder(ARCHITECTURES["tiny"].width, ARCHITECTURES["tiny"].depth)
    weights = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    card = ModelCard(
        kind="encoder", name="e", architecture=ARCHITECTURES["tiny"], preprocessing=Preprocessing()
    )
    return save_model(tmp_path / "e.safetensors", weights, card), network


def test_a_pretrained_encoder_gives_its_weights_and_cannot_segment(tmp_path):
    path, network = encoder_file(tmp_path)
    model, _ = tiny()
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    load_encoder(path, model)
    for ours, theirs in ((model.encoder, network.state_dict()), (model.head, head)):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert load_card(path, encoder=True).labels == ()
    for load in (load_card, load_model):
        with pytest.raises(InputError, match="e.safetensors is a pretrained encoder, which cannot segment"):
            load(path)
    with pytest.raises(InputError, match="do not fit"):
        load_encoder(path, Segmenter(ARCHITECTURES["tiny"].model_copy(update={"depth": 3}), LABELS))


def test_kinds_and_labels_belong_together(tmp_path, saved):
    with_card(saved, lambda card: card.update(kind="encoder"))
    path, _ = encoder_file(tmp_path)
    with_card(path, lambda card: card.update(kind="segmenter"))
    for damaged in (saved, path):
        with pytest.raises(InputError, match="damaged model card"):
            load_card(damaged, encoder=True)


def test_cards_from_before_encoders_are_of_models_that_segment(saved):
    with_card(saved, lambda card: card.pop("kind"))
    assert load_card(saved).kind == "segmenter" and load_model(saved)[1].labels == LABELS


def test_published_pretrained_checkpoints_become_encoders(tmp_path):
    _, network = encoder_file(tmp_path)
    state = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    state = authors_names(state, "")
    state |= {
        f"{name}.weight": torch.zeros(1)
        for name in (
            "local_upsample",
            "local_decoder.0.basic_module.conv1.conv",
            "final_projection_local_recon",
            "final_norm_local_recon",
        )
    }
    torch.save(state, tmp_path / "mae.pth")
    path = tmp_path / "ours.safetensors"
    card = import_checkpoint(tmp_path / "mae.pth", path, name="ours", patch=32)
    a = ARCHITECTURES["tiny"]
    assert (card.kind, card.architecture.width, card.architecture.depth) == ("encoder", a.width, a.depth)
    assert (card.architecture.patch, card.architecture.head_width) == (32, 512)
    model = Segmenter(a, LABELS)
    load_encoder(path, model)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.features(x), network(x))


def test_other_checkpoints_are_told_apart(tmp_path):
    model, _ = tiny((Label(value=1, name="one"),))
    state = authors_names(model.state_dict(), "")
    encoder = {k: v for k, v in state.items() if k.startswith("local_encoder")}
    partial = {k: v for k, v in state.items() if not k.endswith("conv2.conv.weight")}
    stem = next(k for k in state if k.endswith("0.basic_module.conv1.conv.weight"))
    path, out = tmp_path / "x.pth", tmp_path / "x.safetensors"
    cases = [
        (encoder, LABELS, "which has no structures"),
        ({k: v for k, v in encoder.items() if "1.basic_module.conv3" not in k}, (), "lacks weights"),
        ({"layer.weight": torch.zeros(1)}, (), "does not hold the weights"),
        (partial, (), "lacks weights"),
        (state | {stem: torch.zeros(100, 1, 4, 4, 4)}, LABELS[:1], "in other sizes"),
        (state, LABELS, "label table names 3"),
        (state | {stem: state[stem] * math.nan}, LABELS[:1], "x.pth holds weights that are not finite"),
        (state | {stem: state[stem].to_sparse()}, LABELS[:1], "lacks weights"),
        (state | {stem: state[stem].to("meta")}, LABELS[:1], "lacks weights"),
        (state | {stem: torch.zeros(1).expand(state[stem].shape)}, LABELS[:1], "lacks weights"),
    ]
    for content, labels, message in cases:
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            import_checkpoint(path, out, name="x", labels=labels)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        import_checkpoint(path, out, name="x")
    with pytest.raises(InputError, match="is a folder, and a checkpoint is needed"):
        import_checkpoint(tmp_path, out, name="x")
    with pytest.raises(InputError, match="brain-t1.safetensors is a model already"):
        import_checkpoint(resolve("brain-t1"), out, name="x")
    assert not out.exists()


# --- a choice between models ----------------------------------------------------------------------------------------


def choice_of(tmp_path, names=("a", "b"), labels=LABELS):
    card = ModelCard(
        kind="choice",
        name="either",
        architecture=ARCHITECTURES["tiny"],
        preprocessing=Preprocessing(),
        labels=labels,
        members=names,
    )
    return save_model(tmp_path / "either.safetensors", {}, card, overwrite=True)


def test_a_choice_stands_for_its_members(tmp_path):
    for name in "ab":
        model = Segmenter(ARCHITECTURES["tiny"], LABELS)
        card = ModelCard(
            name=name, architecture=model.architecture, preprocessing=Preprocessing(), labels=LABELS
        )
        save_model(tmp_path / f"{name}.safetensors", model.state_dict(), card)
    path = choice_of(tmp_path)
    assert load_card(path, choice=True).kind == "choice"
    assert [member.stem for member in members(path)] == ["a", "b"]
    assert members(members(path)[0]) == [tmp_path / "a.safetensors"]
    with pytest.raises(InputError, match="is a choice between models, and one is needed here") as caught:
        load_model(path)
    assert caught.value.advice == "Give one of a, b."
    with pytest.raises(InputError, match="Unknown model c"):
        members(choice_of(tmp_path, ("a", "c")))
    with pytest.raises(InputError, match="its member a has other structures"):
        members(choice_of(tmp_path, labels=LABELS[:1]))


def test_a_choice_has_members_and_nothing_else_has():
    sizes = {"architecture": ARCHITECTURES["tiny"], "preprocessing": Preprocessing(), "labels": LABELS}
    for wrong in ({"kind": "choice"}, {"kind": "segmenter", "members": ("a",)}):
        with pytest.raises(ValueError, match="a choice has members"):
            ModelCard(name="either", **sizes, **wrong)


def test_the_embedded_choice_is_between_embedded_models():
    found = members(resolve("brain"))
    assert [path.stem for path in found] == ["brain-t1", "brain-mr"]
    assert list_models()[0][0] == "brain"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, bad):
    model, card = tiny()
    model.head[7].bias.data[0] = bad
    with pytest.raises(MAPSegError, match="weights are not finite") as failure:
        save_model(tmp_path / "m.safetensors", model.state_dict(), card)
    assert "lower learning rate" in failure.value.advice and not list(tmp_path.iterdir())


def test_embedded_models_say_what_they_are_and_what_they_scored():
    cards = {name: card for name, path, card in list_models() if path.parent in embedded_folders()}
    assert cards.keys() == {"brain", "brain-mr", "brain-t1"}
    for card in cards.values():
        assert card.license == "Apache-2.0" and card.description.startswith("31 structures") and card.scores
