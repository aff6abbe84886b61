"""Compressed files that are damaged are refused, wherever the damage lies; whole ones are read, in every form."""

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volume_cases import assert_refused, noise, save_nifti

from MAPSegLib.volumes import read_image, read_labels

SUFFIXES = [".nii.gz", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd"]


def compressed(folder, suffix, array):
    """A compressed file of the array, and the one of its voxels."""
    path = folder / f"scan{suffix}"
    if suffix == ".nii.gz":
        save_nifti(path, array)
    elif suffix == ".mgz":
        nib.save(nib.MGHImage(array, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path), useCompression=True)
    return path, path.with_suffix({".nhdr": ".raw.gz", ".mhd": ".zraw"}.get(suffix, path.suffix))


def spoil(path, place):
    """Turn one bit at this share of a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)


def blocks():
    """A label map of eight blocks."""
    return np.kron(np.arange(8).reshape(2, 2, 2) % 5, np.ones((12, 12, 12))).astype(np.int16)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.95])
def test_one_wrong_byte_in_a_compressed_scan_is_noticed(tmp_path, suffix, place):
    path, voxels = compressed(tmp_path, suffix, noise(20, 20, 20))
    read_image(path)
    spoil(voxels, place)
    assert_refused(path, "damaged, truncated or not an image")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_wrong_byte_in_a_compressed_label_map_is_noticed(tmp_path, suffix):
    path, voxels = compressed(tmp_path, suffix, blocks())
    np.testing.assert_array_equal(read_labels(path).array, blocks())
    spoil(voxels, 0.6)
    assert_refused(path, "damaged, truncated or not an image", read_labels)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lost", [1, 4, 8])
def test_a_compressed_scan_without_its_last_bytes_is_refused(tmp_path, suffix, lost):
    path, voxels = compressed(tmp_path, suffix, noise(20, 20, 20))
    voxels.write_bytes(voxels.read_bytes()[:-lost])
    assert_refused(path, "damaged, truncated or not an image")


def test_compressed_voxels_that_are_too_few_are_refused(tmp_path):
    path, voxels = compressed(tmp_path, ".mhd", noise(20, 20, 20))
    voxels.write_bytes(zlib.compress(noise(20, 20, 19).tobytes()))
    assert_refused(path, "damaged, truncated or not an image")


META = "ObjectType = Image\nNDims = 3\n\nBinaryData = True\nCompressedData = True\nElementSpacing = 1 1 1\n\
DimSize = 8 7 6\nElementType = MET_FLOAT\nElementDataFile = "
NRRD = "NRRD0004\ntype: float\ndimension: 3\nsizes: 8 7 6\nendian: little\nspacings: 1 1 1\nencoding: gzip\ndata file: "
LIST = "LIST\n" + "\n".join(f"s{number}.z" for number in range(6)) + "\n"


@pytest.mark.parametrize(
    ("name", "header", "compress"),
    [
        ("scan.mhd", META, zlib.compress),
        ("scan.mhd", META, gzip.compress),
        ("scan.nhdr", NRRD, gzip.compress),
    ],
)
@pytest.mark.parametrize("files", [LIST, "s%d.z 0 5 1\n"])
def test_compressed_slices_in_files_of_their_own(tmp_path, name, header, compress, files):
    array = noise(8, 7, 6)
    for number in range(6):
        (tmp_path / f"s{number}.z").write_bytes(compress(array[..., number].T.tobytes()))
    (tmp_path / name).write_text(header + files)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, array)
    spoil(tmp_path / "s4.z", 0.6)
    assert_refused(tmp_path / name, "damaged, truncated or not an image")


def test_slices_in_files_of_which_the_first_number_alone_is_told(tmp_path):
    array = noise(8, 7, 6)
    for number in range(6):
        (tmp_path / f"s{number + 3}.z").write_bytes(zlib.compress(array[..., number].T.tobytes()))
    (tmp_path / "scan.mhd").write_text(f"{META}s%d.z 3\n")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mhd").array, array)
    spoil(tmp_path / "s8.z", 0.6)
    assert_refused(tmp_path / "scan.mhd", "damaged, truncated or not an image")


def test_lines_before_compressed_voxels_are_skipped_as_the_header_says(tmp_path):
    array = noise(8, 7, 6)
    (tmp_path / "voxels.gz").write_bytes(b"two\nlines\n" + gzip.compress(array.T.tobytes()))
    (tmp_path / "scan.nhdr").write_text(NRRD.replace("data file", "line skip: 2\ndata file") + "voxels.gz\n")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nhdr").array, array)
    spoil(tmp_path / "voxels.gz", 0.6)
    assert_refused(tmp_path / "scan.nhdr", "damaged, truncated or not an image")


def test_compressed_slices_that_are_named_backwards(tmp_path):
    array = noise(8, 7, 6)
    for number in range(6):
        (tmp_path / f"s{number}.z").write_bytes(gzip.compress(array[..., 5 - number].T.tobytes()))
    (tmp_path / "scan.nhdr").write_text(NRRD + "s%d.z 5 0 -1\n")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nhdr").array, array)


def test_gzip_files_of_several_members_are_read(tmp_path):
    """As block-wise compressors write them."""
    path = save_nifti(tmp_path / "whole.nii", noise(20, 20, 20))
    content = path.read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:9000]) + gzip.compress(content[9000:]))
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii.gz").array, noise(20, 20, 20))
