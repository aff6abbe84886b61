"""What only callers in Python meet: what they may pass, what is raised, and what a call leaves as it was."""

import ast
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import MAPSegLib
from MAPSegLib import api
from MAPSegLib.errors import InputError, MAPSegError, Stopped


def test_in_python_the_functions_are_found_by_their_names():
    names = {"segment", "adapt", "train", "pretrain", "evaluate", "list_models", "Predictor"}
    assert names <= set(dir(MAPSegLib))


def test_in_python_who_checks_types_finds_the_functions_too():
    tree = ast.parse(Path(MAPSegLib.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert {alias.asname for node in imports for alias in node.names} == set(MAPSegLib._PUBLIC)


@pytest.mark.parametrize("call", [api.evaluate, api.segment])
def test_in_python_every_failure_has_a_sentence(call, model, data, tmp_path, monkeypatch):
    def fail(*_given, **_named):
        raise ZeroDivisionError("nothing left")

    monkeypatch.setattr("MAPSegLib.tasks.evaluation.pair_cases", fail)
    monkeypatch.setattr("MAPSegLib.tasks.scans.collect_scans", fail)
    given = {"evaluate": (data / "labels", data / "labels"), "segment": (model, data / "images")}
    with pytest.raises(MAPSegError, match="Unforeseen failure, ZeroDivisionError: nothing left") as failure:
        call(*given[call.__name__], tmp_path / "out")
    assert isinstance(failure.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: api.segment("brain", 5, "o"), "scans: 5 is not a path"),
        (lambda: api.segment("brain", ["a.nii", None], "o"), "scans: None is not a path"),
        (lambda: api.segment("brain", None, "o"), "scans: None is not a path"),
        (lambda: api.segment("brain", b"a.nii", "o"), "scans: b'a.nii' is not a path"),
        (
            lambda: api.segment("brain", np.zeros((9, 9, 9)), "o"),
            "scans: ndarray is not a path.*save them first, or give them to a Predictor",
        ),
        (lambda: api.segment("brain", "a.nii", "o", report=True), "report: True is not a function"),
        (lambda: api.segment(None, "a.nii", "o"), "model: None is not a path"),
        (lambda: api.adapt("brain", "a.nii", None), "output: None is not a path"),
        (lambda: api.pretrain("o", "x", domains=None), "domains: None is not a path"),
        (lambda: api.train("o", "x", images=3), "images: 3 is not a path"),
        (lambda: api.evaluate("p", "r", "s", model=3), "model: 3 is not a path"),
    ],
)
def test_in_python_what_is_no_path_is_told(call, told):
    with pytest.raises(InputError, match=told) as refusal:
        call()
    assert refusal.value.advice and str(refusal.value).endswith(refusal.value.advice)


def test_in_python_what_a_report_raises_is_raised_as_it_is(model, data, tmp_path):
    def slip(event):
        if event.get("stage") == "segment":
            raise KeyError("no such field")

    with pytest.raises(KeyError, match="no such field"):
        api.segment(model, data / "images", tmp_path / "out", report=slip, device="cpu", threads=1)
    assert not (tmp_path / "out").exists()


def test_in_python_an_adaptation_can_be_stopped_by_every_event(model, data, tmp_path):
    """As by a report that looks at the clock, or at a button that stays pressed."""
    stages = []

    def stop(event):
        stages.append(event.get("stage"))
        raise Stopped

    scan = data / "images" / "case0.nii.gz"
    result = api.adapt(model, scan, tmp_path / "out", report=stop, steps=100, device="cpu", threads=1)
    assert len(result["scans"]) == 1 and (tmp_path / "out" / "case0_seg.nii.gz").is_file()
    assert {"read", "search", "segment"} <= set(stages) and "adapt" not in stages


def test_in_python_what_has_no_best_so_far_ends_where_it_is_stopped(model, data, tmp_path):
    def stop(event):
        raise Stopped

    with pytest.raises(Stopped):
        api.segment(model, data / "images", tmp_path / "out", report=stop, device="cpu", threads=1)
    assert not (tmp_path / "out").exists()


def test_in_python_a_training_leaves_the_callers_random_numbers_and_threads(data, tmp_path):
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    given = {"images": data / "images", "labels": data / "labels", "preprocessing": {"spacing": (2, 2, 2)}}
    api.train(tmp_path, "x", **given, preset="tiny", steps=1, device="cpu", threads=threads + 1)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("setting", ["no_grad", "inference_mode", "default dtype", "default device"])
def test_in_python_a_training_does_not_mind_what_the_caller_has_set(setting, data, tmp_path):
    import torch

    given = {"images": data / "images", "labels": data / "labels", "preprocessing": {"spacing": (2, 2, 2)}}
    options = {"preset": "tiny", "steps": 1, "device": "cpu", "threads": 1}
    with ExitStack() as settings:
        if setting == "default dtype":
            settings.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        elif setting == "default device":
            settings.enter_context(torch.device("meta"))
        else:
            settings.enter_context(getattr(torch, setting)())
        api.train(tmp_path / "model", "x", **given, **options)
        api.segment(
            tmp_path / "model" / "x.safetensors", data / "images", tmp_path / "out", device="cpu", threads=1
        )
        assert torch.is_grad_enabled() == setting.startswith("default")
        assert torch.get_default_dtype() == (torch.float64 if setting == "default dtype" else torch.float32)
        assert torch.get_default_device().type == ("meta" if setting == "default device" else "cpu")


def test_in_python_a_path_may_have_any_form(model, data, tmp_path):
    with os.scandir(data / "images") as entries:
        scan = next(entry for entry in entries if entry.name == "case0.nii.gz")
    result = api.segment(model, scan, tmp_path / "out", device="cpu", threads=1)
    assert [entry["file"] for entry in result["scans"]] == [scan.path]
