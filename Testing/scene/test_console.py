"""``MAPSegLogic`` as scripts use it, and the module's own self-tests on the stand-in application."""

import gc
import importlib
import sys
import time
import unittest

import numpy as np
import pytest
import slicer

from .conftest import FAST, add_ball, voxels_of


@pytest.fixture
def module(scene):
    return importlib.import_module("MAPSeg")


def test_segmenting_blocks_and_returns_nodes_and_results(module, model):
    volume, stages = add_ball(), []
    run = module.MAPSegLogic().segment(
        volume, model=str(model), onProgress=lambda run: stages.append(run.stage), device="cpu", **FAST
    )
    [node], [result] = run.segmentations, run.results
    assert set(np.unique(voxels_of(node, volume))) == {0, 1, 2}
    assert {"trusted", "reason", "structures"} <= set(result) and stages[-1] == "done"
    assert [row["structure"] for row in result["structures"]] == ["structure 1", "structure 2"]
    folder = run._folder
    gc.disable()
    try:
        del run  # the last reference, also where there is a callback
        assert not folder.exists()
    finally:
        gc.enable()


def test_callbacks_follow_a_run_behind_the_window(module, model, monkeypatch):
    """With the timer of ``qt``, which fires only while the event loop runs."""
    timers = []

    class Timer:
        def __init__(self):
            self.on = False
            timers.append(self)

        def setInterval(self, milliseconds):
            assert milliseconds == 50

        def connect(self, signal, receiver):
            assert signal == "timeout()"
            self.fire = receiver

        def start(self):
            self.on = True

        def stop(self):
            self.on = False

    monkeypatch.setitem(sys.modules, "qt", type(sys)("qt"))
    sys.modules["qt"].QTimer = Timer
    finished = []
    run = module.MAPSegLogic().adapt(
        [add_ball()],
        model=str(model),
        wait=False,
        onFinished=finished.append,
        minutes=1,
        device="cpu",
        **FAST | {"steps": 2, "check_every": 2, "search": False},
    )
    assert run.running and timers[0].on and not finished
    limit = time.monotonic() + 60
    while timers[0].on:
        timers[0].fire()
        time.sleep(0.02)
        assert time.monotonic() < limit
    assert finished == [run] and run.exit_code == 0 and len(run.segmentations) == 1
    folder = run._folder
    assert folder.is_dir()
    finished.clear()
    del run  # the last reference: what the timer calls lives as long as Qt
    gc.collect()
    assert not folder.exists()


def test_what_cannot_be_done_is_raised(module, model, monkeypatch):
    from MAPSegModule import dependencies

    from MAPSegLib.errors import InputError

    logic = module.MAPSegLogic()
    flat = slicer.util.addVolumeFromArray(np.ones((9, 9, 9), np.float32))
    with pytest.raises(RuntimeError, match="constant|single value|same value|no contrast|alike"):
        logic.segment(flat, model=str(model), device="cpu", **FAST)
    with pytest.raises(InputError, match="Unknown model"):
        logic.segment(flat, model="brian-t1")
    with pytest.raises(InputError, match="no volume"):
        logic.segment([], model=str(model))
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "labels")
    for given, told in (
        (labels, "labels is no volume"),
        ([flat, None], "None is no volume"),
        (["x"], "x is"),
    ):
        with pytest.raises(InputError, match=told):
            logic.segment(given, model=str(model))
    monkeypatch.setattr(dependencies, "missing", lambda: ["torch>=2.6"])
    with pytest.raises(RuntimeError, match="installDependencies"):
        logic.segment(flat, model=str(model))


def test_a_run_that_fails_leaves_no_scan_on_the_disk(module, model, monkeypatch, tmp_path):
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    flat = slicer.util.addVolumeFromArray(np.ones((9, 9, 9), np.float32))
    with pytest.raises(RuntimeError):
        module.MAPSegLogic().segment(flat, model=str(model), device="cpu", **FAST)
    assert not list(tmp_path.glob("MAPSeg-*"))


def test_the_modules_self_tests_pass(module):
    module.MAPSegTest().runTest()


def test_ctest_runs_every_self_test_by_its_name(module):
    found = unittest.TestLoader().loadTestsFromTestCase(module.MAPSegTest)
    assert sorted(test.id().rpartition(".")[2] for test in found) == ["test_cancel", "test_path"]


def test_without_pytorch_the_self_tests_say_what_to_do(module, monkeypatch, capsys):
    """And do not fail: "Reload and Test" knows no skipped tests."""
    monkeypatch.setattr("MAPSegModule.dependencies.missing", lambda: ["torch>=2.9"])
    try:
        module.MAPSegTest().runTest()
    except unittest.SkipTest:  # which would skip this test, too
        pytest.fail("the skipped test went on to the caller")
    assert "installDependencies() first: torch>=2.9 missing." in capsys.readouterr().out


def test_the_module_registers_its_sample(module, monkeypatch):
    registered = []
    logic = type(
        "SampleDataLogic", (), {"registerCustomSampleDataSource": lambda **told: registered.append(told)}
    )
    monkeypatch.setitem(sys.modules, "SampleData", type(sys)("SampleData"))
    sys.modules["SampleData"].SampleDataLogic = logic
    module.MAPSeg(type("Parent", (), {})())
    slicer.app.startupCompleted()
    [told] = registered
    assert told["category"] == "MAPSeg" and told["checksums"].removeprefix("SHA256:") in told["uris"]
