"""The calibration of the estimators in miniature: measured, told as a leaderboard, drawn and judged from records."""

import functools
import re

import numpy as np
import pandas as pd
import pytest

from experiments import arm
from experiments.arm import Plain
from experiments.questions import estimators
from tasks import TASKS
from tasks.injury import injury
from testbed.evaluation.rare import ESTIMATORS
from testbed.training.rounds import Schedule
from testbed.watch import silent


def row(seed, stage, errors, truth=1e-4, covers=True):
    """A run of one model on which each estimator is off by so many decades."""
    said = {
        name: {"value": truth * 10.0**off, "low": truth * (0.5 if covers else 2), "high": 3 * truth}
        | {"effective": 9.0, "largest": 0.2, "calls": 100}
        for name, off in errors.items()
    }
    models = [{"truth": truth, "failures": 5.0, "said": said}, {"truth": 0.0, "failures": 0.0, "said": said}]
    return {"config.plain.task": "made up", "seed": seed, "arm": stage, "models": models}


ERRORS = {"naive": -2.0, "mhis": 0.1, "itgis": -0.3, "splitting": 0.01, "qld": 1.0, "gld": 2.0, "gumbel": 0.5}


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted")])
def test_the_verdict_is_the_declared_contrast(sign, outcome):
    errors = ERRORS if sign > 0 else ERRORS | {"mhis": 3.0, "itgis": -3.0, "qld": 0.1, "gld": 0.1}
    frame = pd.DataFrame([row(seed, "training", errors | {"gld": errors["gld"] + seed / 10}) for seed in range(4)])
    verdict = estimators.claim(frame)
    assert verdict.outcome == outcome
    expected = 1.5 + 0.075 - 0.2 if sign > 0 else 0.175 - 3
    assert f"extrapolation is {expected:.2f} decades" in verdict.why
    assert "no hash" in verdict.why


def test_where_both_kinds_are_as_far_off_nothing_is_decided():
    """No effect: what extrapolation misses in one seed, importance sampling misses in the next."""
    rows = []
    for seed in range(4):
        sampled, extrapolated = (0.1, 1.0) if seed % 2 else (1.0, 0.1)
        off = {"mhis": sampled, "itgis": -sampled, "qld": extrapolated, "gld": -extrapolated}
        rows.append(row(seed, "training", ERRORS | off))
    verdict = estimators.claim(pd.DataFrame(rows))
    assert verdict.outcome == "undecided"
    assert re.search(r"extrapolation is -?0\.00 decades further off", verdict.why)


def test_models_that_never_fail_and_the_planted_hash_do_not_count():
    frame = pd.DataFrame([row(0, "training", ERRORS), row(1, "training", ERRORS), row(0, "planted", {"mhis": -9.0})])
    table = estimators.answers(frame)
    assert (table["truth"] > 0).all()
    assert table.loc[table["stage"] == "planted", "error"].tolist() == [pytest.approx(-5)], "floored at 1e-9"
    assert "planted hash: 0 of 1" in estimators.claim(frame).why
    text = estimators.summary(frame)
    assert text.index[0] == "splitting", "best first"
    assert text.loc["mhis", "hash"] == "-5.0"
    assert text.loc["naive", "covers"] == "2 of 2"
    assert text.loc["naive", "ESS >= 10"] == "0 of 0", "the made-up estimates have nine"
    assert estimators.plot(frame) is not None


def test_nothing_to_compare_is_undecided():
    frame = pd.DataFrame([row(0, "training", ERRORS, truth=1e-12)])
    assert estimators.claim(frame).outcome == "undecided"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "defence", "planted"])
def test_a_stage_is_counted_and_asked(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "injury", functools.partial(injury, length=4))
    monkeypatch.setattr(estimators, "DEFENCE", Schedule(steps=16, rounds=16, finds=16, budget=30))
    monkeypatch.setattr(
        estimators, "Arm", lambda plain, rounds: arm.Arm(plain, steps=16, rounds=1, finds=16, budget=30)
    )
    config = estimators.Calibrated(Plain("injury", width=8, steps=16), stage, 2**13)
    measured = estimators.measure(config, 0, tmp_path, silent)
    assert measured["arm"] == stage and len(measured["models"]) == (1 if stage == "planted" else 4)
    for one in measured["models"]:
        assert one["said"].keys() == ESTIMATORS.keys()
        assert 0 < one["truth"] < 1 and one["said"]["naive"]["low"] < 1.3 * one["truth"]


@pytest.mark.parametrize("budget", [2**13, 2**14, 2**16])
def test_every_estimator_but_splitting_spends_the_same(budget, small, lively):
    asked = estimators.estimators(budget)
    assert asked.keys() == ESTIMATORS.keys()
    assert 8 * (budget // 32 + 4 * (budget // 1024) * 24) == budget
    assert 8 * (budget // 32) * 4 == budget
    assert np.isfinite(budget)


def test_what_cannot_be_counted_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"more than the .* that can be counted"):
        estimators.grid("quick", "injury:length=16:vocab=16")
