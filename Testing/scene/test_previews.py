"""What is in the scene while a run goes on, and whose it is by the end: the run's, or the users'."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import slicer
from MAPSegModule import images, item
from MAPSegModule import scene as mrml

from .conftest import add_ball, harden, until, voxels_of


def previewed(start, **options):
    """A long adaptation of one volume that has shown a preview, the volume and the preview."""
    volume = add_ball()
    options = {"steps": 10_000, "check_every": 2, "patience": 10**6} | options
    run = start([volume], adapt=True, minutes=5, preview_seconds=0.001, options=options)
    until(run, lambda: run.items[0].shown == "preview")
    return run, volume, slicer.mrmlScene.GetNodeByID(run.items[0].segmentation_id)


def in_a_corner() -> np.ndarray:
    """A few voxels of the volume that nothing else holds, as labels."""
    corner = np.zeros((32, 38, 34), np.uint8)
    corner[:3, :3, :3] = 1
    return corner


def with_users_segment(preview, volume) -> tuple[str, np.ndarray]:
    """A segment of users' own, in the label map of the model's: its ID and voxels."""
    mine, corner = preview.GetSegmentation().AddEmptySegment("", "mine"), in_a_corner()
    slicer.util.updateSegmentBinaryLabelmapFromArray(corner, preview, mine, volume)
    return mine, corner


def told_by(node) -> dict[str, str | None]:
    names = ("Model", "Preview", "Result", "Trusted", "Reason")
    return {name: node.GetAttribute(f"MAPSeg.{name}") for name in names}


def test_segmentations_say_what_they_hold(start, model):
    run, _, preview = previewed(start)
    nothing = dict.fromkeys(("Result", "Trusted", "Reason"))
    assert told_by(preview) == {"Model": model.stem, "Preview": "yes", **nothing}
    run.stop()
    run.wait()
    item = run.items[0]
    chosen = item.shown
    for which in ("source" if chosen == "adapted" else "adapted", chosen):
        item.show(which)
        side = item.result[which]
        trusted = {True: "yes", False: "no"}[side["trusted"]]
        told = {"Result": which, "Trusted": trusted, "Reason": side["reason"]}
        assert told_by(preview) == {"Model": model.stem, "Preview": None, **told}


def test_a_result_that_is_not_to_be_trusted_says_so_in_the_scene(start):
    run = start([add_ball()])
    run.wait()
    [item], [node] = run.items, run.segmentations
    for trusted, told in ((True, "yes"), (False, "no")):
        item.result["trusted"] = trusted
        item.describe()
        assert node.GetAttribute("MAPSeg.Trusted") == told
        assert ("Do not rely on it." in node.GetDescription()) is not trusted


def test_previews_are_called_so_until_the_result_is_there(start, model):
    run, volume, preview = previewed(start)
    assert preview.GetName() == f"{volume.GetName()} MAPSeg {model.stem} (preview)"
    run.stop()
    run.wait()
    assert run.segmentations == [preview] and preview.GetName() == f"{volume.GetName()} MAPSeg {model.stem}"


def test_what_ends_without_a_result_leaves_nothing(start):
    """Neither a preview in the scene nor the scan on the disk, without anybody's call of clean()."""
    for end in (lambda run: run.cancel(), lambda run: os.kill(run._queue.worker.pid, signal.SIGKILL)):
        run, _, preview = previewed(start)
        folder = Path(run.items[0].file).parent
        preview.AddDefaultStorageNode()
        end(run)
        run.wait()
        assert run.items[0].state in ("cancelled", "failed")
        assert preview.GetScene() is None and not folder.exists()
        for kind in ("vtkMRMLSegmentationDisplayNode", "vtkMRMLSegmentationStorageNode"):
            assert not slicer.util.getNodesByClass(kind)


def test_what_users_put_into_a_preview_stays(start):
    corner = in_a_corner()
    run, volume, preview = previewed(start)
    own = mrml.load_labels(images.cut_labels(corner), volume, {}, "own")
    segmentation = preview.GetSegmentation()
    assert segmentation.CopySegmentFromSegmentation(own.GetSegmentation(), "Segment_1")
    [mine] = mrml.users_segments(preview)
    run.cancel()
    run.wait()
    assert preview.GetScene() is not None and segmentation.GetSegmentIDs() == (mine,)
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(preview, mine, volume) > 0, corner > 0)
    assert not [name for name in preview.GetAttributeNames() if name.startswith("MAPSeg.")]


def test_a_segment_that_users_painted_into_a_preview_stays_alone(start):
    """It shares the label map with the model's, and is none of its."""
    run, volume, preview = previewed(start)
    mine, corner = with_users_segment(preview, volume)
    assert not run.items[0].edited
    run.cancel()
    run.wait()
    assert preview.GetScene() is not None and preview.GetSegmentation().GetSegmentIDs() == (mine,)
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(preview, mine, volume) > 0, corner > 0)


def test_painting_beside_the_models_segments_is_no_edit_of_them(scene):
    volume, labels = add_ball(), np.zeros((32, 38, 34), np.uint8)
    labels[4:9, 4:9, 4:9], labels[10:20, 10:20, 10:20] = 1, 2
    one = item.Item(volume.GetID(), "scan")
    one.put(images.cut_labels(labels), volume, "labels")
    segments = slicer.mrmlScene.GetNodeByID(one.segmentation_id).GetSegmentation()
    mine = segments.GetSegment(segments.AddEmptySegment("mine", "mine"))
    layer = mine.GetRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName())
    for voxel, edited in (((5, 12, 12), False), ((12, 12, 12), True)):  # (i, j, k); the second is the model's
        layer.SetScalarComponentFromDouble(*voxel, 0, mine.GetLabelValue())
        layer.Modified()
        before = one.label_state
        assert one.edited is edited and one.edited is edited
        assert (one.label_state == before) is edited  # what is no edit is not looked for again


def test_users_segments_go_along_with_voxels_that_a_transform_was_hardened_on(start):
    run, volume, preview = previewed(start)
    mine, corner = with_users_segment(preview, volume)
    harden(volume)
    run.stop()
    run.wait()
    found = slicer.util.arrayFromSegmentBinaryLabelmap(preview, mine, volume) > 0
    assert run.segmentations == [preview] and np.array_equal(found, corner > 0)


def paint(node, volume) -> np.ndarray:
    """Change a structure by a corner, as the Segment Editor does; returns its voxels."""
    painted = slicer.util.arrayFromSegmentBinaryLabelmap(node, "Segment_1", volume) > 0
    painted[:3, :3, :3] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(painted.astype(np.uint8), node, "Segment_1", volume)
    return painted


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_preview_that_users_edited_is_left_to_them(start, end):
    """What comes next gets a segmentation of its own, and only that one is taken back."""
    run, volume, preview = previewed(start)
    [item] = run.items
    painted = paint(preview, volume)
    until(run, lambda: item.segmentation_id != preview.GetID())
    following = slicer.mrmlScene.GetNodeByID(item.segmentation_id)
    assert following.GetName() != preview.GetName() and not item.edited
    getattr(run, end)()
    run.wait()
    left = slicer.util.arrayFromSegmentBinaryLabelmap(preview, "Segment_1", volume) > 0
    assert preview.GetScene() is not None and np.array_equal(left, painted)
    assert preview.GetAttribute("MAPSeg.Preview") == "yes"
    if end == "cancel":
        assert following.GetScene() is None and not run.segmentations
    else:
        [labels] = run.segmentations
        assert np.array_equal(voxels_of(labels, volume), images.read_array(item.files[item.shown]))


def test_a_closed_scenes_ids_are_forgotten_at_once(start, scene):
    run, _, _ = previewed(start)
    scene.Clear(False)
    stranger = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    run.wait()
    assert run.cancelled and run.exit_code == 4 and stranger.GetScene() is scene
    [item] = run.items
    assert (item.volume_id, item.segmentation_id, item.uncertainty_id) == ("", "", "")


def test_results_follow_a_volume_that_gets_a_transform_meanwhile(start, scene):
    run, volume, preview = previewed(start)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    run.stop()
    run.wait()
    assert run.segmentations == [preview] and preview.GetTransformNodeID() == transform.GetID()
