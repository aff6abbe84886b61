"""What is said of a result: in the panel, in the clipboard, in files and in a saved scene."""

import csv
import io

import numpy as np
import pytest
import slicer
from MAPSegModule import images, item, result_texts
from MAPSegModule import scene as mrml

from .conftest import add_ball

NOTES = [
    "Segmented with brain-mr (score 0.91).",
    "Memory ran out on cuda; continued with 1 window(s) at once.",
]


@pytest.fixture
def result(scene):
    """A volume that came through, with two structures."""
    volume, labels = add_ball("head"), np.zeros((32, 38, 34), np.uint8)
    labels[:4], labels[4:8] = 4, 17
    node = mrml.load_labels(images.cut_labels(labels), volume, {})
    made = item.Item(volume.GetID(), "head", item.DONE, segmentation_id=node.GetID(), model="brain")
    made.shown, made.label_state, made.voxel_state = (
        "source",
        mrml.label_state(node),
        mrml.voxel_state(volume),
    )
    structures = [
        {"value": value, "structure": f"structure {value}", "volume_ml": 4.0, "confidence": 0.9}
        for value in (4, 17)
    ]
    made.result = {"trusted": True, "reason": "Looks well.", "notes": NOTES, "structures": structures}
    return made


def test_which_network_segmented_and_what_it_fell_back_to_is_told(result):
    for told in (result_texts.verdict(result), result_texts.as_text(result), result_texts.as_csv([result])):
        assert all(note in told for note in NOTES)
    result.result["notes"] = []
    assert result_texts.verdict(result).count("<br>") == 0


def test_a_saved_scene_tells_the_notes_of_a_result_and_not_of_a_preview(result):
    node = slicer.mrmlScene.GetNodeByID(result.segmentation_id)
    result.describe()
    assert node.GetAttribute("MAPSeg.Notes") == " ".join(NOTES)
    result.shown = "preview"
    result.describe()
    assert node.GetAttribute("MAPSeg.Notes") is None


def test_the_notes_are_those_of_the_result_shown(result):
    """Of two results, one may have lost islands that the other never had."""
    island = "Removed what lay apart from the largest piece: structure 4 0.5 ml."
    sides = {"source": {"notes": []}, "adapted": {"notes": [island]}}
    result.result |= sides | {"notes": [island], "chosen": "adapted"}
    node = slicer.mrmlScene.GetNodeByID(result.segmentation_id)
    for result.shown, told in (("adapted", True), ("source", False)):
        result.describe()
        assert (node.GetAttribute("MAPSeg.Notes") == island) == told
        assert (island in result_texts.verdict(result)) == told


def test_tables_name_the_values_of_label_maps(result):
    """A NIfTI file holds numbers alone."""
    lines = [line.split("\t") for line in result_texts.as_text(result).splitlines()]
    assert lines[-3:] == [
        ["Label value", "Structure", "Volume, ml", "Confidence"],
        ["4", "structure 4", "4.00", "90%"],
        ["17", "structure 17", "4.00", "90%"],
    ]
    rows = csv.DictReader(io.StringIO(result_texts.as_csv([result])))
    assert [(row["value"], row["structure"]) for row in rows] == [
        ("4", "structure 4"),
        ("17", "structure 17"),
    ]


def test_a_spreadsheet_computes_nothing_of_a_name(result):
    result.report["structures"][0]["structure"] = "=1+1"
    assert "\t'=1+1\t" in result_texts.as_text(result)
    rows = list(csv.reader(io.StringIO(result_texts.as_csv([result]))))
    assert "'=1+1" in rows[1]
