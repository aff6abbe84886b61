"""Results as users treat them: edited, compared, overlaid, arranged in the slices, saved."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from Testing.host.pythonqt import dialogs

from .conftest import add_ball
from .scenes import add_slices, blocks, make_result, preview, seen


def voxels(item, value):
    """A structure's voxels, by the name that it has by its value."""
    node, volume = map(slicer.mrmlScene.GetNodeByID, (item.segmentation_id, item.volume_id))
    identifier = node.GetSegmentation().GetSegmentIdBySegmentName(f"structure {value}")
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume) > 0


def test_edits_are_not_lost_unasked(result):
    import qt

    item = result.item
    node, volume = map(slicer.mrmlScene.GetNodeByID, (item.segmentation_id, item.volume_id))
    result.click("sourceButton")  # nothing was edited, nothing is asked
    node.CreateClosedSurfaceRepresentation()
    node.GetDisplayNode().SetSegmentVisibility("Segment_1", False)
    result.click("adaptedButton")
    assert item.shown == "adapted"
    mine = node.GetSegmentation().AddEmptySegment("Segment_7", "mine")
    corner = np.zeros((32, 38, 34), np.uint8)
    corner[:3, :3, :3] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(corner, node, mine, volume)
    edited = voxels(item, 1)
    edited[30, 30, 30] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited.astype(np.uint8), node, "Segment_1", volume)

    dialogs.expect("message", qt.QMessageBox.Cancel)
    result.click("sourceButton")
    assert "ball were edited" in dialogs.asked[-1][1][0]
    assert item.shown == "adapted" and result.ui.adaptedButton.checked
    assert np.array_equal(voxels(item, 1), edited)
    dialogs.expect("message", qt.QMessageBox.Ok)
    result.click("sourceButton")
    assert item.shown == "source" and np.array_equal(voxels(item, 1), blocks() == 1)
    found = slicer.util.arrayFromSegmentBinaryLabelmap(node, mine, volume)
    assert np.array_equal(found > 0, corner > 0)  # what is not the model's stays


def test_results_are_called_as_their_volumes_are_by_now(result, tmp_path):
    result.item.result["adapted"]["structures"] = [{"structure": "structure 1", "volume_ml": 4.1}]
    slicer.mrmlScene.GetNodeByID(result.item.volume_id).SetName("patient 1")
    result.panel.enter()
    assert result.ui.resultComboBox.currentText == "patient 1  ·  tiny, adapted"
    result.click("copyTableButton")
    assert slicer.app.clipboard().text().startswith("Volume\tpatient 1\n")
    assert [row["volume"] for row in exported(result, tmp_path / "table.csv")] == ["patient 1"]
    dialogs.expect("save", str(tmp_path / "labels"))
    result.click("exportSegmentationButton")
    assert dialogs.asked[-1][1][1].endswith("patient_1_seg")


def test_another_result_of_a_volume_takes_nothing_away(result):
    """To compare is why users segment again; the adapted model of the first run took minutes."""
    from MAPSegModule import run, scene

    first, cleaned = result.item, []
    result.run.clean = lambda: cleaned.append(result.run)
    volume = slicer.mrmlScene.GetNodeByID(first.volume_id)
    second = run.Item(volume.GetID(), "ball", run.DONE, model="other", voxel_state=first.voxel_state)
    second.result = first.result["source"]
    labels = scene.load_labels(second.result["output"], volume, {})
    second.segmentation_id, second.label_state = labels.GetID(), scene.label_state(labels)
    second.shown = "source"
    other = SimpleNamespace(items=[second], running=False, has_model=False, clean=lambda: None)
    result.panel.results.add(second, other)
    box = result.ui.resultComboBox
    second.model, second.result = "tiny", first.result
    result.panel.enter()
    assert [box.itemText(i) for i in range(box.count)] == [
        "ball  ·  tiny, adapted",
        "ball  ·  tiny, adapted (2)",
    ]
    second.model, second.result = "other", first.result["source"]
    result.panel.enter()
    assert [box.itemText(i) for i in range(box.count)] == ["ball  ·  tiny, adapted", "ball  ·  other"]
    assert result.panel.results.item is second and seen() == ["ball MAPSeg_1"]
    box.setCurrentIndex(0)
    assert result.panel.results.item is first and seen() == ["ball MAPSeg"]
    assert result.ui.saveModelButton.enabled and not cleaned
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(first.segmentation_id))
    assert result.panel.results.item is second
    assert result.ui.saveModelButton.enabled and not cleaned  # nobody has asked whether the model may go


def test_a_model_that_helped_no_volume_is_saved_after_a_question(screen, tmp_path):
    import qt

    item, run = make_result(tmp_path, chosen="source")
    screen.panel.results.add(item, run)
    dialogs.expect("message", qt.QMessageBox.Cancel)
    screen.click("saveModelButton")
    assert "kept for no volume" in dialogs.asked[-1][1][0]


def test_a_doubtful_result_is_told_where_the_end_is(screen):
    from MAPSegModule import run

    items = [run.Item("", name, run.DONE, result={"trusted": name == "good"}) for name in ("good", "bad")]
    screen.panel._finished(SimpleNamespace(items=items, exit_code=0, error=""))
    told = screen.ui.statusLabel.text
    assert "Done in" in told and "Do not rely on the result of bad." in told and "✓" not in told


def test_the_buttons_say_what_is_shown_when_switching_fails(result, problems):
    import qt

    Path(result.item.files["source"]).unlink()
    dialogs.expect("message", qt.QMessageBox.Ok)
    result.click("sourceButton")
    assert "could not be shown" in dialogs.asked[-1][1][0] and "RuntimeError" in problems.pop()
    assert result.item.shown == "adapted"
    assert result.ui.adaptedButton.checked and not result.ui.sourceButton.checked


def edit(item):
    """Change the labels of a result by a voxel, as the Segment Editor does."""
    node, volume = map(slicer.mrmlScene.GetNodeByID, (item.segmentation_id, item.volume_id))
    edited = voxels(item, 1)
    edited[30, 30, 30] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited.astype(np.uint8), node, "Segment_1", volume)


def exported(screen, path):
    """The rows of the tables, as a file of them has them."""
    dialogs.expect("save", str(path))
    screen.click("exportTableButton")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_numbers_of_edited_labels_are_told_to_be_of_before(result, tmp_path):
    told = "The labels were edited since; these numbers are of the result before."
    result.item.result["adapted"]["structures"] = [{"structure": "structure 1", "volume_ml": 4.1}]
    result.click("copyTableButton")
    assert told not in slicer.app.clipboard().text() + result.ui.verdictLabel.text
    assert told not in exported(result, tmp_path / "before.csv")[0]["verdict"]
    edit(result.item)
    result.click("copyTableButton")
    assert told in slicer.app.clipboard().text() and told in result.ui.verdictLabel.text
    [row] = exported(result, tmp_path / "after.csv")
    assert told in row["verdict"] and (row["volume_ml"], row["trusted"]) == ("4.1", "True")

    result.item.show("source")
    result.panel.results.refresh()
    assert told not in result.ui.verdictLabel.text
    edit(result.item)
    result.panel.enter()
    assert told in result.ui.verdictLabel.text


def test_a_volume_that_changed_is_told_beside_the_verdict(result):
    volume = slicer.mrmlScene.GetNodeByID(result.item.volume_id)
    volume.SetOrigin(volume.GetOrigin())
    assert "Plausible" in result.ui.verdictLabel.text
    assert "volume has changed" not in result.ui.verdictLabel.text
    slicer.util.arrayFromVolume(volume)[:] = 0
    slicer.util.arrayFromVolumeModified(volume)
    result.panel.enter()
    assert "The volume has changed since" in result.ui.verdictLabel.text


def test_labels_that_a_registration_left_behind_are_told(result):
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    nodes = [
        slicer.mrmlScene.GetNodeByID(each) for each in (result.item.volume_id, result.item.segmentation_id)
    ]
    for node, told in zip(nodes, (True, False), strict=True):
        node.SetAndObserveTransformNodeID(moved.GetID())
        result.panel.enter()
        assert ("different transforms" in result.ui.verdictLabel.text) == told


def test_the_uncertainty_is_shown_over_its_own_result_alone(result):
    [view] = add_slices("Red")
    result.click("overlayCheckBox")
    assert view.GetForegroundVolumeID() == result.item.uncertainty_id
    result.click("sourceButton")  # the one not kept
    assert not result.ui.overlayCheckBox.enabled and not view.GetForegroundVolumeID()
    result.click("adaptedButton")
    assert result.ui.overlayCheckBox.enabled
    assert view.GetForegroundVolumeID() == result.item.uncertainty_id


def test_surfaces_go_over_to_the_other_result_and_away_with_their_button(result):
    segmentation = slicer.mrmlScene.GetNodeByID(result.item.segmentation_id).GetSegmentation()
    assert not result.ui.show3DButton.checked
    result.click("show3DButton")
    assert segmentation.ContainsRepresentation("Closed surface")
    result.click("sourceButton")
    assert segmentation.ContainsRepresentation("Closed surface") and result.ui.show3DButton.checked
    result.click("show3DButton")
    assert not segmentation.ContainsRepresentation("Closed surface")
    segmentation.CreateRepresentation("Closed surface")  # in another module
    assert result.ui.show3DButton.checked


def test_an_uncertainty_map_that_users_delete_is_offered_no_more(result):
    add_slices("Red")
    result.click("overlayCheckBox")
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(result.item.uncertainty_id))
    assert not result.ui.overlayCheckBox.enabled
    result.click("sourceButton")
    result.click("adaptedButton")
    assert not result.ui.overlayCheckBox.enabled


def test_a_result_that_users_delete_leaves_nothing_behind(result):
    """In the Data module: the panel has no button for it. Of the volume, nothing is done any more."""
    result.panel.volumes.set_state(result.item)
    assert "done" in result.state("ball")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    labels = slicer.mrmlScene.GetNodeByID(result.item.segmentation_id)
    assert hierarchy.RemoveItem(hierarchy.GetItemByDataNode(labels), True, True)
    assert result.ui.resultComboBox.count == 0 and result.rows() == []
    result.wait(lambda: "done" not in result.state("ball"), 5)


@pytest.mark.parametrize("module", ["MAPSeg", "Data"])
@pytest.mark.parametrize("what", ["segmentation_id", "uncertainty_id", "volume_id"])
def test_what_a_map_covers_comes_back_when_users_delete_it_or_its_result(result, what, module):
    [view], other = add_slices("Red"), add_ball("other").GetID()
    view.SetForegroundVolumeID(other)
    view.SetForegroundOpacity(0.3)
    result.click("overlayCheckBox")
    assert view.GetForegroundVolumeID() == result.item.uncertainty_id
    if module == "Data":
        slicer.modules.MAPSegWidget.exit()
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(getattr(result.item, what)))
    assert (view.GetForegroundVolumeID(), view.GetForegroundOpacity()) == (other, 0.3)
    slicer.modules.MAPSegWidget.enter()
    assert (view.GetForegroundVolumeID(), view.GetForegroundOpacity()) == (other, 0.3)


def test_slices_stay_as_users_arrange_them(screen, tmp_path, monkeypatch):
    fitted = []
    layers = slicer.util.setSliceViewerLayers
    monkeypatch.setattr(
        slicer.util, "setSliceViewerLayers", lambda **told: fitted.append(told) or layers(**told)
    )
    item, run = make_result(tmp_path)
    other = add_ball("other").GetID()
    red, yellow = add_slices("Red", "Yellow")
    results = screen.panel.results
    results.show_previews(run, item)
    assert [view.GetBackgroundVolumeID() for view in (red, yellow)] == [item.volume_id] * 2
    assert len(fitted) == 1
    yellow.SetBackgroundVolumeID(other)
    red.SetForegroundVolumeID(other)
    red.SetForegroundOpacity(0.3)

    def arranged():
        there = (yellow.GetBackgroundVolumeID(), red.GetForegroundVolumeID(), red.GetForegroundOpacity())
        return there == (other, other, 0.3) and len(fitted) == 1

    results.show_previews(run, item)
    assert arranged()
    results.add(item, run)
    results.refresh()
    assert arranged()
    second, _ = make_result(tmp_path, "second")
    results.add(second, run)
    assert arranged()
    screen.ui.resultComboBox.setCurrentIndex(1)
    assert [view.GetBackgroundVolumeID() for view in (red, yellow)] == [second.volume_id] * 2


def test_views_are_left_alone_while_another_module_is_shown(result):
    [view] = add_slices("Red")
    first, results = result.item, result.panel.results
    result.click("overlayCheckBox")
    slicer.modules.MAPSegWidget.exit()
    other = add_ball("other").GetID()
    view.SetBackgroundVolumeID(other)
    again, mine = preview(first)
    results.show_previews(again, mine)
    mine.result, mine.shown = first.result, "adapted"
    results.add(mine, again)
    results.refresh()
    assert seen() == ["ball MAPSeg", "preview"]
    assert (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()) == (other, first.uncertainty_id)
    slicer.modules.MAPSegWidget.enter()
    assert seen() == ["preview"]
    assert (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()) == (first.volume_id, None)

    view.SetBackgroundVolumeID(other)  # and what was arranged once is the user's
    slicer.modules.MAPSegWidget.exit()
    slicer.modules.MAPSegWidget.enter()
    assert view.GetBackgroundVolumeID() == other


def test_views_are_arranged_after_a_reload_too(screen, tmp_path):
    """The application reloads the module that is shown, and does not enter it anew."""
    slicer.modules.MAPSegWidget.onReload()
    [view] = add_slices("Red")
    item, run = make_result(tmp_path)
    screen.panel.results.add(item, run)
    assert view.GetBackgroundVolumeID() == item.volume_id


def test_views_of_another_module_are_left_alone_after_a_reload_too(screen, tmp_path):
    slicer.modules.mapseg.widgetRepresentation().exit()
    slicer.util.reloadScriptedModule("MAPSeg")
    [view] = add_slices("Red")
    screen.panel.results.add(*make_result(tmp_path))
    assert view.GetBackgroundVolumeID() is None


def test_what_was_left_to_arrange_does_not_pass_to_another_scene(result):
    from MAPSegModule import scene

    add_slices("Red")
    result.click("overlayCheckBox")
    slicer.modules.MAPSegWidget.exit()
    again, _ = preview(result.item)
    result.panel.results.show_previews(again, again.items[0])
    hidden = result.item.segmentation_id
    slicer.mrmlScene.Clear(False)
    uncertainty = scene.load_uncertainty(np.zeros((32, 38, 34), np.float32), add_ball("next"))
    [view] = add_slices("Red")
    view.SetForegroundVolumeID(uncertainty.GetID())
    stranger = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "stranger")
    stranger.CreateDefaultDisplayNodes()
    assert stranger.GetID() == hidden  # the danger
    slicer.modules.MAPSegWidget.enter()
    assert seen() == ["stranger"] and view.GetForegroundVolumeID() == uncertainty.GetID()


def test_what_users_worked_on_is_not_hidden(result, tmp_path):
    results, first = result.panel.results, result.item
    second, run = make_result(tmp_path, "second")
    results.add(second, run)
    assert seen() == ["second MAPSeg"]
    third, run = make_result(tmp_path, "third")
    slicer.mrmlScene.GetNodeByID(first.segmentation_id).GetSegmentation().AddEmptySegment("mine", "mine")
    slicer.mrmlScene.GetNodeByID(first.segmentation_id).GetDisplayNode().SetVisibility(True)
    edit(second)
    results.add(third, run)
    assert seen() == ["ball MAPSeg", "second MAPSeg", "third MAPSeg"]


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("patient1", "patient1.seg.nrrd"),
        (("patient1", "NIfTI label map"), "patient1.nii.gz"),
        (("patient1.2", "NRRD label map"), "patient1.2.nrrd"),
        (("patient1.nii", "Segmentation"), "patient1.nii"),
    ],
)
def test_labels_are_saved_in_the_format_asked_for(result, tmp_path, answer, written):
    name, kind = (answer, "") if isinstance(answer, str) else answer
    folder = tmp_path / "saved"
    folder.mkdir()
    dialogs.expect("save", (str(folder / name), kind))
    result.click("exportSegmentationButton")
    assert [path.name for path in folder.iterdir()] == [written]


def test_saving_is_no_edit_and_hides_none(result, tmp_path):
    """Slicer puts all layers of a segmentation into one as it writes them."""
    from MAPSegModule import images, scene

    item, corner = result.item, np.zeros((32, 38, 34), np.uint8)
    corner[:3, :3, :3] = 1
    node, volume = map(slicer.mrmlScene.GetNodeByID, (item.segmentation_id, item.volume_id))
    other = scene.load_labels(images.cut_labels(corner), volume, {}, "other").GetSegmentation()
    other.GetNthSegment(0).SetName("mine")
    assert node.GetSegmentation().CopySegmentFromSegmentation(other, "Segment_1")
    assert node.GetSegmentation().GetNumberOfLayers() == 2 and not item.edited
    for edited in (False, True):
        if edited:
            edit(item)
        dialogs.expect("save", str(tmp_path / f"{edited}.seg.nrrd"))
        result.click("exportSegmentationButton")
        assert node.GetSegmentation().GetNumberOfLayers() == 1 and item.edited is edited


def test_labels_do_not_replace_their_scan(result, tmp_path):
    import qt

    scan = tmp_path / "ball.nii.gz"
    scan.write_text("precious")
    volume = slicer.mrmlScene.GetNodeByID(result.item.volume_id)
    volume.AddDefaultStorageNode()
    volume.GetStorageNode().SetFileName(str(scan))
    dialogs.expect("save", str(scan))
    dialogs.expect("message", qt.QMessageBox.Ok)
    result.click("exportSegmentationButton")
    assert scan.read_text() == "precious"


def test_a_file_of_the_completed_name_is_not_replaced_unasked(result, tmp_path):
    import qt

    there = tmp_path / "patient1.seg.nrrd"
    there.write_text("precious")
    dialogs.expect("save", str(tmp_path / "patient1"))
    dialogs.expect("message", qt.QMessageBox.Cancel)
    result.click("exportSegmentationButton")
    assert there.read_text() == "precious"


def test_the_results_stay_closed_where_users_have_closed_them(result, tmp_path):
    """While several volumes are segmented, every result that comes would open them again."""
    section = result.ui.resultSection
    assert section.enabled and not section.collapsed  # by the first one
    section.collapsed = True
    result.panel.results.add(*make_result(tmp_path, "other"))
    assert section.collapsed


def test_colours_beside_the_structures_are_those_of_the_segments(result):
    """Which users may have changed in the Segmentations module."""
    item, table = result.item, result.ui.resultTable
    segmentation = slicer.mrmlScene.GetNodeByID(item.segmentation_id).GetSegmentation()
    segment = segmentation.GetNthSegment(0)
    item.report["structures"] = [{"structure": segment.GetName(), "volume_ml": 1.0, "confidence": 0.9}]
    for color, named in (((1, 0, 0), "#ff0000"), ((0, 0, 1), "#0000ff")):
        segment.SetColor(*color)
        result.panel.exit()
        result.panel.enter()
        shown = table.item(0, 0).icon().pixmap(14, 14).toImage().pixelColor(7, 7)
        assert shown.name() == named
