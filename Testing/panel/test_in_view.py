"""Which previews and results are in view, and what users have hidden."""

from types import SimpleNamespace

import slicer

from .scenes import make_result, preview, seen


def test_previews_are_seen_alone(result, tmp_path):
    second, run = make_result(tmp_path, "second")
    result.panel.results.add(second, run)
    for item in (result.item, second):
        slicer.mrmlScene.GetNodeByID(item.segmentation_id).GetDisplayNode().SetVisibility(True)
    again, mine = preview(result.item)
    result.panel.results.show_previews(again, mine)
    assert seen() == ["preview"]


def test_a_preview_that_the_user_hides_stays_hidden_when_it_is_renewed(result):
    """As to look at the scan below it."""
    run, mine = preview(result.item)
    result.panel.results.show_previews(run, mine)
    assert seen() == ["preview"]
    slicer.mrmlScene.GetNodeByID(mine.segmentation_id).GetDisplayNode().SetVisibility(False)
    result.panel.results.show_previews(run, mine)
    assert seen() == []
    run.items += preview(result.item)[0].items  # the first one of another volume
    result.panel.results.show_previews(run, mine)
    assert seen() == []


def test_a_result_that_the_user_hides_stays_hidden_when_further_ones_come(result, tmp_path):
    hidden = slicer.mrmlScene.GetNodeByID(result.item.segmentation_id).GetDisplayNode()
    assert seen() == ["ball MAPSeg"]
    hidden.SetVisibility(False)
    result.panel.results.add(make_result(tmp_path, "second")[0], result.run)  # of the same run
    result.panel.results.refresh()
    assert seen() == []
    result.ui.resultComboBox._real.activated.emit(0)  # the user asks for it
    assert seen() == ["ball MAPSeg"]


def test_when_the_volume_in_view_goes_previews_of_another_one_are_seen(result, tmp_path):
    from MAPSegModule import run

    second, other_run = make_result(tmp_path, "second")
    result.panel.results.add(second, other_run)
    items = [preview(item)[1] for item in (result.item, second)]
    slicer.mrmlScene.GetNodeByID(items[1].segmentation_id).SetName("other preview")

    def renewed():
        result.panel.run = SimpleNamespace(items=items)
        for item in items:
            result.panel._show_item(item)
        result.panel.run = None
        return seen()

    assert renewed() == ["preview"]
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(items[0].volume_id))
    items[0].state = run.FAILED
    assert renewed() == ["other preview"]


def test_a_result_comes_back_into_view_when_users_delete_the_preview_before_it(result):
    results = result.panel.results
    run, mine = preview(result.item)
    results.show_previews(run, mine)
    assert seen() == ["preview"] and "preview" in result.ui.verdictLabel.text
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(mine.segmentation_id))
    assert seen() == ["ball MAPSeg"] and "preview" not in result.ui.verdictLabel.text
    run.items += preview(result.item)[0].items  # that of another volume, which is not the one in view
    results.show_previews(run, mine)
    assert seen() == ["ball MAPSeg"] and "preview" not in result.ui.verdictLabel.text
    mine.segmentation_id = preview(result.item)[1].segmentation_id
    results.show_previews(run, mine)
    assert seen() == ["preview"] and "preview" in result.ui.verdictLabel.text
