"""Label maps of the backend, opened and saved again by Slicer's own reader and writer of segmentations."""

import numpy as np
import pytest
import slicer
import vtk

from MAPSegLib.config import Label
from MAPSegLib.segments import segment_names, terminology_entry
from MAPSegLib.volumes import Volume, read_labels, write_volume

from .conftest import LEFT_HANDED, oblique


@pytest.mark.parametrize("affine", [np.array(LEFT_HANDED), oblique((0.7, 0.9, 1.3), mirrored=True)])
def test_slicer_opens_a_result_in_nrrd_with_names_and_saves_it_whole(affine, scene, tmp_path):
    labels = np.zeros((12, 13, 14), np.uint16)
    labels[2:4, 3:7, 5], labels[6:9, 10, 1:4] = 10, 300
    known = [
        Label(value=10, name="left thalamus", color=(0, 118, 14), terminology="SCT^42695009^Thalamus"),
        Label(value=300, name="lesion", color=(255, 0, 51)),
    ]
    given = write_volume(tmp_path / "a.seg.nrrd", labels, Volume(labels, affine), labels=known)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(given))
    assert storage.ReadData(node)

    segmentation = node.GetSegmentation()
    segments = [segmentation.GetSegment(identifier) for identifier in segmentation.GetSegmentIDs()]
    assert [(s.GetName(), s.GetLabelValue()) for s in segments] == [("left thalamus", 10), ("lesion", 300)]
    assert np.allclose(segments[1].GetColor(), (1, 0, 0.2), atol=1e-3)
    entry = vtk.reference("")
    assert segments[0].GetTag(segments[0].GetTerminologyEntryTagName(), entry)
    assert str(entry) == terminology_entry("left thalamus", "SCT^42695009^Thalamus")

    storage.SetFileName(str(tmp_path / "again.seg.nrrd"))
    assert storage.WriteData(node)
    again = read_labels(tmp_path / "again.seg.nrrd")
    assert np.array_equal(again.array, labels) and np.allclose(again.affine, affine)
    assert segment_names(tmp_path / "again.seg.nrrd") == {10: "left thalamus", 300: "lesion"}
