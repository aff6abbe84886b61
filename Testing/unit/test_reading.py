"""What is told of scans that are read to learn from."""

from pathlib import Path

from MAPSegLib.levels import LIKE_CT
from MAPSegLib.tasks.reading import tell_notes


def test_scans_of_which_alike_is_to_know_share_a_line():
    """Of a whole data set, every file may state another distance between two positions."""
    places = {f"Two positions, up to {gap:.3g} mm apart.": [Path(f"{gap}.nii")] for gap in (7.25, 2000, 30)}
    events = []
    lines = tell_notes(
        {**places, LIKE_CT: [Path("b.nii"), Path("a.nii")]},
        lambda event, message: events.append((event, message)),
    )
    assert lines == [
        "2000.nii, 30.nii, 7.25.nii: Two positions, up to 2e+03 mm apart. These are the numbers of 2000.nii.",
        f"a.nii, b.nii: {LIKE_CT} --modality says which it is.",
    ]
    assert events == [("log", line) for line in lines]
