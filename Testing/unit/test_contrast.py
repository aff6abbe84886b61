"""The search for an intensity curve: what it tries, what it finds, and what judges it."""

import pytest
import torch
from model_cases import PAIRED, SINGLE, card_of, tiny_model

from MAPSegLib import quality
from MAPSegLib.quality import Transformation
from MAPSegLib.training import contrast


def test_the_search_finds_the_best_of_all_that_it_tries(monkeypatch):
    """Near the inverse of the contrast that the model knows, in rounds of ever smaller steps from the best so far."""
    line, tried = torch.linspace(0, 1, 17), []
    goal = 1 - line + 0.1 * torch.sin(9 * line)

    def scores(model, card, image, spacing, curves, precision):
        found = [-float((curve - goal).abs().mean()) for curve in curves]
        tried.append(dict(zip(found, curves, strict=True)))
        return found

    monkeypatch.setattr(contrast, "_scores", scores)
    model = tiny_model(curve_knots=16)
    for seed in range(4):
        tried.clear()
        generator = torch.Generator().manual_seed(seed)
        curve = contrast.search_curve(model, None, torch.rand(8, 8, 8), (1.0, 1.0, 1.0), generator)
        started, best = tried[0], [max(each) for each in tried]
        assert all(any(torch.equal(one, each) for one in started.values()) for each in (line, 1 - line))
        every = {score: each for round_ in tried for score, each in round_.items()}
        assert torch.equal(curve, every[max(best)]) and max(best[1:]) > best[0]
        spread = [torch.stack(list(each.values())).std(0).mean() for each in tried[1:]]
        assert spread[-1] < 0.6 * spread[0]


@pytest.mark.parametrize("labels", [PAIRED, SINGLE])
def test_curves_are_judged_under_the_transformation_that_results_are_judged_under(monkeypatch, labels):
    """Of the same scan on a coarser grid, in millimetres; and with the way back, or nothing would agree."""
    asked, image = [], torch.rand(24, 12, 40, generator=torch.Generator().manual_seed(0))

    def transformation(labels, shape, spacing):
        asked.append((labels, tuple(shape), spacing))
        way = quality.transformation(labels, shape, spacing)
        return Transformation(lambda image: image, lambda seen: seen) if identical else way

    def judge(*asked):
        found = judged(*asked)
        scores.extend(found)
        return found

    scores, judged = [], contrast._scores
    monkeypatch.setattr(contrast, "_scores", judge)
    monkeypatch.setattr(contrast, "transformation", transformation)
    monkeypatch.setattr(quality, "border_contrast", lambda *_: 0.0)
    model = tiny_model(labels, curve_knots=4)
    none_expected = {"extents": {"999": [[0.0, 1.0]] * 3}}
    card = card_of(model, priors=none_expected)
    for identical in (True, False):
        generator = torch.Generator().manual_seed(1)
        scores.clear()
        curve = contrast.search_curve(model, card, image, (1.0, 2.0, 0.5), generator, "fp32")
        assert asked[-1] == (card.labels, (16, 12, 16), pytest.approx([1.5, 2.0, 1.25]))
        assert curve.shape == (5,) and len(scores) == 48
        assert all(score == 1.0 for score in scores) == identical
