"""Of several models, the one whose score is best: for a scan, and for several scans on average."""

import pytest
from model_cases import card_of, tiny_model
from volume_cases import noise_scan

from MAPSegLib import quality
from MAPSegLib.config import InferenceOptions
from MAPSegLib.quality import Assessment, Looks
from MAPSegLib.tasks.candidates import Candidate, choose, choose_for_all, prepared, view

SCANS = {16: noise_scan((16, 16, 16)), 20: noise_scan((20, 16, 16))}
SCORES = {"one": {16: 0.9, 20: 0.2}, "other": {16: 0.8, 20: 0.7}}
"""By the model's name and the scan's length."""


@pytest.fixture
def looked(monkeypatch) -> list[int]:
    """The lengths of the scans that a model looked at; what it sees decides the score."""
    lengths = []

    def look_twice(model, labels, image, spacing, options, progress):
        lengths.append(len(image))
        if progress:
            progress(1, 2)
            progress(2, 2)
        return Looks(image, image, image)

    def assess(card, looks, spacing):
        return Assessment(True, "", {"score": SCORES[card.name][len(looks.plain)]})

    monkeypatch.setattr(quality, "look_twice", look_twice)
    monkeypatch.setattr(quality, "assess", assess)
    return lengths


def candidates() -> list[Candidate]:
    model = tiny_model()
    return [Candidate(model, card_of(model).model_copy(update={"name": name}), None) for name in SCORES]


@pytest.mark.parametrize(
    ("scans", "chosen", "told"),
    [
        ([16], 0, "Segmented with one (score: one 0.90, other 0.80)."),
        ([20], 1, "Segmented with other (score: one 0.20, other 0.70)."),
        ([16, 20], 1, "Segmented with other (score: one 0.55, other 0.75)."),
    ],
    ids=["first", "second", "both"],
)
def test_the_best_mean_score_decides(looked, scans, chosen, told):
    several = [prepared(candidates(), SCANS[length]) for length in scans]
    assert choose_for_all(candidates(), several, InferenceOptions()) == (chosen, told)
    assert looked == [length for length in scans for _ in SCORES]


def test_every_model_sees_a_scan_and_progress_counts_all_of_them(looked):
    seen, scans = [], prepared(candidates(), SCANS[20])
    views = view(candidates(), scans, InferenceOptions(), lambda done, total: seen.append((done, total)))
    assert [one.score for one in views] == [0.2, 0.7]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert views[0].scan is views[1].scan  # of one preprocessing, prepared once


def test_a_single_model_is_not_judged(looked):
    one = candidates()[:1]
    assert choose_for_all(one, [prepared(one, SCANS[16])], InferenceOptions()) == (0, "") and not looked
    assert choose(candidates()[:1], [0.5]) == (0, "")
