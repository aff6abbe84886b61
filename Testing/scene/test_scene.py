"""Label maps and segmentations on real MRML: voxel for voxel, by name, and as seen in a view."""

import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from MAPSegModule import images, overlay
from MAPSegModule import scene as mrml
from MAPSegModule.models import find_entry

from MAPSegLib.volumes import read_labels
from Testing.host import batch as files
from Testing.host import render

from .conftest import add_ball, add_volume, matrix_of, oblique, voxels_of

CARD = {
    "labels": [
        {"value": 1, "name": "left thalamus", "color": [255, 0, 0], "terminology": "SCT^42695009^Thalamus"},
        {"value": 5, "name": "right thalamus", "color": [0, 0, 255], "terminology": "SCT^42695009^Thalamus"},
        {"value": 300, "name": "brain stem", "color": [0, 200, 0], "terminology": "SCT^119238007^Brain Stem"},
        {"value": 7, "name": "nowhere", "color": [9, 9, 9]},
    ]
}
GEOMETRIES = {
    "plain": np.diag([2.0, 2.0, 2.0, 1.0]),
    "oblique": oblique((0.7, 1.3, 2.9)),
    "mirrored": oblique((0.7, 1.3, 2.9), mirrored=True),
    "permuted": np.array([[0, 0, 2.5, -7], [-1.5, 0, 0, 3], [0, 1.1, 0, 9], [0, 0, 0, 1]], float),
}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def volume(scene, rng, request):
    return add_volume(rng.random((11, 13, 17), np.float32), request.param)


@pytest.fixture
def labels(rng):
    """A map without symmetry: labels 1, 5 and 300 at random, with an empty rim of its own on every side."""
    found = np.zeros((11, 13, 17), np.uint16)
    found[1:9, 2:12, 3:16] = rng.choice([0, 1, 5, 300], (8, 10, 13))
    found[1, 2, 3] = found[8, 11, 15] = 5
    return found


def written(tmp_path, labels, volume, name="labels.nrrd"):
    """The map as a file on the volume's grid, as the worker writes it."""
    snapshot = images.Snapshot.of(volume)
    return images.Snapshot(labels, snapshot.spacing, snapshot.origin, snapshot.direction).write(
        tmp_path / name
    )


@pytest.mark.parametrize("name", ["labels.nrrd", "labels.nii.gz", "labels.mha"])
def test_labels_return_voxel_for_voxel(volume, labels, tmp_path, name):
    node = mrml.load_labels(written(tmp_path, labels, volume, name), volume, CARD)
    assert np.array_equal(voxels_of(node, volume), labels)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_exported_volumes_lie_where_the_node_does(volume, tmp_path):
    path = images.Snapshot.of(volume).write(tmp_path / "out.nrrd")
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), slicer.util.arrayFromVolume(volume))
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    for index in ((0, 0, 0), (16, 12, 10), (3, 0, 9)):
        here = matrix.MultiplyPoint((*index, 1))[:3]
        assert np.allclose(
            image.TransformIndexToPhysicalPoint(index), np.multiply(here, (-1, -1, 1)), atol=1e-9
        )


def test_a_transform_moves_volume_and_segments_alike(volume, labels, tmp_path):
    """In world coordinates, the centre of a segment is the centre of its voxels in the moved volume."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(
        matrix_of(oblique((1, 1, 1), (1.0, 0.4, -0.7), origin=(100, -50, 30)))
    )
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    assert node.GetTransformNodeID() == transform.GetID()
    assert np.array_equal(voxels_of(node, volume), labels)
    matrix, world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    transform.GetMatrixTransformToWorld(world)
    k, j, i = np.argwhere(labels == 300).mean(0)
    expected = world.MultiplyPoint(matrix.MultiplyPoint((i, j, k, 1)))[:3]
    assert node.CreateClosedSurfaceRepresentation()
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation("Segment_300", surface)
    everywhere = np.array(surface.GetBounds()).reshape(3, 2).mean(1)  # without the parent transform
    box = np.argwhere(labels == 300)
    middle = (box.min(0) + box.max(0)) / 2
    corners = [matrix.MultiplyPoint((*middle[::-1], 1))[:3]]
    assert np.allclose(everywhere, corners, atol=1.5 * max(volume.GetSpacing()))
    centre = node.GetSegmentCenterRAS("Segment_300")
    assert np.allclose(centre, expected, atol=3 * max(volume.GetSpacing()))


def test_segments_have_names_colours_and_codes(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD, "result")
    segmentation = node.GetSegmentation()
    assert node.GetName() == "result"
    assert segmentation.GetSegmentIDs() == ("Segment_1", "Segment_5", "Segment_300")
    told = {}
    for identifier in segmentation.GetSegmentIDs():
        segment, entry = segmentation.GetSegment(identifier), vtk.reference("")
        segment.GetTag(segment.GetTerminologyEntryTagName(), entry)
        told[segment.GetName()] = (np.round(np.multiply(segment.GetColor(), 255)).tolist(), str(entry))
    kind = (
        "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    )
    region = "Anatomic codes - DICOM master list~^^~^^"
    assert told == {
        "left thalamus": ([255, 0, 0], f"{kind}~SCT^42695009^Thalamus~SCT^7771000^Left~{region}"),
        "right thalamus": ([0, 0, 255], f"{kind}~SCT^42695009^Thalamus~SCT^24028007^Right~{region}"),
        "brain stem": ([0, 200, 0], f"{kind}~SCT^119238007^Brain Stem~^^~{region}"),
    }


def test_values_that_the_card_does_not_know_get_numbers(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, {"labels": []})
    names = [node.GetSegmentation().GetNthSegment(i).GetName() for i in range(3)]
    assert names == ["structure 1", "structure 5", "structure 300"]


def test_an_empty_map_makes_no_segments(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, np.zeros_like(labels), volume), volume, CARD)
    assert node.GetSegmentation().GetNumberOfSegments() == 0
    mrml.replace_labels(node, written(tmp_path, labels, volume), volume, CARD)
    assert np.array_equal(voxels_of(node, volume), labels)


def test_replacing_keeps_what_the_user_set(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    segmentation.GetSegment("Segment_1").SetName("mine")
    display.SetSegmentVisibility("Segment_5", False)
    other = np.where(labels == 300, 7, labels[::-1])
    mrml.replace_labels(node, written(tmp_path, other, volume, "other.nrrd"), volume, CARD)
    assert np.array_equal(voxels_of(node, volume), other)
    assert set(segmentation.GetSegmentIDs()) == {f"Segment_{v}" for v in np.unique(other) if v}
    assert segmentation.GetSegment("Segment_1").GetName() == "mine"
    assert not display.GetSegmentVisibility("Segment_5") and display.GetSegmentVisibility("Segment_1")
    assert segmentation.GetNumberOfLayers() == 1


def test_replacing_leaves_segments_that_are_not_the_models(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    segmentation = node.GetSegmentation()
    corner = np.zeros(labels.shape, np.uint8)
    corner[-1, -1, -1] = 1
    for identifier in ("Segment_7", "mine"):  # the first as the model's segment for 7 would be called
        segmentation.AddEmptySegment(identifier, identifier)
        slicer.util.updateSegmentBinaryLabelmapFromArray(corner, node, identifier, volume)
    other = np.where(labels == 5, 7, labels)
    mrml.replace_labels(node, written(tmp_path, other, volume, "other.nrrd"), volume, CARD)
    for identifier in ("Segment_7", "mine"):
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume)
        assert np.array_equal(found > 0, corner > 0)
        segmentation.RemoveSegment(identifier)
    assert np.array_equal(voxels_of(node, volume), other)


def test_replacing_does_not_leave_old_surfaces(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    kind = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    other = written(tmp_path, np.roll(labels, 1, 0), volume, "other.nrrd")
    assert node.CreateClosedSurfaceRepresentation()
    mrml.replace_labels(node, other, volume, CARD)
    assert not node.GetSegmentation().ContainsRepresentation(kind)
    assert node.CreateClosedSurfaceRepresentation()
    before, after = vtk.vtkPolyData(), vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation("Segment_5", before)
    mrml.replace_labels(node, written(tmp_path, labels, volume), volume, CARD, surfaces=True)
    assert node.GetSegmentation().ContainsRepresentation(kind)
    node.GetClosedSurfaceRepresentation("Segment_5", after)
    assert not np.allclose(before.GetBounds(), after.GetBounds())


def test_maps_of_another_grid_are_refused(volume, labels, tmp_path):
    with pytest.raises(ValueError, match="not on the grid"):
        mrml.load_labels(images.cut_labels(labels[1:]), volume, CARD)
    reversed_slices = images.Snapshot.of(volume)
    shifted = images.Snapshot(labels, reversed_slices.spacing, (1, 2, 3), reversed_slices.direction)
    with pytest.raises(ValueError, match="not on the grid"):
        mrml.load_labels(shifted.write(tmp_path / "shifted.nrrd"), volume, CARD)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_left_handed_files_are_not_shown_mirrored(scene, labels, tmp_path):
    """Slicer's reader reverses their slices: a map of the file's own voxel order has to be refused, not flipped."""
    affine = oblique((1, 1, 2), mirrored=True)
    nib.save(nib.Nifti1Image(labels.astype(np.int16).transpose(2, 1, 0), affine), tmp_path / "scan.nii.gz")
    volume = files.read(
        slicer.vtkMRMLVolumeArchetypeStorageNode(), "vtkMRMLScalarVolumeNode", tmp_path / "scan.nii.gz"
    )
    assert np.array_equal(slicer.util.arrayFromVolume(volume), labels[::-1])
    with pytest.raises(ValueError, match="not on the grid"):
        mrml.load_labels(tmp_path / "scan.nii.gz", volume, CARD)
    node = mrml.load_labels(images.Snapshot.of(volume).write(tmp_path / "out.nrrd"), volume, CARD)
    assert np.array_equal(voxels_of(node, volume), labels[::-1])


def test_results_lie_beside_their_volume(scene, volume, labels, tmp_path):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "study")
    item = hierarchy.CreateItem(folder, volume)
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    sure = mrml.load_uncertainty(np.zeros((11, 13, 17), np.float32), volume)
    for one in (node, sure):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(one)) == folder
    assert hierarchy.GetItemParent(item) == folder


def test_label_maps_are_exported_with_the_models_values(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    for name in ("out.nii.gz", "out.nrrd", "out.seg.nrrd"):
        path = mrml.export_segmentation(node, volume, tmp_path / name)
        assert name == "out.seg.nrrd" or np.array_equal(images.read_array(path), labels)
        # Nothing is left that would be saved with the scene.
        assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    mine = node.GetSegmentation().AddEmptySegment("", "mine")
    mask = np.zeros_like(labels, np.uint8)
    mask[9:, 12:, 16:] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, mine, volume)
    again = images.read_array(mrml.export_segmentation(node, volume, tmp_path / "again.nii.gz"))
    assert np.array_equal(again, np.where(mask, 301, labels))


def test_a_result_without_structures_is_exported_as_an_empty_map(volume, labels, tmp_path):
    """As of a scan without the tumour that a model looks for."""
    node = mrml.load_labels(written(tmp_path, np.zeros_like(labels), volume), volume, CARD)
    for name in ("out.nii.gz", "out.nrrd"):
        path = mrml.export_segmentation(node, volume, tmp_path / name)
        assert not images.read_array(path).any()
        assert images.read_labels(path).lies_on(images.affine_of(volume))
    assert mrml.export_segmentation(node, volume, tmp_path / "out.seg.nrrd").is_file()
    assert not slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")


def test_copies_of_segments_are_exported_with_values_of_their_own(volume, labels, tmp_path):
    """Slicer's own *Clone* keeps name and tags; two segments of one name cannot be told apart."""
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    segmentation, copy = node.GetSegmentation(), slicer.vtkSegment()
    copy.DeepCopy(segmentation.GetSegment("Segment_5"))
    assert segmentation.AddSegment(copy)
    with pytest.raises(OSError, match="Two segments are called right thalamus; rename one"):
        mrml.export_segmentation(node, volume, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()
    assert not slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")
    mrml.export_segmentation(node, volume, tmp_path / "out.seg.nrrd")  # which goes by their IDs
    copy.SetName("mine")
    identifier = segmentation.GetSegmentIdBySegment(copy)
    mask = np.zeros_like(labels, np.uint8)
    mask[9:, 12:, 16:] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, identifier, volume)
    again = images.read_array(mrml.export_segmentation(node, volume, tmp_path / "again.nii.gz"))
    assert np.array_equal(again, np.where(mask, 301, labels))


def test_sheared_volumes_are_not_exported_as_nifti(scene, labels, tmp_path):
    """Slicer would set the axes upright, and the labels beside the scan."""
    sheared = oblique()
    sheared[:3, 1] += 0.2 * sheared[:3, 0]
    volume = add_volume(np.ones(labels.shape, np.float32), sheared)
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    with pytest.raises(OSError, match="not at right angles"):
        mrml.export_segmentation(node, volume, tmp_path / "out.nii.gz")
    kept = read_labels(mrml.export_segmentation(node, volume, tmp_path / "out.nrrd")).affine
    assert np.allclose(kept, sheared, atol=1e-4)


def test_segmentation_files_return(volume, labels, tmp_path):
    node = mrml.load_labels(written(tmp_path, labels, volume), volume, CARD)
    path = mrml.export_segmentation(node, volume, tmp_path / "out.seg.nrrd")
    again = files.read(slicer.vtkMRMLSegmentationStorageNode(), "vtkMRMLSegmentationNode", path)
    assert np.array_equal(voxels_of(again, volume), labels)
    segment, entry = again.GetSegmentation().GetSegment("Segment_5"), vtk.reference("")
    assert segment.GetName() == "right thalamus" and segment.GetColor() == (0.0, 0.0, 1.0)
    assert segment.GetTag(segment.GetTerminologyEntryTagName(), entry) and "SCT^24028007^Right" in str(entry)
    with pytest.raises(OSError, match="cannot be written"):
        mrml.export_segmentation(node, volume, tmp_path / "absent" / "out.seg.nrrd")


def test_scenes_are_saved_and_loaded(scene, volume, labels, tmp_path):
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turn")
    transform.SetMatrixTransformToParent(matrix_of(oblique((1, 1, 1))))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    mrml.load_labels(written(tmp_path, labels, volume), volume, CARD, "result")
    reason = 'Left: 3 % off; "small" <2 ml'
    mrml.set_attributes(slicer.util.getNode("result"), {"Trusted": "no", "Reason": reason, "Preview": None})
    voxels = slicer.util.arrayFromVolume(volume).copy()
    for node, kind, name in (
        (volume, slicer.vtkMRMLVolumeArchetypeStorageNode, "scan.nrrd"),
        (slicer.util.getNode("result"), slicer.vtkMRMLSegmentationStorageNode, "result.seg.nrrd"),
        (transform, slicer.vtkMRMLTransformStorageNode, "turn.h5"),
    ):
        storage = scene.AddNode(kind())
        storage.SetFileName(str(tmp_path / name))
        node.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(node)
    scene.SetRootDirectory(str(tmp_path))
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(True)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Connect()
    again, loaded = slicer.util.getNode("result"), slicer.util.getNode("scan")
    # Loaded files are right-handed: the slices of the left-handed grids are reversed, in both files alike.
    flipped = not np.array_equal(slicer.util.arrayFromVolume(loaded), voxels)
    assert np.array_equal(voxels_of(again, loaded), labels[::-1] if flipped else labels)
    assert again.GetParentTransformNode().GetName() == "turn" == loaded.GetParentTransformNode().GetName()
    assert again.GetSegmentation().GetSegment("Segment_300").GetName() == "brain stem"
    assert (again.GetAttribute("MAPSeg.Trusted"), again.GetAttribute("MAPSeg.Reason")) == ("no", reason)


@pytest.mark.parametrize("orientation", render.ORIENTATIONS)
@pytest.mark.parametrize("geometry", ["plain", "oblique", "mirrored", "permuted"])
def test_overlays_cover_what_they_label(scene, orientation, geometry, tmp_path):
    """A bright, lopsided body in a dark volume, labelled as it is: the picture's red covers its white, and no more."""
    body = np.zeros((40, 44, 48), np.uint8)
    body[10:30, 8:20, 12:40] = 1
    body[10:20, 20:36, 12:20] = 1
    body[24:30, 20:40, 34:40] = 1
    affine = GEOMETRIES[geometry].copy()
    affine[:3, :3] *= 2 / np.linalg.norm(affine[:3, :3], axis=0)  # as large as a head in the picture
    volume = add_volume(body.astype(np.float32) * 100, affine)
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    turn = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turn.SetMatrixTransformToParent(matrix_of(oblique((1, 1, 1), (0.1, 0.2, -0.1), origin=(5, 6, 7))))
    volume.SetAndObserveTransformNodeID(turn.GetID())
    card = {"labels": [{"value": 1, "name": "body", "color": [255, 0, 0]}]}
    node = mrml.load_labels(written(tmp_path, body, volume), volume, card)
    view = render.SliceView(orientation, (300, 300))
    view.show(volume)
    axis = {"Axial": 2, "Sagittal": 0, "Coronal": 1}[orientation]
    offset = render.middle_of(node)[axis] * (-1 if view.node.GetSliceToRAS().GetElement(axis, 2) < 0 else 1)
    node.SetDisplayVisibility(False)
    white = view.pixels(offset)[..., 1] > 127
    node.SetDisplayVisibility(True)
    picture = view.pixels(offset).astype(int)
    red = picture[..., 0] - picture[..., 1] > 50
    assert white.sum() > 1000
    # The edges are the volume's interpolation.
    assert np.count_nonzero(red & white) / np.count_nonzero(red | white) > 0.9
    assert np.count_nonzero(red & white[:, ::-1]) / np.count_nonzero(red | white) < 0.8


def test_uncertainty_is_shown_where_it_is(scene):
    volume = add_volume(np.full((20, 20, 20), 50, np.float32), np.diag([5.0, 5, 5, 1]))
    sure = np.zeros((20, 20, 20), np.float32)
    sure[5:15, 5:10, 5:15] = 0.7
    node = mrml.load_uncertainty(sure, volume)
    matrix, other = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.GetIJKToRASMatrix(other)
    assert np.array_equal(slicer.util.arrayFromVTKMatrix(matrix), slicer.util.arrayFromVTKMatrix(other))
    view = render.SliceView("Axial", (200, 200))
    overlay.show_overlay(volume, node)
    view.logic.FitSliceToBackground()
    coloured = np.ptp(view.pixels(50.0).astype(int), axis=2) > 30
    assert 0.08 < coloured.mean() < 0.25
    overlay.show_overlay(volume, None)
    assert not (np.ptp(view.pixels(50.0).astype(int), axis=2) > 30).any()
    with pytest.raises(ValueError, match="not on the grid"):
        mrml.load_uncertainty(sure[1:], volume)


@pytest.mark.parametrize("gone", [False, True])
def test_what_the_overlay_covers_comes_back(scene, gone):
    volume, other = add_ball("scan"), add_ball("PET")
    node = mrml.load_uncertainty(np.zeros((32, 38, 34), np.float32), volume)
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    composite.SetForegroundVolumeID(other.GetID())
    composite.SetForegroundOpacity(0.4)
    overlay.show_overlay(volume, node)
    overlay.show_overlay(volume, node)  # twice: the map itself is not what it covers
    assert composite.GetForegroundVolumeID() == node.GetID()
    if gone:
        scene.RemoveNode(other)
    overlay.show_overlay(volume, None)
    shown = composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()
    assert shown == ((None, 0.0) if gone else (other.GetID(), 0.4))


def test_removing_the_overlay_leaves_what_users_put_there(scene):
    volume, second = add_volume(np.zeros((5, 5, 5))), add_volume(np.zeros((5, 5, 5)), name="second")
    views = [scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode") for _ in range(2)]
    views[0].SetForegroundVolumeID(second.GetID())
    views[0].SetForegroundOpacity(0.3)
    views[1].SetBackgroundVolumeID(second.GetID())
    views[1].SetForegroundVolumeID(mrml.load_uncertainty(np.zeros((5, 5, 5), np.float32), volume).GetID())
    overlay.show_overlay(volume, None)
    assert views[0].GetForegroundVolumeID() == second.GetID() and views[0].GetForegroundOpacity() == 0.3
    assert not views[0].GetBackgroundVolumeID() and views[1].GetBackgroundVolumeID() == second.GetID()
    assert not views[1].GetForegroundVolumeID()


def test_loading_a_large_result(scene, tmp_path, rng, record_property):
    """256 voxels a side, 30 segments; the time is reported, not tested."""
    card = find_entry("brain-t1").card
    values = np.array([0, *(label["value"] for label in card["labels"][:30])], np.uint8)
    blocks = rng.integers(0, 31, (16, 16, 16))
    labels = values[np.kron(blocks, np.ones((16, 16, 16), int))]
    volume = add_volume(np.zeros((256, 256, 256), np.int16), oblique((1, 1, 1)))
    path = tmp_path / "labels.nrrd"
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(sitk.ReadImage(str(images.Snapshot.of(volume).write(tmp_path / "volume.nrrd"))))
    sitk.WriteImage(image, str(path), useCompression=True)
    began = time.perf_counter()
    read = images.read_labels(path)
    middle = time.perf_counter()
    node = mrml.load_labels(read, volume, card)
    ended = time.perf_counter()
    record_property("seconds_read", round(middle - began, 3))
    record_property("seconds_insert", round(ended - middle, 3))
    print(
        f"256³ with 30 segments: read in {middle - began:.2f} s, put into the scene in {ended - middle:.3f} s"
    )
    assert node.GetSegmentation().GetNumberOfSegments() == 30
    assert np.array_equal(voxels_of(node, volume), labels)
