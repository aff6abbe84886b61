"""Images in memory: the same results as of files, on the same voxels, and the same refusals."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from model_cases import PAIRED, card_of, tiny_model
from volume_cases import affines, make_affine, noise_scan

import MAPSegLib as mapseg
from MAPSegLib.errors import InputError, MAPSegError
from MAPSegLib.models import save_model
from MAPSegLib.volumes import image_in_memory, in_memory, read_image, write_volume

COMPUTE = {"device": "cpu", "precision": "fp32", "threads": 1}
OBLIQUE = make_affine((1, 2, 0), (-1, 1, -1), (0.9, 1.0, 1.2), (5, -8, 12), (30, -40, 50))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = tiny_model()
    return save_model(
        tmp_path_factory.mktemp("model") / "tiny.safetensors", model.state_dict(), card_of(model)
    )


@pytest.fixture(scope="module")
def predictor(file):
    return mapseg.Predictor(file, **COMPUTE)


def values(image) -> np.ndarray:
    """Of an image of either library, axes as nibabel has them."""
    if isinstance(image, sitk.Image):
        return np.moveaxis(sitk.GetArrayFromImage(image), (0, 2), (2, 0))
    return np.asanyarray(image.dataobj)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mgz"])
def test_an_image_in_memory_has_the_result_of_its_file_on_its_own_voxels(suffix, file, predictor, tmp_path):
    scan = noise_scan((20, 18, 22), OBLIQUE)
    path = tmp_path / f"scan{suffix}"
    if suffix == ".mgz":
        nib.save(nib.MGHImage(scan.array, scan.affine), path)
    else:
        write_volume(path, scan.array, scan)
    image = sitk.ReadImage(path) if suffix == ".nrrd" else nib.load(path)
    before = values(image).copy()
    found = predictor.segment(image, uncertainty=True, probabilities=True)
    told = mapseg.segment(file, path, tmp_path / "out", uncertainty=True, probabilities=True, **COMPUTE)
    entry = told["scans"][0]
    read = sitk.ReadImage if suffix == ".nrrd" else nib.load
    for kind, one in (
        ("output", "labels"),
        ("uncertainty", "uncertainty"),
        ("probabilities", "probabilities"),
    ):
        written, held = read(entry[kind]), getattr(found, one)
        assert np.array_equal(values(held), values(written)) and values(held).dtype == values(written).dtype
        if suffix == ".nrrd":
            for part in ("GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(held, part)() == getattr(image, part)()
        else:
            assert np.array_equal(held.affine, written.affine) and np.allclose(held.affine, image.affine)
    assert (found.trusted, found.reason, found.measures) == (
        entry["trusted"],
        entry["reason"],
        entry["measures"],
    )
    assert found.structures == entry["structures"] and found.notes == entry["notes"]
    assert len(np.unique(values(found.labels))) > 1 and found.seconds > 0
    assert np.array_equal(values(image), before)


def test_maps_are_made_where_they_are_asked_for(predictor):
    found = predictor.segment(nib.Nifti1Image(noise_scan((16, 16, 16)).array, np.eye(4)))
    assert (found.uncertainty, found.probabilities) == (None, None)
    assert {row["structure"] for row in found.structures} == {label.name for label in PAIRED}


@given(affine=affines())
@settings(max_examples=30, deadline=None)
def test_what_is_put_back_lies_where_the_image_does(affine):
    array = noise_scan((5, 6, 7)).array
    labels = np.arange(array.size, dtype=np.int32).reshape(array.shape) % 7
    image = nib.Nifti1Image(array, affine)
    volume = image_in_memory(image)
    assert np.array_equal(volume.array, array) and np.allclose(volume.affine, affine, atol=1e-4)
    back = in_memory(labels, volume)
    assert np.array_equal(values(back), labels) and np.array_equal(back.affine, image.affine)

    itk = in_memory(array, image_in_memory(_as_itk(array, affine)))
    assert np.allclose(image_in_memory(itk).affine, affine, atol=1e-4)
    assert np.array_equal(values(itk), array)


def _as_itk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """With LPS geometry worked out apart from the package."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = affine * np.array([[-1], [-1], [1], [1]])
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def test_an_image_without_orientation_is_told(predictor):
    image = nib.Nifti1Image(noise_scan((16, 16, 16)).array, None)
    assert any("states no orientation" in note for note in predictor.segment(image).notes)


@pytest.mark.parametrize(
    "sizes",
    [
        "",
        "dimension: 3\nsizes: 9 9 9\nspacings: 1 1 1",
        "dimension: 4\nsizes: 9 9 9 1\nspacings: 1 1 1 1",
    ],
)
def test_what_a_file_leaves_open_is_told_of_its_image_in_simpleitk(sizes, tmp_path):
    """NRRD of such a header, and NIfTI."""
    path, array = tmp_path / ("scan.nrrd" if sizes else "scan.nii"), noise_scan((9, 9, 9)).array
    if sizes:
        header = f"NRRD0004\n{sizes}\ntype: float\nendian: little\nencoding: raw\n\n"
        path.write_bytes(header.encode() + array.astype("<f4").tobytes())
    else:
        nib.save(nib.Nifti1Image(array, None), path)
    (note,) = image_in_memory(sitk.ReadImage(path)).notes
    assert "states no orientation" in note and read_image(path).notes == (note,)
    write_volume(path, array, image_in_memory(nib.Nifti1Image(array, np.eye(4))), overwrite=True)
    assert not image_in_memory(sitk.ReadImage(path)).notes


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (
            np.ones((9, 9, 9)),
            r"is of type ndarray, and an image of nibabel .* or SimpleITK.*Nifti1Image\(array",
        ),
        ("scan.nii.gz", r"is of type str.*nibabel\.load\(path\)"),
        (nib.Nifti1Pair(noise_scan().array, np.eye(4)), r"is of type Nifti1Pair, .*NIfTI in one file"),
        (nib.Nifti1Image(np.ones((9, 9, 9, 2), np.float32), np.eye(4)), "is a 4D image"),
        (nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)), "holds only zeros"),
        (nib.Nifti1Image(np.full((9, 9, 9), np.nan, np.float32), np.eye(4)), "NaN or infinite"),
        (nib.Nifti1Image(noise_scan().array, np.diag([0.001, 1, 1, 1])), "voxel spacing of 0.001 x 1 x 1 mm"),
        (sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 3), "is a colour"),
        (sitk.Image([9, 9], sitk.sitkFloat32), "is a 2D image"),
        (sitk.Image([9, 9, 9], sitk.sitkLabelUInt8), "is a label map of SimpleITK"),
    ],
    ids=lambda given: None if isinstance(given, str) else type(given).__name__,
)
def test_what_is_refused_of_files_is_refused_of_images(image, told, predictor):
    with pytest.raises(InputError, match=f"^The image .*{told}"):
        predictor.segment(image)


def test_an_image_whose_file_is_damaged_is_refused_as_the_file_is(predictor, tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(noise_scan((20, 20, 20)).array, np.eye(4)), path)
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="^The image is damaged"):
        predictor.segment(image)
    path.unlink()
    with pytest.raises(InputError, match="^The image cannot be opened: .*scan.nii is no longer there"):
        predictor.segment(image)


def test_a_negative_voxel_spacing_is_refused_though_nibabel_takes_it_for_a_positive_one(predictor, tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(noise_scan((16, 16, 16)).array, np.eye(4)), path)
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.float32(-1).tobytes()  # pixdim[1]
    path.write_bytes(raw)
    with pytest.raises(InputError, match="^scan.nii has a negative voxel spacing"):
        predictor.segment(nib.load(path))


def test_a_predictor_refuses_what_a_command_does(file):
    with pytest.raises(InputError, match="overlap"):
        mapseg.Predictor(file, overlap=2)
    with pytest.raises(InputError, match="no such option|speed"):
        mapseg.Predictor(file, speed=2)
    with pytest.raises(InputError, match="Unknown model nothing"):
        mapseg.Predictor("nothing")
    with pytest.raises(InputError, match="model: 3 is not a path"):
        mapseg.Predictor(3)


def test_a_predictor_leaves_the_callers_settings_and_minds_none(predictor):
    image = nib.Nifti1Image(noise_scan((16, 16, 16)).array, np.eye(4))
    plain = predictor.segment(image)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            other = predictor.segment(image)
            assert torch.is_autocast_enabled("cpu") and torch.get_default_device().type == "meta"
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(values(plain.labels), values(other.labels)) and plain.measures == other.measures


def test_what_nobody_foresaw_is_told_in_a_sentence(predictor, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("nothing left")

    monkeypatch.setattr("MAPSegLib.tasks.scans.prepared", fail)
    with pytest.raises(MAPSegError, match="Unforeseen failure, ZeroDivisionError") as failure:
        predictor.segment(nib.Nifti1Image(noise_scan((16, 16, 16)).array, np.eye(4)))
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
