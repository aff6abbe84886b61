"""Data sets in the layout of BIDS: their scans and label maps, and the contrast."""

import pytest
from data_set_cases import plant

from MAPSegLib.config import Preprocessing
from MAPSegLib.errors import InputError
from MAPSegLib.manifests import as_stated, list_pairs, list_scans


def test_bids(tmp_path):
    scans = [f"sub-{i}/ses-{i}/anat/sub-{i}_ses-{i}_T1w.nii.gz" for i in (1, 2)]
    scans += [f"sub-3/anat/sub-3_run-{i}_T1w.nii.gz" for i in (1, 2)]
    plant(tmp_path, *scans, "sub-1/func/sub-1_bold.nii.gz", "sub-1/ses-1/anat/sub-1_ses-1_T1w.json")
    assert list_scans(tmp_path) == [tmp_path / scan for scan in scans[2:] + scans[:2]]
    labels = [f"sub-{i}/ses-{i}/anat/sub-{i}_ses-{i}_space-orig_desc-aseg_dseg.nii.gz" for i in (1, 2)]
    labels += [f"sub-3/anat/sub-3_run-{i}_label-L_mask.nii.gz" for i in (1, 2)]
    labels += ["sub-1/ses-1/anat/sub-1_ses-1_desc-preproc_T1w.nii.gz"]
    plant(tmp_path / "derivatives" / "tool", *labels)
    pairs = {i.relative_to(tmp_path).as_posix(): label.name for i, label in list_pairs(tmp_path)}
    assert pairs == {scan: label.rsplit("/", 1)[-1] for scan, label in zip(scans, labels, strict=False)}


def test_bids_refuses_mixed_contrasts_two_labels_and_gaps(tmp_path):
    mixed = plant(tmp_path / "a", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz")
    with pytest.raises(InputError, match="holds T1w and T2w scans") as refusal:
        list_scans(mixed)
    assert "manifest" in refusal.value.advice
    twice = plant(tmp_path / "b", "sub-1/anat/sub-1_T1w.nii.gz")
    plant(twice / "derivatives", *(f"{tool}/sub-1/anat/sub-1_dseg.nii.gz" for tool in "xy"))
    with pytest.raises(InputError, match=r"x/sub-1/anat/sub-1_dseg.nii.gz and .* label the same scan"):
        list_pairs(twice)
    gap = plant(tmp_path / "c", "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    plant(gap / "derivatives/x/sub-1/anat", "sub-1_dseg.nii.gz")
    with pytest.raises(InputError, match="no label map for sub-2_T1w.nii.gz"):
        list_pairs(gap)


def test_folders_of_ct_are_read(tmp_path):
    """Beside some with anatomical scans, too: a subject may have another folder than the next."""
    scans = ["sub-1/anat/sub-1_ct.nii.gz", "sub-2/ct/sub-2_ct.nii.gz", "sub-3/ses-1/ct/sub-3_ses-1_ct.nii.gz"]
    plant(tmp_path, *scans)
    labels = [scan.replace("_ct", "_dseg") for scan in scans]
    plant(tmp_path / "derivatives" / "manual", *labels)
    expected = [
        (tmp_path / a, tmp_path / "derivatives" / "manual" / b) for a, b in zip(scans, labels, strict=True)
    ]
    assert list_pairs(tmp_path) == expected
    plant(tmp_path, "sub-2/anat/sub-2_T1w.nii.gz")
    with pytest.raises(InputError, match="holds T1w and ct scans"):
        list_scans(tmp_path)


@pytest.mark.parametrize(
    ("scans", "found"),
    [
        (["sub-1/ct/sub-1_ct.nii.gz", "sub-2/anat/sub-2_ct.nii.gz"], "ct"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], "mr"),
        (["sub-1/ct/sub-1_ct.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz"], "mr"),  # refused when they are listed
    ],
)
def test_names_of_scans_say_that_they_are_ct(tmp_path, scans, found):
    place = plant(tmp_path / "bids", *scans)
    assert as_stated(Preprocessing(), [place]).modality == found
    assert as_stated(Preprocessing(modality="mr"), [place]).modality == "mr"
    plant(tmp_path / "nnunet", "dataset.json").joinpath("dataset.json").write_text(
        '{"modality": {"0": "CT"}}'
    )
    assert as_stated(Preprocessing(), [place, tmp_path / "nnunet"]).modality == found
    (tmp_path / "nnunet" / "dataset.json").write_text("{}")  # does not say it
    assert as_stated(Preprocessing(), [place, tmp_path / "nnunet"]).modality == "mr"
