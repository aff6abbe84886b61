"""Scenes with results that are made, not computed: what the panel does with them takes no worker."""

from types import SimpleNamespace

import numpy as np

from .conftest import add_ball


def blocks(shift=0):
    """A label map of two blocks on the grid of ``add_ball``."""
    labels = np.zeros((32, 38, 34), np.uint8)
    labels[8 + shift : 16 + shift, 8:16, 8:16], labels[18:24, 8:16, 8:16] = 1, 2
    return labels


def make_result(folder, name="ball", chosen="adapted"):
    """An item that came through an adaptation, with its uncertainty map, and its run."""
    import slicer
    from MAPSegModule import images, run, scene

    volume = add_ball(name)
    grid, sides = images.Snapshot.of(volume), {}
    for side, shift in (("source", 0), ("adapted", 4)):
        path = folder / f"{name} {side}.nrrd"
        images.Snapshot(blocks(shift), grid.spacing, grid.origin, grid.direction).write(path)
        sides[side] = {"output": str(path), "trusted": True, "reason": "", "structures": []}
    item = run.Item(volume.GetID(), name, run.DONE, model="tiny")
    item.voxel_state = scene.voxel_state(volume)
    item.result = {**sides, **sides[chosen], "chosen": chosen, "gate": ""}
    item.segmentation_id = scene.load_labels(sides["source"]["output"], volume, {}).GetID()
    item.uncertainty_id = scene.load_uncertainty(np.zeros((32, 38, 34), np.float32), volume).GetID()
    item.show(chosen)
    assert slicer.mrmlScene.GetNodeByID(item.segmentation_id).GetSegmentation().GetNumberOfSegments() == 2
    return item, SimpleNamespace(items=[item], running=False, has_model=True, clean=lambda: None)


def seen():
    """Names of the segmentations that are shown."""
    import slicer

    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node.GetName() for node in nodes if node.GetDisplayNode().GetVisibility()]


def preview(item):
    """A run that previews a volume of an earlier result, and that volume's part in it."""
    import slicer
    from MAPSegModule import run, scene

    volume = slicer.mrmlScene.GetNodeByID(item.volume_id)
    labels = scene.load_labels(item.files["source"], volume, {}, "preview")
    mine = run.Item(volume.GetID(), item.name, run.RUNNING, segmentation_id=labels.GetID(), shown="preview")
    mine.label_state = scene.label_state(labels)
    return SimpleNamespace(items=[mine], running=True, has_model=False, clean=lambda: None), mine


def add_slices(*names):
    """Slice views, as far as they say which volumes they show."""
    import slicer

    views = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", name) for name in names]
    for view, name in zip(views, names, strict=True):
        view.SetLayoutName(name)
    return views


def save_scene(folder):
    """A saved scene of two volumes, the first of them with a segmentation; the open scene is empty afterwards."""
    import slicer
    from MAPSegModule import images, scene

    folder.mkdir()
    volumes = [add_ball("saved"), add_ball("other")]
    segmentation = scene.load_labels(images.cut_labels(blocks()), volumes[0], {}, "saved labels")
    for node, kind, name in (
        (volumes[0], slicer.vtkMRMLVolumeArchetypeStorageNode, "saved.nrrd"),
        (volumes[1], slicer.vtkMRMLVolumeArchetypeStorageNode, "other.nrrd"),
        (segmentation, slicer.vtkMRMLSegmentationStorageNode, "labels.seg.nrrd"),
    ):
        storage = slicer.mrmlScene.AddNode(kind())
        storage.SetFileName(str(folder / name))
        node.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(node)
    slicer.mrmlScene.SetRootDirectory(str(folder))
    slicer.mrmlScene.SetURL(str(folder / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(False)
    return folder / "scene.mrml"


def load_scene(path):
    """Put a saved scene in the place of the open one, as the application does."""
    import slicer

    slicer.mrmlScene.SetURL(str(path))
    assert slicer.mrmlScene.Connect()
