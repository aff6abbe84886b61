"""The commands that train, pretrain and draw images, on tiny scans, in process."""

import json
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from MAPSegLib import api, datasets
from MAPSegLib.config import Label
from MAPSegLib.models import load_card, load_model
from MAPSegLib.volumes import read_labels, scan_stem, write_volume

from .calls import CPU, card_on_a_terminal, files, labels_of, mapseg, other_codes, refused


def data_set(folder, images, labels, about):
    """A data set in the layout of nnU-Net."""
    for ours, theirs in ((images, "imagesTr"), (labels, "labelsTr")):
        shutil.copytree(ours, folder / theirs)
    (folder / "dataset.json").write_text(about)
    return folder


def test_a_training_reads_a_data_set(data, tmp_path, monkeypatch):
    passes, real = [], datasets.ScanSource.label_maps
    monkeypatch.setattr(datasets.ScanSource, "label_maps", lambda source: passes.append(1) or real(source))
    about = '{"modality": {"0": "MRI"}, "labels": {"1": "shell"}}'
    cases = data_set(tmp_path / "set", data / "images", data / "labels", about)
    arguments = ["--images", cases, "--name", "x", "--preset", "tiny", "--steps", 1]
    _, told = mapseg("train", *arguments, "--spacing", 2, "-o", tmp_path / "out", *CPU)
    assert (
        "the model does not agree with itself: no result of it will be trusted. More steps may help." in told
    )
    assert "Cases to learn from: 3; kept back: 0; structures: 2; MR at 2 x 2 x 2 mm." in told
    assert len(passes) == 1  # over label maps, which may be hundreds
    card = load_card(tmp_path / "out" / "x.safetensors")
    assert card.provenance["cases"] == 3 and [label.name for label in card.labels] == ["shell", "structure 2"]


def test_a_training_reads_scans_with_the_segmentations_that_slicer_saved(data, tmp_path):
    cases = tmp_path / "cases"
    shutil.copytree(data / "images", cases)
    known = [Label(value=1, name="shell"), Label(value=2, name="core")]
    for path in (data / "labels").iterdir():
        labels = read_labels(path)
        write_volume(cases / f"{scan_stem(path)}.seg.nrrd", labels.array, labels, labels=known)
    arguments = ["--images", cases, "--name", "x", "--preset", "tiny", "--steps", 1, "--spacing", 2]
    mapseg("train", *arguments, "-o", tmp_path / "out", *CPU)
    card = load_card(tmp_path / "out" / "x.safetensors")
    assert [(label.value, label.name) for label in card.labels] == [(1, "shell"), (2, "core")]

    other = [Label(value=1, name="core"), Label(value=2, name="shell")]
    write_volume(cases / "case2.seg.nrrd", labels.array, labels, overwrite=True, labels=other)
    assert "1 is called shell in" in refused("train", *arguments, "-o", tmp_path / "mixed", *CPU)
    assert not (tmp_path / "mixed").exists()
    (tmp_path / "table.json").write_text('{"1": "shell", "2": "core"}')
    table = "--label-table", tmp_path / "table.json"
    _, told = mapseg("train", *arguments, *table, "-o", tmp_path / "mixed", *CPU)
    assert "case2.nii.gz: Its label map calls 1 core: it is learnt as shell." in told
    model = tmp_path / "out" / "x.safetensors"
    _, told = mapseg("evaluate", data / "labels", cases, "-o", tmp_path / "scores", "--model", model)
    assert (
        "case2.seg.nrrd calls 1 core, which is scored as shell." in told
        and "case1.seg.nrrd calls" not in told
    )


def test_values_that_a_data_set_does_not_name_are_told(data, tmp_path):
    """A voxel by mistake, or a region of nnU-Net, which has several values, would be a structure of its own."""
    about = '{"labels": {"background": 0, "core": 2}}'
    cases = data_set(tmp_path / "set", data / "images", data / "labels", about)
    arguments = ["--images", cases, "--name", "x", "--preset", "tiny", "--steps", 1]
    _, told = mapseg("train", *arguments, "--spacing", 2, "-o", tmp_path / "out", *CPU)
    assert "The label maps hold 1, which set does not name (1 is in case0.nii.gz): each is learnt" in told


@pytest.mark.parametrize(
    ("empty", "told"), [("kept back", "No label map kept back"), ("others", "No label map to learn from")]
)
def test_cases_without_structures_are_told_by_whether_they_are_kept_back(empty, told, data, tmp_path):
    labels, kept = tmp_path / "labels", random.Random(7).sample(range(3), 1)[0]
    shutil.copytree(data / "labels", labels)
    for i, path in enumerate(sorted(labels.iterdir())):
        if (i == kept) == (empty == "kept back"):
            nib.save(nib.Nifti1Image(0 * labels_of(path), nib.load(path).affine), path)
    (tmp_path / "table.json").write_text('{"1": "shell"}')
    arguments = ["--images", data / "images", "--labels", labels, "--label-table", tmp_path / "table.json"]
    arguments += ["--holdout", 1, "--seed", 7, "--name", "x", "-o", tmp_path / "out", *CPU]
    message = refused("train", *arguments)
    assert f"{told} holds any of the structures' values [1]" in message
    assert "or keep another number of cases back (--holdout)." in message


def test_a_training_reads_what_the_layout_of_bids_says(data, tmp_path):
    places = {"images": tmp_path / "set", "labels": tmp_path / "set" / "derivatives" / "manual"}
    for i in range(3):
        for kind, ending in (("images", "ct"), ("labels", "dseg")):
            folder = places[kind] / f"sub-{i}" / "ct"
            folder.mkdir(parents=True)
            shutil.copy(data / kind / f"case{i}.nii.gz", folder / f"sub-{i}_{ending}.nii.gz")
    (places["labels"] / "dseg.tsv").write_text("index\tname\n2\tcore\n")
    arguments = ["--images", tmp_path / "set", "--name", "x", "--preset", "tiny", "--steps", 1]
    _, told = mapseg("train", *arguments, "--spacing", 4, "-o", tmp_path / "out", *CPU)
    assert "structures: 2; CT at 4 x 4 x 4 mm." in told
    assert "The label maps hold 1, which set does not name (1 is in sub-0_dseg.nii.gz)" in told
    card = load_card(tmp_path / "out" / "x.safetensors")
    assert [label.name for label in card.labels] == ["structure 1", "core"]


def test_data_sets_that_a_manifest_joins_are_domains(model, data, tmp_path, monkeypatch):
    for site, cases in (("site-a", [0]), ("site-b", [1, 2])):
        (tmp_path / site).mkdir()
        for i in cases:
            for ours, theirs in (("images", "img"), ("labels", "label")):
                shutil.copy(data / ours / f"case{i}.nii.gz", tmp_path / site / f"c{i}_{theirs}.nii.gz")
    sites, sources = tmp_path / "sites.json", []
    mapseg("manifest", tmp_path / "site-a", tmp_path / "site-b", "-o", sites)

    class Watched(datasets.ScanSource):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            sources.append(self.groups)

    monkeypatch.setattr(datasets, "ScanSource", Watched)
    arguments = ["--images", sites, "--name", "x", "--preset", "tiny", "--spacing", 4, "--steps", 1]
    mapseg("train", *arguments, "-o", tmp_path / "t", *CPU)
    arguments = [tmp_path / "site-a" / "c0_img.nii.gz", "--source", sites, "--steps", 1, "--warmup", 0]
    mapseg("adapt", model, *arguments, "-o", tmp_path / "a", *CPU)
    assert sources == [[[0], [1, 2]], [], [[0], [1, 2]]]
    arguments = [sites, "--name", "x", "--preset", "tiny", "--spacing", 4, "--steps", 1]
    _, told = mapseg("pretrain", *arguments, "-o", tmp_path / "p", *CPU)
    assert "1 scans in site-a (sites.json), 2 scans in site-b (sites.json); MR at 4 x 4 x 4 mm." in told


def test_the_card_tells_how_a_model_came_about(trained, data):
    card = load_card(trained["model"])
    assert [label.value for label in card.labels] == [1, 2]
    assert card.provenance["cases"] == 3 and card.provenance["data"] == "images"
    assert card.provenance["steps"] == 40 and "torch" in card.provenance["versions"]
    places = [2.0 * np.argwhere(labels_of(data / "labels" / f"case{i}.nii.gz") == 2) for i in range(3)]
    longest = [np.log(np.linalg.eigvalsh(np.cov(p.T, bias=True) + np.eye(3) / 3)[-1]) / 2 for p in places]
    mean, deviation = card.priors["extents"]["2"][0]
    assert mean == pytest.approx(np.mean(longest), abs=1e-3)
    assert deviation == pytest.approx(np.std(longest, ddof=1), abs=1e-3)
    assert np.linalg.matrix_rank(card.priors["intensity"]["covariance"]) > 2


def test_training_starts_from_a_model_and_keeps_cases_back(model, data, tmp_path):
    options = tmp_path / "options.json"
    options.write_text('{"validate_every": 2, "patches": 1}')
    arguments = ["--images", data / "images", "--labels", data / "labels", "--name", "next", "--init", model]
    _, told = mapseg(
        "train", *arguments, "--holdout", 1, "--steps", 2, "--options", options, "-o", tmp_path / "t", *CPU
    )
    card = load_card(tmp_path / "t" / "next.safetensors")
    first = load_card(model)
    assert card.provenance["started_from"] == {"name": first.name, **first.provenance}
    assert card.provenance["held_out"] == 1
    dice = card.scores["kept back"]["mean_dice"]
    assert f"Dice {dice:.3f} on what was kept back, at step 2: case" in told  # which it was
    assert "case" not in card.model_dump_json().replace("cases", "")  # a file's name may be a person's
    assert "validation_dice" in (tmp_path / "t" / "metrics.jsonl").read_text(encoding="utf-8")
    arguments[-1] = "nobody"
    assert "Unknown model nobody" in refused("train", *arguments, "-o", tmp_path / "u", *CPU)


def test_structures_that_no_label_map_holds_are_told(data, tmp_path):
    table = tmp_path / "dataset.json"
    table.write_text('{"labels": {"background": 0, "shell": 1, "core": 2, "typo": 3}}')  # as nnU-Net has it
    arguments = ["--images", data / "images", "--labels", data / "labels", "--name", "x", "--preset", "tiny"]
    arguments += ["--spacing", 2, "--steps", 1, "--label-table", table, "-o", tmp_path / "t", *CPU]
    _, told = mapseg("train", *arguments)
    assert "No label map holds typo at 2 x 2 x 2 mm: these cannot be learnt." in told
    labels = load_card(tmp_path / "t" / "x.safetensors").labels
    assert [(label.value, label.name) for label in labels] == [(1, "shell"), (2, "core"), (3, "typo")]
    assert len({label.color for label in labels}) == 3


def test_voxels_far_from_a_millimetre_are_told_unless_a_size_is_chosen(data, tmp_path):
    scans, labels = tmp_path / "scans", tmp_path / "labels"
    for kind, folder in (("images", scans), ("labels", labels)):
        folder.mkdir()
        for path in (data / kind).iterdir():
            image = nib.load(path)
            nib.save(type(image)(image.dataobj, image.affine @ np.diag([2, 2, 2, 1])), folder / path.name)
    coarse = "Its voxels are far larger than 1 mm, which they become: that takes time and shows no more."
    told = f"case0.nii.gz, case1.nii.gz, case2.nii.gz: {coarse} --spacing chooses others."
    what = ["--name", "x", "--preset", "tiny", "--steps", 1]
    commands = [("train", ["--images", scans, "--labels", labels, *what]), ("pretrain", [scans, *what])]
    for command, arguments in commands:
        assert told in mapseg(command, *arguments, "-o", tmp_path / command, *CPU)[1]
        chosen = [*arguments, "--spacing", 2, "-o", tmp_path / f"{command}-2"]
        assert "far larger" not in mapseg(command, *chosen, *CPU)[1]


def test_values_of_the_other_modality_are_told(model, data, tmp_path):
    """CT that is taken for MR keeps no Hounsfield units, and no step would tell."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in (data / "images").iterdir():
        mr = nib.load(path)
        nib.save(nib.Nifti1Image(10 * mr.get_fdata(dtype=np.float32) - 1000, mr.affine), scans / path.name)
    name = ["--name", "x", "--steps", 1]
    sizes = ["--preset", "tiny", "--spacing", "2x2x3"]
    labelled = ["--images", scans, "--labels", data / "labels", *name]
    like_ct = "Its values go far below 0, as those of CT do, but it is taken for MR."
    told = f"case0.nii.gz, case1.nii.gz, case2.nii.gz: {like_ct} --modality says which it is."
    for command, what in (("train", labelled), ("pretrain", [scans, *name])):
        assert told in mapseg(command, *what, *sizes, "-o", tmp_path / command, *CPU)[1]
        arguments = [*what, *sizes, "--modality", "ct", "-o", tmp_path / f"{command}-ct", *CPU]
        assert "taken for" not in mapseg(command, *arguments)[1]
    stated = data_set(tmp_path / "set", scans, data / "labels", '{"channel_names": {"0": "CT"}}')
    for command, what in (("train", ["--images", stated, *name]), ("pretrain", [stated, *name])):
        _, told = mapseg(command, *what, *sizes, "-o", tmp_path / f"{command}-stated", *CPU)
        assert "CT at 2 x 2 x 3 mm" in told and "taken for" not in told
        assert (
            load_card(tmp_path / f"{command}-stated" / "x.safetensors", True).preprocessing.modality == "ct"
        )
    _, told = mapseg("train", *labelled, "--init", model, "-o", tmp_path / "init", *CPU)
    assert like_ct in told and "--modality" not in told
    assert like_ct in mapseg("segment", model, scans / "case0.nii.gz", "-o", tmp_path / "mr", *CPU)[0]
    ct, scan = tmp_path / "train-ct" / "x.safetensors", data / "images" / "case0.nii.gz"
    unlike_ct = (
        "Its values do not go far below 0, as Hounsfield units of air and fat do, but it is taken for CT."
    )
    assert unlike_ct in mapseg("segment", ct, scan, "-o", tmp_path / "ct", *CPU)[0]
    more = data / "images" / "case1.nii.gz"
    arguments = [model, scan, more, "--source", scans, "--source-labels", data / "labels", "--steps", 1]
    text, told = mapseg("adapt", *arguments, "--warmup", 0, "-o", tmp_path / "adapted", *CPU)
    assert f"case2.nii.gz: {like_ct}" in told
    told = f"Source scans: case0.nii.gz, case1.nii.gz, case2.nii.gz: {like_ct}"
    assert f"All: {told}" in text and text.count(told) == 1
    entries = json.loads((tmp_path / "adapted" / "report.json").read_text(encoding="utf-8"))["scans"]
    for entry in entries:  # front ends show it with the result
        assert all(told in side["notes"] for side in (entry, entry["source"], entry["adapted"]))


def test_a_value_that_no_structure_can_have_is_told_with_its_file(data, tmp_path):
    shutil.copytree(data / "labels", tmp_path / "labels")
    file = tmp_path / "labels" / "case1.nii.gz"
    nib.save(nib.Nifti1Image(labels_of(file).astype(np.int16) - 1, nib.load(file).affine), file)
    arguments = ["--images", data / "images", "--labels", tmp_path / "labels", "--name", "x"]
    told = refused("train", *arguments, "-o", tmp_path / "out", *CPU)
    assert f"{file} holds the value -1; those of structures go from 1 to 65535. Give a label table" in told


def test_a_grid_that_no_structure_survives_is_refused(data, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (data / "labels").iterdir():
        whole = nib.load(path)
        small = np.zeros(whole.shape, np.uint8)
        small[14, 15, 14] = 1
        nib.save(nib.Nifti1Image(small, whole.affine), labels / path.name)
    arguments = ["--images", data / "images", "--labels", labels, "--name", "x", "--preset", "tiny"]
    told = refused("train", *arguments, "--steps", 1, "--spacing", 19, "-o", tmp_path / "t", *CPU)
    assert "No structure of the label maps is left at 19 x 19 x 19 mm. Give a smaller --spacing" in told
    assert not (tmp_path / "t").exists()


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory):
    """Folder with an encoder that was pretrained on two domains; its names stand in the card."""
    pytest.importorskip("matplotlib", reason="needs the extra 'demo'")
    folder = tmp_path_factory.mktemp("pretrained")
    for name in ("north", "south"):
        (folder / name).mkdir()
    shutil.copy(data / "images" / "case0.nii.gz", folder / "north")
    for name in ("case1", "case2"):
        shutil.copy(data / "images" / f"{name}.nii.gz", folder / "south")
    options = folder / "options.json"
    options.write_text('{"picture_every": 2, "scans": 1, "checkpoint_every": 2}')
    arguments = [folder / "north", folder / "south", "--name", "seen", "--preset", "tiny", "--spacing", 2]
    arguments += ["--steps", 3, "--options", options, "-o", folder / "run", *CPU]
    text, told = mapseg("pretrain", *arguments)
    assert "step_000003.png" in text and "1 scans in north, 2 scans in south" in told
    assert "already there" in refused("pretrain", *arguments)
    return folder / "run"


def test_pretraining_leaves_an_encoder_its_record_and_pictures(encoder, monkeypatch):
    expected = ["metrics.jsonl", "seen.safetensors"]
    expected += [f"pictures/step_00000{step}.png" for step in (2, 3)]
    assert files(encoder) == sorted(expected)
    card = json.loads(mapseg("models", encoder / "seen.safetensors")[0])
    assert card["kind"] == "encoder" and card["labels"] == []
    domains = [(d["data"], d["cases"], d["images"]) for d in card["provenance"]["domains"]]
    assert domains == [("north", 1, "acquired"), ("south", 2, "acquired")]
    shown = card_on_a_terminal(encoder / "seen.safetensors", monkeypatch)
    assert "north, acquired; south, acquired; 3 steps" in shown


def test_training_starts_from_an_encoder_with_its_own_structures(encoder, data, tmp_path):
    from safetensors.torch import load_file

    start = encoder / "seen.safetensors"
    table = tmp_path / "table.json"
    table.write_text('{"1": "rind", "2": "core"}')
    options = tmp_path / "options.json"
    options.write_text('{"learning_rate": 1e-30, "weight_decay": 0, "patches": 1}')
    arguments = ["--images", data / "images", "--labels", data / "labels", "--options", options, *CPU]
    arguments += ["--init", start, "--steps", 1, "--label-table", table]
    mapseg("train", *arguments, "--name", "next", "-o", tmp_path / "t")
    model, card = load_model(tmp_path / "t" / "next.safetensors")
    assert [label.name for label in card.labels] == ["rind", "core"]
    assert card.architecture == load_card(start, encoder=True).architecture
    assert card.preprocessing.spacing == (2, 2, 2) and card.provenance["started_from"]["name"] == "seen"
    learnt = load_file(start)
    for name, tensor in model.encoder.state_dict().items():
        assert np.array_equal(tensor, learnt[f"encoder.{name}"])
    assert not any(name.startswith("head") for name in learnt)

    arguments[arguments.index(start)] = tmp_path / "t" / "next.safetensors"
    assert "brings its own label table" in refused("train", *arguments, "--name", "x", "-o", tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_encoders_are_listed_and_segment_nothing(encoder, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MAPSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    shutil.copy(encoder / "seen.safetensors", tmp_path / "home" / "models")
    assert "seen encoder only" in mapseg("models")[0]
    scan, out = data / "images" / "case0.nii.gz", tmp_path / "out"
    for task in ("segment", "adapt"):
        text = refused(task, "seen", scan, "-o", out)
        assert "seen.safetensors is a pretrained encoder, which cannot segment." in text
    assert "cannot segment" in refused(
        "evaluate", data / "labels", data / "labels", "-o", out, "--model", "seen"
    )
    assert not out.exists()


def test_pretraining_on_synthesised_images_without_pictures(anatomy, data, tmp_path, monkeypatch):
    from MAPSegLib.tasks import pretraining

    monkeypatch.setattr(pretraining, "find_spec", lambda name: None)
    result = api.pretrain(
        tmp_path / "p",
        "mixed",
        domains=data / "images",
        from_labels=anatomy,
        contrast="random",
        preset="tiny",
        preprocessing={"spacing": (4, 4, 4)},
        steps=2,
        threads=1,
    )
    assert files(tmp_path / "p") == ["metrics.jsonl", "mixed.safetensors"]
    domains = load_card(result["model"], encoder=True).provenance["domains"]
    assert [d["images"] for d in domains] == ["acquired", "synthesised, contrast random"]


def test_pretrainings_that_cannot_start(data, tmp_path):
    out = ["-o", tmp_path / "out", "--name", "x", *CPU]
    assert "give folders of scans, or from_labels" in refused("pretrain", *out)
    assert "does not exist" in refused("pretrain", tmp_path / "absent", *out)
    assert "label map" in refused("pretrain", data / "labels", *out)
    assert "none of FreeSurfer's codes" in refused("pretrain", "--from-labels", other_codes(tmp_path), *out)
    assert not (tmp_path / "out").exists()


def test_images_are_drawn_from_label_maps(anatomy, tmp_path):
    arguments = ["--count", 2, "--spacing", 4, "--contrast", "t2", "--seed", 3]
    for name in ("a", "b"):
        mapseg("synthesise", anatomy, "-o", tmp_path / name, *arguments)
    drawn = [f"{kind}/head_t2_00{k}.nii.gz" for kind in ("images", "labels") for k in (0, 1)]
    assert files(tmp_path / "a") == drawn
    pairs = [labels_of(tmp_path / "a" / name) for name in drawn]
    assert pairs[0].shape == pairs[2].shape and {2, 3, 41, 42} <= set(np.unique(pairs[2])) <= {
        0,
        2,
        3,
        10,
        41,
        42,
        49,
    }
    assert not np.array_equal(pairs[0], pairs[1])
    assert np.array_equal(pairs[0], labels_of(tmp_path / "b" / drawn[0]))
    refused("synthesise", anatomy, "-o", tmp_path / "a", *arguments)


def test_label_maps_are_all_read_before_an_image_is_written(anatomy, tmp_path):
    """And none is drawn that MAPSeg itself would not read."""
    shutil.copytree(anatomy, tmp_path / "maps")
    shutil.copy(other_codes(tmp_path) / "a.nii.gz", tmp_path / "maps" / "z.nii.gz")
    out = tmp_path / "out"
    assert "z.nii.gz: holds none of" in refused("synthesise", tmp_path / "maps", "-o", out, "--spacing", 4)
    head = nib.load(anatomy / "head.nii.gz")
    small = nib.Nifti1Image(labels_of(anatomy / "head.nii.gz"), np.diag([1.0, 1.0, 1.0, 1.0]), head.header)
    nib.save(small, tmp_path / "small.nii.gz")
    told = refused("synthesise", tmp_path / "small.nii.gz", "-o", out, "--spacing", 20)
    assert "small.nii.gz: its brain has fewer than 4 voxels of 20 mm along an axis." in told
    assert not out.exists()


def test_every_file_is_told_while_it_is_read(model, anatomy, data, tmp_path):
    """Even where no structures are looked for in the label maps beforehand: to read many scans takes minutes."""
    events = []

    def told() -> list[str]:
        read = [event for event in events if event.get("stage") == "read"]
        names = [f"{event['step']}/{event['steps']} {Path(event['scan']).name}" for event in read]
        events.clear()
        return names

    options = {"steps": 1, "patches": 1, "device": "cpu", "threads": 1}
    pairs, three = {"images": data / "images"}, [f"{i}/3 case{i}.nii.gz" for i in range(3)]
    api.train(
        tmp_path / "a", "a", **pairs, labels=data / "labels", init=model, report=events.append, **options
    )
    assert told() == three
    drawn = {"from_labels": anatomy, "preset": "tiny", "preprocessing": {"spacing": (4, 4, 4)}}
    api.train(tmp_path / "b", "b", **drawn, report=events.append, **options)
    assert told() == ["0/1 head.nii.gz"]
    job = {"source": data / "images", "source_labels": data / "labels", "preset": "paper", "warmup": 0}
    scan = data / "images" / "case0.nii.gz"
    api.adapt(model, [scan], tmp_path / "c", **job, report=events.append, **options)
    assert told() == ["0/1 case0.nii.gz", *three]


def test_training_on_synthesised_images(anatomy, tmp_path):
    arguments = ["--from-labels", anatomy, "--contrast", "random", "--preset", "tiny", "--spacing", 4]
    mapseg("train", *arguments, "--name", "head", "--steps", 2, "-o", tmp_path / "t", *CPU)
    card = load_card(tmp_path / "t" / "head.safetensors")
    assert 17 in [label.value for label in card.labels] and set(card.priors["extents"]) >= {"2", "41", "49"}
    assert card.provenance["images"] == "synthesised, contrast random"
