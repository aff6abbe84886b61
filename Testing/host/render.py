"""Slice views of the stand-in application: the real displayable managers, drawn offscreen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

ORIENTATIONS = ("Axial", "Sagittal", "Coronal")
MANAGERS = ("vtkMRMLVolumeGlyphSliceDisplayableManager", "vtkMRMLSegmentationsDisplayableManager2D")


class SliceView:
    """One slice view, with its node, logic and displayable managers."""

    def __init__(self, orientation: str = "Axial", size: tuple[int, int] = (400, 400)):
        scene = slicer.mrmlScene
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddSliceNode(orientation)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        self.node.SetOrientation(orientation)
        self.node.SetDimensions(*size, 1)
        self.composite = self.logic.GetSliceCompositeNode()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(True)
        self.window.SetSize(*size)
        self.window.SetMultiSamples(0)
        self.renderer = vtk.vtkRenderer()
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.blend = vtk.vtkImageMapper()
        self.blend.SetColorWindow(255)
        self.blend.SetColorLevel(127.5)
        self.image = vtk.vtkActor2D()
        self.image.SetMapper(self.blend)
        self.renderer.AddViewProp(self.image)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.managers = factory.InstantiateDisplayableManagers(self.renderer)
        self.managers.SetMRMLDisplayableNode(self.node)

    def show(self, volume) -> None:
        """Bring a volume into the background, the whole of it into view."""
        self.composite.SetBackgroundVolumeID(volume.GetID())
        self.logic.FitSliceToBackground()

    def pixels(self, offset: float | None = None) -> np.ndarray:
        """What the view shows, (rows from the top, columns, RGB)."""
        if offset is not None:
            self.logic.SetSliceOffset(offset)
        self.logic.UpdatePipeline()
        self.managers.RequestRender()
        blended = self.logic.GetBlend()
        blended.Update()
        self.blend.SetInputData(blended.GetOutput())
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
        return array[::-1, :, :3].copy()


def middle_of(segmentation) -> list[float]:
    """The centre of all segments, RAS."""
    bounds = [0.0] * 6
    segmentation.GetRASBounds(bounds)
    return [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]


def overlay_pixels(volume, segmentation, size: tuple[int, int] = (400, 400)) -> np.ndarray:
    """The three orientations side by side, through the middle of the segments."""
    middle = middle_of(segmentation)
    pictures = []
    for orientation, axis in zip(ORIENTATIONS, (2, 0, 1), strict=True):
        view = SliceView(orientation, size)
        view.show(volume)
        pictures.append(view.pixels(middle[axis]))
    return np.concatenate(pictures, axis=1)


def write_overlay(path: Path, volume, segmentation) -> Path:
    """Draw a segmentation over its volume into a PNG file."""
    return write_png(path, overlay_pixels(volume, segmentation))


def write_png(path: Path, pixels: np.ndarray) -> Path:
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    flat = np.ascontiguousarray(pixels[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()
    return path
