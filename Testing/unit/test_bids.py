"""Data sets in the layout of BIDS: their scans and label maps, the contrast, and what structures are called."""

import pytest
from data_set_cases import plant

from MAPSegLib.config import Preprocessing
from MAPSegLib.errors import InputError
from MAPSegLib.jobs import build_job
from MAPSegLib.manifests import as_stated, list_cases, list_pairs, list_scans, tables_of
from MAPSegLib.tasks.label_table import names_in, stated_names
from MAPSegLib.tasks.material import manifest


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


@pytest.mark.parametrize(
    "other",
    [
        "sub-1/anat/sub-1_space-MNI_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-defaced_T1w.nii.gz",
        "sub-1/anat/sub-1_T1w.nii",
        "sub-2/anat/sub-1_T1w.nii.gz",
    ],
)
def test_two_scans_of_one_label_map_are_refused_where_labels_are_needed(tmp_path, other):
    """It was drawn on one of them; and a scan that is there twice may be kept back and learnt from at once."""
    plant(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", other)
    plant(tmp_path / "derivatives" / "manual" / "sub-1" / "anat", "sub-1_dseg.nii.gz")
    assert len(list_scans(tmp_path)) == 2
    with pytest.raises(InputError, match="Two images are named like .*sub-1_dseg.nii.gz") as refusal:
        list_pairs(tmp_path)
    assert "manifest" in refusal.value.advice


def test_folders_of_derivatives_may_be_links(tmp_path):
    """To another disk; or back, which would have no end."""
    plant(tmp_path / "set", "sub-1/anat/sub-1_T1w.nii.gz", "derivatives/.git/sub-1_dseg.nii.gz")
    plant(tmp_path / "disk", "sub-1/anat/sub-1_dseg.nii.gz", "dseg.tsv")
    place = tmp_path / "set" / "derivatives"
    for name, folder in (("manual", tmp_path / "disk"), ("again", tmp_path / "disk"), ("loop", place)):
        (place / name).symlink_to(folder)
    ((_, label),) = list_pairs(tmp_path / "set")
    assert label == place / "again" / "sub-1" / "anat" / "sub-1_dseg.nii.gz"
    assert tables_of(tmp_path / "set") == [place / "again" / "dseg.tsv"]


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
    plant(tmp_path / "other", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/ct/sub-1_ct.nii.gz")
    assert [scan.name for scan in list_scans(tmp_path / "other")] == ["sub-1_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("scans", "found"),
    [
        (["sub-1/ct/sub-1_ct.nii.gz", "sub-2/anat/sub-2_ct.nii.gz"], "ct"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], "mr"),
        (["sub-1/ct/sub-1_ct.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz"], "mr"),
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


# --- what structures are called -------------------------------------------------------------------------------------

LIVER, SPLEEN = "index\tname\n0\tBackground\n1\tliver\n", "index\tname\n1\tspleen\n2\tkidney\n"


def labelled(folder, tables, of=("desc-x_dseg",) * 2):
    """Two subjects, the label maps of whom have names that end so, and tables in the folder of the pipeline."""
    pipeline = folder / "derivatives" / "manual"
    for subject, ending in enumerate(of, 1):
        plant(folder, f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
        plant(pipeline, f"sub-{subject}/anat/sub-{subject}_{ending}.nii.gz")
    for name, text in tables.items():
        (pipeline / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "table",
    [
        "desc-x_dseg.tsv",
        "dseg.tsv",
        "../dseg.tsv",
        "sub-1/sub-1_dseg.tsv",
        "sub-2/anat/sub-2_desc-x_dseg.tsv",
    ],
)
def test_a_table_names_structures(tmp_path, table):
    """Beside a label map, or in a folder above it."""
    assert names_in(labelled(tmp_path, {})) == {}
    assert names_in(labelled(tmp_path, {table: LIVER})) == {1: "liver"}


@pytest.mark.parametrize(
    "table",
    [
        "desc-y_dseg.tsv",
        "sub-1/anat/sub-2_dseg.tsv",
        "sub-3_dseg.tsv",
        "._dseg.tsv",
        "xdseg.tsv",
        "../../dseg.tsv",
    ],
)
def test_tables_of_other_label_maps_name_nothing(tmp_path, table):
    """They may be broken."""
    assert names_in(labelled(tmp_path, {table: ""})) == {}
    assert names_in(labelled(tmp_path / "masks", {"dseg.tsv": ""}, ["mask"])) == {}


def test_of_a_label_map_the_nearest_table_counts(tmp_path):
    tables = {"dseg.tsv": SPLEEN, "sub-1/sub-1_dseg.tsv": LIVER, "sub-2/anat/sub-2_dseg.tsv": LIVER}
    place = labelled(tmp_path, tables)
    assert [path.name for path in tables_of(place)] == ["sub-1_dseg.tsv", "sub-2_dseg.tsv"]
    assert names_in(place) == {1: "liver"}


@pytest.mark.parametrize(
    "tables",
    [{"sub-1/sub-1_dseg.tsv": LIVER, "dseg.tsv": SPLEEN}, {"desc-x_dseg.tsv": LIVER, "dseg.tsv": SPLEEN}],
)
def test_tables_that_differ_are_refused_in_training_and_told_in_a_manifest(tmp_path, tables):
    place, logged = labelled(tmp_path / "set", tables), []
    first, second = (f".*{name.rsplit('/', 1)[-1]}" for name in tables)
    with pytest.raises(
        InputError, match=f"value 1 is called liver in {first} and spleen in {second}"
    ) as refusal:
        names_in(place)
    assert "label table" in refusal.value.advice
    output = tmp_path / "all.json"
    job = build_job({"task": "manifest", "places": [place], "output": output})
    manifest(job, lambda event, message: logged.append(message))
    assert logged[0].startswith("The value 1 is called liver in ") and "spleen in dseg.tsv: see" in logged[0]
    assert len(list_cases(output)) == 2 and names_in(output) == {2: "kidney"}


def test_voxels_to_ignore_are_refused_by_the_name_of_the_table(tmp_path):
    place = labelled(tmp_path, {"dseg.tsv": "index\tname\n3\tignore\n"})
    with pytest.raises(InputError, match="manual.dseg.tsv: voxels to ignore are not supported"):
        names_in(place)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"\xef\xbb\xbfindex\tname\r\n0\tBackground\r\n7\tgro\xc3\x9f\r\n", {7: "gro\u00df"}),  # Windows'
        (b'"color"\t"name"\t"index"\n"#ff0000"\t"left ""one"""\t"7"\n', {7: 'left "one"'}),  # R's
        (b"index\tname\n7\ta\tb\n\n8\n9\tn/a\n10\t \n\t\n7\ta\n", {7: "a"}),  # rows of another length
        (b"index\tname\n", {}),
    ],
)
def test_tables_as_programs_write_them(tmp_path, text, names):
    path = tmp_path / "dseg.tsv"
    path.write_bytes(text)
    assert stated_names(path) == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "it has no column index and no column name"),
        (b"index,name\n1,liver\n", "it has no column index and no column name"),
        (b"index\tlabel\n1\tliver\n", "it has no column name"),
        (b"name\nliver\n", "it has no column index"),
        (b"index\tname\n1.5\tliver\n", "the index of liver is 1.5"),
        (b"name\tindex\nliver\n", "the index of liver is missing"),
        (b"index\tname\n1\tliver\n1\tspleen\n", "1 is liver and spleen"),
        (b'index\tname\n1\t"liver\n2\tspleen\n', "the row after line 1 cannot be read, unexpected end"),
        ("index\tname\n1\tliver\n".encode("utf-16"), "it is not UTF-8"),
        (None, "it does not exist"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, told):
    place = labelled(tmp_path, {})
    path = place / "derivatives" / "manual" / "dseg.tsv"
    path.symlink_to("gone") if text is None else path.write_bytes(text)
    with pytest.raises(InputError, match=f"manual.dseg.tsv is not a label table: {told}") as refusal:
        names_in(place)
    assert "columns index" in refusal.value.advice
