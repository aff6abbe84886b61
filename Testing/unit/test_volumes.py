"""Reading, refusing and writing volumes."""

import gzip
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_cases import affines, make_affine, noise_scan

from MAPSegLib.errors import InputError
from MAPSegLib.volumes import (
    Volume,
    check_same_grid,
    find_scans,
    looks_like_labels,
    read_image,
    read_labels,
    scan_stem,
    write_volume,
)

FORMATS = [".nii.gz", ".nii", ".nrrd", ".mha"]


def save_nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path)
    return path


def noise(*shape, dtype=np.float32):
    return (50 + 100 * np.random.default_rng(1).random(shape)).astype(dtype)


def patch_header(path, offset, values):
    """Overwrite float32 fields of an uncompressed NIfTI header."""
    content = bytearray(path.read_bytes())
    data = np.asarray(values, dtype="<f4").tobytes()
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))
    return path


def assert_refused(path, words, read=read_image):
    with pytest.raises(InputError) as caught:
        read(path)
    message = caught.value.message
    assert words in message
    assert path.name in message
    assert "\n" not in message and message.endswith(".") and caught.value.advice
    assert caught.value.exit_code == 2


# --- files that are no scans --------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    assert_refused(tmp_path / "none.nii.gz", "does not exist")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha", ".dcm"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.touch()
    assert_refused(path, "empty")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_truncated_file(tmp_path, suffix, kept):
    path = write_volume(tmp_path / f"scan{suffix}", noise(20, 20, 20), noise_scan((20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert_refused(path, "damaged, truncated or not an image")


@pytest.mark.parametrize(
    "suffix", [".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"]
)
@pytest.mark.parametrize(
    "content", [b"Dear colleague, here is the scan.\n" * 40, gzip.compress(b"text" * 400), bytes(900)]
)
def test_not_an_image(tmp_path, suffix, content):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(content)
    assert_refused(path, " is ")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_truncated_uncompressed_file(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(noise(20, 20, 20)), str(path), useCompression=False)
    path.write_bytes(path.read_bytes()[:-500])
    assert_refused(path, "damaged, truncated or not an image")


def test_wrong_suffix_is_named(tmp_path):
    nrrd = write_volume(tmp_path / "scan.nrrd", noise(4, 4, 4), noise_scan((4, 4, 4)))
    assert_refused(nrrd.rename(tmp_path / "scan.nii"), "it is a NRRD file")
    picture = tmp_path / "picture.nii.gz"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    assert_refused(picture, "it is a PNG picture file")
    plain = save_nifti(tmp_path / "plain.nii", noise(4, 4, 4)).rename(tmp_path / "plain.nii.gz")
    assert_refused(plain, "not gzip-compressed")
    assert_refused(
        save_nifti(tmp_path / "a.nii", noise(4, 4, 4)).rename(tmp_path / "scan.doc"), "no known format"
    )


# --- volumes that cannot be segmented -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (noise(8, 9), "2D"),
        (noise(8, 9, 1), "2D"),
        (noise(6, 6, 6, 3), "4D image (6 x 6 x 6 x 3)"),
        (noise(6, 6, 6, 1, 3), "5D"),
        (np.zeros((6, 6, 6), np.float32), "only zeros"),
        (np.full((6, 6, 6), 7, np.int16), "the same value (7)"),
        (noise(6, 6, 6).astype(np.complex64), "complex"),
    ],
)
def test_unusable_arrays(tmp_path, array, words):
    assert_refused(save_nifti(tmp_path / "scan.nii.gz", array), words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, value):
    array = noise(6, 6, 6)
    array[1, 2, 3] = value
    assert_refused(save_nifti(tmp_path / "scan.nii.gz", array), "1 voxels that are NaN or infinite")


def test_overflow_of_float32(tmp_path):
    array = noise(6, 6, 6).astype(np.float64)
    array[0, 0, 0] = 1e300
    assert_refused(save_nifti(tmp_path / "scan.nii.gz", array), "infinite")


def test_colour_images(tmp_path):
    rgb = np.zeros((6, 6, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"] = noise(6, 6, 6, dtype=np.uint8)
    assert_refused(save_nifti(tmp_path / "colour.nii.gz", rgb), "RGB")
    for suffix in (".nrrd", ".mha"):
        path = tmp_path / f"colour{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(noise(6, 6, 6, 3, dtype=np.uint8), isVector=True), str(path))
        assert_refused(path, "RGB")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_beyond_32_bits(tmp_path, dtype):
    array = noise(6, 6, 6, dtype=dtype)
    assert read_image(save_nifti(tmp_path / "small.nii.gz", array)).array.dtype == np.float32
    array[0, 0, 0] = np.iinfo(dtype).max
    for read in (read_image, read_labels):
        assert_refused(save_nifti(tmp_path / "large.nii.gz", array), "beyond 32-bit", read)


def test_trailing_dimensions_of_one_are_dropped(tmp_path):
    array = noise(5, 6, 7)
    volume = read_image(save_nifti(tmp_path / "scan.nii.gz", array[..., None, None]))
    np.testing.assert_array_equal(volume.array, array)
    written = nib.load(write_volume(tmp_path / "out.nii.gz", array > 100, volume))
    assert written.shape == (5, 6, 7)
    sitk.WriteImage(sitk.GetImageFromArray(array.T[None], isVector=False), str(tmp_path / "scan.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nrrd").array, array)


@pytest.mark.parametrize("spacing", [(0.01, 1, 1), (1, 60, 1), (0.001, 0.001, 0.001)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_absurd_spacing(tmp_path, spacing, suffix):
    scan = noise_scan((6, 6, 6), make_affine(spacing=spacing))
    assert_refused(write_volume(tmp_path / f"scan{suffix}", scan.array, scan), "spacing")


def test_zero_spacing(tmp_path):
    image = nib.Nifti1Image(noise(6, 6, 6), None)
    image.set_qform(np.eye(4), code=1)
    nib.save(image, tmp_path / "scan.nii")
    assert_refused(patch_header(tmp_path / "scan.nii", 76 + 4, [0, 1, 1]), "spacing of zero")
    meta = write_volume(tmp_path / "scan.mha", noise(6, 6, 6), noise_scan((6, 6, 6)))
    meta.write_bytes(meta.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"))
    assert_refused(meta, "spacing of zero")


def test_singular_direction(tmp_path):
    path = save_nifti(tmp_path / "scan.nii", noise(6, 6, 6))
    assert_refused(patch_header(path, 280, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), "singular orientation")
    path = save_nifti(tmp_path / "nan.nii", noise(6, 6, 6))
    assert_refused(patch_header(path, 280, [np.nan]), "not finite")
    nrrd = write_volume(tmp_path / "scan.nrrd", noise(6, 6, 6), noise_scan((6, 6, 6)))
    content = nrrd.read_bytes()
    line = next(line for line in content.split(b"\n") if line.startswith(b"space directions"))
    nrrd.write_bytes(content.replace(line, b"space directions: (1,0,0) (1,0,0) (0,0,1)"))
    assert_refused(nrrd, "singular orientation")


# --- label maps, given as scans and as label maps -----------------------------------------------------------


def regions(shape=(24, 24, 24), values=(2, 3, 41, 1012)):
    array = np.zeros(shape, dtype=np.int32)
    for i, value in enumerate(values):
        array[2 + 5 * i : 7 + 5 * i, 3:20, 4:21] = value
    return array


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_label_map_is_no_scan(tmp_path, dtype):
    assert_refused(save_nifti(tmp_path / "seg.nii.gz", regions().astype(dtype)), "looks like a label map")


def test_masks_are_label_maps():
    mask = np.zeros((24, 24, 24), dtype=np.float32)
    mask[5, 5, 5] = mask[15, 3, 3] = 1  # no region at all
    assert looks_like_labels(mask)
    assert looks_like_labels(regions(values=(1,)).astype(np.float32))


@pytest.mark.parametrize("levels", [24, 64, 256])
def test_8_bit_scans_are_scans(levels):
    """A masked, noisy scan of few grey levels, as an old export would store it."""
    brain = regions(values=(3, 5, 6, 8)) / 8 + 0.08 * np.random.default_rng(0).standard_normal((24, 24, 24))
    scan = np.clip(brain * (regions() > 0) * levels, 0, levels - 1).astype(np.uint8)
    assert not looks_like_labels(scan.astype(np.float32))


@pytest.mark.parametrize(
    "pattern", ["brain_labels/*_0[1-3].nii.gz", "oasis_t1/100[01]_*", "demo/*", "hippocampus/*/*_00*"]
)
def test_real_scans_and_label_maps(data_folder, pattern):
    files = sorted(data_folder.glob(pattern)) + sorted(data_folder.glob("cardiac_mscmr/*/patient07*"))
    for path in files:
        if path.parent.name in ("labels", "brain_labels") or scan_stem(path).endswith(
            ("seg", "glm", "manual")
        ):
            assert_refused(path, "looks like a label map")
            assert read_labels(path).array.max() > 0
        else:
            assert read_image(path).array.max() > 0
            if np.asarray(nib.load(path).dataobj).dtype.kind != "f":
                assert_refused(path, "looks like a scan", read_labels)


def test_real_pairs_share_a_grid(data_folder):
    folder = data_folder / "cardiac_mscmr" / "LGE"
    for image in sorted(folder.glob("patient0*_LGE.nii.gz"))[:3]:
        check_same_grid(read_image(image), read_labels(image.with_name(f"{scan_stem(image)}_manual.nii.gz")))


def test_labels_stored_as_float(tmp_path):
    labels = regions()
    volume = read_labels(save_nifti(tmp_path / "seg.nii.gz", labels.astype(np.float32)))
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, labels)
    blurred = save_nifti(tmp_path / "blurred.nii.gz", labels + np.float32(0.3))
    assert_refused(blurred, "not whole numbers", read_labels)


def test_scan_is_no_label_map(tmp_path):
    for scale, dtype in ((1, np.uint8), (20, np.int16)):
        path = save_nifti(tmp_path / f"{scale}.nii.gz", (noise(20, 20, 20) * scale).astype(dtype))
        assert_refused(path, "looks like a scan", read_labels)
    assert not read_labels(save_nifti(tmp_path / "none.nii.gz", np.zeros((6, 6, 6), np.uint8))).array.any()


def test_same_grid():
    image = noise_scan((6, 7, 8), make_affine(spacing=(0.75, 0.75, 12), angles=(5, 10, 15)))
    check_same_grid(image, Volume(np.zeros((6, 7, 8), int), image.affine + 1e-5))
    moved = image.affine.copy()
    moved[0, 3] += 0.01
    with pytest.raises(InputError, match=r"0\.01 mm away"):
        check_same_grid(image, Volume(image.array, moved))
    with pytest.raises(InputError, match="6 x 7 x 9 voxels but the image has 6 x 7 x 8"):
        check_same_grid(image, noise_scan((6, 7, 9), image.affine))


# --- geometry and writing -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=affines(), suffix=st.sampled_from(FORMATS), second=st.sampled_from(FORMATS))
def test_round_trip_agrees_with_both_libraries(tmp_path, affine, suffix, second):
    scan = noise_scan((4, 6, 5), affine)
    first = read_image(write_volume(tmp_path / f"a{suffix}", scan.array, scan, overwrite=True))
    volume = read_image(write_volume(tmp_path / f"b{second}", first.array, first, overwrite=True))
    for read in (first, volume):
        np.testing.assert_array_equal(read.array, scan.array)
        np.testing.assert_allclose(read.affine, affine, atol=1e-4)
    check_same_grid(scan, volume)

    image = sitk.ReadImage(str(volume.path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, scan.array)
    corner = image.TransformIndexToPhysicalPoint((3, 5, 4))
    np.testing.assert_allclose(np.array(corner) * (-1, -1, 1), (affine @ (3, 5, 4, 1))[:3], atol=1e-3)
    if second.startswith(".nii"):
        np.testing.assert_allclose(nib.load(volume.path).affine, affine, atol=1e-4)


def test_itk_formats_keep_the_very_numbers(tmp_path):
    image = sitk.GetImageFromArray(noise(5, 6, 7))
    image.SetSpacing((0.7291667, 0.7291667, 4.999998))
    image.SetOrigin((-91.1, 1 / 3, 1e-7))
    image.SetDirection(make_affine((1, 2, 0), (1, -1, -1), angles=(3, 4, 5))[:3, :3].ravel())
    for suffix, tolerance in ((".mha", 0), (".nrrd", 1e-14)):
        sitk.WriteImage(image, str(tmp_path / f"in{suffix}"))
        before = read_image(tmp_path / f"in{suffix}")
        after = read_image(write_volume(tmp_path / f"out{suffix}", before.array, before))
        for name in ("spacing", "origin", "direction"):
            values = getattr(before.header, name), getattr(after.header, name)
            np.testing.assert_allclose(*values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 1), (0, 0)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_header_is_kept(tmp_path, codes, kind):
    affine = make_affine((2, 0, 1), (-1, 1, -1), (0.75, 0.75, 12), (4, 8, 2))
    image = kind(noise(4, 5, 6), None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 300
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_image(tmp_path / "scan.nii.gz")
    before = nib.load(tmp_path / "scan.nii.gz").header
    after = nib.load(write_volume(tmp_path / "out.nii.gz", np.ones((4, 5, 6), np.int64), volume)).header
    fields = ["sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z"]
    for field in [
        *fields,
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
        "sizeof_hdr",
    ]:
        np.testing.assert_array_equal(before[field], after[field], err_msg=field)
    assert after.get_data_dtype() == np.uint8
    assert after["cal_max"] == 0


def test_scale_factors_are_applied(tmp_path):
    image = nib.Nifti1Image(noise(5, 6, 7, dtype=np.int16), np.eye(4))
    stored = np.asarray(image.dataobj).astype(np.float32)
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "scan.nii")
    patch_header(tmp_path / "scan.nii", 112, [0.5, -100])  # whatever the library made of it on saving
    on_disk = nib.load(tmp_path / "scan.nii").dataobj.get_unscaled()
    volume = read_image(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.array, on_disk * 0.5 - 100, rtol=1e-6)
    out = nib.load(write_volume(tmp_path / "out.nii", stored, volume))
    np.testing.assert_array_equal(np.asarray(out.dataobj), stored)


def test_mgz_is_read(tmp_path):
    affine = make_affine((0, 2, 1), (-1, 1, -1), (1, 1, 1.5))
    nib.save(nib.MGHImage(noise(5, 6, 7), affine), tmp_path / "norm.mgz")
    volume = read_image(tmp_path / "norm.mgz")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    labels = read_labels(write_volume(tmp_path / "seg.nii.gz", volume.array > 80, volume))
    check_same_grid(volume, labels)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((0, 255), "uint8"),
        ((0, 256), "uint16"),
        ((0, 65536), "int32"),
        ((-1, 3), "int32"),
        ((0, 0.5), "float32"),
    ],
)
def test_smallest_type(tmp_path, suffix, values, dtype):
    array = np.resize(np.array(values), (3, 3, 3))
    path = write_volume(tmp_path / f"out{suffix}", array, noise_scan((3, 3, 3)))
    image = sitk.ReadImage(str(path))
    assert sitk.GetArrayFromImage(image).dtype == dtype
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, array)


def test_existing_file_is_kept(tmp_path):
    like = noise_scan((3, 3, 3))
    path = write_volume(tmp_path / "out.nii.gz", like.array, like)
    before = path.read_bytes()
    with pytest.raises(InputError, match="already exists"):
        write_volume(path, like.array + 1, like)
    assert path.read_bytes() == before
    write_volume(path, like.array + 1, like, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_full_disk_leaves_nothing(tmp_path, suffix):
    """A file-size limit stands for the full disk: the writer fails half-way."""
    like = noise_scan((40, 40, 40))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_volume(tmp_path / f"out{suffix}", like.array, like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(tmp_path):
    like = noise_scan((3, 3, 3))
    (tmp_path / "file").touch()
    for place in ("absent/out.nii.gz", "file/out.nii.gz", "file/out.nrrd"):
        with pytest.raises(InputError, match="cannot be written"):
            write_volume(tmp_path / place, like.array, like)
    with pytest.raises(InputError, match="suffix"):
        write_volume(tmp_path / "out.mgz", like.array, like)
    with pytest.raises(ValueError, match="shape"):
        write_volume(tmp_path / "out.nii.gz", like.array[1:], like)


# --- folders ------------------------------------------------------------------------------------------------


def write_series(folder, array, affine, slices=None, uid="1.2.826.0.1.3680043.2.1125.1"):
    """A DICOM series of the array's planes (or of some of them)."""
    folder.mkdir(exist_ok=True)
    scan = write_volume(folder.parent / "whole.mha", array, Volume(array, affine), overwrite=True)
    image = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkInt16)
    direction = np.reshape(image.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in range(image.GetDepth()) if slices is None else slices:
        plane = image[:, :, i : i + 1]
        origin = image.TransformIndexToPhysicalPoint((0, 0, i))
        tags = {
            "0008|0060": "MR",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.0",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|0032": "\\".join(f"{v:.6f}" for v in origin),
            "0020|0037": "\\".join(f"{v:.8f}" for v in [*direction[:, 0], *direction[:, 1]]),
            "0020|0013": str(i + 1),
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid[-1]}-{i:03d}.dcm"))
        writer.Execute(plane)
    scan.unlink()


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


def test_dicom_series_with_a_gap_or_a_neighbour(tmp_path):
    array, affine = noise(8, 9, 8, dtype=np.int16), make_affine(spacing=(1, 1, 3))
    write_series(tmp_path / "gap", array, affine, slices=[0, 1, 2, 5, 6])
    assert_refused(tmp_path / "gap", "missing or unevenly spaced slices")
    write_series(tmp_path / "two", array, affine)
    write_series(tmp_path / "two", array, affine, uid="1.2.826.0.1.3680043.2.1125.2")
    assert_refused(tmp_path / "two", "2 DICOM series")
    (tmp_path / "none").mkdir()
    assert_refused(tmp_path / "none", "no DICOM series")


def test_find_scans(tmp_path):
    with pytest.raises(InputError, match="holds no scans"):
        find_scans(tmp_path)
    for name in ("b.nii.gz", "a.NRRD", ".hidden.nii.gz", "notes.txt", "c.mgz"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert [p.name for p in find_scans(tmp_path)] == ["a.NRRD", "b.nii.gz", "c.mgz"]
    assert find_scans(tmp_path / "b.nii.gz") == [tmp_path / "b.nii.gz"]
    with pytest.raises(InputError, match="does not exist"):
        find_scans(tmp_path / "absent")


def test_scan_stem():
    assert scan_stem("x/sub-01.T1w.nii.gz") == "sub-01.T1w"
    assert scan_stem("SCAN.NII") == "SCAN"
    assert scan_stem("x/series.1") == "series.1"


def test_import_is_light():
    heavy = {"torch", "nibabel", "SimpleITK", "scipy"}
    code = f"import sys, MAPSegLib.volumes; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
