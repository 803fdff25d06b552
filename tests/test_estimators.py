"""The estimators in miniature: measured, ranked on a leaderboard, drawn and judged from runs."""

import dataclasses
import functools

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import slow

from experiments.arm import Arm, Plain
from experiments.bench import bench
from experiments.effects import only
from experiments.questions import estimators
from experiments.questions.estimators import ESTIMATORS as EXPERIMENT
from experiments.verdict import judge
from tasks import TASKS
from tasks.injury import injury
from testbed.evaluation.rare import ESTIMATORS
from testbed.objective import Objective
from testbed.policy import greedy

TWO = ("made up", "another")


def row(seed, stage, errors, truth=1e-4, covers=True, task="made up"):
    """A run of one model on which each estimator is off by so many decades."""
    estimates = {
        name: {"value": truth * 10.0**off, "low": truth * (0.5 if covers else 2), "high": 3 * truth}
        | {"effective": 9.0, "largest": 0.2, "calls": 100}
        for name, off in errors.items()
    }
    models = [{"truth": truth, "failures": 5.0, "said": estimates}]
    models.append({"truth": 0.0, "failures": 0.0, "said": estimates})
    return {"task": task, "seed": seed, "arm": stage, "models": models}


ERRORS = {"naive": -2.0, "mhis": 0.1, "itgis": -0.3, "splitting": 0.01, "qld": 1.0, "gld": 2.0, "gumbel": 0.5}


def declared(runs):
    """The outcome, and the declared effect."""
    verdict = judge(EXPERIMENT, runs)
    effect, *_ = only(verdict.effects, declared=True).itertuples()
    assert effect.before.startswith("extrapolation") and effect.after.startswith("importance")
    return verdict.outcome, effect


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted")])
def test_the_verdict_is_the_declared_contrast(sign, outcome):
    errors = ERRORS if sign > 0 else ERRORS | {"mhis": 3.0, "itgis": -3.0, "qld": 0.1, "gld": 0.1}
    rows = [
        row(seed, "training", errors | {"qld": errors["qld"] + seed / 10, "gld": 9.0}, task=task)
        for seed in range(4)
        for task in TWO
    ]
    found, effect = declared(pd.DataFrame(rows))
    assert (found, effect.n) == (outcome, 4)
    assert effect.effect == pytest.approx(abs(errors["qld"]) + 0.15 * np.sign(errors["qld"]) - (0.2 if sign > 0 else 3))


def test_a_task_alone_refutes_but_does_not_support():
    better, worse = ERRORS | {"qld": 1.0}, ERRORS | {"mhis": 3.0, "itgis": -3.0, "qld": 0.1}
    for errors, outcome in ((better, "undecided"), (worse, "refuted")):
        rows = [row(seed, "training", errors | {"qld": errors["qld"] + seed / 10}) for seed in range(4)]
        assert declared(pd.DataFrame(rows))[0] == outcome


def test_a_large_space_has_a_lower_floor():
    rare = row(0, "training", ERRORS, truth=1e-12)
    table = estimators.answers(pd.DataFrame([rare | {"floor": 1e-15}, row(1, "training", ERRORS)]))
    of_naive = table[table["estimator"] == "naive"].set_index("seed")
    assert of_naive.loc[0, ["truth", "error"]].tolist() == [1e-12, pytest.approx(-2)], "not left out, and not floored"
    assert set(of_naive.index) == {0, 1}


def test_where_both_kinds_are_as_far_off_nothing_is_decided():
    """No effect: what extrapolation misses in one seed, importance sampling misses in the next."""
    rows = []
    for seed in range(4):
        sampled, extrapolated = (0.1, 1.0) if seed % 2 else (1.0, 0.1)
        off = {"mhis": sampled, "itgis": -sampled, "qld": extrapolated, "gld": -extrapolated}
        rows.append(row(seed, "training", ERRORS | off))
    outcome, effect = declared(pd.DataFrame(rows))
    assert outcome == "undecided" and effect.effect == pytest.approx(0, abs=1e-9)


def test_models_that_never_fail_and_the_planted_hash_do_not_count():
    frame = pd.DataFrame([row(0, "training", ERRORS), row(1, "training", ERRORS), row(0, "planted", {"mhis": -9.0})])
    table = estimators.answers(frame)
    assert (table["truth"] > 0).all()
    assert table.loc[table["stage"] == "planted", "error"].tolist() == [pytest.approx(-5)], "floored at 1e-9"
    effects = judge(EXPERIMENT, frame).effects
    hashed = only(effects, unit="share").iloc[-1]
    assert (hashed.effect, hashed.n) == (0, 1), "no estimate came near the planted hash"
    off = only(effects, of="decades off the truth", declared=False).set_index("after")["effect"]
    assert off.to_dict() == pytest.approx({name: abs(error) for name, error in ERRORS.items()})
    covers = only(effects, of="95 % intervals that cover the truth").set_index("after")
    assert list(covers.index) == list(off.index) and covers.loc["naive", ["effect", "n"]].tolist() == [1, 2]
    text = EXPERIMENT.table(frame)
    assert text.index[0] == "splitting", "best first"
    assert text.loc["mhis", "hash"] == "-5.0"
    assert text.loc["naive", "covers"] == "2 of 2"
    assert text.loc["naive", "ESS >= 10"] == "0 of 0", "the made-up estimates have nine"
    assert EXPERIMENT.figure(frame) is not None


def test_the_best_where_failures_are_rare_is_named():
    rare = ERRORS | {"splitting": -3.0, "mhis": 0.2}
    frame = pd.DataFrame([row(0, "training", ERRORS), row(1, "training", rare, truth=1e-6)])
    effects = judge(EXPERIMENT, frame).effects
    below = only(effects, of="decades off the truth, where that is below 1e-05", declared=False)
    assert below["after"].iloc[0] == "mhis" and below["effect"].iloc[0] == pytest.approx(0.2)
    assert set(below["after"]) == set(ERRORS) and (below["n"] == 1).all()
    assert only(effects, of="decades off the truth", declared=False)["after"].iloc[0] == "mhis", "best of both"


def test_nothing_to_compare_is_not_tested():
    frame = pd.DataFrame([row(0, "training", ERRORS, truth=1e-12)])
    assert judge(EXPERIMENT, frame).outcome == "not tested"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "defence", "planted"])
def test_a_stage_is_counted_and_asked(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "injury", functools.partial(injury, length=4))
    defence = Arm(steps=16, rounds=16, finds=16, budget=30)
    config = estimators.Calibrated(Plain("injury", width=8, steps=16, layers=1), stage, 2**13, defence)
    measured = estimators.measure(config, bench(0, tmp_path))
    assert len(measured["models"]) == (1 if stage == "planted" else 4)
    for one in measured["models"]:
        assert one["said"].keys() == ESTIMATORS.keys()
        assert 0 < one["truth"] < 1 and one["said"]["naive"]["low"] < 1.3 * one["truth"]


@pytest.mark.parametrize("name", ["mhis", "itgis", slow("naive"), slow("gld"), slow("qld"), slow("gumbel")])
def test_every_estimator_but_splitting_spends_the_same(name, lively):
    task, asked = injury(length=4), estimators.estimators(2**13)
    assert asked.keys() == ESTIMATORS.keys()
    found = asked[name](jax.random.key(0), Objective(task, lively(task, layers=1), greedy(task)))
    assert found.calls == 2**13


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "defence"])
def test_machines_are_asked_in_a_space_of_two_to_the_64_prompts(stage, tmp_path):
    usual = estimators.arms("quick", estimators.LARGE)[stage]
    small = dict(steps=64, batch=64)
    defence = dataclasses.replace(usual.defence, rounds=16, finds=32, budget=20, **small)
    config = dataclasses.replace(usual, plain=dataclasses.replace(usual.plain, **small), budget=2**13, defence=defence)
    measured = estimators.measure(config, bench(0, tmp_path))
    assert len(measured["models"]) == 4 and measured["floor"] < 1e-9
    for one in measured["models"]:
        assert one["said"].keys() == ESTIMATORS.keys() and 0 <= one["truth"] < 1
    assert max(int(one["failures"]) for one in measured["models"]) > 2**50  # text in records, where it is large


def test_machines_are_asked_where_no_transformer_is_counted_and_nothing_is_planted():
    made = estimators.arms("registered", estimators.LARGE)
    assert {config.plain.model for config in made.values()} == {"machine"} and "planted" not in made
    assert estimators.arms("registered", "injury").keys() - made.keys() == {"planted"}


def test_what_cannot_be_counted_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"more than the .* that can be counted"):
        estimators.arms("quick", "sort_guard:length=16:vocab=16")
