"""Whether what has no mirror image lies in the middle, and what follows from it."""

import pytest
import torch

from MAPSegLib.config import Label
from MAPSegLib.networks.segmenter import lateral_mix, mirrored_classes
from MAPSegLib.quality import transformation
from MAPSegLib.sides import places_across, with_sides

KIDNEYS = (Label(value=3, name="right kidney", mirror=4), Label(value=4, name="left kidney", mirror=3))
LIVER, CORD = Label(value=1, name="liver"), Label(value=7, name="spinal cord")
ABDOMEN = (LIVER, *KIDNEYS, CORD)


def scan(*places, shape=(60, 6, 6), spacing=(2.0, 1.0, 1.0)):
    """What is seen of a label map with a block of each class about a voxel of the first axis; None for none."""
    classes = torch.zeros(shape, dtype=torch.int16)
    for index, place in enumerate(places, 1):
        if place is not None:
            classes[place - 2 : place + 3, index % 5 : index % 5 + 2] = index
    return places_across(classes, len(places), spacing)


def stated(labels):
    return {label.name: label.one_sided for label in labels}


def test_what_lies_to_one_side_is_told_from_what_lies_in_the_middle():
    found = with_sides(ABDOMEN, [scan(45, 15, 41, 29), scan(43, 17, 43, 31)])
    assert stated(found) == {"liver": True, "spinal cord": False, "right kidney": None, "left kidney": None}


def test_a_middle_off_the_middle_of_the_scan_is_one():
    assert not any(stated(with_sides(ABDOMEN, [scan(20, 5, 35, 21)])).values())


def test_without_pairs_or_without_the_structure_nothing_is_said():
    assert stated(with_sides((LIVER, CORD), [scan(45, 29)])) == {"liver": None, "spinal cord": None}
    some = stated(with_sides(ABDOMEN, [scan(None, 15, 41, 29), scan(None, None, 41, 29)]))
    assert some["liver"] is None and some["spinal cord"] is False
    assert some == stated(with_sides(ABDOMEN, [scan(None, 15, 41, 29)]))


def test_what_a_label_says_already_stays():
    said = [label.model_copy(update={"one_sided": label.name != "liver"}) for label in ABDOMEN]
    assert with_sides(said, [scan(45, 15, 41, 29)]) == tuple(said)


@pytest.mark.parametrize("liver", [True, False, None])
def test_a_scan_is_mirrored_only_where_a_mirrored_one_looks_like_one(liver):
    labels = (LIVER.model_copy(update={"one_sided": liver}), *KIDNEYS, CORD)
    twin = mirrored_classes(labels)
    assert twin is None if liver else twin.tolist() == [0, 1, 3, 2, 4]
    shown = transformation(labels, (12, 10, 8), (1.0, 1.0, 1.0)).there(torch.zeros(12, 10, 8))
    assert (shown.shape == (12, 10, 8)) != bool(liver)  # else it is turned and made smaller
    assert torch.equal(lateral_mix(labels), lateral_mix(ABDOMEN))  # pairs are learnt together in any case
