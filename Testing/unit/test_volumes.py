"""What is read as a scan or as a label map, and what is refused."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volume_cases import (
    assert_refused,
    make_affine,
    noise,
    noise_scan,
    patch_header,
    save_nifti,
)

from MAPSegLib.errors import InputError
from MAPSegLib.volumes import (
    Volume,
    check_same_grid,
    find_scans,
    image_in_memory,
    looks_like_labels,
    read_image,
    read_labels,
    scan_stem,
    write_volume,
)

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
    "content",
    [b"Dear colleague, here is the scan.\n" * 40, gzip.compress(b"text" * 400), bytes(900)],
    ids=["text", "compressed text", "zeros"],
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


@pytest.mark.parametrize("name", ["spacing-study", "two directions"])
def test_words_in_a_folders_name_do_not_explain_a_failure(tmp_path, name):
    (tmp_path / name).mkdir()
    path = tmp_path / name / "scan.nhdr"
    sitk.WriteImage(sitk.GetImageFromArray(noise(8, 7, 6)), str(path))
    path.write_text(path.read_text().replace("sizes: 6 7 8", "sizes: 6 7"))
    assert_refused(path, "damaged, truncated or not an image")


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr"])
def test_a_header_without_the_file_of_its_voxels_says_so(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(noise(8, 7, 6)), str(tmp_path / name))
    (tmp_path / "scan.raw").rename(tmp_path / "renamed.raw")
    assert_refused(tmp_path / name, "the file of its voxels, scan.raw, is not there")


def test_a_scan_that_is_written_anew_meanwhile_stays_as_it_was_read(tmp_path):
    path = save_nifti(tmp_path / "a.nii", noise(20, 20, 20))
    volume = read_image(path)
    path.write_bytes(path.read_bytes()[:352] + bytes(4 * 20**3))  # in place
    np.testing.assert_array_equal(volume.array, noise(20, 20, 20))


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


@pytest.mark.parametrize("size", [0.05, 50])
def test_voxels_of_the_limits_are_read_however_they_are_turned(size):
    """Turned axes are some tenth of a millionth shorter or longer."""
    array = noise(6, 7, 8)
    for degrees in range(0, 45, 3):
        affine = make_affine(spacing=(size,) * 3, angles=(degrees, 2 * degrees, degrees / 2))
        np.testing.assert_array_equal(image_in_memory(nib.Nifti1Image(array, affine)).array, array)


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


def real_files(folder, pattern):
    files = sorted(folder.glob(pattern))
    if not files:
        pytest.skip(f"needs {pattern} among the real scans")
    return files


@pytest.mark.parametrize(
    "pattern",
    [
        "brain_labels/*_0[1-3].nii.gz",
        "oasis_t1/100[01]_*",
        "demo/*",
        "hippocampus/*/*_00*",
        "cardiac_mscmr/*/patient07*",
    ],
)
def test_real_scans_and_label_maps(data_folder, pattern):
    for path in real_files(data_folder, pattern):
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
    for image in real_files(data_folder, "cardiac_mscmr/LGE/patient0*_LGE.nii.gz")[:3]:
        check_same_grid(read_image(image), read_labels(image.with_name(f"{scan_stem(image)}_manual.nii.gz")))


def test_labels_stored_as_float(tmp_path):
    labels = regions()
    volume = read_labels(save_nifti(tmp_path / "seg.nii.gz", labels.astype(np.float32)))
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, labels)
    rounded = save_nifti(tmp_path / "rounded.nii.gz", labels - np.float32(5e-5))
    np.testing.assert_array_equal(read_labels(rounded).array, labels)
    blurred = save_nifti(tmp_path / "blurred.nii.gz", labels + np.float32(0.3))
    assert_refused(blurred, "not whole numbers", read_labels)
    scaled = save_nifti(tmp_path / "scaled.nii.gz", (labels > 0) * np.float32(1.1))
    assert_refused(scaled, "not whole numbers", read_labels)


def test_scan_is_no_label_map(tmp_path):
    for scale, dtype in ((1, np.uint8), (20, np.int16)):
        path = save_nifti(tmp_path / f"{scale}.nii.gz", (noise(20, 20, 20) * scale).astype(dtype))
        assert_refused(path, "looks like a scan", read_labels)
    assert not read_labels(save_nifti(tmp_path / "none.nii.gz", np.zeros((6, 6, 6), np.uint8))).array.any()


def test_same_grid():
    image = noise_scan((6, 7, 8), make_affine(spacing=(0.75, 0.75, 12), angles=(5, 10, 15)))
    check_same_grid(image, Volume(np.zeros((6, 7, 8), int), image.affine + 1e-5))
    moved = image.affine.copy()
    moved[0, 3] += 0.03  # what quaternions and decimals may round away
    check_same_grid(image, Volume(image.array, moved))
    moved[0, 3] += 0.03
    with pytest.raises(InputError, match=r"0\.06 mm away"):
        check_same_grid(image, Volume(image.array, moved))
    coarse = noise_scan((6, 7, 8), np.diag([4.0, 4.0, 4.0, 1.0]))
    aside = coarse.affine.copy()
    aside[1, 3] += 0.15  # less than 5 % of a voxel
    with pytest.raises(InputError, match=r"0\.15 mm away"):
        check_same_grid(coarse, Volume(coarse.array, aside))
    with pytest.raises(InputError, match="6 x 7 x 9 voxels but the image has 6 x 7 x 8"):
        check_same_grid(image, noise_scan((6, 7, 9), image.affine))


def test_a_folder_of_somebody_elses_stops_no_listing(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert find_scans(tmp_path) == [tmp_path / "a.nii.gz"]


def test_a_link_to_nowhere_is_a_scan_that_is_missing(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "annex" / "a.nii.gz")
    assert find_scans(tmp_path) == [tmp_path / "a.nii.gz"]
    assert_refused(tmp_path / "a.nii.gz", "does not exist")
