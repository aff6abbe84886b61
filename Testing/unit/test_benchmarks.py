"""What the benchmarks compare against and how they write: the published windows, the label codes, the tables."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import PAIRED, SINGLE, Thresholds, tiny_architecture, tiny_model

from MAPSegLib.config import AdaptationOptions
from MAPSegLib.datasets import cut_patches
from MAPSegLib.inference import predict_classes
from MAPSegLib.synthesis import brain_labels, merge_parcels

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from Benchmarks import (  # noqa: E402
    brain,
    costs,
    engine,
    oasis,
    published,
    reliability,
    shift,
    sizes,
    speed,
    step,
    tables,
    unknown,
)
from Benchmarks.commands import told  # noqa: E402


@pytest.mark.parametrize("patch", [32, 48, 64, 80, 96, 128])
def test_the_published_canvas_has_64_windows_27_of_them_distinct(patch):
    corners = published.windows((round(256 * patch / 96),) * 3, patch)
    assert (len(corners), len(set(corners))) == (64, 27)


def test_scans_are_centred_on_the_canvas_and_cut_where_they_do_not_fit():
    image = published.on_canvas(torch.ones(20, 101, 43), 16)  # canvas of 43
    assert image.shape == (43, 43, 43)
    filled = image.any(2).any(1).nonzero().flatten()
    assert (int(filled[0]), int(filled[-1])) == (11, 30)
    assert image[15].all()


def test_published_windows_agree_with_ours_where_the_model_looks_at_voxels_only(monkeypatch):
    monkeypatch.setattr(published, "_decode", Thresholds.decode)
    model, g = Thresholds(), torch.Generator().manual_seed(0)
    image = torch.rand(43, 20, 11, generator=g)
    assert torch.equal(published.segment(model, image), model.classify(image))


@pytest.mark.parametrize("shape", [(20, 43, 31), (19, 42, 8), (50, 44, 43)])
def test_what_lies_on_the_canvas_comes_back_to_its_place(shape):
    image = torch.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    back = speed._off_canvas(published.on_canvas(image, 16), shape)
    assert back.shape == shape and torch.equal(back[back > 0], image[back > 0])
    assert bool((back > 0).all()) == (max(shape) <= 43)


def test_ours_takes_of_the_canvas_what_a_scan_is_cropped_to():
    model, g = tiny_model(SINGLE), torch.Generator().manual_seed(0)
    scan = 0.1 + 0.9 * torch.rand(20, 17, 18, generator=g)
    image = published.on_canvas(scan, 16)  # canvas of 43
    box = tuple(slice((43 - n) // 2, (43 - n) // 2 + n) for n in scan.shape)
    classes = speed.segment_foreground(model, image)
    assert torch.equal(classes[box], predict_classes(model, scan, speed.OPTIONS).long())
    classes[box] = 0
    assert not classes.any()
    windows = speed.count_windows(32, published.on_canvas(torch.ones(40, 34, 36), 32))
    assert windows == ["windows", "64, of which 27 distinct", "8", "27"]


@pytest.mark.parametrize("labels", [SINGLE, PAIRED])
def test_the_head_as_described_gives_the_same_logits(labels):
    model = tiny_model(labels)
    features = [torch.rand(2, model.architecture.width, 4, 4, 4) for _ in range(2)]
    patches = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        ours, theirs = model.decode(*features, patches), published._decode(model, *features, patches)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_cells_are_whole_and_stretched():
    features = torch.rand(1, 2, 8, 8, 8)
    low, high = torch.tensor([0.25, 0.0, 0.3]), torch.tensor([0.75, 0.5, 0.8])
    part = published.cells_under(features, low, high, (4, 4, 4))
    assert torch.equal(part, features[:, :, 2:6, 0:4, 2:6])
    assert published.cells_under(features, low, low, (4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_a_published_step_trains_the_student_and_moves_the_teacher():
    student, teacher = tiny_model(SINGLE), tiny_model(SINGLE)
    start = [p.clone() for p in teacher.parameters()]
    optimizer, g = torch.optim.AdamW(student.parameters(), 0.01), torch.Generator().manual_seed(0)
    batch = cut_patches(torch.rand(20, 20, 20), 2, 16, 16, g)
    loss = published.adaptation_step(
        student, teacher, optimizer, batch, AdaptationOptions(ema_decay=0.5, mask_cube=4), g
    )
    assert np.isfinite(loss)
    for old, new, own in zip(start, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * own)
        assert not torch.equal(old, own)


def test_the_literal_formula_and_ours_give_the_same_loss(monkeypatch):
    monkeypatch.setitem(step.ARCHITECTURES, "tiny", tiny_architecture())
    row = step.measure("tiny", classes=4, pairs=1)
    assert len(row) == len(step.HEADER) and float(row[-1]) < 1e-5


def test_manual_codes_map_to_the_model_s_values_and_keep_their_side():
    values = {label.value: label for label in brain_labels()}
    assert set(oasis.FREESURFER.values()) <= set(values)
    for pair in oasis.STRUCTURES.values():
        assert [values[v].mirror for v in pair] == ([None] if len(pair) == 1 else list(pair[::-1]))
    assert (oasis.FREESURFER[100], oasis.FREESURFER[207]) == (42, 3)


def test_parcels_become_the_cortex_of_their_side():
    labels = np.array([0, 10, 1035, 2001, 11101, 12175, 251])
    assert merge_parcels(labels).tolist() == [0, 10, 3, 42, 3, 42, 251]


def test_sizes_bound_the_dice():
    one = np.array([[2.0, 1.0, 3.0], [2.0, 2.0, 1.0]]), np.full((2, 3), 60.0)
    other = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0]]), np.array([[50.0, 60.0, 70.0], [70.0, 60.0, 70.0]])
    first, second, third = sizes.table(one, other)
    assert first == ["myocardium", "2 ± 0", "1 ± 0", "2.00 ± 0.00", "0 ± 14", "1/2", "66.7 ± 0.0"]
    assert second[3:] == ["1.00 ± 0.00", "0 ± 0", "0/2", "100.0 ± 0.0"]
    assert third[-1] == "75.0 ± 35.4"


def test_mean_dice_is_over_the_seven_structures_only():
    reference = np.array([17, 53, 10, 2, 2])
    assert oasis.mean_dice(reference, reference) == 1.0
    assert oasis.mean_dice(np.array([17, 53, 0, 41, 41]), reference) == pytest.approx(2 / 3)


def test_real_pairs_have_their_sides_right(data_folder):
    volume, reference = oasis.load_pair(data_folder, oasis.SCANS[0])
    for left, right in oasis.SEVEN.values():
        x = [(np.argwhere(reference == v).mean(0) @ volume.affine[:3, :3].T)[0] for v in (left, right)]
        assert x[0] < x[1]


def test_probabilities_are_held_against_what_is_right(tmp_path):
    probability = np.array([[0.62, 0.98], [0.96, 1.0]])
    found = reliability.reliability(probability, np.array([[True, True], [False, True]]))
    assert found.voxels.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert np.isnan(found.right[0]) and (found.said[6], found.right[6]) == (0.62, 1.0)
    assert (found.said[9], found.right[9]) == (pytest.approx(0.98), pytest.approx(2 / 3))
    assert found.gap == pytest.approx((0.38 + 3 * abs(0.98 - 2 / 3)) / 4)
    reliability.draw({"native": found}, tmp_path / "picture.png")
    assert np.isnan(found.told).all()  # of four voxels, nothing can be said
    assert not np.isnan(found._replace(voxels=found.voxels * reliability.LEAST).told[found.voxels > 0]).any()
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_a_section_is_replaced_in_place(tmp_path, capsys):
    path = tmp_path / "RESULTS.md"
    for name, value in (("one", "1"), ("two", "2"), ("one", "**3**")):
        tables.write_section(name, f"about {name}", ["a", "b|c"], [[value, "x"]], path, command="python -m x")
    text = path.read_text(encoding="utf-8")
    assert text.index("<!-- one -->") < text.index("<!-- two -->") and text.count("## one") == 1
    assert "| **3** | x |" in text and "| 1 | x |" not in text and "b\\|c" in text
    assert "`python -m x`" in text and tables.machine() in text
    assert "about two" in capsys.readouterr().out


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="as many cells"):
        tables.markdown(["a", "b"], [["1"]])


def test_commands_name_no_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "scans"), "--changes", "sine 3.2"])
    assert str(tmp_path) not in tables.running_command()
    assert tables.running_command().endswith("--data scans --changes 'sine 3.2'")
    monkeypatch.setattr(
        "sys.argv", ["x", f"--data={tmp_path / 'scans'}", "--model", "models/own.safetensors"]
    )
    assert tables.running_command().endswith("--data=scans --model models/own.safetensors")


@pytest.mark.parametrize("benchmark", [brain, reliability, shift, sizes, speed, unknown])
def test_missing_data_are_told_in_a_sentence(benchmark, tmp_path, monkeypatch, capsys):
    words = ["--data", str(tmp_path / "none"), *(["--work", str(tmp_path)] if benchmark is shift else [])]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    assert told(benchmark.main) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error and len(error.splitlines()) == 1


def test_cases_of_an_earlier_version_are_run_again(tmp_path, monkeypatch):
    check = {"score": 0.8, "agreement": 0.8, "shape_deviation": 0.1, "eta": None, "dice": 0.7}
    found = dict.fromkeys(("source", "start", "adapted", "gated", "stop", "best"), 0.7) | {"chosen": "start"}
    found |= {"trusted": True, "start_trusted": True, "history": [check], "best_step": 0, "seconds": 1.0}
    done = []

    def run_case(candidates, scan, name, seed, data, options):
        done.append(scan)
        return found | {"scan": scan, "change": name, "seed": seed, "model": "brain-t1"}

    monkeypatch.setattr(shift, "run_case", run_case)
    monkeypatch.setattr(shift, "write_section", lambda *_: None)
    words = ["--data", str(tmp_path), "--work", str(tmp_path), "--seeds", "0", "--changes", "inverted"]
    for version, scans in ((1, ["1000"]), (1, ["1000", "1001"]), (2, ["1000"])):
        monkeypatch.setattr(shift, "VERSION", version)
        monkeypatch.setattr(sys, "argv", ["x", *words, "--scans", *scans])
        shift.main()
    assert done == ["1000", "1001", "1000"]


def test_a_federation_of_one_round_is_refused_before_it_is_run(capsys):
    with pytest.raises(SystemExit):
        engine.main(["--rounds", "1"])
    assert "two at least" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts in other units")
def test_the_memory_of_a_command_is_its_own(tmp_path):
    mine = np.ones(50_000_000)  # 0.4 GB
    for program, code in (("pass", 0), ("import sys; sys.exit(3)", 3)):
        command = costs.measured([sys.executable, "-c", program], tmp_path / "memory")
        assert subprocess.run(command).returncode == code
        assert 0.001 < costs.peak_gib(tmp_path / "memory") < 0.1 < mine.nbytes / 2**30
