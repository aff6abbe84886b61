"""Data sets: every layout is read into the same cases, and what is broken is named."""

import json
import os
import sys
from pathlib import Path

import pytest
from data_set_cases import plant

from MAPSegLib.config import Preprocessing
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import build_job
from MAPSegLib.manifests import (
    as_stated,
    domain_name,
    domains,
    list_cases,
    list_pairs,
    list_scans,
    scans_by_domain,
)
from MAPSegLib.results import results_in
from MAPSegLib.tasks.label_table import names_in, stated_names
from MAPSegLib.tasks.material import manifest as convert


def names(pairs):
    return [(image.name, label.name) for image, label in pairs]


def folders(tmp_path, images, labels):
    for name, files in (("images", images), ("labels", labels)):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    return tmp_path / "images", tmp_path / "labels"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["b.nii.gz", "a.nii.gz"], ["a.nii.gz", "b.nii.gz"]),
        (["a_img.nii.gz", "b_img.nii.gz"], ["a_label.nii.gz", "b_label.nii.gz"]),
        (["a_0000.nii.gz", "b_0000.nii.gz"], ["a.nii.gz", "b.nii.gz", "c.nii.gz"]),
        (["a_image.nrrd", "b_image.mha"], ["a_seg.nii.gz", "b_seg.nrrd"]),
        (["a.nii.gz", "b.nii.gz"], ["a_mask.nii.gz", "b_dseg.nii.gz"]),
        (["a\u00fc.nii.gz", "bu\u0308.nii.gz"], ["au\u0308_seg.nii.gz", "b\u00fc.nii.gz"]),
    ],
)
def test_images_find_their_labels_by_name(tmp_path, images, labels):
    pairs = list_pairs(*folders(tmp_path, images, labels))
    assert [(i.name[0], label.name[0]) for i, label in pairs] == [("a", "a"), ("b", "b")]
    assert all(i.parent.name == "images" and label.parent.name == "labels" for i, label in pairs)


def test_images_of_any_data_set_find_their_labels_in_a_folder(tmp_path):
    images, labels = folders(tmp_path, ["a.nii.gz", "b.nii.gz"], ["a_seg.nii.gz"])
    plant(tmp_path / "nnunet", "imagesTr/a_0000.nii.gz", "dataset.json")
    (tmp_path / "nnunet" / "dataset.json").write_text("{}")
    for place in (manifest(tmp_path, {"image": "images/a.nii.gz"}), tmp_path / "nnunet"):
        ((image, label),) = list_pairs(place, labels)
        assert image.name[0] == "a" and label == labels / "a_seg.nii.gz"


def test_an_image_without_labels_is_named(tmp_path):
    with pytest.raises(InputError, match="b.nii.gz"):
        list_pairs(*folders(tmp_path, ["a.nii.gz", "b.nii.gz"], ["a.nii.gz"]))


def test_folders_without_any_pair_are_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match="same name") as refusal:
        list_pairs(*folders(tmp_path, ["a.nii.gz"], ["b.nii.gz"]))
    assert refusal.value.advice


def test_two_images_of_one_case_are_refused(tmp_path):
    with pytest.raises(InputError, match="a.nii.gz"):
        list_pairs(*folders(tmp_path, ["a.nii.gz", "a_0000.nii.gz"], ["a.nii.gz"]))


def test_two_label_maps_of_one_case_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.nii.gz and .*a_seg.nii.gz are named alike"):
        list_pairs(*folders(tmp_path, ["a.nii.gz"], ["a.nii.gz", "a_seg.nii.gz"]))


def test_a_manifest_that_is_a_list_is_told_what_it_should_be(tmp_path):
    (tmp_path / "cases.json").write_text("[]", encoding="utf-8-sig")
    with pytest.raises(InputError, match="is not a manifest: names and values are needed") as refusal:
        list_scans(tmp_path / "cases.json")
    assert '"cases"' in refusal.value.advice


def test_scans_without_a_word_of_labels_are_listed_but_not_paired(tmp_path):
    plant(tmp_path, "b.nii.gz", "a.mha", "notes.txt")
    assert [p.name for p in list_scans(tmp_path)] == ["a.mha", "b.nii.gz"]
    with pytest.raises(InputError, match="has a label map") as refusal:
        list_pairs(tmp_path)
    assert "folder of the label maps" in refusal.value.advice


# --- nnU-Net and the Decathlon --------------------------------------------------------------------------------------


def nnunet(folder, about, *files):
    plant(folder, "dataset.json", *files)
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ("about", "image"),
    [({"channel_names": {"0": "T1"}}, "case_0000.nii.gz"), ({"modality": {"0": "MRI"}}, "case.nii.gz")],
)
def test_nnunet_and_decathlon(tmp_path, about, image):
    files = [f"imagesTr/{image}", "labelsTr/case.nii.gz", "imagesTr/._case.nii.gz", "imagesTs/other.nii.gz"]
    nnunet(tmp_path, about, *files)
    assert names(list_pairs(tmp_path)) == [(image, "case.nii.gz")]
    assert list_scans(tmp_path) == [tmp_path / "imagesTr" / image]


def test_nnunet_with_several_channels_or_a_missing_label_is_refused(tmp_path):
    two = nnunet(tmp_path / "two", {"channel_names": {"0": "T1", "1": "T2"}}, "imagesTr/a_0000.nii.gz")
    with pytest.raises(InputError, match=r"dataset.json names 2 channels"):
        list_scans(two)
    files = ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz"]
    with pytest.raises(InputError, match=r"no label map for b.nii.gz"):
        list_pairs(nnunet(tmp_path / "gap", {}, *files))
    files += [f"imagesTr/c{k}.nii.gz" for k in range(5)]
    with pytest.raises(InputError, match=r"for b.nii.gz, c0.nii.gz, .*, c3.nii.gz and 1 more\."):
        list_pairs(nnunet(tmp_path / "gaps", {}, *files))
    with pytest.raises(InputError, match="imagesTr does not exist"):
        list_scans(nnunet(tmp_path / "bare", {}))


CT, MR = {"channel_names": {"0": "CT"}}, {"modality": {"0": "MRI"}}


@pytest.mark.parametrize(
    ("abouts", "found"),
    [
        ([CT], "ct"),
        ([{"modality": {"0": "ct"}}, CT], "ct"),
        ([{"channel_names": ["CT"]}], "ct"),
        ([{"modality": "CT"}], "ct"),
        ([MR], "mr"),
        ([CT, MR], "mr"),
        ([{}], "mr"),
    ],
)
def test_nnunet_and_decathlon_say_that_scans_are_ct(tmp_path, abouts, found):
    places = [tmp_path / str(index) for index in range(len(abouts))]
    for place, about in zip(places, abouts, strict=True):
        nnunet(place, about)
    coarse = Preprocessing(spacing=(2, 2, 2))
    assert as_stated(coarse, places) == Preprocessing(spacing=(2, 2, 2), modality=found)
    for said in ("mr", "ct"):
        assert as_stated(Preprocessing(modality=said), places).modality == said


def test_of_other_data_sets_the_modality_is_not_known(tmp_path):
    (tmp_path / "scans").mkdir()
    nnunet(tmp_path / "set", CT)
    assert as_stated(Preprocessing(), [tmp_path / "set", tmp_path / "scans"]).modality == "mr"
    assert as_stated(Preprocessing(), [tmp_path / "set.json"]).modality == "mr"


@pytest.mark.parametrize("ending", ["_0000", "_seg", "_img", "_label"])
def test_what_a_case_of_nnunet_is_called_is_no_ending_of_its_files(tmp_path, ending):
    """Cases that are numbered from 0000 on, above all."""
    names_of = [f"case{ending}", "case_0001", "case"]
    files = [
        file for case in names_of for file in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
    ]
    place = nnunet(tmp_path, {}, *files)
    expected = sorted((f"{case}_0000.nii.gz", f"{case}.nii.gz") for case in names_of)
    assert names(list_pairs(place)) == expected
    assert names(list_pairs(place / "imagesTr", place / "labelsTr")) == expected
    (place / "labelsTr" / "case.nii.gz").unlink()
    with pytest.raises(InputError, match="no label map for case_0000.nii.gz"):
        list_pairs(place)


@pytest.mark.parametrize("stated", ["MRI", ["MRI"], 3, None])
def test_one_channel_may_be_stated_in_any_form(tmp_path, stated):
    place = nnunet(tmp_path, {"modality": stated}, "imagesTr/a.nii.gz")
    assert len(list_scans(place)) == 1
    assert as_stated(Preprocessing(), [place]).modality == "mr"


def test_nnunet_without_labels_has_scans(tmp_path):
    assert len(list_scans(nnunet(tmp_path, {}, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz"))) == 2


# --- the authors' layout --------------------------------------------------------------------------------------------


def test_the_authors_layout(tmp_path):
    files = [
        f"{m}_train/{m}_{i}_{kind}.nii.gz" for m in ("ct", "mr") for i in (1, 2) for kind in ("img", "label")
    ]
    plant(tmp_path, *files, "ct_test/ct_9_img.nii.gz")
    expected = [(files[i].split("/")[1], files[i + 1].split("/")[1]) for i in range(0, 8, 2)]
    assert names(list_pairs(tmp_path)) == expected
    assert names(list_pairs(tmp_path / "mr_train")) == expected[2:]
    assert [scan.name for scan in list_scans(tmp_path / "ct_train")] == [image for image, _ in expected[:2]]
    (tmp_path / files[3]).unlink()
    with pytest.raises(InputError, match="no label map for ct_2_img.nii.gz"):
        list_pairs(tmp_path)


# --- manifest files -------------------------------------------------------------------------------------------------


def manifest(folder, *cases):
    path = folder / "cases.json"
    path.write_text(json.dumps({"cases": list(cases)}))
    return path


def test_a_manifest_lists_cases_beside_it_or_anywhere(tmp_path):
    plant(tmp_path / "here", "a.nii.gz", "a_seg.nii.gz")
    plant(tmp_path / "there", "b.nii.gz", "b_seg.nii.gz")
    other = tmp_path / "there"
    cases = [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}]
    cases += [{"image": str(other / "b.nii.gz"), "label": str(other / "b_seg.nii.gz")}]
    path = manifest(tmp_path / "here", *cases)
    assert names(list_pairs(path)) == [("a.nii.gz", "a_seg.nii.gz"), ("b.nii.gz", "b_seg.nii.gz")]
    assert list_scans(path) == [tmp_path / "here/a.nii.gz", other / "b.nii.gz"]


@pytest.mark.parametrize(
    ("cases", "told"),
    [
        ([{"image": "a.nii.gz", "label": "gone.nii.gz"}], r"lists .*gone.nii.gz, which does not exist"),
        ([{"label": "a.nii.gz"}], r"is not a manifest: cases.0.image: is missing"),
        ([{"image": "a.nii.gz", "labels": "b.nii.gz"}], r"is not a manifest: cases.0.labels"),
        ([{"image": "a.nii.gz"}, {"image": "a.nii.gz"}], r"lists .*a.nii.gz more than once"),
        ([{"image": "a.nii.gz"}], "has a label map"),
        ([{"image": "a.nii.gz", "label": "b.nii.gz"}, {"image": "c.nii.gz"}], "no label map for c.nii.gz"),
        ([], "lists no cases"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, cases, told):
    plant(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    with pytest.raises(InputError, match=told) as refusal:
        list_pairs(manifest(tmp_path, *cases))
    assert refusal.value.advice or "more than once" not in told


def test_a_file_that_is_spelled_in_two_ways_is_one(tmp_path):
    """Kept back under one name and trained on under the other, it would flatter a model."""
    plant(tmp_path, "a.nii.gz", "sub/b.nii.gz")
    other = manifest(tmp_path, {"image": "a.nii.gz"}, {"image": "sub/../a.nii.gz"})
    with pytest.raises(InputError, match="more than once"):
        list_scans(other)
    (tmp_path / "sub" / "link.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    assert len(list_scans(manifest(tmp_path, {"image": "a.nii.gz"}, {"image": "sub/link.nii.gz"}))) == 2


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["a_img.nii.gz", "b_img.nii.gz", "c.nii.gz"], "named like a_img.nii.gz, and others .c.nii.gz"),
        (["site_train/a_img.nii.gz", "b.nii.gz"], "the data set site_train and scans beside it .b.nii.gz"),
        (["a_train/a_img.nii.gz", "b_train/b.nii.gz"], "b_train holds no scans named like those of other"),
        (
            ["imagesTr/a.nii.gz", "dataset.json", "b.nii.gz"],
            "of nnU-Net's layout and scans beside it .b.nii.gz",
        ),
        (["sub-1/anat/sub-1_T1w.nii.gz", "b.nii.gz"], "a BIDS data set and scans beside it .b.nii.gz"),
    ],
)
def test_no_scan_is_left_out_without_a_word(tmp_path, files, told):
    plant(tmp_path, *files)
    for about in tmp_path.glob("dataset.json"):
        about.write_text("{}")
    with pytest.raises(InputError, match=told):
        list_scans(tmp_path)


def test_hidden_files_beside_a_data_set_are_no_scans(tmp_path):
    """Such as a Mac leaves on the disks of others."""
    found = list_scans(plant(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii.gz", "._b.nii.gz"))
    assert [scan.name for scan in found] == ["sub-1_T1w.nii.gz"]
    found = list_scans(plant(tmp_path / "authors", "x_train/a_img.nii.gz", ".old_train/b_img.nii.gz"))
    assert [scan.name for scan in found] == ["a_img.nii.gz"]


@pytest.mark.parametrize("elsewhere", ["/elsewhere/", "C:\\elsewhere\\", "\\\\server\\share\\"])
def test_what_a_report_tells_of_is_no_scan(tmp_path, elsewhere):
    plant(tmp_path, "a.nii.gz", "a_seg.nii.gz", "a_uncertainty.nii.gz", "a_seg_source.nii.gz")
    entry = {"output": f"{elsewhere}a_seg.nii.gz", "uncertainty": f"{elsewhere}a_uncertainty.nii.gz"}
    entry["source"] = {"output": f"{elsewhere}a_seg_source.nii.gz"}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"task": "segment", "scans": [entry]}), encoding="utf-8")
    assert [scan.name for scan in list_scans(tmp_path)] == ["a.nii.gz"]
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(InputError, match="results of an earlier run alone"):
        list_scans(tmp_path)
    for foreign in ([1], {"task": "other", "scans": [entry]}, {"task": "segment", "scans": ["a.nii.gz"]}):
        report.write_text(json.dumps(foreign), encoding="utf-8")
        assert [scan.name for scan in list_scans(tmp_path)] == ["a_seg.nii.gz"]  # the others lie beside it


def converted(output, *places, told=lambda event, **fields: None, **more):
    job = {"task": "manifest", "places": places, "output": output, **more}
    (file,) = convert(build_job(job), told)["files"]
    return list_cases(output) if file == str(output) else None


def test_data_sets_of_all_layouts_become_one_manifest(tmp_path):
    plant(tmp_path / "nnunet", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "nnunet" / "dataset.json").write_text("{}")
    plant(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii.gz", "derivatives/sub-1_dseg.nii.gz")
    plant(tmp_path / "authors", "site_train/c_img.nii.gz", "site_train/c_label.nii.gz")
    plant(tmp_path / "plain", "d.nii.gz")
    places = [tmp_path / name for name in ("nnunet", "bids", "authors", "plain")]
    listed = [case for place in places for case in list_cases(place)]
    found = converted(tmp_path / "all.json", *places)
    assert [(case.image, case.label) for case in found] == [(case.image, case.label) for case in listed]
    assert [case.label is not None for case in listed] == [True, True, True, False]
    assert [case.domain for case in found] == ["nnunet", "bids", "authors", "plain"]
    assert list(domains(tmp_path / "all.json").values()) == ["nnunet", "bids", "authors", "plain"]
    assert domains(tmp_path / "plain") == {}
    again = tmp_path / "authors" / ".." / "plain"
    alone = scans_by_domain([again, tmp_path / "plain", tmp_path / "authors", tmp_path / "plain"])
    assert {name: len(scans) for name, scans in alone.items()} == {"plain": 1, "authors": 1}
    joined = scans_by_domain([tmp_path / "all.json"])
    assert list(joined) == [f"{name} (all.json)" for name in ("nnunet", "bids", "authors", "plain")]
    assert joined["plain (all.json)"] == alone["plain"]
    assert converted(tmp_path / "elsewhere" / "again.json", tmp_path / "all.json") == found
    (tmp_path / "all.json").rename(tmp_path / "elsewhere" / "moved.json")
    with pytest.raises(InputError, match="which does not exist"):  # as its paths are relative to it
        list_cases(tmp_path / "elsewhere" / "moved.json")


def test_a_manifest_takes_the_names_of_structures_that_its_data_sets_agree_on(tmp_path):
    for name, labels in (
        ("a", {"background": 0, "myocardium": 1, "left ventricle": 2, "ignore": 4}),
        ("b", {"0": "Background", "1": "myocardium", "2": "left", "3": "right", "4": "scar"}),
    ):
        plant(tmp_path / name, "imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz")
        (tmp_path / name / "dataset.json").write_text(json.dumps({"labels": labels}))
    logged = []
    converted(
        tmp_path / "all.json", tmp_path / "a", tmp_path / "b", told=lambda e, message: logged.append(message)
    )
    names = {1: "myocardium", 3: "right", 4: "ignore"}  # what one ignores must not be learnt from the other
    assert stated_names(tmp_path / "all.json") == names
    assert logged[:2] == [
        "The value 2 is called left ventricle in a and left in b: see whether it means the same.",
        "The value 4 is called ignore in a and scar in b: see whether it means the same.",
    ]
    with pytest.raises(InputError, match="all.json: voxels to ignore are not supported"):
        names_in(tmp_path / "all.json")
    converted(tmp_path / "again.json", tmp_path / "all.json")
    assert stated_names(tmp_path / "again.json") == names


def test_domains_of_several_manifests_that_are_called_alike_stay_apart(tmp_path):
    plant(tmp_path, "a.nii.gz", "b.nii.gz")
    for name in "ab":
        case = {"image": f"{name}.nii.gz", "domain": "site"}
        (tmp_path / f"{name}.json").write_text(json.dumps({"cases": [case]}))
    found = converted(tmp_path / "all.json", tmp_path / "a.json", tmp_path / "b.json")
    assert [case.domain for case in found] == ["site (a.json)", "site (b.json)"]


def test_a_folder_of_scans_and_one_of_label_maps_become_a_manifest(tmp_path):
    images, labels = folders(tmp_path, ["a.nii.gz"], ["a_seg.nii.gz"])
    (case,) = converted(tmp_path / "cases.json", images, labels=labels)
    assert (case.image, case.label) == (images / "a.nii.gz", labels / "a_seg.nii.gz")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are any bytes")
def test_a_name_that_no_manifest_can_hold_is_refused(tmp_path):
    plant(tmp_path / "scans", os.fsdecode(b"x\xff.nii.gz"))
    with pytest.raises(InputError, match="is not UTF-8"):
        converted(tmp_path / "cases.json", tmp_path / "scans")
    assert not (tmp_path / "cases.json").exists()


def test_manifests_that_cannot_be_made_leave_none(tmp_path):
    scans = plant(tmp_path / "scans", "a.nii.gz")
    for output, places, more, told in (
        ("x.json", [scans, scans], {}, "a.nii.gz is named more than once"),
        ("x.json", [tmp_path / "gone"], {}, "gone does not exist"),
        ("x.json", [scans, tmp_path], {"labels": scans}, "labels are those of one folder"),
        ("x.txt", [scans], {}, "ends in .json"),
        ("there.json", [scans], {}, "already there"),
    ):
        (tmp_path / "there.json").write_text("precious")
        with pytest.raises(InputError, match=told):
            converted(tmp_path / output, *places, **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans", "there.json"]
    assert (tmp_path / "there.json").read_text() == "precious"


def test_a_domain_is_called_by_no_name_that_another_has():
    places = [Path("/a/study/scans"), Path("/b/study/scans"), Path("/b/study/more")]
    assert [domain_name(place, places) for place in places] == ["a/study/scans", "b/study/scans", "more"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
@pytest.mark.timeout(20)
def test_a_pipe_that_is_called_like_a_report_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    assert results_in(tmp_path) == set()
