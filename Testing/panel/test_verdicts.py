"""What the panel says of results, and what it shows and keeps of them, as things go on around them."""

from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from Testing.host.pythonqt import dialogs

from .scenes import make_result, preview, seen


def test_the_verdict_tells_of_a_preview_that_is_in_the_slices(result):
    """Verdict and table are of the result before."""
    results, verdict = result.panel.results, result.ui.verdictLabel
    run, mine = preview(result.item)
    slicer.mrmlScene.GetNodeByID(mine.volume_id).SetName("patient 1")
    results.show_previews(run, mine)
    told = "A preview of patient 1 is in the slices. What is said here is of an earlier result: "
    assert told + "patient 1  ·  tiny, adapted." in verdict.text and "Plausible" in verdict.text
    results.enter()
    assert told in verdict.text
    results.refresh()  # the end of the run
    assert told not in verdict.text


@pytest.mark.parametrize("how", ["list", "button"])
def test_a_result_that_is_chosen_stays_in_view_while_previews_go_on(result, how):
    results = result.panel.results
    run, mine = preview(result.item)
    results.show_previews(run, mine)
    assert seen() == ["preview"]
    if how == "list":
        result.ui.resultComboBox._real.activated.emit(0)  # there is no other one to change to
    else:
        result.click("sourceButton")
    assert seen() == ["ball MAPSeg"] and "preview" not in result.ui.verdictLabel.text
    shown = slicer.mrmlScene.GetNodeByID(mine.segmentation_id).GetDisplayNode()
    shown.SetVisibility(True)  # as that of a new one is
    results.show_previews(run, mine)
    assert seen() == ["ball MAPSeg"] and "preview" not in result.ui.verdictLabel.text
    results.refresh()
    results.show_previews(run, mine)  # as if of a further run
    assert seen() == ["preview"]


def test_a_verdict_is_renewed_when_voxels_change(result):
    told = "The volume has changed since"
    volume = slicer.mrmlScene.GetNodeByID(result.item.volume_id)
    result.pause(0.5)  # the volume was looked at
    assert told not in result.ui.verdictLabel.text
    slicer.util.arrayFromVolume(volume)[:] = 0
    slicer.util.arrayFromVolumeModified(volume)
    result.wait(lambda: told in result.ui.verdictLabel.text, 10)


def test_volumes_of_voxels_of_another_size_are_told_to_be_of_before(result):
    from MAPSegModule import images

    volume = slicer.mrmlScene.GetNodeByID(result.item.volume_id)
    result.item.affine = images.affine_of(volume)
    volume.SetOrigin(3, 4, 5)
    result.panel.enter()
    assert "another size" not in result.ui.verdictLabel.text
    volume.SetSpacing(1, 1, 3)
    result.panel.enter()
    assert "another size since" in result.ui.verdictLabel.text


def test_an_adapted_model_outlives_its_results(result, tmp_path):
    """It took minutes, and nobody has asked whether it may go with the labels; the next one takes its place."""
    first, cleaned = result.run, []
    first.clean = lambda: cleaned.append(first)
    first.save_model = lambda name: SimpleNamespace(name=name)
    slicer.mrmlScene.Clear(False)
    assert not result.rows() and not cleaned
    assert "The adapted model can still be saved." in result.ui.verdictLabel.text
    for name in ("exportTableButton", "exportSegmentationButton", "copyTableButton", "resultComboBox"):
        assert not getattr(result.ui, name).enabled
    dialogs.expect("getText", "ball")
    result.click("saveModelButton")
    _parent, _title, asked, _mode, suggested = dialogs.asked[-1][1]
    assert (asked, suggested) == ("Name of the model that was adapted to ball:", "tiny-ball")
    item, run = make_result(tmp_path, "second")
    result.panel.results.add(item, run)
    assert cleaned == [first] and result.ui.exportTableButton.enabled
    assert "Plausible" in result.ui.verdictLabel.text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"volume_ml": 0.004, "confidence": 0.996}, ("<0.01", "99%")),
        ({"volume_ml": 0.0, "confidence": 1.0}, ("0.00", "100%")),
        ({"volume_ml": 0.014, "confidence": 0.695}, ("0.01", "69%")),
        ({"volume_ml": 3.14159, "confidence": 0.7}, ("3.14", "70%")),
        ({"volume_ml": 314.159, "confidence": 0.29}, ("314.2", "29%")),
        ({"volume_ml": 1.0, "confidence": np.nan}, ("1.00", "–")),
    ],
)
def test_what_is_below_a_limit_does_not_look_as_if_it_reached_it(screen, row, told):
    from MAPSegModule import result_texts

    assert result_texts.numbers(row) == told
