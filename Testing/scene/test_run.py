"""Volumes of the scene through the real worker, with the tiny model."""

import gc
import logging
import os
import signal
import threading
import unittest
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from MAPSegModule import images, selftest
from MAPSegModule import run as runs
from MAPSegModule import scene as mrml
from MAPSegModule.models import list_entries
from MAPSegModule.parameters import Parameters

from MAPSegLib.errors import InputError

from .conftest import FAST, add_ball, add_volume, eventually, harden, oblique, until, voxels_of


def in_group(group: int) -> list[int]:
    """Processes of a group that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, of = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[:3]
            except OSError:
                continue
            if int(of) == group and state != "Z":
                found.append(int(entry.name))
    return found


def test_two_volumes_of_which_one_is_bad(start, model):
    good = add_ball("good ❤ Schädel", affine=oblique())
    bad = add_volume(np.full((8, 8, 8), 3.0, np.float32), name="bad")
    changed, finished = [], []
    run = start([bad, good], uncertainty=True)
    run.item_changed.connect(lambda item: changed.append((item.name, item.state)))
    run.finished.connect(finished.append)
    run.wait()
    assert [item.state for item in run.items] == ["failed", "done"] and run.exit_code == 2
    assert "bad_1.nrrd" in run.items[0].message and finished == [run]
    assert changed == [
        ("bad", "running"),
        ("bad", "failed"),
        (good.GetName(), "running"),
        (good.GetName(), "done"),
    ]
    [node], [result] = run.segmentations, run.results
    written = sitk.GetArrayFromImage(sitk.ReadImage(result["output"]))
    assert np.array_equal(voxels_of(node, good), written) and set(np.unique(written)) == {0, 1, 2}
    assert node.GetName() == f"{good.GetName()} MAPSeg {model.stem}"
    assert result["output"].isascii()
    sure = slicer.mrmlScene.GetNodeByID(run.items[1].uncertainty_id)
    assert 0 <= slicer.util.arrayFromVolume(sure).min() < slicer.util.arrayFromVolume(sure).max() < 1
    assert sure.GetAttribute(mrml.UNCERTAINTY) == good.GetID()
    assert node.GetTransformNodeID() == good.GetTransformNodeID()


def test_an_adaptation_previews_and_switches_between_its_results(start):
    nodes = [add_ball("a", seed=1), add_ball("b", radius=6, seed=2)]
    seen = []
    options = {"steps": 6, "check_every": 2, "gate": False}
    run = start(nodes, adapt=True, minutes=1, preview_seconds=0.001, options=options)
    run.item_changed.connect(lambda item: seen.append((item.name, item.state, item.shown)))
    run.wait()
    assert run.exit_code == 0, run.error
    assert ("a", "running", "preview") in seen and ("b", "running", "preview") in seen
    assert [step for step, _ in run.eta_history] == [1, 2, 3, 4, 5, 6]
    item = run.items[0]
    assert item.shown == item.result["chosen"] == "adapted"
    for which in ("source", "adapted"):
        item.show(which)
        expected = images.read_array(item.files[which])
        assert np.array_equal(voxels_of(run.segmentations[0], nodes[0]), expected)
    with pytest.raises(InputError, match="no other result"):
        item.show("other")
    assert run.segmentations[0].GetDescription().startswith("MAPSeg ")
    run.segmentations[1].SetDescription("looked through by me")
    run.items[1].describe()
    assert run.segmentations[1].GetDescription() == "looked through by me"
    assert item.report["reason"] in run.segmentations[0].GetDescription()
    slicer.util.updateVolumeFromArray(nodes[0], np.zeros((9, 9, 9), np.float32))
    with pytest.raises(InputError, match="a was resampled since"):
        item.show("source")
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2
    kept = run.save_model("mine")
    assert [entry.name for entry in list_entries() if not entry.embedded] == ["mine"] and kept.path.is_file()


def test_every_run_names_its_segmentation_and_map_anew(start, model):
    volume = add_ball("a")
    there = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"a MAPSeg {model.stem}")
    names = [there.GetName()]
    for _ in range(2):
        run = start([volume], uncertainty=True)
        run.wait()
        map_id = run.items[0].uncertainty_id
        names += [run.segmentations[0].GetName(), slicer.mrmlScene.GetNodeByID(map_id).GetName()]
    assert len(set(names)) == 5 and all(name.startswith("a ") for name in names)


def test_stopping_keeps_the_best(start):
    run = start(
        [add_ball()], adapt=True, minutes=5, options={"steps": 10_000, "check_every": 2, "patience": 10**6}
    )
    until(run, lambda: run.step >= 3 and run.stage == "adapt")
    run.stop()
    run.wait()
    assert run.exit_code == 0 and run.items[0].state == "done" and run.step < 10_000


def test_cancelling_comes_back_at_once_and_leaves_no_process(start):
    run = start([add_ball()], adapt=True, minutes=5, options={"steps": 10_000})
    until(run, lambda: run.step >= 1 and run.stage == "adapt")
    group = run._queue.worker._process.pid
    assert in_group(group)
    run.cancel()
    assert run.running and run._queue.worker.running  # poll() sees the end
    run.wait()
    eventually(lambda: not in_group(group))
    assert run.exit_code == 4 and run.items[0].state == "cancelled" and not run.segmentations


def test_cancelling_while_the_worker_starts(start):
    run = start([add_ball()])
    until(run, lambda: run._queue is not None)
    group = run._queue.worker._process.pid
    run.cancel()
    run.wait()
    assert run.exit_code == 4
    eventually(lambda: not in_group(group))


def test_a_scan_that_is_done_after_a_cancel_is_not_loaded(start):
    run = start([add_ball()])
    until(run, lambda: run._queue is not None)
    [item] = run.items
    run.cancel()
    run._take({"event": "scan", "scan": item.file, "entry": {"output": item.file, "trusted": True}})
    assert not run._loads and not item.result
    run.wait()
    assert item.state == "cancelled" and not run.segmentations


def test_the_self_test_ends_where_no_worker_starts(scene, monkeypatch):
    def refuse(_queue):
        raise OSError("No such file")

    queue = selftest.Run.start.__globals__["Queue"]  # by now the module may have been loaded anew
    monkeypatch.setattr(queue, "start", refuse)
    with pytest.raises(AssertionError, match="The worker cannot be started: No such file"):
        selftest.check_cancel(unittest.TestCase())


def test_a_worker_that_dies_takes_only_the_scan_it_was_at(start):
    run = start([add_ball("first"), add_ball("second", seed=3)])
    until(run, lambda: run.items[0].state == "running")
    os.kill(run._queue.worker.pid, signal.SIGKILL)
    run.wait()
    assert [item.state for item in run.items] == ["failed", "done"] and run.exit_code == 2
    assert "memory" in run.items[0].message


def test_a_worker_that_dies_adapting_fails_all(start):
    run = start([add_ball("first"), add_ball("second")], adapt=True, minutes=5, options={"steps": 10_000})
    until(run, lambda: run.stage == "adapt")
    os.kill(run._queue.worker.pid, signal.SIGKILL)
    run.wait()
    assert {item.state for item in run.items} == {"failed"} and run.exit_code == 1 and "memory" in run.error


def test_closing_the_scene_cancels(start, scene):
    run = start([add_ball()], adapt=True, minutes=5, options={"steps": 10_000})
    until(run, lambda: run.stage == "adapt")
    group = run._queue.worker._process.pid
    scene.Clear(False)
    run.wait()
    assert run.exit_code == 4 and run.items[0].state == "cancelled"
    eventually(lambda: not in_group(group))


def test_scans_leave_the_disk_with_the_worker_and_results_with_their_run(scene, model):
    run = runs.Run([add_ball()], Parameters(str(model), device="cpu", options=FAST))
    run.start()
    while run.stage == "export":
        assert run.poll()
    [item] = run.items
    assert Path(item.file).is_file()
    run.wait()
    assert not Path(item.file).exists() and Path(item.files["source"]).is_file()
    folder = Path(item.file).parent
    del run
    gc.collect()
    assert not folder.exists()


def test_a_run_that_ends_over_its_exports_waits_for_them(start, monkeypatch):
    """What is being written then would be left behind."""
    begun, go_on = threading.Event(), threading.Event()
    write = images.Snapshot.write

    def slowly(snapshot, path):
        begun.set()
        assert go_on.wait(60)
        return write(snapshot, path)

    monkeypatch.setattr(images.Snapshot, "write", slowly)
    run = start([add_ball("a"), add_ball("b")])
    assert begun.wait(60)
    run.cancel()
    for _ in range(3):
        assert run.poll()
    go_on.set()
    run.wait()
    assert run.exit_code == 4 and not Path(run.items[0].file).parent.exists()


def test_labels_follow_voxels_that_a_transform_was_hardened_on(start):
    """During the run and after it: the labels are of the voxels, wherever these lie."""
    volume = add_ball()
    options = {"steps": 4, "check_every": 2}
    run = start([volume], adapt=True, minutes=1, preview_seconds=0.001, options=options)
    until(run, lambda: run.items[0].shown == "preview")
    harden(volume)
    run.wait()
    [item] = run.items
    assert item.state == "done" and not item.volume_changed
    for which in ("source", "adapted", "source"):
        item.show(which)
        assert np.array_equal(voxels_of(run.segmentations[0], volume), images.read_array(item.files[which]))
        harden(volume)


def test_voxels_of_another_size_are_told(start):
    """The geometry of a file without one is corrected in the Volumes module; the volumes in ml are of before."""
    volume = add_ball()
    run = start([volume])
    volume.SetSpacing(1, 1, 3)
    run.wait()
    [item] = run.items
    assert item.state == "done" and item.resized and item.result["trusted"] is False


@pytest.mark.parametrize("shape", [(32, 38, 34), (9, 9, 9)])
def test_a_volume_that_is_resampled_meanwhile_is_told_so(start, shape):
    """Even to as many voxels: they are others, and lie elsewhere."""
    volume = add_ball()
    run = start([volume])
    until(run, lambda: run.stage != "export")
    slicer.util.updateVolumeFromArray(volume, np.zeros(shape, np.float32))
    volume.SetOrigin(30, 0, 0)
    run.wait()
    assert run.items[0].state == "failed"
    assert run.items[0].message == "scan was resampled during the run."


def test_a_volume_whose_image_is_taken_away_meanwhile_fails_alone(start):
    emptied, stays = add_ball("emptied"), add_ball("stays")
    run = start([emptied, stays])
    until(run, lambda: run.stage != "export")
    emptied.SetAndObserveImageData(None)
    run.wait()
    assert [item.state for item in run.items] == ["failed", "done"]
    assert run.items[0].message == "The voxels of emptied were taken away during the run."


def test_a_result_that_cannot_be_shown_fails_alone_and_says_why(start, monkeypatch):
    """As where the application's memory runs out over it: a slot of Qt would swallow the error."""
    made = mrml._oriented_image

    def exhausted(labels, volume):
        if volume.GetName() == "large":
            raise MemoryError
        return made(labels, volume)

    monkeypatch.setattr(mrml, "_oriented_image", exhausted)
    run = start([add_ball("large"), add_ball("small")])
    run.wait()
    assert [item.state for item in run.items] == ["failed", "done"]
    assert run.items[0].message == "The result cannot be shown: MemoryError"
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == run.segmentations


def test_waiting_ends_with_the_application(start, monkeypatch):
    """Its last window is closed while the console waits: the application could not quit before the run's end."""
    run = start([add_ball()], adapt=True, minutes=5, options={"steps": 10_000})
    monkeypatch.setattr(
        slicer.app, "processEvents", lambda: run.stage == "adapt" and slicer.app.lastWindowClosed()
    )
    run.wait()
    assert run.exit_code == 4 and run.items[0].state == "cancelled"
    slicer.app.lastWindowClosed()  # nobody listens any more


def test_a_volume_whose_voxels_change_meanwhile_is_not_trusted(start):
    """The labels lie on the same grid, and are of another picture."""
    changed, same = add_ball("changed"), add_ball("same", seed=1)
    run = start([changed, same])
    until(run, lambda: run.stage not in ("export", "start"))
    slicer.util.arrayFromVolume(changed)[:] = 0
    slicer.util.arrayFromVolumeModified(changed)
    same.SetName("renamed")
    run.wait()
    assert [item.state for item in run.items] == ["done", "done"] and len(run.segmentations) == 2
    told = "The volume changed during the run, and the labels are of what it was before."
    assert [item.message.startswith(told) for item in run.items] == [True, False]
    assert run.results[0]["trusted"] is False and run.results[0]["reason"].startswith(told)
    assert not any(item.volume_changed for item in run.items)  # since then
    slicer.util.arrayFromVolumeModified(same)
    assert run.items[1].volume_changed


def test_a_volume_that_leaves_the_scene_fails_alone(start, scene):
    gone, stays = add_ball("gone"), add_ball("stays")
    run = start([gone, stays])
    scene.RemoveNode(gone)
    run.wait()
    assert [item.state for item in run.items] == ["failed", "done"]
    assert run.items[0].message == "The volume left the scene."


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"model": "brian-t1"}, "Unknown model brian-t1"),
        ({"device": "abacus"}, "no device abacus"),
        ({"adapt": True, "minutes": 0}, "between 0 and 600"),
        ({"adapt": True, "source_folder": "nowhere"}, "source scans nowhere do not exist"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_starts(start, choices, told):
    with pytest.raises(InputError, match=told):
        start([add_ball()], **choices)


@pytest.mark.parametrize("scans", [1, 4])
def test_minutes_are_those_of_all_volumes_together(scans):
    """To the worker they are those of each scan."""
    files = [f"{number}.nrrd" for number in range(scans)]
    job = Parameters(adapt=True, minutes=6).to_job(files, "out")
    assert job["options"]["minutes"] * scans == 6


def test_options_that_do_not_exist_fail_the_run_with_the_workers_sentence(start):
    run = start([add_ball()], options={"patchez": 3})
    run.wait()
    assert run.exit_code == 2 and "patchez" in run.error and run.items[0].message == run.error


def test_what_the_worker_tells_of_source_scans_is_in_the_applications_log(caplog):
    """Results tell it as well, once there are some."""
    caplog.set_level(logging.INFO)
    told = {"event": "log", "message": "case0.nii.gz: its label map is empty."}
    runs.Run([], Parameters())._take(told)
    assert caplog.messages == [told["message"]]


def test_cleaning_ends_the_worker_and_deletes_the_files(start):
    run = start([add_ball()], adapt=True, minutes=5, options={"steps": 10_000})
    until(run, lambda: run.stage == "adapt")
    group, folder = run._queue.worker._process.pid, Path(run.items[0].file).parent
    run.clean()
    assert run.exit_code == 4 and not folder.exists()
    eventually(lambda: not in_group(group))
