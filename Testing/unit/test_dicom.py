"""DICOM series and files of several frames: read where they lie, and refused where they fill no box."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_cases import write_frames, write_series
from volume_cases import assert_refused, make_affine, noise

from MAPSegLib import compression
from MAPSegLib.errors import InputError
from MAPSegLib.volumes import (
    check_same_grid,
    find_scans,
    read_image,
    read_in_full,
    read_labels,
    write_volume,
)

# --- a file a slice -----------------------------------------------------------------------------------------


def test_dicom_series(tmp_path):
    array = noise(8, 9, 6, dtype=np.int16)
    affine = make_affine((0, 1, 2), (-1, -1, 1), (1.25, 1.25, 8), (10, -5, 3), (20, -30, 40))
    write_series(tmp_path / "series", array, affine)
    volume = read_image(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)
    assert find_scans(tmp_path) == [tmp_path / "series"] == find_scans(tmp_path / "series")
    labels = read_labels(write_volume(tmp_path / "seg.nrrd", array > 100, volume))
    check_same_grid(volume, labels)
    assert_refused(tmp_path / "series" / "1-000.dcm", "2D")


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619", "a.IMA"])
def test_a_slice_without_a_suffix_is_told_to_be_dicom(tmp_path, name):
    write_series(tmp_path / "a", noise(8, 9, 6, dtype=np.int16), np.eye(4))
    file = (tmp_path / "a" / "1-000.dcm").rename(tmp_path / "a" / name)
    assert_refused(file, "is a DICOM file whose name does not end in .dcm")


def test_dicom_series_with_a_gap_or_a_neighbour(tmp_path):
    array, affine = noise(8, 9, 8, dtype=np.int16), make_affine(spacing=(1, 1, 3))
    write_series(tmp_path / "gap", array, affine, slices=[0, 1, 2, 5, 6])
    assert_refused(tmp_path / "gap", "missing or unevenly spaced slices")
    write_series(tmp_path / "two", array, affine)
    write_series(tmp_path / "two", array, affine, uid="1.2.826.0.1.3680043.2.1125.2")
    assert_refused(tmp_path / "two", "2 DICOM series")
    (tmp_path / "none").mkdir()
    assert_refused(tmp_path / "none", "no DICOM series")


def test_a_missing_slice_among_fine_ones_is_noticed(tmp_path):
    """The tenth of a millimetre that positions may be rounded by is a slice here."""
    array, affine = noise(8, 9, 8, dtype=np.int16), make_affine(spacing=(0.1, 0.1, 0.1))
    write_series(tmp_path / "whole", array, affine)
    assert read_image(tmp_path / "whole").shape == (8, 9, 8)
    write_series(tmp_path / "gap", array, affine, slices=[0, 1, 2, 3, 5, 6, 7])
    assert_refused(tmp_path / "gap", "missing or unevenly spaced slices")


@pytest.mark.parametrize("axes", [[0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 2, 0], [1, 0, 0, 0.5, 0.5, 0]])
def test_rows_and_columns_that_are_not_at_right_angles_are_told(tmp_path, axes):
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 5, dtype=np.int16), make_affine())
    for file in (tmp_path / "a").iterdir():
        content = pydicom.dcmread(file)
        content.ImageOrientationPatient = axes
        content.save_as(file)
    assert_refused(tmp_path / "a", "not at right angles")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shift": (0, -1.2, 0)}, "tilted slices"),
        ({"shift": (3, 0, 0)}, "tilted slices"),
        ({"shift": (0, 0.04, 0)}, "tilted slices"),  # 0.28 mm in all
        ({"turned": (4,)}, "several orientations"),
    ],
)
def test_dicom_series_that_fill_no_box_are_refused(tmp_path, changes, told):
    write_series(tmp_path / "ct", noise(8, 9, 8, dtype=np.int16), make_affine(spacing=(1, 1, 3)), **changes)
    assert_refused(tmp_path / "ct", told)


@pytest.mark.parametrize("number", [0, 7])
def test_a_damaged_slice_at_an_end_is_not_left_out(tmp_path, number):
    write_series(tmp_path / "ct", noise(8, 9, 8, dtype=np.int16), make_affine(spacing=(1, 1, 3)))
    slice_file = tmp_path / "ct" / f"1-{number:03}.dcm"
    slice_file.write_bytes(slice_file.read_bytes()[:400])
    assert_refused(tmp_path / "ct", f"holds {slice_file.name}, which cannot be read")


def test_a_series_whose_slices_differ_in_voxel_size_is_refused(tmp_path):
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 3)))
    content = pydicom.dcmread(tmp_path / "a" / "1-002.dcm")
    content.PixelSpacing = [1.2, 1.2]
    content.save_as(tmp_path / "a" / "1-002.dcm")
    assert_refused(tmp_path / "a", "several orientations or voxel sizes")


def test_dicom_slices_with_scales_of_their_own(tmp_path):
    array = noise(8, 9, 4, dtype=np.int16)
    write_series(tmp_path / "pet", array, make_affine(spacing=(1, 1, 3)), slope="1 ")
    file, tag = tmp_path / "pet" / "1-002.dcm", b"\x28\x00\x53\x10\x02\x00\x00\x00"
    assert tag + b"1 " in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(tag + b"1 ", tag + b".3"))
    read = read_image(tmp_path / "pet").array
    np.testing.assert_allclose(read[..., 2], array[..., 2] * 0.3, rtol=1e-6)
    np.testing.assert_array_equal(read[..., 1], array[..., 1])


def test_a_colour_series_is_refused(tmp_path):
    write_series(tmp_path / "fa", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 3)))
    for file in (tmp_path / "fa").iterdir():
        plane = sitk.ReadImage(str(file))
        tags = {tag: plane.GetMetaData(tag) for tag in ("0020|000e", "0020|0032", "0020|0037", "0020|0013")}
        colour = sitk.Compose([sitk.Cast(plane, sitk.sitkUInt8)] * 3)
        for tag, value in tags.items():
            colour.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(colour)
    assert_refused(tmp_path / "fa", "colour")


def test_a_series_among_other_scans_is_refused(tmp_path):
    write_series(tmp_path / "mixed", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 3)))
    results = (
        "mixed_seg.nii.gz",
        "mixed_seg_source.nii.gz",
        "mixed_uncertainty.nii.gz",
        "mixed_2_seg.nii.gz",
    )
    for name in ("notes.txt", *results, ".partial.nii.gz"):
        (tmp_path / "mixed" / name).touch()
    assert find_scans(tmp_path / "mixed") == [tmp_path / "mixed"]
    (tmp_path / "mixed" / "mixed_t1.nii.gz").touch()
    with pytest.raises(InputError, match=r"DICOM slices and other scans \(mixed_t1.nii.gz\)"):
        find_scans(tmp_path / "mixed")


def test_pictures_before_the_slices_do_not_hide_the_series(tmp_path):
    array = noise(8, 9, 6, dtype=np.int16)
    write_series(tmp_path / "a", array, np.eye(4))
    for number in range(9):
        (tmp_path / "a" / f"0-{number}.jpg").write_bytes(b"\xff\xd8\xff")
    assert find_scans(tmp_path / "a") == [tmp_path / "a"]
    np.testing.assert_array_equal(read_image(tmp_path / "a").array, array)


def test_results_beside_the_slices_do_not_hide_the_series(tmp_path):
    """Not even where their names come first."""
    write_series(tmp_path / "a", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 3)))
    for path in list((tmp_path / "a").iterdir()):
        path.rename(path.with_name(f"slice{path.name}"))
    for kind in ("seg", "seg_adapted", "seg_source", "uncertainty"):
        (tmp_path / "a" / f"a_{kind}.nii.gz").touch()
    (tmp_path / "a" / "adapted_model.safetensors").touch()
    assert find_scans(tmp_path / "a") == [tmp_path / "a"] == find_scans(tmp_path)


def test_slices_that_go_to_and_fro_are_refused(tmp_path):
    array, affine = noise(8, 9, 2, dtype=np.int16), make_affine(spacing=(1, 1, 4))
    write_series(tmp_path / "a", array, affine)
    first, second = sorted((tmp_path / "a").iterdir())
    for number, file in enumerate((first, second)):
        content = file.read_bytes().replace(f"1125.1.{number + 1}".encode(), f"1125.1.{number + 3}".encode())
        (tmp_path / "a" / f"more{number}.dcm").write_bytes(content)
    assert_refused(tmp_path / "a", "repeats or mixes slice positions")


def test_small_gaps_that_add_up_are_refused(tmp_path):
    """The reader spaces slices evenly from the first to the last: here it is 1.2 mm off in the middle."""
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 60, dtype=np.int16), make_affine(spacing=(1, 1, 1)))
    for number, file in enumerate(sorted((tmp_path / "a").iterdir())):
        content = pydicom.dcmread(file)
        content.ImagePositionPatient[2] = number * 0.96 if number < 30 else 28.8 + (number - 30) * 1.04
        content.save_as(file)
    assert_refused(tmp_path / "a", "unevenly spaced slices")


@pytest.mark.parametrize("spacing", [0.625, 1.25])
def test_positions_that_are_rounded_to_a_tenth_are_read(tmp_path, spacing):
    """Neighbours are then nearer or farther by 0.1 mm, and a little more by the arithmetic of computers."""
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 60, dtype=np.int16), make_affine(spacing=(1, 1, spacing)))
    for file in (tmp_path / "a").iterdir():
        content = pydicom.dcmread(file)
        content.ImagePositionPatient = [f"{float(mm):.1f}" for mm in content.ImagePositionPatient]
        content.save_as(file)
    assert read_image(tmp_path / "a").spacing[2] == pytest.approx(spacing, abs=0.01)


@pytest.mark.parametrize("name", ["DICOM", "series", "a"])
def test_of_a_series_whose_name_is_a_common_word_the_folder_is_told(tmp_path, name):
    write_series(tmp_path / name, noise(8, 9, 6, dtype=np.int16), make_affine(), slices=[0, 1, 2, 5])
    with pytest.raises(InputError) as refusal:
        read_in_full(read_image, tmp_path / name)
    assert refusal.value.message.startswith(f"The DICOM series {tmp_path / name} has missing or unevenly")


def test_of_a_slice_that_is_refused_the_folder_is_told(tmp_path):
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 4, dtype=np.int16), make_affine())
    content = pydicom.dcmread(file := tmp_path / "a" / "1-002.dcm")
    del content.PixelSpacing
    content.save_as(file)
    with pytest.raises(InputError) as refusal:
        read_in_full(read_image, tmp_path / "a")
    assert refusal.value.message.startswith(f"{tmp_path / 'a'}: 1-002.dcm does not state")


def test_inverted_grey_values_are_refused(tmp_path):
    """ITK inverts what is stored, and scales that; pydicom scales what is stored."""
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 4)))
    for file in (tmp_path / "a").iterdir():
        content = pydicom.dcmread(file)
        content.PhotometricInterpretation = "MONOCHROME1"
        content.save_as(file)
    assert_refused(tmp_path / "a", "MONOCHROME1")


@pytest.mark.parametrize("key", ["ImageOrientationPatient", "PixelSpacing"])
def test_slices_that_do_not_state_their_place_are_refused(tmp_path, key):
    import pydicom

    write_series(tmp_path / "a", noise(8, 9, 4, dtype=np.int16), make_affine(spacing=(1, 1, 4)))
    for file in (tmp_path / "a").iterdir():
        content = pydicom.dcmread(file)
        del content[key]
        content.save_as(file)
    with pytest.raises(InputError, match=f"{key} is missing"):
        read_image(tmp_path / "a")


# --- a file of several frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_a_file_of_several_frames_is_a_scan(tmp_path, backwards):
    array = noise(8, 9, 6, dtype=np.int16)
    affine = make_affine((1, 2, 0), (-1, -1, 1), (1, 1.25, 4), (5, -7, 3), (11, -20, 33))
    order = range(6)[::-1] if backwards else range(6)
    for place in (write_frames(tmp_path / "enhanced" / "a.dcm", array, affine, order), tmp_path / "enhanced"):
        volume = read_image(place)
        where = np.linalg.inv(volume.affine) @ affine @ [3, 4, 5, 1]
        assert volume.array[tuple(where[:3].round().astype(int))] == array[3, 4, 5]
        np.testing.assert_allclose(where, where.round(), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"order": [0, 2, 4, 1, 3, 5]}, "repeats or mixes slice positions"),
        ({"order": [0, 1, 2, 0, 1, 2]}, "repeats or mixes slice positions"),
        ({"places": [0, 1, 2, 5, 6, 7]}, "missing or unevenly spaced slices"),
        ({"places": [0, 1, 2, 3.5, 4.5, 5.5]}, "missing or unevenly spaced slices"),
        ({"shift": 1.0}, "tilted slices"),
        ({"turned": (4, 5)}, "several orientations"),
    ],
)
def test_frames_that_fill_no_box_are_refused(tmp_path, changes, told):
    affine = make_affine(spacing=(1, 1.25, 4), angles=(5, -7, 3))
    file = write_frames(tmp_path / "a" / "frames.dcm", noise(8, 9, 6, dtype=np.int16), affine, **changes)
    assert_refused(file, told)
    assert_refused(file.parent, told)


def test_frames_with_one_scale_are_read_and_with_several_refused(tmp_path):
    """ITK scales all of them as the first one."""
    array, affine = noise(8, 9, 6, dtype=np.int16), make_affine(spacing=(1, 1.25, 4))
    same = read_image(write_frames(tmp_path / "a" / "same.dcm", array, affine, slopes=[2] * 6))
    assert same.array.min() == 2 * array.min() + 3 and same.array.max() == 2 * array.max() + 3
    for slopes in ([2, 2, 2, 2, 2, 3], [2, 2, 2]):
        file = write_frames(tmp_path / "b" / "several.dcm", array, affine, slopes=slopes)
        assert_refused(file, "scales the values of its slices differently")
        assert_refused(file.parent, "scales the values of its slices differently")


TURNED = make_affine((1, 2, 0), (-1, -1, 1), (1, 1.25, 4), (5, -7, 3), (11, -20, 33))
MOVED = make_affine(signs=(-1, -1, 1), origin=(11, -20, 33))
STRETCHED = make_affine(signs=(-1, -1, 1), spacing=(1, 1.25, 1), origin=(0, 0, 0))


@pytest.mark.parametrize("affine", [TURNED, MOVED, STRETCHED])
@pytest.mark.parametrize("kind", ["4", "6.2"])  # MR, of one frame as its name says, and enhanced ultrasound
def test_frames_of_a_kind_that_the_reader_lays_elsewhere_are_refused(tmp_path, kind, affine):
    """Of these ITK takes neither position nor direction nor spacing."""
    import pydicom

    file = write_frames(tmp_path / "a" / "frames.dcm", noise(8, 9, 6, dtype=np.int16), affine)
    content = pydicom.dcmread(file)
    content.SOPClassUID = content.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
    content.save_as(file)
    for place in (file, file.parent):
        assert_refused(place, "kind whose geometry cannot be read")


def test_frames_without_a_place_are_refused(tmp_path):
    affine = make_affine(spacing=(1, 1.25, 4), angles=(5, -7, 3))
    file = write_frames(tmp_path / "a" / "frames.dcm", noise(8, 9, 6, dtype=np.int16), affine, keep=False)
    assert_refused(file, "does not state where its slices lie (ImagePositionPatient is missing)")


@pytest.mark.timeout(20)
def test_frames_without_end_are_refused(tmp_path):
    import pydicom

    path = write_frames(tmp_path / "a" / "a.dcm", noise(8, 9, 2, dtype=np.int16), np.eye(4), keep=False)
    file = pydicom.dcmread(path)
    file.NumberOfFrames, file.ImagePositionPatient, file.PixelSpacing = 2_000_000_000, [0, 0, 0], [1, 1]
    file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    file.save_as(path)
    assert_refused(path, "damaged, truncated or not an image")


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_file_that_lacks_voxels_is_refused(tmp_path, kept):
    """The library that reads them would give what its memory holds."""
    import pydicom

    array, affine = noise(30, 40, 6, dtype=np.int16), make_affine(spacing=(1, 1, 4))
    frames = write_frames(tmp_path / "frames" / "a.dcm", array, affine)
    write_series(tmp_path / "series", array, affine)
    read_image(tmp_path / "series")
    slices = sorted((tmp_path / "series").iterdir())
    for path, read in ((frames, frames), (slices[3], tmp_path / "series")):
        file = pydicom.dcmread(path)
        file.PixelData = file.PixelData[: int(len(file.PixelData) * kept) // 2 * 2]
        file.save_as(path)
        with pytest.raises(InputError, match=f"{path.name} is damaged, truncated or not an image"):
            read_image(read)


@pytest.mark.filterwarnings("ignore:The value")  # of its length, which is meant
def test_a_small_deflated_file_of_far_more_than_a_scan_is_not_inflated(tmp_path, monkeypatch):
    import pydicom

    array, affine = noise(8, 9, 6, dtype=np.int16), make_affine(spacing=(1, 1, 4))
    path = write_frames(tmp_path / "frames" / "a.dcm", array, affine)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.save_as(path)
    np.testing.assert_array_equal(np.sort(read_image(path).array, None), np.sort(array, None))
    file.ImageComments = "0" * 10_000_000
    file.save_as(path)
    monkeypatch.setattr(compression, "_SPARE", 1000)
    assert_refused(path, "damaged, truncated or not an image")


def test_compressed_slices_that_claim_to_be_large_take_no_memory(tmp_path):
    import pydicom

    affine = make_affine(spacing=(1, 1, 4))
    path = write_frames(tmp_path / "frames" / "a.dcm", noise(8, 9, 6, dtype=np.int16), affine)
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(path)
    assert read_image(path).shape == (8, 9, 6)
    file.Rows = file.Columns = 60_000
    file.save_as(path)
    assert_refused(path, "damaged, truncated or not an image")
