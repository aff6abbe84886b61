"""What a segmentation of a scan is judged on, and what is said in the card of a model that was adapted."""

from types import SimpleNamespace

import numpy as np
from model_cases import PAIRED, card_of, tiny_model
from volume_cases import noise_scan

from MAPSegLib import quality
from MAPSegLib.config import InferenceOptions
from MAPSegLib.jobs import AdaptJob
from MAPSegLib.models import load_card
from MAPSegLib.tasks.candidates import Candidate
from MAPSegLib.tasks.outputs import ScanOutputs
from MAPSegLib.tasks.scans import _save_adapted, segment_one
from MAPSegLib.training.adaptation import Adapted


def test_the_verdict_is_on_the_result_and_not_on_a_quick_look(monkeypatch):
    judged, assess, seen = [], quality.assess, []

    def watched(card, looks, spacing, classes=None):
        judged.append(classes)
        return assess(card, looks, spacing, classes)

    monkeypatch.setattr(quality, "assess", watched)
    options = InferenceOptions(device="cpu", precision="fp32")
    model = tiny_model()
    candidates = [Candidate(model, card_of(model), None)]
    scan = noise_scan((20, 18, 22))
    found, _ = segment_one(candidates, scan, options, {}, lambda *told: seen.append(told))
    values = np.array([0, *(label.value for label in PAIRED)])
    assert np.array_equal(values[judged[-1]], found.labels) and np.unique(found.labels).size > 1
    assert seen == sorted(seen) and seen[-1] == (100, 100)


def test_the_card_of_an_adapted_model_tells_what_it_is_and_boasts_of_nothing(tmp_path):
    model = tiny_model()
    priors = {"extents": {"10": [[1.0, 0.1]] * 3}, "trust": {"agreement": 0.7}}
    looks = {"intensity": {"quantiles": [0.5], "mean": [0.4], "covariance": [[0.01]]}}  # of other scans
    card = card_of(model, priors=priors | looks).model_copy(update={"scores": {"dice": 0.9}})
    results = [SimpleNamespace(chosen=chosen) for chosen in ("source", "adapted", "source")]
    adapted = Adapted(model, 40, 30, results=results)
    job = AdaptJob(model="tiny", scans=[tmp_path / "scan.nii.gz"], output=tmp_path)
    new = load_card(_save_adapted(adapted, card, job, ScanOutputs(tmp_path)))
    assert (new.name, new.scores, new.priors) == ("tiny-adapted", {}, priors)
    told = {name: new.provenance[name] for name in ("adapted_from", "scans", "kept", "best_step")}
    assert told == {"adapted_from": "tiny", "scans": 3, "kept": 1, "best_step": 30}
