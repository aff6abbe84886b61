"""Volumes keep their geometry through reading and writing; folders of them are found."""

import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_cases import FORMATS, affines, assert_refused, make_affine, noise, noise_scan, patch_header

from MAPSegLib.errors import InputError
from MAPSegLib.volumes import (
    Volume,
    check_same_grid,
    find_scans,
    read_image,
    read_labels,
    scan_stem,
    write_volume,
)

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


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_a_nifti_header_tells_of_the_scan_stays_out_of_results(tmp_path, kind):
    """It may name who was scanned, and a label map is no statistic."""
    image = kind(noise(4, 5, 6), np.eye(4))
    image.header.set_intent("t test", (12,), name="John Doe")
    for field in ("descrip", "aux_file", "db_name", "data_type", "unused_str"):
        if field in image.header:
            image.header[field] = b"John Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"John Doe"))
    nib.save(image, tmp_path / "scan.nii")
    assert b"John Doe" in (tmp_path / "scan.nii").read_bytes()
    written = write_volume(tmp_path / "out.nii", np.ones((4, 5, 6), int), read_image(tmp_path / "scan.nii"))
    assert b"John Doe" not in written.read_bytes()
    after = nib.load(written).header
    assert not after.extensions
    assert not any(after[f"intent_{field}"] for field in ("code", "name", "p1", "p2", "p3"))


@pytest.mark.parametrize(("shear", "code"), [(0, 1), (1e-5, 1), (0.2, 0)])
def test_no_quaternion_puts_sheared_labels_elsewhere(tmp_path, shear, code):
    """ITK would take it, and leave out the shear: the labels would lie beside the scan."""
    affine = make_affine(spacing=(1, 2, 3), angles=(3, 4, 5)) @ (np.eye(4) + shear * np.eye(4, k=1))
    affine[:3, 3] = 5, 6, 7
    scan = read_image(
        write_volume(tmp_path / "scan.mha", noise(20, 21, 22), Volume(noise(20, 21, 22), affine))
    )
    header = nib.load(write_volume(tmp_path / "out.nii", scan.array > 80, scan)).header
    assert (header["sform_code"], header["qform_code"]) == (1, code)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-4)
    if code:
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-3)


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


# --- what headers state, and leave open ---------------------------------------------------------------------


def nifti(path, sform=None, qform=None, unit="mm"):
    image = nib.Nifti1Image(noise(8, 9, 10), None)
    image.header.set_xyzt_units(unit)
    for matrix, setter in ((sform, image.set_sform), (qform, image.set_qform)):
        setter(np.eye(4) if matrix is None else np.diag([*matrix, 1.0]), code=int(matrix is not None))
    nib.save(image, path)
    return path


def test_orientations_that_contradict_each_other_are_refused(tmp_path):
    assert_refused(nifti(tmp_path / "a.nii.gz", (-1, 1, 1), (1, 1, 1)), "contradict each other")
    assert_refused(nifti(tmp_path / "a.nii.gz", (-1, -1, 1), (1, 1, 1)), "contradict each other")
    assert not read_image(nifti(tmp_path / "b.nii.gz", (-1, 1, 1), (-1, 1, 1))).notes
    assert_refused(nifti(tmp_path / "b.nii.gz", (1, -1, 1), (1, 1, 1)), "contradict each other")
    assert not read_image(nifti(tmp_path / "c.nii.gz", (-1, 1, 1))).notes
    (note,) = read_image(nifti(tmp_path / "d.nii.gz")).notes
    assert "left and right are assumed" in note


def test_orientations_that_a_quarter_turn_parts_are_refused(tmp_path):
    """Programs that take the one would call front to back what others call left to right."""
    image = nib.Nifti1Image(noise(8, 9, 10), np.eye(4))
    for degrees in (30, 40, 50, 90):
        image.set_sform(np.eye(4), code=2)
        image.set_qform(make_affine(angles=(0, 0, degrees)), code=1)
        nib.save(image, tmp_path / f"{degrees}.nii.gz")
    for degrees in (30, 40):
        assert read_image(tmp_path / f"{degrees}.nii.gz").affine[0, 0] == 1
    for degrees in (50, 90):
        assert_refused(tmp_path / f"{degrees}.nii.gz", "contradict each other")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"angles": (0, 0, 34)}, "up to 6.22 mm apart"),
        ({"origin": (0, 100, 0)}, "up to 100 mm apart"),
        ({"origin": (0, 1.1, 0)}, "up to 1.1 mm apart"),
        ({"origin": (0, 0.9, 0)}, None),  # less than a voxel
    ],
)
def test_a_second_position_is_told(tmp_path, changes, told):
    spacing = (1, 1, 2)
    image = nib.Nifti1Image(noise(8, 9, 10), None)
    image.set_sform(make_affine(spacing=spacing), code=2)
    image.set_qform(make_affine(spacing=spacing, **changes), code=1)
    nib.save(image, tmp_path / "scan.nii.gz")
    notes = read_image(tmp_path / "scan.nii.gz").notes
    assert len(notes) == bool(told) and all(told in note and "sform is taken" in note for note in notes)


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_negative_voxel_spacing_is_refused(tmp_path, codes):
    """nibabel takes its absolute value, ITK a mirror image: the label map would lie mirrored in one of them."""
    image = nib.Nifti1Image(noise(8, 9, 10), np.eye(4))
    image.set_sform(np.eye(4), code=codes[0])
    image.set_qform(np.eye(4), code=codes[1])
    nib.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[80:84] = np.float32(-1).tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    assert_refused(tmp_path / "scan.nii", "negative voxel spacing")


@pytest.mark.parametrize(("sign", "read"), [(-1, True), (0, True), (1, True), (-2, False), (-0.99, False)])
def test_slices_whose_sign_programs_read_differently_are_refused(tmp_path, sign, read):
    """nibabel takes all but -1 for 1, and others whatever is below 0 for -1: they see a mirror image."""
    path = nifti(tmp_path / "scan.nii", qform=(1, 1, 1))
    patch_header(path, 76, [sign])
    if read:
        assert read_image(path).affine[2, 2] == (-1 if sign < 0 else 1)
    else:
        assert_refused(path, "negative voxel spacing")


def test_a_second_voxel_size_is_told(tmp_path):
    image = nib.Nifti1Image(noise(8, 9, 10), np.eye(4))
    image.set_sform(np.eye(4), code=1)
    image.header["pixdim"][1:4] = 1.1
    nib.save(image, tmp_path / "scan.nii.gz")
    assert len(read_image(tmp_path / "scan.nii.gz").notes) == 1
    image.header["pixdim"][1:4] = 3
    nib.save(image, tmp_path / "scan.nii.gz")
    (note,) = read_image(tmp_path / "scan.nii.gz").notes
    assert "1 x 1 x 1 mm (sform)" in note and "3 x 3 x 3 mm (pixdim)" in note
    image.header["pixdim"][1:4] = 1, np.nan, 1
    nib.save(image, tmp_path / "scan.nii.gz")
    (note,) = read_image(tmp_path / "scan.nii.gz").notes
    assert "1 x nan x 1 mm (pixdim)" in note


def test_files_that_leave_left_and_right_open_say_so(tmp_path):
    whole = write_volume(tmp_path / "a.nrrd", noise(8, 9, 10), Volume(noise(8, 9, 10), np.eye(4)))
    assert not read_image(whole).notes
    (tmp_path / "b.nrrd").write_bytes(
        whole.read_bytes().replace(b"space: left-posterior-superior", b"space: 3D-right-handed")
    )
    image = nib.MGHImage(noise(8, 9, 10), np.eye(4))
    nib.save(image, tmp_path / "c.mgh")
    assert not read_image(tmp_path / "c.mgh").notes
    content = bytearray((tmp_path / "c.mgh").read_bytes())
    content[28:30] = bytes(2)  # goodRASFlag
    (tmp_path / "c.mgh").write_bytes(content)
    sitk.WriteImage(sitk.GetImageFromArray(noise(8, 9, 10)), str(tmp_path / "d.nhdr"), useCompression=False)
    assert not read_image(tmp_path / "d.nhdr").notes
    header = (tmp_path / "d.nhdr").read_text()
    (tmp_path / "d.nhdr").write_text(header.replace("left-posterior-superior", "3D-right-handed"))
    for name in ("b.nrrd", "c.mgh", "d.nhdr"):
        (note,) = read_image(tmp_path / name).notes
        assert "left and right are assumed" in note


NRRD = "NRRD0004\ntype: float\ndimension: 3\nsizes: 8 9 10\nendian: little\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 8 9 10\nElementType = MET_FLOAT\n"
SPACE = "space: left-posterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\n"
UNSIZED, UNORIENTED = "no voxel size: 1 mm is assumed", "left and right are assumed"


def bare(path, fields):
    """An NRRD or MetaImage file that states these fields of its geometry."""
    header = NRRD + fields + "\n" if path.suffix == ".nrrd" else META + fields + "ElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + noise(8, 9, 10).T.tobytes())
    return path


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("a.mha", "", [UNSIZED, UNORIENTED]),
        ("a.mha", "ElementSpacing = 2 3 4\n", [UNORIENTED]),
        ("a.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", [UNSIZED]),
        ("a.mha", "Orientation = 1 0 0 0 1 0 0 0 1\nElementSize = 2 3 4\nDistanceUnits = mm\n", []),
        ("a.nrrd", "", [UNSIZED, UNORIENTED]),
        ("a.nrrd", "spacings: 2 3 4\n", [UNORIENTED]),
        ("a.nrrd", "spacings: 2 NaN 4\n", [UNSIZED, UNORIENTED]),
        ("a.nrrd", "space: left-posterior-superior\n", [UNSIZED]),
        ("a.nrrd", SPACE, []),
        ("a.nrrd", SPACE.replace("(0,0,4)", "none"), [UNSIZED]),
        ("a.nrrd", f'{SPACE}space units: "mm" "mm" "mm"\n', []),
        ("a.nrrd", f"{SPACE}units:=HU\n", []),
        ("a.nrrd", "spacings:=2 3 4\n", [UNSIZED, UNORIENTED]),
    ],
)
def test_files_that_leave_their_geometry_open_say_so(tmp_path, name, fields, told):
    notes = read_image(bare(tmp_path / name, fields)).notes
    assert len(notes) == len(told) and all(words in note for words, note in zip(told, notes, strict=True))


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("a.nrrd", f'{SPACE}space units: "um" "um" "um"\n', "in um, not in mm"),
        ("a.nrrd", 'spacings: 25 25 25\nunits: "um" "um" "um"\n', "in um, not in mm"),
        ("a.mha", "ElementSpacing = 25 25 25\nDistanceUnits = um\n", "in um, not in mm"),
        ("a.nrrd", "spacings: 2 -3 4\n", "negative voxel spacing"),
        ("a.mha", "ElementSpacing = 2 3 -4\n", "negative voxel spacing"),
        ("a.nrrd", "space: left-posterior-superior\nspacings: 2 3 4\n", "spacings beside a space"),
    ],
)
def test_sizes_that_nrrd_and_metaimage_state_in_ways_of_their_own_are_refused(tmp_path, name, fields, told):
    assert_refused(bare(tmp_path / name, fields), told)


@pytest.mark.parametrize("space", ["right-anterior-superior-time", "RAST", "left-anterior-superior-time"])
def test_a_space_with_time_is_refused(tmp_path, space):
    """ITK knows the three spatial ones alone, and reads these as left, posterior, superior."""
    timed = f"space: {space}\nspace directions: (2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,1)\n"
    path = bare(tmp_path / "a.nrrd", timed)
    content = path.read_bytes().replace(b"dimension: 3\nsizes: 8 9 10", b"dimension: 4\nsizes: 8 9 10 1")
    path.write_bytes(content)
    assert_refused(path, "in space and time")


def test_voxels_that_start_within_the_header_are_refused(tmp_path):
    path = nifti(tmp_path / "a.nii", (1, 1, 1))
    content = bytearray(path.read_bytes())
    content[108:112] = bytes(4)  # vox_offset
    path.write_bytes(content)
    assert_refused(path, "within its header")


@pytest.mark.parametrize(("unit", "told"), [("micron", "microns"), ("meter", "metres")])
def test_other_units_than_mm_are_refused(tmp_path, unit, told):
    assert_refused(nifti(tmp_path / "a.nii.gz", (25, 25, 25), unit=unit), f"in {told}, not in mm")
    image = nib.load(tmp_path / "a.nii.gz")
    image.header.set_xyzt_units(unit, "sec")  # in the same byte
    nib.save(image, tmp_path / "b.nii.gz")
    assert_refused(tmp_path / "b.nii.gz", f"in {told}, not in mm")


def test_headers_with_small_faults_are_read(tmp_path):
    content = bytearray(nifti(tmp_path / "a.nii", (1, 1, 1), (1, 1, 1)).read_bytes())
    content[123] = 98  # no unit
    content[256:264] = np.array([0.9, 0.9], "<f4").tobytes()  # no quaternion, beside a good sform
    (tmp_path / "b.nii").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii").affine, np.eye(4))


@pytest.mark.parametrize("name", ["Mixed.Nii", "Mixed.Nii.Gz", "A.NII.gz", "A.Mgz", "A.Mha", "A.Nrrd"])
def test_suffixes_in_any_case(tmp_path, name):
    if name == "A.Mgz":
        nib.save(nib.MGHImage(noise(4, 5, 6), np.eye(4)), tmp_path / "plain.mgz")
    else:
        write_volume(
            tmp_path / f"plain{name[name.index('.') :].lower()}", noise(4, 5, 6), noise_scan((4, 5, 6))
        )
    next(tmp_path.iterdir()).rename(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, noise(4, 5, 6))


@pytest.mark.parametrize("name", ["X.NII.GZ", "X.Nii", "X.Nii.Gz", "X.MHA", "x.Mha", "X.NRRD", "X.Nrrd"])
def test_results_are_written_under_suffixes_in_any_case(tmp_path, name):
    write_volume(tmp_path / name, noise(4, 5, 6), noise_scan((4, 5, 6)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_image(tmp_path / name).array, noise(4, 5, 6))


# --- folders and names --------------------------------------------------------------------------------------


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
