"""Label tables, given and made up."""

import json

import pytest

from MAPSegLib.config import Label
from MAPSegLib.errors import InputError
from MAPSegLib.manifests import list_cases
from MAPSegLib.tasks.label_table import infer_labels, names_in, read_label_table


def test_label_tables(tmp_path):
    path = tmp_path / "table.json"
    right = {"value": 53, "name": "right hippocampus", "mirror": 17}
    path.write_text(json.dumps([{"value": 17, "name": "left hippocampus", "mirror": 53}, right]))
    label, _ = read_label_table(path)
    assert label == Label(value=17, name="left hippocampus", mirror=53, color=label.color)
    assert label.color != Label.model_fields["color"].default  # two grey structures could not be told apart
    path.write_text(json.dumps({"1": "myocardium", "2": "blood"}))
    assert [label.name for label in read_label_table(path)] == ["myocardium", "blood"]
    path.write_text(json.dumps({"background": 0, "liver": 1, "2": 2}))  # as nnU-Net has it
    assert [(label.value, label.name) for label in read_label_table(path)] == [(1, "liver"), (2, "2")]
    path.write_text(json.dumps({"liver": 1, "ignore": 2}))
    with pytest.raises(InputError, match="voxels to ignore"):
        read_label_table(path)
    assert len(read_label_table("brain")) > 20
    for wrong in (
        [],
        [{"value": 0, "name": "x"}],
        [{"value": 1}],
        {"one": "x"},
        [{"value": 1, "name": ""}],
        [{"value": 1, "name": "x", "color": [1, 2, 300]}],
        [{"value": 1, "name": "x"}] * 2,
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="not a label table"):
            read_label_table(path)


def test_regions_of_several_values_are_refused_with_a_way_on(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": 2}}))
    with pytest.raises(InputError, match="dataset.json: regions, .* are not supported") as refusal:
        read_label_table(path)
    assert refusal.value.advice


def test_mirror_images_are_named_on_both_sides(tmp_path):
    path = tmp_path / "table.json"
    for back in (None, 3):
        row = {"value": 2, "name": "right"} | ({} if back is None else {"mirror": back})
        path.write_text(json.dumps([{"value": 1, "name": "left", "mirror": 2}, row]))
        with pytest.raises(InputError, match="1 names 2 as its mirror image, which does not name 1"):
            read_label_table(path)
    path.write_text(json.dumps([{"value": 1, "name": "left", "mirror": 2}]))
    with pytest.raises(InputError, match="1 names 2 as its mirror image, which is not in the table"):
        read_label_table(path)


def test_labels_are_made_up_for_the_values_found():
    labels = infer_labels({0, 600, 200}, {})
    assert [label.value for label in labels] == [200, 600]
    assert labels[0].color != labels[1].color
    with pytest.raises(InputError, match="hold no structures"):
        infer_labels({0}, {})


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"0": "background", "1": "shell", "2": "core"}, ["shell", "core", "structure 3"]),  # the Decathlon's
        ({"background": 0, "core": 2, "shell": 1}, ["shell", "core", "structure 3"]),  # nnU-Net's
        ({"background": 0, "whole": [1, 2, 3], "core": 2}, ["structure 1", "core", "structure 3"]),
        ({"1": [1, 2], "2": "core"}, ["structure 1", "core", "structure 3"]),
        (["shell"], ["structure 1", "structure 2", "structure 3"]),
        ({"1": "", "2": "core"}, ["structure 1", "core", "structure 3"]),
    ],
)
def test_a_data_set_names_the_structures_that_its_label_maps_hold(tmp_path, stated, expected):
    (tmp_path / "a.nii").touch()
    for file, place in (("dataset.json", tmp_path), ("cases.json", tmp_path / "cases.json")):
        (tmp_path / file).write_text(json.dumps({"labels": stated, "cases": [{"image": "a.nii"}]}))
        labels = infer_labels({0, 1, 2, 3}, names_in(place))
        assert [(label.value, label.name) for label in labels] == list(enumerate(expected, 1))
    if isinstance(stated, dict):
        assert len(list_cases(place)) == 1


def test_voxels_to_ignore_are_refused_in_a_data_set(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "shell": 1, "ignore": 2}}))
    with pytest.raises(InputError, match="voxels to ignore are not supported") as refusal:
        names_in(tmp_path)
    assert "label table" in refusal.value.advice


def test_a_data_set_without_a_table_names_nothing(tmp_path):
    assert names_in(tmp_path) == names_in(tmp_path / "manifest.json") == {}
