"""Of several models, the one whose score is best: for a scan, and for several scans on average."""

import pytest
from model_cases import card_of, tiny_model
from volume_cases import noise_scan

from MAPSegLib import quality
from MAPSegLib.config import InferenceOptions
from MAPSegLib.quality import Assessment
from MAPSegLib.tasks.candidates import Candidate, choose

SCANS = [noise_scan(seed=seed) for seed in (0, 1)]
SCORES = {"one": (0.9, 0.2), "other": (0.8, 0.7)}


@pytest.fixture
def candidates(monkeypatch) -> list[Candidate]:
    """Two models, whose scores of the two scans are known."""

    def assess(model, card, scan, options):
        index = next(i for i, volume in enumerate(SCANS) if volume is scan.volume)
        return Assessment(True, "", {"score": SCORES[card.name][index]}), None

    monkeypatch.setattr(quality, "assess_scan", assess)
    model = tiny_model()
    return [Candidate(model, card_of(model).model_copy(update={"name": name}), None) for name in SCORES]


@pytest.mark.parametrize(
    ("scans", "chosen", "told"),
    [
        (SCANS[:1], "one", "one 0.90, other 0.80"),
        (SCANS[1:], "other", "one 0.20, other 0.70"),
        (SCANS, "other", "one 0.55, other 0.75"),
    ],
    ids=["first", "second", "both"],
)
def test_the_best_mean_score_decides(candidates, scans, chosen, told):
    best, why = choose(candidates, scans, InferenceOptions())
    assert best.card.name == chosen and why == f"Segmented with {chosen} (score: {told})."


def test_a_single_model_is_not_judged(candidates):
    assert choose(candidates[:1], [], InferenceOptions()) == (candidates[0], "")
