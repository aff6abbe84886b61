"""Model files that are damaged, foreign or newer: refused in one sentence, and never run."""

import gzip
import pickle
import struct

import pytest
import torch
from model_file_cases import LABELS, logits, tiny

from MAPSegLib.checkpoints import import_checkpoint
from MAPSegLib.config import Architecture
from MAPSegLib.errors import InputError
from MAPSegLib.models import (
    list_models,
    load_card,
    load_model,
    members,
    resolve,
    save_model,
)
from MAPSegLib.networks.segmenter import Segmenter
from Testing.model_cards import with_card


def test_newer_formats_are_told(saved):
    with_card(saved, lambda card: card.update(format_version=2, something_new=1))
    with pytest.raises(InputError, match="model format 2"):
        load_card(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.pop("labels"),
        lambda card: card.update(format_version="one"),
        lambda card: card.pop("format_version"),
        lambda card: card["labels"].append(card["labels"][0]),
        lambda card: card.update(kind="choice", members=["../elsewhere"]),
    ],
)
def test_damaged_cards_are_refused(saved, change):
    with_card(saved, change)
    with pytest.raises(InputError, match="damaged model card"):
        load_card(saved)


def test_a_card_that_does_not_fit_its_weights_is_refused(saved):
    with_card(saved, lambda card: card["labels"].pop())
    with pytest.raises(InputError, match="do not fit"):
        load_model(saved)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.05, 0.5, 0.999])
def test_truncated_files_are_refused(saved, share):
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    for load in (load_card, load_model):
        with pytest.raises(InputError, match="damaged"):
            load(saved)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_one_wrong_bit_in_the_weights_is_noticed(saved, share):
    content = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(share * (len(content) - start))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(InputError, match="not those that were saved"):
        load_model(saved)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'"value\\":10,', b'"value\\":18,'),  # another label, in the card
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (b'"encoder.0.conv2.conv.weight"', b'"encoder.0.conv3.conv.weight"'),  # weights that change places
    ],
)
def test_a_few_wrong_bytes_in_the_header_are_noticed(saved, one, other):
    content = saved.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert one in content[:start]
    header = other.join(part.replace(other, one) for part in content[8:start].split(one))
    saved.write_bytes(content[:8] + header + content[start:])
    with pytest.raises(InputError, match="not those that were saved"):
        load_model(saved)


def test_files_from_before_there_was_a_digest_are_loaded(saved):
    with_card(saved, lambda card: None)
    assert b'"digest"' not in saved.read_bytes()
    assert torch.equal(logits(load_model(saved)[0]), logits(tiny()[0]))


def test_bytes_after_the_weights_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0" * 16)
    for load in (load_card, load_model):
        with pytest.raises(InputError, match="damaged"):
            load(saved)


def test_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no MAPSeg model card"):
        load_card(path)
    path.write_bytes(struct.pack("<Q", 18) + b'{"__metadata__":5}')
    with pytest.raises(InputError, match="no MAPSeg model card"):
        load_card(path)
    for content in (
        b"hello, world",
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a MAPSeg model file"):
            load_card(path)
    with pytest.raises(InputError, match="does not exist"):
        load_card(tmp_path / "absent.safetensors")


def explode():
    raise AssertionError("unpickled")


class Armed:
    def __reduce__(self):
        return explode, ()


def test_nothing_is_unpickled(tmp_path):
    zipped, bare = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"weights": Armed()}, zipped)
    bare.write_bytes(pickle.dumps(Armed()))
    for path in (zipped, bare):
        with pytest.raises(InputError, match="pickled checkpoint"):
            load_model(path)
        with pytest.raises(InputError, match="needs pickled code"):
            import_checkpoint(path, tmp_path / "out.safetensors", name="out")
    assert sorted(tmp_path.iterdir()) == [zipped, bare]


def test_a_scan_given_as_a_checkpoint_is_not_said_to_hold_code(tmp_path):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(gzip.compress(bytes(400)))
    with pytest.raises(InputError, match="is not a PyTorch checkpoint"):
        import_checkpoint(scan, tmp_path / "out.safetensors", name="out")


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    model, card = tiny()

    def saved_length(padding):
        padded = card.model_copy(update={"description": "x" * padding})
        path = save_model(tmp_path / "m.safetensors", model.state_dict(), padded, overwrite=True)
        return path, int.from_bytes(path.read_bytes()[:8], "little")

    start = saved_length(0)[1]
    path, found = saved_length((length - start) % 0x10000)
    assert found % 0x10000 == length
    assert load_card(path).description.startswith("x")


def test_a_card_without_end_is_refused_and_hides_no_other_model(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    model, card = tiny()
    folder = tmp_path / "models"
    folder.mkdir()
    save_model(folder / "good.safetensors", model.state_dict(), card)
    save_file({"a": torch.zeros(1)}, folder / "deep.safetensors", {"mapseg": "[" * 200_000})
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="damaged model card"):
        load_card(folder / "deep.safetensors")
    names = [name for name, *_ in list_models()]
    assert "good" in names and "deep" not in names


@pytest.mark.parametrize(
    ("name", "channels"),
    [("width", 100), ("head_width", 12), ("head_width", 8), ("up_channels", 30), ("detail", 9)],
)
def test_sizes_that_no_network_has_are_told(saved, tmp_path, name, channels):
    with pytest.raises(ValueError, match=f"{name} must (not )?be"):
        Architecture(**{name: channels})
    model, card = tiny()
    wrong = card.model_copy(update={"architecture": card.architecture.model_copy(update={name: channels})})
    path = save_model(tmp_path / "wrong.safetensors", model.state_dict(), wrong)
    with pytest.raises(InputError, match="damaged model card"):
        load_model(path)


@pytest.mark.parametrize("sizes", [(4, 4, 4, 0), (31, 7, 7, 7), (32, 16, 8, 8), (96, 24, 64, 16)])
def test_every_other_size_makes_a_network(sizes):
    names = ("width", "head_width", "up_channels", "detail")
    a = Architecture(
        **dict(zip(names, sizes, strict=True)), depth=1, dilations=(1, 2, 4), patch=16, global_size=16
    )
    x = torch.zeros(1, 1, 16, 16, 16)
    with torch.no_grad():
        Segmenter(a, LABELS).train()(x, x, torch.zeros(1, 3), torch.ones(1, 3))


def test_damaged_embedded_models_are_noticed(tmp_path):
    for model in members(resolve("brain")):
        content = bytearray(model.read_bytes())
        content[-9] ^= 1
        damaged = tmp_path / model.name
        damaged.write_bytes(content)
        with pytest.raises(InputError, match="not those that were saved"):
            load_model(damaged)


@pytest.mark.parametrize(
    "priors",
    [
        {"trust": 5},
        {"trust": {"score": "high"}},
        {"extents": "wide"},
        {"extents": {"10": [[1.0, 2.0]]}},
        {"often_absent": 7},
    ],
)
def test_priors_that_no_verdict_can_be_made_of_are_refused(saved, priors):
    with_card(saved, lambda card: card.update(priors=priors))
    with pytest.raises(InputError, match="damaged model card"):
        load_card(saved)


def test_a_choice_between_thousands_is_refused(saved):
    with_card(saved, lambda card: card.update(kind="choice", members=["tiny"] * 1000))
    with pytest.raises(InputError, match="damaged model card"):
        members(saved)


@pytest.mark.parametrize(
    ("dtype", "told"), [(torch.int32, "do not fit"), (torch.float32, "not finite numbers")]
)
def test_weights_that_are_no_weights_are_refused(saved, dtype, told):
    """In a file that states no digest, as anybody may write one."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(saved, "pt") as file:
        card = {"mapseg": file.metadata()["mapseg"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(iter(tensors))
    wrong = 1 if dtype is torch.int32 else torch.nan
    tensors[name] = torch.full(tensors[name].shape, wrong, dtype=dtype)
    save_file(tensors, saved, card)
    with pytest.raises(InputError, match=told):
        load_model(saved)


def test_a_header_of_a_million_tensors_is_not_read(tmp_path):
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", 20_000_000) + b" " * 20_000_000)
    with pytest.raises(InputError, match="not a MAPSeg model file, or is damaged"):
        load_card(path)
