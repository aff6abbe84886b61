"""Between MRML and files: volumes out, label maps in as segmentations with names, colours and terminology.

All segments share one label map, as Slicer's own import makes it: no copy per structure, and a preview is one swap.
Importing through a labelmap node instead would rename structures whose colour table lacks a neighbour's value.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MAPSegLib.segments import terminology_entry

from .images import Labels, affine_of, is_sheared, read_labels, voxel_sums

VALUE_TAG = "MAPSeg.LabelValue"
"""Segment tag with the model's label value, which survives editing, unlike the segment's own."""
UNCERTAINTY = "MAPSeg.Uncertainty"
"""Attribute of uncertainty maps, with their volume's ID: they are no volumes to segment."""
_ATTRIBUTES = "MAPSeg."
"""What names of nodes' attributes begin with."""


def load_labels(
    labels: Labels | str | Path,
    volumeNode,
    card: dict[str, Any],
    name: str = "",
    grid: np.ndarray | None = None,
):
    """A label map on a volume's grid as a new segmentation node: beside the volume, under the same transform.

    Args:
        labels: a file, or what :func:`.images.read_labels` made of it.
        card: of the model; its ``labels`` give names, colours and codes. Other values get numbers as names.
        name: of the node; without, it is named after the volume, as no other node is.
        grid: the affine that the volume had when the map was made of it, if its voxels are still the same.

    Raises:
        ValueError: the label map is not on the volume's grid.
    """
    labels = _on_grid(labels, volumeNode, grid)
    name = name or slicer.mrmlScene.GenerateUniqueName(f"{volumeNode.GetName()} MAPSeg")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    place_beside(node, volumeNode)
    node.GetSegmentation().SetSourceRepresentationName(_labelmap())
    try:
        replace_labels(node, labels, volumeNode, card, grid=grid)
    except BaseException:  # nobody would know of the node
        remove(node)
        raise
    return node


def replace_labels(
    segmentationNode,
    labels: Labels | str | Path,
    volumeNode,
    card: dict[str, Any],
    surfaces: bool = False,
    grid: np.ndarray | None = None,
    carry: bool = False,
) -> None:
    """Put another label map of the same volume into a segmentation, where the volume is by now.

    Display settings of its segments stay, and so do segments that are not the model's.

    Args:
        surfaces: make 3D surfaces anew where there were some. It takes seconds: without, they go until asked for.
        grid: the affine that the volume had when the map was made of it, if its voxels are still the same.
        carry: users' segments go along where the volume got another geometry since the model's were put in.

    Raises:
        ValueError: the label map is not on the volume's grid.
    """
    labels = _on_grid(labels, volumeNode, grid)
    image = _oriented_image(labels, volumeNode)
    segmentation = segmentationNode.GetSegmentation()
    named = {int(label["value"]): label for label in card.get("labels", [])}
    surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    in_3d = segmentation.ContainsRepresentation(surface)
    modified = segmentationNode.StartModify()
    try:
        if in_3d:
            segmentation.RemoveRepresentation(surface)
        known = _model_segments(segmentation)
        if carry:
            _carry_along(segmentationNode, known.values(), image)
        segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        # After the transform: Slicer takes the geometry relative to the node's own.
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        for value in known.keys() - set(labels.values):
            segmentation.RemoveSegment(known[value])
        for value in labels.values:
            if value in known:
                segment = segmentation.GetSegment(known[value])
                segment.AddRepresentation(_labelmap(), image)
            else:
                segment = _segment(value, named.get(value, {}))
                segment.AddRepresentation(_labelmap(), image)
                segmentation.AddSegment(segment, segmentation.GenerateUniqueSegmentID(f"Segment_{value}"))
            segment.SetLabelValue(value)
        if in_3d and surfaces:
            segmentation.CreateRepresentation(surface)
    finally:
        segmentationNode.EndModify(modified)


def label_state(segmentationNode) -> tuple:
    """What changes when the model's segments are edited or removed, but not when they are only displayed otherwise.

    It changes with users' segments, too, where they share a layer with the model's: :func:`label_sums` does not.
    """
    segmentation = segmentationNode.GetSegmentation()
    maps = {
        value: segmentation.GetSegment(identifier).GetRepresentation(_labelmap())
        for value, identifier in _model_segments(segmentation).items()
    }
    return tuple((value, image and image.GetMTime()) for value, image in maps.items())


def label_sums(segmentationNode) -> dict[int, int]:
    """By the model's values, what :attr:`.images.Labels.sums` says of a map: the same where the voxels are."""
    segmentation = segmentationNode.GetSegmentation()
    layers: dict[int, dict[int, int]] = {}
    found = {}
    for value, identifier in _model_segments(segmentation).items():
        segment, layer = segmentation.GetSegment(identifier), segmentation.GetLayerIndex(identifier)
        if layer not in layers:
            layers[layer] = _sums_of(segment.GetRepresentation(_labelmap()))
        found[value] = layers[layer].get(segment.GetLabelValue(), 0)
    return found


def users_segments(segmentationNode) -> list[str]:
    """IDs of the segments that are not the model's, copies of these included."""
    segmentation = segmentationNode.GetSegmentation()
    known = _model_segments(segmentation).values()
    return [identifier for identifier in segmentation.GetSegmentIDs() if identifier not in known]


def remove_model(segmentationNode) -> None:
    """Leave in a segmentation what users put there: the model's segments go, and what was said of them."""
    segmentation = segmentationNode.GetSegmentation()
    for identifier in _model_segments(segmentation).values():
        segmentation.RemoveSegment(identifier)
    for name in segmentationNode.GetAttributeNames():
        if name.startswith(_ATTRIBUTES):
            segmentationNode.RemoveAttribute(name)
    describe(segmentationNode, "")


def voxel_state(volumeNode) -> int:
    """What changes when a volume gets other voxels, but not when it is moved, renamed or displayed otherwise."""
    image = volumeNode.GetImageData()
    return image.GetMTime() if image is not None else 0


def describe(node, text: str) -> None:
    """What the Data module shows of a node; a description that users wrote stays."""
    if (node.GetDescription() or "MAPSeg ").startswith("MAPSeg "):
        node.SetDescription(f"MAPSeg {text}" if text else "")


def set_attributes(node, values: dict[str, str | None]) -> None:
    """Attributes ``MAPSeg.…`` of a node, which are saved with the scene; None removes one."""
    for name, value in values.items():
        node.SetAttribute(_ATTRIBUTES + name, value)


def load_uncertainty(array: np.ndarray, volumeNode):
    """An uncertainty map (k, j, i) as a scalar volume node with a colour scale: beside its volume, under its transform.

    Raises:
        ValueError: the map is not on the volume's grid.
    """
    if array.shape != _shape(volumeNode):
        raise ValueError(_("The map is not on the grid of {name}.").format(name=volumeNode.GetName()))
    name = slicer.mrmlScene.GenerateUniqueName(f"{volumeNode.GetName()} uncertainty")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetAttribute(UNCERTAINTY, volumeNode.GetID())
    slicer.util.updateVolumeFromArray(node, array)
    node.CopyOrientation(volumeNode)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 0.8)
    display.SetAutoThreshold(False)
    display.SetThreshold(0.05, 1.0)  # what is sure stays clear
    display.SetApplyThreshold(True)
    place_beside(node, volumeNode)
    return node


def export_segmentation(segmentationNode, volumeNode, path: str | Path) -> Path:
    """Write ``.seg.nrrd``, or a label map with the model's values for other suffixes (``.nii.gz``, ``.nrrd``).

    Raises:
        OSError: the file cannot be written, the format would set the volume's axes upright, or two segments have the
            same name.
    """
    path = Path(path)
    if path.name.endswith(".seg.nrrd"):
        storage = slicer.vtkMRMLSegmentationStorageNode()
        written = _write(storage, segmentationNode, path)
    elif ".nii" in path.suffixes and is_sheared(affine_of(volumeNode)):
        told = _("{name}: the volume's axes are not at right angles. Save it as .nrrd or .seg.nrrd.")
        raise OSError(told.format(name=path.name))
    else:
        colors = slicer.mrmlScene.AddNode(_value_table(segmentationNode.GetSegmentation()))
        labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "MAPSeg export")
        labelmap.CreateDefaultDisplayNodes()
        # Without a table to show it by, Slicer makes another one, and leaves it in the scene.
        labelmap.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
        try:
            filled = _fill(labelmap, segmentationNode, volumeNode, colors)
            written = filled and _write(slicer.vtkMRMLVolumeArchetypeStorageNode(), labelmap, path)
        finally:
            remove(labelmap)
            slicer.mrmlScene.RemoveNode(colors)
    if not written:
        raise OSError(_("{path} cannot be written.").format(path=path))
    return path


def place_beside(node, volumeNode) -> None:
    """Give a node its volume's parent transform, and put it next to it in the subject hierarchy."""
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    scene, none = hierarchy.GetSceneItemID(), hierarchy.GetInvalidItemID()
    items = [hierarchy.GetItemByDataNode(one) for one in (volumeNode, node)]
    for index, one in enumerate((volumeNode, node)):
        if items[index] == none:
            items[index] = hierarchy.CreateItem(scene, one)
    hierarchy.SetItemParent(items[1], hierarchy.GetItemParent(items[0]))


def remove(node) -> None:
    """Take a node out of the scene, with its place in the subject hierarchy, its display and its storage nodes."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)
    own = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    own += [node.GetNthStorageNode(index) for index in range(node.GetNumberOfStorageNodes())]
    for each in (node, *filter(None, own)):
        slicer.mrmlScene.RemoveNode(each)


def _segment(value: int, label: dict[str, Any]):
    segment = slicer.vtkSegment()
    name = str(label.get("name") or f"structure {value}")
    segment.SetName(name)
    segment.SetNameAutoGenerated(False)
    if "color" in label:
        segment.SetColor(*(channel / 255 for channel in label["color"]))
        segment.SetColorAutoGenerated(False)
    segment.SetTag(VALUE_TAG, str(value))
    if entry := terminology_entry(name, label.get("terminology")):
        segment.SetTag(segment.GetTerminologyEntryTagName(), entry)
    return segment


def _model_segments(segmentation) -> dict[int, str]:
    """Segment IDs by the model's values; of copies that users made, the first counts."""
    found: dict[int, str] = {}
    for identifier in segmentation.GetSegmentIDs():
        value = _tag(segmentation.GetSegment(identifier))
        if value is not None:
            found.setdefault(value, identifier)
    return found


def _labelmap() -> str:
    return slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()


def _shape(volumeNode) -> tuple[int, ...]:
    image = volumeNode.GetImageData()
    return tuple(reversed(image.GetDimensions())) if image is not None else ()


def _on_grid(labels: Labels | str | Path, volumeNode, grid: np.ndarray | None) -> Labels:
    labels = labels if isinstance(labels, Labels) else read_labels(labels)
    grid = affine_of(volumeNode) if grid is None else grid
    if tuple(labels.shape) != _shape(volumeNode) or not labels.lies_on(grid):
        raise ValueError(_("The label map is not on the grid of {name}.").format(name=volumeNode.GetName()))
    return labels


def _sums_of(image) -> dict[int, int]:
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None:
        return {}
    array = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])
    return voxel_sums(array, image.GetExtent()[4::-2])


def _carry_along(segmentationNode, identifiers: Iterable[str], image) -> None:
    """Move all segments as the model's will be by this label map, which has their voxels in another geometry."""
    segmentation = segmentationNode.GetSegmentation()
    for identifier in identifiers:
        before, after = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        segmentation.GetSegment(identifier).GetRepresentation(_labelmap()).GetImageToWorldMatrix(before)
        image.GetImageToWorldMatrix(after)
        before.Invert()
        vtk.vtkMatrix4x4.Multiply4x4(after, before, after)
        if not np.allclose(slicer.util.arrayFromVTKMatrix(after), np.eye(4), atol=1e-6):
            segmentationNode.ApplyTransformMatrix(after)
        return


def _oriented_image(labels: Labels, volumeNode):
    """The label map's box in the volume's own geometry: what the file's header has rounded plays no part."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    image = slicer.vtkOrientedImageData()
    image.SetGeometryFromImageToWorldMatrix(matrix)
    extent = []
    for start, count in zip(reversed(labels.start), reversed(labels.array.shape), strict=True):
        extent += [start, start + count - 1]
    image.SetExtent(extent)
    if labels.values:
        image.GetPointData().SetScalars(numpy_to_vtk(labels.array.ravel(), deep=True))
    return image


def _fill(labelmap, segmentationNode, volumeNode, colors) -> bool:
    """Put the segments into a labelmap node on the volume's grid; whether that went well."""
    ids = segmentationNode.GetSegmentation().GetSegmentIDs()
    if not ids:  # nothing was found: Slicer exports no empty map
        slicer.util.updateVolumeFromArray(labelmap, np.zeros(_shape(volumeNode), np.uint8))
        labelmap.CopyOrientation(volumeNode)
        return True
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    return slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
        segmentationNode, ids, labelmap, volumeNode, extent, colors
    )


def _value_table(segmentation):
    """A colour table that gives the model's segments their values; segments of users, copies included, come after.

    Raises:
        OSError: two segments have one name, and Slicer goes by names here.
    """
    values = {identifier: value for value, identifier in _model_segments(segmentation).items()}
    for identifier in segmentation.GetSegmentIDs():
        values.setdefault(identifier, max(values.values(), default=0) + 1)
    table = slicer.vtkMRMLColorTableNode()
    table.SetTypeToUser()
    table.SetHideFromEditors(True)
    table.SetNumberOfColors(max(values.values(), default=0) + 1)
    for identifier, value in values.items():
        segment = segmentation.GetSegment(identifier)
        if table.GetColorIndexByName(segment.GetName()) > 0:
            told = _("Two segments are called {name}; rename one to save a label map.")
            raise OSError(told.format(name=segment.GetName()))
        table.SetColor(value, segment.GetName(), *segment.GetColor(), 1.0)
    return table


def _tag(segment) -> int | None:
    text = vtk.reference("")
    return int(str(text)) if segment.GetTag(VALUE_TAG, text) else None


def _write(storage, node, path: Path) -> bool:
    """Write a node compressed, without touching where the scene would save it; whether that went well."""
    storage.SetFileName(str(path))
    storage.SetUseCompression(True)
    return bool(storage.WriteData(node))
