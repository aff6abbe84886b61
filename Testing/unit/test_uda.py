"""The benchmark of domain adaptation: its splits, its tables, what it does not do twice, and all of it in small."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from model_cases import tiny_model

from MAPSegLib import inference
from MAPSegLib.config import InferenceOptions
from MAPSegLib.errors import InputError
from MAPSegLib.volumes import Volume

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from Benchmarks import ablation, claims, federated, parts, precision, stop  # noqa: E402
from Benchmarks.uda import data, grid, methods, report, tasks  # noqa: E402
from Benchmarks.uda.__main__ import GRID  # noqa: E402
from Testing import warm  # noqa: E402


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Workers do not import PyTorch anew."""
    if sys.platform == "linux":
        monkeypatch.setattr(subprocess, "Popen", warm.start)


def scores(*dice, distance=2.0):
    """Of as many scans, each with two structures of one Dice."""
    return [
        {
            "scan": f"{i}.nii.gz",
            "dice": dict.fromkeys("ab", d),
            "hd95": {"a": distance, "b": None},
            "measures": {"score": d - 0.1, "confidence": 1 - d},
            "trusted": d > 0.45,
        }
        for i, d in enumerate(dice)
    ]


def cell(method, seed, final, start=None, adapted=None, chosen=()):
    results = {"final": scores(*final)}
    if start:
        results |= {"start": scores(*start), "adapted": scores(*adapted)}
    costs = {"seconds": 60.0 + seed, "peak_gb": 1.5, "continued": seed == 2}
    return {"method": method, "seed": seed, "results": results, "chosen": list(chosen), **costs}


CELLS = [
    *(cell("source-only", seed, [0.40 + seed / 50, 0.50 + seed / 50]) for seed in (0, 1, 2)),
    *(
        cell(
            "test-time", seed, [0.48, 0.60], start=[0.50, 0.40], adapted=[0.48, 0.60], chosen=["adapted"] * 2
        )
        for seed in (0, 1, 2)
    ),
    *(cell("target-supervised", seed, [0.80, 0.90]) for seed in (0, 1, 2)),
]


def test_the_main_table_tells_means_deviations_and_the_share_of_the_gap():
    lines = {line[0]: line[1:] for line in report.main_table(CELLS)}
    assert list(lines) == ["source-only", "test-time", "test-time, ungated", "target-supervised"]
    assert lines["source-only"] == ["3", "47.0 ± 2.0", "2.0 ± 0.0", "0 %", "50 %", "60 s", "1.50 GiB"]
    assert lines["test-time"][1:4] == ["54.0 ± 0.0", "2.0 ± 0.0", "18 %"]
    assert lines["target-supervised"][3] == "100 %"
    assert all(len(line) == len(report.MAIN_HEADER) for line in report.main_table(CELLS))


def test_the_gap_needs_both_bounds_and_an_order_between_them():
    own = [c for c in CELLS if c["method"] == "test-time"]
    assert report.gap_closed(own, own, "final") == "–"
    bounds = [cell("source-only", 0, [0.9]), cell("target-supervised", 0, [0.8])]
    assert report.gap_closed([*bounds, *own], own, "final") == "no gap"


def test_one_seed_has_no_deviation_and_nothing_found_no_distance():
    assert report.spread([12.34]) == "12.3" and report.spread([np.nan]) == "–"


def test_the_gate_s_line_counts_harm_and_tells_the_worst():
    (line,) = report.gate_table(CELLS)
    assert line == [
        *("test-time", "6", "6/6", "+9.0"),
        *("3/6", "-2.0", "3/6", "-2.0"),  # one scan of two, with every seed
        *("0/6", "+4.0"),
    ]
    assert len(line) == len(report.GATE_HEADER)
    assert report.gate_table([c for c in CELLS if c["method"] != "source-only"])[0][-2:] == ["–", "–"]


def test_claims_are_held_against_the_dice():
    found = {claim: (cases, value) for claim, cases, value in report.claims_table(CELLS)}
    # By seed two of source-only; two starts, two adapted and two of target-supervised are the same with every seed.
    assert found["score follows Dice (Spearman)"] == ("12", "1.00")
    assert found["confidence follows Dice (Spearman)"] == ("12", "-1.00")
    assert found["gate: kept result at most 1 point below the other, where they differ"] == ("6", "3/6")
    assert found["verdict: collapsed, called untrusted"] == ("3", "3/3")
    assert found["verdict: others, called untrusted"] == ("9", "1/9")
    assert found["score follows Dice (Spearman), collapsed left out"] == ("9", "1.00")
    assert claims.table([claims.Result(0.5, {"eta": None})], [], None) == [
        ["eta follows Dice (Spearman)", "0", "–"]
    ]


def test_a_score_that_only_tells_what_has_collapsed_is_seen():
    told = {0.0: 0.1, 0.01: 0.2, 0.02: 0.3, 0.6: 0.9, 0.7: 0.8, 0.8: 0.7}
    results = [claims.Result(dice, {"score": score}) for dice, score in told.items()]
    whole, sound = claims.table(results, [], 0.8)
    assert whole == ["score follows Dice (Spearman)", "6", "0.77"]
    assert sound == ["score follows Dice (Spearman), collapsed left out", "3", "-1.00"]


def test_a_result_that_methods_share_counts_once_also_where_it_was_measured_otherwise():
    own, start = cell("source-only", 0, [0.40, 0.50]), [0.40, 0.50]
    adapting = cell("paper", 0, start, start, adapted=[0.48, 0.50], chosen=["start"] * 2)
    for scan in adapting["results"]["start"]:
        scan["measures"]["score"] += 0.3
    found = {claim: (cases, value) for claim, cases, value in report.claims_table([own, adapting])}
    assert found["score follows Dice (Spearman)"] == ("3", "1.00")  # by the source model's own measures


def test_structures_have_a_column_per_method():
    header, lines = report.structure_table(CELLS, "ab")
    assert header == ["structure", "source-only", "test-time", "target-supervised"]
    assert [line[0] for line in lines] == ["a", "b"] and lines[0][2] == "54.0 ± 0.0 / 2.0 ± 0.0"
    assert lines[1][2] == "54.0 ± 0.0 / –"


def test_splits_are_those_of_the_data_s_description(tmp_path):
    for name in ("cardiac_mscmr", "brain_labels"):
        (tmp_path / name).mkdir()
    cardiac = data.cardiac_split(tmp_path)
    names = {part: [pair.image.name for pair in pairs] for part, pairs in cardiac.items()}
    assert names["source"] == [f"patient{n:02d}_C0.nii.gz" for n in range(1, 26)]
    assert names["target"] == [f"patient{n:02d}_LGE.nii.gz" for n in range(1, 26)]
    assert names["test"] == [f"patient{n:02d}_LGE.nii.gz" for n in range(26, 36)]
    assert cardiac["test"][0].label.name == "patient26_LGE_manual.nii.gz"
    brain = {
        part: [int(path.name[13:15]) for path in maps] for part, maps in data.brain_split(tmp_path).items()
    }
    assert brain == {
        "source": list(range(1, 11)),
        "target": list(range(11, 17)),
        "test": list(range(17, 21)),
    }


def test_real_cases_are_there_and_in_one_part_each(data_folder):
    for split in (data.cardiac_split(data_folder), data.hippocampus_split(data_folder)):
        files = [file for pairs in split.values() for pair in pairs for file in (pair.image, pair.label)]
        assert len(set(files)) == len(files) and all(file.is_file() for file in files)
    assert [len(pairs) for pairs in data.hippocampus_split(data_folder).values()] == [16, 12, 12]
    assert all(path.is_file() for maps in data.brain_split(data_folder).values() for path in maps)


def test_slices_lie_along_the_last_axis_whatever_the_file_calls_it():
    affine = np.array([[0, 0, 5.0, 3], [-0.7, 0, 0, 4], [0, 0.8, 0, 5], [0, 0, 0, 1]])
    turned = data.upright(Volume(np.zeros((3, 4, 2), np.float32), affine))
    assert np.allclose(turned.affine, np.diag([0.7, 0.8, 5.0, 1.0]))
    told = data.upright(Volume(np.zeros((3, 4, 2), np.float32), affine), 0.6)
    assert np.allclose(told.affine, np.diag([0.6, 0.6, 5.0, 1.0]))


def test_hearts_have_one_size_in_both_sequences(data_folder):
    """Of the labelled structures together, per patient: bSSFP as the task takes it, and LGE."""
    split, ratios = data.cardiac_split(data_folder), []
    for source, target in zip(split["source"], split["target"], strict=True):
        sizes = []
        for pair, in_plane in ((source, data.BSSFP_IN_PLANE), (target, None)):
            labels = data.upright(data.read_labels(pair.label), in_plane)
            area = (labels.array > 0).sum((0, 1)).max() * np.prod(labels.spacing[:2])  # of the widest slice
            sizes.append(area)
        ratios.append(sizes[0] / sizes[1])
    assert 0.85 < np.median(ratios) < 1.2


def test_every_size_divides_its_steps_into_checks_and_has_valid_options():
    for task in tasks.TASKS.values():
        for size in task.sizes.values():
            for method in tasks.ADAPTING:
                assert 1 <= tasks.adaptation_options(size, method, 0)["check_every"] <= size.adapt_steps


def write_phantoms(folder, count=6):
    """Crops as those of the hippocampus: two structures of their own grey, in noise."""
    for kind in ("images", "labels"):
        (folder / "hippocampus" / kind).mkdir(parents=True)
    for i in range(count):
        g = np.random.default_rng(i)
        labels = np.zeros((24, 28, 24), np.uint8)
        labels[7:17, 4 + i : 14, 8:16], labels[7:17, 14:25, 8:16] = 1, 2
        image = np.array([300.0, 600.0, 900.0])[labels] + g.normal(0, 30, labels.shape)
        for kind, array in (("images", image.astype(np.float32)), ("labels", labels)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "hippocampus" / kind / f"case_{i}.nii.gz")


def test_a_small_run_writes_its_tables_and_is_not_run_again(tmp_path, monkeypatch, capsys):
    write_phantoms(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    words += ["--seeds", "0", "--methods", "source-strong", "paper"]
    assert GRID.main("", words) == 0
    text = (tmp_path / "work" / "hippocampus" / "smoke" / "RESULTS.md").read_text(encoding="utf-8")
    for name in ("uda hippocampus (smoke)", "source-strong", "paper, ungated", "anterior", "adapted kept"):
        assert name in text

    folder = tmp_path / "work" / "hippocampus" / "smoke"
    cells = grid.read(folder / "uda-hippocampus-smoke.jsonl")
    assert [cell["method"] for cell in cells] == ["source-strong", "paper"]
    assert cells[1] == methods.read_json(folder / "uda-0" / "paper.json", "a cell")

    def refuse(*_, **__):
        raise AssertionError("run again")

    for name in ("_supervised", "_adapting", "run_worker"):
        monkeypatch.setattr(methods, name, refuse)
    assert GRID.main("", words) == 0
    size = tasks.TASKS["hippocampus"].sizes["smoke"].model_copy(update={"adapt_steps": 5})
    with pytest.raises(InputError, match="other options"):
        GRID.cell(grid.Bench(tasks.TASKS["hippocampus"], size, folder / "scans", folder, 0), "paper")


def test_cells_of_other_seeds_are_added_if_they_were_made_alike(tmp_path):
    file, size = tmp_path / "cells.jsonl", tasks.TASKS["hippocampus"].sizes["cpu"]

    def settings(method, seed):
        return GRID.settings(size, method, seed)

    def made(method, seed, **changed):
        return cell(method, seed, [0.5]) | {"settings": settings(method, seed) | changed}

    GRID.keep(file, [made("plus", 1), made("plus", 0), made("paper", 0), made("paper", 1)])
    assert [(c["method"], c["seed"]) for c in grid.read(file)] == [
        ("paper", 0),
        ("paper", 1),
        ("plus", 0),
        ("plus", 1),
    ]
    again = made("plus", 0) | {"seconds": 1.0}
    found = GRID.added(file, [again, made("plus", 2)], size)
    assert [(c["method"], c["seed"]) for c in found] == [
        *(("plus", 0), ("plus", 2), ("paper", 0), ("paper", 1), ("plus", 1))
    ]
    assert found[0] == again and GRID.added(tmp_path / "none.jsonl", [again], size) == [again]


def test_cells_that_were_made_otherwise_are_not_lost_to_an_addition(tmp_path, monkeypatch, capsys):
    size = tasks.TASKS["hippocampus"].sizes["cpu"]
    old = [cell("paper", 0, [0.5]) | {"settings": GRID.settings(size, "paper", 0) | {"version": 0}}]
    monkeypatch.setattr(grid, "KEPT", tmp_path)
    file = tmp_path / "uda-hippocampus-cpu.jsonl"
    GRID.keep(file, old)
    words = [
        "hippocampus",
        "--data",
        str(tmp_path),
        "--work",
        str(tmp_path / "work"),
        "--seeds",
        "1",
        "--add",
    ]
    assert GRID.main("", words) == 2
    told = capsys.readouterr().err
    assert "other options" in told and "--add" in told and len(told.splitlines()) == 1
    assert grid.read(file) == old and not (tmp_path / "work").exists()


def test_seeds_that_are_added_are_told_in_order(tmp_path):
    write_phantoms(tmp_path)
    told = []
    counting = replace(
        GRID,
        run=lambda bench, name: {"results": cell(name, bench.seed, [0.5])["results"]},
        write=lambda _section, _task, _size, cells, _path: told.append(
            [(c["method"], c["seed"]) for c in cells]
        ),
    )
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert counting.main("", [*words, "--seeds", "1", "--methods", "plus"]) == 0
    assert counting.main("", [*words, "--seeds", "2", "0", "--methods", "plus", "paper", "--add"]) == 0
    assert told[1] == [("paper", 0), ("paper", 2), ("plus", 0), ("plus", 1), ("plus", 2)]


def test_what_is_asked_for_twice_counts_once(tmp_path):
    write_phantoms(tmp_path)
    found = cell("plus", 0, [0.5])
    counting = replace(GRID, run=lambda *_: {"results": found["results"]}, write=lambda *_: None)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert counting.main("", [*words, "--seeds", "0", "0", "--methods", "plus", "plus"]) == 0
    kept = grid.read(tmp_path / "work" / "hippocampus" / "smoke" / "uda-hippocampus-smoke.jsonl")
    assert [(c["method"], c["seed"]) for c in kept] == [("plus", 0)]


def test_a_training_that_is_done_is_not_run_again_and_another_is_refused_its_folder(tmp_path, monkeypatch):
    cost, job = (
        {"seconds": 3.0, "peak_gb": 1.0, "continued": False},
        {"task": "train", "options": {"steps": 4}},
    )
    asked = {"version": tasks.VERSION, "task": "train", "options": {"steps": 4}}
    grid.write_json(tmp_path / "cost.json", cost)
    monkeypatch.setattr(methods.subprocess, "Popen", lambda *_, **__: pytest.fail("run again"))
    for known in (None, asked | {"version": 0}, asked | {"options": {"steps": 5}}):
        if known:
            grid.write_json(tmp_path / "asked.json", known, overwrite=True)
        with pytest.raises(InputError, match="other options"):
            methods.run_worker(tmp_path, job, tmp_path / "checkpoint.pt")
    grid.write_json(tmp_path / "asked.json", asked, overwrite=True)
    assert methods.run_worker(tmp_path, job, tmp_path / "checkpoint.pt") == cost


@pytest.mark.parametrize("task", tasks.TASKS)
def test_missing_data_are_told_in_a_sentence(task, tmp_path, capsys):
    words = [task, "--data", str(tmp_path / "none"), "--work", str(tmp_path / "work")]
    assert GRID.main("", words) == 2
    told = capsys.readouterr().err
    assert "does not exist" in told and len(told.splitlines()) == 1


def test_without_collaboration_the_whole_scan_makes_no_difference(monkeypatch):
    model, patches = tiny_model(), torch.rand(2, 1, 32, 32, 32)
    box = torch.zeros(2, 3), torch.ones(2, 3)
    with torch.no_grad():
        first, second = (model(patches, torch.rand(1, 1, 32, 32, 32), *box) for _ in range(2))
        assert not torch.equal(first, second)
        with parts.apart(together=False):
            first, second = (model(patches, torch.rand(1, 1, 32, 32, 32), *box) for _ in range(2))
    assert torch.equal(first, second)
    scan, options = torch.rand(32, 32, 32), InferenceOptions(device="cpu", precision="fp32")
    views = [torch.rand(1, 1, 32, 32, 32) for _ in range(2)]
    seen = []
    for together, view in itertools.product((True, False), views):
        monkeypatch.setattr(inference, "resize_whole", lambda *_, view=view: view)
        with parts.apart(together):
            seen.append(inference.predict_classes(model, scan, options))
    assert not torch.equal(*seen[:2]) and torch.equal(*seen[2:])


def test_the_paper_s_ablation_trains_its_rows_once(tmp_path, monkeypatch, capsys):
    write_phantoms(tmp_path)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    words += ["--seeds", "0", "--rows", "MAE", "all", "all, 5 target scans"]
    assert parts.GRID.main("", words) == 0
    folder = tmp_path / "work" / "hippocampus" / "smoke"
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert all(f"| {row} | 1 |" in text for row in ("MAE", "all", "all, 5 target scans"))
    assert (folder / "parts-0" / "mae-0.7" / "encoder.safetensors").is_file()
    monkeypatch.setattr(parts, "_result", None)
    assert parts.GRID.main("", words) == 0


def test_parts_of_plus_are_taken_away_one_at_a_time(tmp_path, monkeypatch):
    write_phantoms(tmp_path)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert ablation.GRID.main("", [*words, "--seeds", "0", "--variants", "neither"]) == 0
    folder = tmp_path / "work" / "hippocampus" / "smoke"
    assert "| neither | 1 |" in (folder / "RESULTS.md").read_text(encoding="utf-8")
    (cell,) = grid.read(folder / "ablation-hippocampus-smoke.jsonl")
    assert cell["settings"]["recipe"]["strong"] is False and set(cell["results"]) == {"start", "final"}
    assert ablation.RECIPES["plus"] == ablation.PLUS


def test_a_training_in_each_precision_is_told(tmp_path):
    write_phantoms(tmp_path)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert precision.GRID.main("", [*words, "--seeds", "0"]) == 0
    folder = tmp_path / "work" / "hippocampus" / "smoke"
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    for name in precision.PRECISIONS:
        assert f"| {name} | 1 |" in text
        asked = grid.read_json(folder / f"supervised-{name}-0" / "asked.json", "a job")
        assert asked["options"]["precision"] == name
    cells = [cell("bf16", seed, [0.80 + seed / 100]) for seed in (0, 1)]
    cells += [cell("fp32", seed, [0.79 + seed / 50]) for seed in (0, 1)]
    table = report.comparison(cells, precision.PRECISIONS, "fp32")
    assert table[0][4] == "0.5 ± 0.7" and table[1][4] == ""


def test_every_check_of_an_adaptation_is_held_against_its_dice(tmp_path):
    write_phantoms(tmp_path)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert stop.GRID.main("", [*words, "--seeds", "0", "--methods", "test-time"]) == 0
    folder = tmp_path / "work" / "hippocampus" / "smoke"
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "| test-time | 1 |" in text and "eta of anterior follows Dice" in text
    assert (
        stop.GRID.main("", [*words, "--seeds", "0", "--methods", "test-time"]) == 0
    )  # what is done is known again
    (found,) = grid.read(folder / "stop-hippocampus-smoke.jsonl")
    steps = [check["step"] for check in found["checks"]]
    assert steps[0] == 0 and steps[-4:] == [1, 2, 3, 4]
    for index, dice in enumerate([0.5, 0.8, 0.6]):
        found["results"][str(index)] = scores(dice, dice)
    found |= {"checks": [{**found["checks"][-1], "step": i, "kept": i == 2} for i in range(3)]}
    found["results"]["final"] = found["results"]["2"]
    assert stop.table([found])[0][2:] == ["50.0", "60.0", "80.0", "60.0", "2", "20.0"]


def test_a_federation_is_held_against_its_source_model(tmp_path):
    write_phantoms(tmp_path, count=8)
    words = ["hippocampus", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--preset", "smoke"]
    assert federated.GRID.main("", [*words, "--seeds", "0", "--ways", "source model", "federated"]) == 0
    text = (tmp_path / "work" / "hippocampus" / "smoke" / "RESULTS.md").read_text(encoding="utf-8")
    assert "| federated | 1 |" in text and "| federated | 4 |" in text  # the table, and that of its cost
    assert federated.GRID.main("", ["brain-contrast", *words[1:]]) == 2


def test_what_leaves_a_site_is_told_as_a_median():
    sent = {name: {"bytes": n * 1e6, "used": n < 9} for name, n in zip("abcd", (1, 1, 7, 9), strict=True)}
    a_round = {"seconds": 8.0, "sites": sent, "bytes_to_a_site": 2e6}
    _, cost, _ = federated.tables([cell("federated", 0, [0.5]) | {"rounds": [a_round]}])
    assert cost == [["federated", "4", "8.0 s", "2.0 s", "2.00 MB", "1.00 MB"]]
