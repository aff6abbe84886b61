"""Compressed files that are damaged are refused, wherever the damage lies; whole ones are read, in every form."""

import bz2
import gzip
import os
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volume_cases import assert_refused, noise, save_nifti

from MAPSegLib import compression
from MAPSegLib.text_headers import read_text_header
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


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize("packed", [True, False])
def test_voxels_in_a_file_whose_name_is_not_ascii(tmp_path, suffix, packed):
    array = noise(8, 7, 6)
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(tmp_path / f"Schädel 1{suffix}"), packed)
    np.testing.assert_array_equal(read_image(tmp_path / f"Schädel 1{suffix}").array, array)


@pytest.mark.parametrize(("name", "header"), [("scan.mhd", META), ("scan.nhdr", NRRD)])
def test_a_letter_that_ends_like_a_space_does_not_end_a_pattern(tmp_path, name, header):
    """UTF-8 writes "à" as two bytes, and the second one is Latin-1's unbroken space."""
    array = noise(8, 7, 6)
    for number in range(6):
        (tmp_path / f"voilà{number}").write_bytes(gzip.compress(array[..., number].T.tobytes()))
    (tmp_path / name).write_text(f"{header}voilà%d 0 5 1\n", encoding="utf-8")
    np.testing.assert_array_equal(read_image(tmp_path / name).array, array)


@pytest.mark.parametrize("name", ["100%.nhdr", "50% dose.nhdr"])
def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path, name):
    array = noise(8, 7, 6)
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(tmp_path / name))
    np.testing.assert_array_equal(read_image(tmp_path / name).array, array)


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


def test_metaimage_that_states_fewer_compressed_bytes_than_there_are_is_refused(tmp_path):
    """ITK would take these alone, and for the other voxels what memory happened to hold."""
    path, array = tmp_path / "scan.mha", noise(8, 7, 6)
    voxels = zlib.compress(array.T.tobytes())

    def state(line, end="LOCAL\n"):
        path.write_bytes(
            META.replace("ElementSpacing", f"{line}ElementSpacing").encode() + end.encode() + voxels
        )

    state(f"CompressedDataSize = {len(voxels)}\n")
    np.testing.assert_array_equal(read_image(path).array, array)
    for size in (len(voxels) - 50, len(voxels) + 50, 1, -1, 10**15):
        state(f"CompressedDataSize = {size}\n")
        assert_refused(path, "damaged, truncated or not an image")
    for line in ("", "CompressedDataSize = 0\n"):  # it would take the header for voxels
        state(line)
        assert_refused(path, "does not state the size of its compressed voxels")


def test_voxels_that_metaimage_seeks_in_its_own_header_are_refused(tmp_path):
    header = META.replace("CompressedData = True", "HeaderSize = 10")
    (tmp_path / "scan.mha").write_bytes(f"{header}LOCAL\n".encode() + bytes(10) + noise(8, 7, 6).tobytes())
    assert_refused(tmp_path / "scan.mha", "damaged, truncated or not an image")


@pytest.mark.parametrize("end", ["LOCAL", "scan.zraw"])
def test_an_offset_before_compressed_voxels_is_refused(tmp_path, end):
    """ITK would count as many bytes from the end of the file as the voxels take when they are inflated."""
    voxels = zlib.compress(noise(8, 7, 6).T.tobytes())
    header = f"HeaderSize = -1\nCompressedDataSize = {len(voxels)}\n{META}{end}\n".encode()
    (tmp_path / "scan.zraw").write_bytes(voxels)
    (tmp_path / "scan.mha").write_bytes(header + voxels * (end == "LOCAL"))
    assert_refused(tmp_path / "scan.mha", "damaged, truncated or not an image")


@pytest.mark.parametrize(
    "files", ["LIST\n" + "\n".join(f"s{number}.raw" for number in range(5)), "s%d.raw 0 4 1"]
)
def test_fewer_files_than_slices_are_refused(tmp_path, files):
    """For those that a list lacks, ITK gives what memory happened to hold."""
    for number in range(5):
        (tmp_path / f"s{number}.raw").write_bytes(noise(8, 7, 6)[..., number].T.tobytes())
    (tmp_path / "scan.mhd").write_text(f"{PLAIN}ElementDataFile = {files}\n")
    assert_refused(tmp_path / "scan.mhd", "damaged, truncated or not an image")


def test_a_text_of_short_numbers_is_no_file_that_lacks_bytes(tmp_path):
    array = np.arange(8 * 7 * 6).reshape(8, 7, 6) * 7 % 9
    text = " ".join(map(str, array.ravel(order="F")))
    (tmp_path / "scan.mha").write_text(f"BinaryData = False\n{PLAIN}ElementDataFile = LOCAL\n{text}\n")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mha").array, array)


PLAIN = "ObjectType = Image\nNDims = 3\nDimSize = 8 7 6\nElementSpacing = 1 1 1\nElementType = MET_FLOAT\n"


@pytest.mark.timeout(20)
def test_numbers_of_slices_without_end_are_not_counted(tmp_path):
    array = noise(8, 7, 6)
    for number in range(6):
        (tmp_path / f"s{number}.raw").write_bytes(array[..., number].T.astype(np.float32).tobytes())
    (tmp_path / "scan.mhd").write_text(f"{PLAIN}ElementDataFile = s%d.raw 0 2000000000 1\n")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mhd").array, array)


@pytest.mark.timeout(20)
def test_lines_without_end_are_not_skipped(tmp_path):
    content = f"{PLAIN}lineskip = 1000000000000\nCompressedData = True\nElementDataFile = LOCAL\n".encode()
    voxels = zlib.compress(noise(8, 7, 6).T.astype(np.float32).tobytes())
    (tmp_path / "scan.mha").write_bytes(content + voxels)
    assert_refused(tmp_path / "scan.mha", "damaged, truncated or not an image")


def claim(name, large):
    """A short file of this name whose header speaks of ``large`` x ``large`` x ``large`` voxels."""
    if name.endswith((".mha", ".nrrd")):
        kind, _, packed = name.partition(".")
        header = PLAIN if "mha" in packed else NRRD.replace("data file: ", "")
        header = header.replace("8 7 6", f"{large} {large} {large}")
        if kind == "whole":
            header = header.replace("gzip", "raw")
        elif "mha" in packed:
            header += "CompressedData = True\n"
        end = "ElementDataFile = LOCAL\n" if "mha" in packed else "\n"
        return f"{header}{end}".encode() + zlib.compress(bytes(1000))
    header = nib.Nifti1Header() if ".nii" in name else nib.freesurfer.mghformat.MGHHeader()
    header.set_data_dtype(np.float32)
    header.set_data_shape((large,) * 3)
    if ".nii" in name:
        header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(1000)
    return gzip.compress(content) if name.endswith("z") else content


NAMES = ["a.nii", "a.nii.gz", "a.mgh", "a.mgz", "whole.nrrd", "packed.nrrd", "whole.mha", "packed.mha"]


@pytest.mark.parametrize("name", NAMES)
def test_a_small_file_that_claims_to_be_large_takes_no_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(claim(name, 20_000))
    assert_refused(path, "damaged, truncated or not an image")


@pytest.mark.parametrize("encoding", ["bzip2", "bz2"])
def test_bzip2_in_a_nrrd_file_is_no_damage(tmp_path, encoding):
    path, array = tmp_path / "scan.nrrd", noise(8, 8, 8)
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path))
    header, voxels = path.read_bytes().split(b"\n\n", 1)
    header = header.replace(b"encoding: raw", b"encoding: " + encoding.encode())
    path.write_bytes(header + b"\n\n" + bz2.compress(voxels))
    assert_refused(path, "is compressed with bzip2, which ITK does not read")


WRONG = "damaged, truncated or not an image"


@pytest.mark.parametrize("encoding", ["ascii", "hex"])
def test_voxels_in_a_text_cannot_be_more_than_its_letters(tmp_path, encoding):
    header = NRRD.replace("data file: ", "").replace("gzip", encoding).replace("8 7 6", "20000 20000 20000")
    (tmp_path / "scan.nrrd").write_text(f"{header}\n1 2 3")
    assert_refused(tmp_path / "scan.nrrd", WRONG)


@pytest.mark.parametrize("name", ["a.nii.gz", "packed.nrrd", "packed.mha"])
def test_a_stream_of_far_more_than_the_voxels_is_not_read_to_its_end(tmp_path, name, monkeypatch):
    monkeypatch.setattr(compression, "_SPARE", 1000)
    path = tmp_path / name
    content = claim(name, 4)
    if name.endswith(".gz"):
        content = gzip.decompress(content)
        path.write_bytes(gzip.compress(content) + gzip.compress(bytes(10_000)) + b"not looked at")
    else:
        start = content.index(zlib.compress(bytes(1000)))
        pack = gzip.compress if "nrrd" in name else zlib.compress
        path.write_bytes(content[:start] + pack(bytes(10_000)))
    assert_refused(path, WRONG)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
@pytest.mark.timeout(20)
def test_voxels_from_a_pipe_are_not_waited_for(tmp_path, encoding):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "scan.nhdr").write_text(f"{NRRD.replace('gzip', encoding)}pipe\n")
    assert_refused(tmp_path / "scan.nhdr", WRONG)


@pytest.mark.parametrize(
    "line",
    [
        f"nonsense {'x' * 2000}",
        f"sizes: 8 7 6 {'x' * 2000}",
        f"data file: {'x' * 2000}",
        "data file: s%0999d.raw 1 6 1",
    ],
)
def test_nrrd_that_would_write_past_the_memory_of_its_reader(tmp_path, line):
    """Which ends the process, unless the text is refused before."""
    header = [each for each in NRRD.splitlines() if each.split(":")[0] != line.split(":")[0]]
    (tmp_path / "scan.nhdr").write_text("\n".join([*header, line, ""]))
    with pytest.raises(ValueError, match="a field without end|no pattern of files"):
        read_text_header(tmp_path / "scan.nhdr")
    assert_refused(tmp_path / "scan.nhdr", WRONG)


@pytest.mark.parametrize("pattern", ["%s", "%s%d", "s%n.raw", "s%x.raw", "s%0999d.raw"])
def test_a_pattern_that_is_more_than_a_number_is_not_given_to_itk(tmp_path, pattern):
    for number in range(1, 7):
        (tmp_path / f"{number}").write_bytes(bytes(8 * 7 * 4))
    (tmp_path / "scan.mhd").write_text(f"{PLAIN}ElementDataFile = {pattern} 1 6 1\n")
    assert_refused(tmp_path / "scan.mhd", WRONG)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("axes", [2_000_000_000, -1])
def test_axes_without_end_are_not_counted(tmp_path, axes):
    (tmp_path / "scan.mha").write_text(
        f"{PLAIN}ElementDataFile = LOCAL\n".replace("NDims = 3", f"NDims = {axes}")
    )
    with pytest.raises(ValueError, match="so many axes"):
        read_text_header(tmp_path / "scan.mha")
    assert_refused(tmp_path / "scan.mha", WRONG)


def test_more_files_than_a_scan_has_are_not_listed(tmp_path):
    header = NRRD.replace("8 7 6", "2 2 1000000000").replace("gzip", "raw")
    (tmp_path / "scan.nhdr").write_text(f"{header}s%d.raw 1 1000000000 1\n")
    with pytest.raises(ValueError, match="no pattern of files"):
        read_text_header(tmp_path / "scan.nhdr")


def test_long_notes_in_a_nrrd_header_do_no_harm(tmp_path):
    array = noise(8, 8, 8)
    image = sitk.GetImageFromArray(array.T)
    image.SetMetaData("note", "x" * 5000)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    assert b"x" * 5000 in (tmp_path / "scan.nrrd").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nrrd").array, array)
