"""DICOM series, a file a slice, and files of several frames, for the tests of reading."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from MAPSegLib.volumes import Volume, write_volume


def write_series(
    folder,
    array,
    affine,
    slices=None,
    uid="1.2.826.0.1.3680043.2.1125.1",
    shift=(0, 0, 0),
    slope=None,
    turned=(),
):
    """A DICOM series of the array's planes (or of some of them), each moved by ``shift`` more than the one before."""
    folder.mkdir(exist_ok=True)
    scan = write_volume(folder.parent / "whole.mha", array, Volume(array, affine), overwrite=True)
    image = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkInt16)
    direction = np.reshape(image.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in range(image.GetDepth()) if slices is None else slices:
        plane = image[:, :, i : i + 1]
        origin = image.TransformIndexToPhysicalPoint((0, 0, i)) + i * np.array(shift)
        axes = [*direction[:, 1], *direction[:, 2]] if i in turned else [*direction[:, 0], *direction[:, 1]]
        tags = {
            "0008|0060": "MR",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.0",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|0032": "\\".join(f"{v:.6f}" for v in origin),
            "0020|0037": "\\".join(f"{v:.8f}" for v in axes),
            "0020|0013": str(i + 1),
        }
        if slope:
            tags |= {"0008|0060": "CT", "0028|1053": slope, "0028|1052": "0"}
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid[-1]}-{i:03d}.dcm"))
        writer.Execute(plane)
    scan.unlink()


def write_frames(path, array, affine, order=None, places=None, turned=(), shift=0.0, keep=True, slopes=()):
    """A DICOM file of several frames: the array's planes in this order, at these places along the third axis."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    order = list(range(array.shape[2]) if order is None else order)

    def item(**values):
        made = pydicom.Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    def numbers(values):
        return [f"{v:.6f}" for v in values]

    kind = "1.2.840.10008.5.1.4.1.1.4.1"
    file = item(SOPClassUID=kind, SOPInstanceUID=generate_uid(), Modality="MR", StudyInstanceUID="1.2.3")
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID, file.file_meta.TransferSyntaxUID = kind, ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.SeriesInstanceUID, file.PhotometricInterpretation = "1.2.3.4", "MONOCHROME2"
    file.SamplesPerPixel, file.BitsAllocated, file.BitsStored, file.HighBit = 1, 16, 16, 15
    file.PixelRepresentation, file.NumberOfFrames = 0, len(order)
    file.Columns, file.Rows = array.shape[:2]
    measures = item(PixelSpacing=numbers(spacing[[1, 0]]), SpacingBetweenSlices=f"{spacing[2]:.4f}")
    frames = []
    for number, index in enumerate(order):
        place = lps @ [0, 0, index if places is None else places[number], 1]
        place[1] += shift * number
        rows = axes[:, [1, 2]] if number in turned else axes[:, [0, 1]]
        frames.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=numbers(place[:3]))],
                PlaneOrientationSequence=[item(ImageOrientationPatient=numbers(rows.T.ravel()))],
            )
        )
    for frame, slope in zip(frames, slopes, strict=False):
        frame.PixelValueTransformationSequence = [
            item(RescaleSlope=slope, RescaleIntercept=3, RescaleType="US")
        ]
    if keep:
        file.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
        file.PerFrameFunctionalGroupsSequence = frames
    file.PixelData = np.stack([array[:, :, k].T for k in order]).astype("<u2").tobytes()
    path.parent.mkdir(exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path
