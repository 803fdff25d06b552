"""What people leave behind: finds that are confirmed anew and trained on, and curves beside attacks.

All sessions here are scripted: nobody played them.
"""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import compilations

from experiments import columns, worklist
from experiments.ablate import FOUND, ablation, beside_people
from experiments.arm import attack_of
from experiments.axes import axes_of
from experiments.bench import bench
from experiments.play import finds, session
from experiments.questions import people
from experiments.verdict import judge
from tasks import TASKS
from testbed.attacks.search import NEVER, attack_model
from testbed.evaluation.survival import kaplan_meier
from testbed.objective import Objective, confirm
from testbed.policy import greedy
from testbed.runs import results
from testbed.runs.models import digest_of, save
from testbed.watch import silent

TASK = "injury:length=4"


@pytest.fixture(scope="module")
def target(tmp_path_factory, lively, all_prompts):
    """A saved model as a header names it, its failures, and a prompt on which it does not fail."""
    task, path = TASKS["injury"](length=4), tmp_path_factory.mktemp("models") / "mine"
    model, prompts = lively(task, layers=2), all_prompts(task)
    save(path, model, task=TASK)
    fails = np.asarray(confirm(Objective(task, model, greedy(task)), prompts))
    return {"name": "mine", "path": str(path), "digest": digest_of(model)}, prompts[fails], prompts[~fails][0]


def scripted(folder, target, steps, condition="full", **more):
    """The file of a session that no person played: (tool, prompt, forwards, seconds, found) a step."""
    head = session.header(TASK, [target], condition, "2026-01-01") | more
    path = folder / f"{head['session']}.jsonl"
    session.append(path, head)
    for tool, prompt, forwards, seconds, found in steps:
        session.append(path, session.event(tool, prompt, forwards=forwards, seconds=seconds, found=found))
    return path


@pytest.fixture
def played(tmp_path, target):
    """Two scripted sessions with a find and one without, and one that nobody played, in the folder of results."""
    model, failing, safe = target
    folder = tmp_path / "play"
    scripted(folder, model, [("hazard", safe, 100, 5.0, False), ("swap", failing[0], 100, 9.0, True)])
    scripted(folder, model, [("hazard", safe, 50, 2.0, False), ("token", failing[1], 60, 4.0, True),
                             ("token", failing[2], 60, 6.0, True)])  # fmt: skip
    scripted(folder, model, [("hazard", safe, 30, 1.0, False), ("token", safe, 40, 3.0, False)])
    scripted(folder, model, [("hazard", safe, 70, 3.0, False)])  # a page that was opened, and that nobody played
    return tmp_path


def test_finds_are_those_of_all_files_each_once(played, target):
    found = finds.finds_of([f"{played}/play/*.jsonl"], TASK)
    assert sorted(map(tuple, found)) == sorted(map(tuple, target[1][:3]))


def test_a_find_that_is_no_failure_is_refused_by_name(played, target):
    path = scripted(played / "play", target[0], [("token", target[2], 1, 1.0, True)])
    with pytest.raises(ValueError, match=f"{path}: .* is no failure of model {target[0]['digest']}; leave this file"):
        finds.finds_of([f"{played}/play/*.jsonl"], TASK)


def test_files_that_cannot_be_trained_on_are_refused_in_a_line(played, target, tmp_path, lively):
    model, failing, safe = target
    other = tmp_path / "other"
    lost = scripted(other, model | {"path": "no/such"}, [("token", failing[0], 1, 1.0, True)])
    wrong = scripted(other, model | {"digest": "0" * 16}, [("token", failing[0], 1, 1.0, True)])
    empty = scripted(other, model, [("hazard", safe, 1, 1.0, False), ("token", safe, 1, 1.0, False)])
    outside = scripted(other, model, [("token", [99, 0, 0, 0], 1, 1.0, True)])
    cases = {
        lost: "no/such is not a saved model", wrong: "is not the model 0000", empty: "holds no find; play first",
        outside: "token 99 may not stand at position 0", other / "no.jsonl": "is no session",
    }  # fmt: skip
    for path, says in cases.items():
        with pytest.raises(ValueError, match=says):
            finds.finds_of([str(path)], TASK)
    with pytest.raises(ValueError, match=r"was played on task injury:length=4, not password; leave it out"):
        finds.finds_of([f"{played}/play/*.jsonl"], "password")


def test_people_as_an_attack_give_their_finds_as_they_are_and_are_charged(target, lively):
    task, rows = TASKS["injury"](length=4), target[1][:3]
    attack = finds.people(finds.written(rows))
    trace = attack_model(
        jax.random.key(0), attack, Objective(task, lively(task, seed=1, layers=2), greedy(task)), attackers=32, budget=3
    )
    assert {tuple(prompt) for prompt in np.asarray(trace.prompt)} == {tuple(row) for row in rows}
    assert int(trace.cost.forwards) == 3


def test_an_ablation_has_one_arm_more_that_survives_json(played, target):
    grid = ablation(axes_of(["attack=gcg,uniform", "rounds=1"]))
    both = beside_people(grid, lambda task: finds.finds_of([f"{played}/play/*.jsonl"], task))
    arms = both.arms("grid", TASK)
    assert list(arms) == [*grid.arms("grid", TASK), FOUND]
    mine, like = arms[FOUND], next(arm for arm in arms.values() if arm.rounds)
    assert dataclasses.replace(mine, attack=like.attack, options=(), budget=like.budget, label="") == like
    assert attack_of(mine).name == "people"
    [run] = [run for run in worklist.runs_of(worklist.ABLATION, both, "grid", TASK, 0) if run.arm == FOUND]
    written = json.loads(json.dumps(results.described(run.experiment, run.config, 0)))
    assert written["config"]["options"][0][1] == dict(mine.options)["prompts"]
    assert {contrast.after for contrast in both.exploratory} >= {FOUND} and not both.contrasts


def test_an_arm_without_rounds_is_not_put_beside_people():
    grid = beside_people(ablation(axes_of(["rounds=0", "learning_rate=5e-4,2e-3"])), lambda task: np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="--finds needs an arm with rounds beside it"):
        grid.arms("grid", TASK)


# ---- the question


def table_of(out, monkeypatch, names=("people", "uniform")):
    """The question of a folder, and a table of the runs of some arms, written and read back."""
    monkeypatch.setattr(people, "BUDGET", 40)
    monkeypatch.setattr(people, "ATTACKERS", 8)
    asked, folder = worklist.experiment_in("people", out), out / "people"
    for run in worklist.runs_of("people", asked, "quick", asked.presets["quick"].tasks[0], 0):
        if run.arm.startswith(names):
            record = results.described("people", run.config, run.seed) | {"seconds": 10, "provenance": {}}
            results.write(folder, run.id, record | worklist.perform(run, folder, silent))
    return asked, columns.tidy(results.load(folder, "people"))


def test_people_stand_beside_attacks_on_the_model_that_was_played(played, target, monkeypatch):
    asked, runs = table_of(played, monkeypatch)
    assert asked.presets["quick"].tasks == (TASK,)
    ours, theirs = (runs[runs["arm"] == arm].iloc[0] for arm in ("people, full", "uniform"))
    assert sorted(ours["first"], key=str) == [110, 200, None] and sorted(ours["spent"]) == [70, 170, 200]
    assert sorted(ours["found_at"], key=str) == [4.0, 9.0, None] and sorted(ours["clock"]) == [3.0, 6.0, 9.0]
    assert theirs["searched"] == ours["searched"] == target[0]["digest"]
    assert len(theirs["first"]) == 8 and set(theirs["spent"]) == {40}
    table = asked.table(runs)
    assert table.loc["people, full"].tolist() == ["3", "2", "110", "4"], "who left early is censored there"
    verdict = judge(asked, runs)
    assert verdict.outcome == "not tested" and verdict.effects["effect"].tolist() == [pytest.approx(2 / 3)]
    drawn = asked.figure(runs)
    drawn.canvas.draw()
    assert "no sessions" not in drawn.get_supxlabel() and len(drawn.axes) == 2


def test_sessions_without_a_find_are_censored_where_they_ended():
    first, spent = people.never([110, None, 200]), np.array([170.0, 70.0, 200.0])
    curve = kaplan_meier(first, spent)
    # One left before anybody found anything, so two were at risk: (1 - 1/2), then zero.
    at = dict(zip(curve.calls, curve.surviving, strict=True))
    assert at[110] == pytest.approx(0.5) and at[200] == pytest.approx(0)
    same = kaplan_meier(np.array([5, NEVER, 9]), 10), kaplan_meier(np.array([5, NEVER, 9]), np.full(3, 10.0))
    np.testing.assert_allclose(same[0].surviving, same[1].surviving)


def test_an_attacks_time_is_its_share_of_the_runs_wall_time():
    run = pd.Series({"arm": "gcg", "first": [20, None], "spent": [40, 40], "seconds": 10.0})
    first, clock = people.seconds_of(run)
    assert first.tolist() == [5.0, NEVER] and clock.tolist() == [10.0, 10.0]


def test_where_nobody_played_it_says_no_sessions_and_invents_none(tmp_path):
    asked = worklist.experiment_in("people", tmp_path)
    arms = asked.arms("quick", "injury")
    assert list(arms) == list(people.BESIDE) and arms == people.PEOPLE.arms("quick", "injury")
    rows = [{"task": "injury", "arm": arm, "seed": 0, "first": [3, None], "spent": [9, 9], "found_at": [], "clock": [],
             "seconds": 1.0} for arm in arms]  # fmt: skip
    runs = pd.DataFrame(rows)
    assert asked.table(runs).loc["people", "searchers"] == "no sessions"
    assert "People: no sessions." in asked.figure(runs).get_supxlabel()
    assert judge(asked, runs).outcome == "not tested"


def test_more_sessions_make_another_run_and_others_are_refused(played, target):
    arms = lambda: worklist.experiment_in("people", played).arms("quick", TASK)["people, full"]
    before = arms()
    scripted(played / "play", target[0], [("token", target[2], 70, 3.0, False)])
    assert arms() != before
    with pytest.raises(ValueError, match="are not those that the run was named after"):
        people.measure(before, bench(0, played / "people"))


def test_conditions_and_models_are_arms_of_their_own(played, target):
    step = [("token", target[2], 70, 3.0, False)]
    scripted(played / "play", target[0], step, "blind")
    arms = worklist.experiment_in("people", played).arms("quick", TASK)
    assert {"people, full", "people, blind", "gcg"} <= set(arms)
    scripted(played / "play", target[0] | {"name": "other", "digest": "f" * 16}, step)
    arms = worklist.experiment_in("people", played).arms("quick", TASK)
    assert {f"people, full on mine {target[0]['digest'][:6]}", "gcg on other ffffff"} <= set(arms)


def test_who_plays_two_models_at_once_pays_for_both_and_is_an_arm_apart(played, target):
    two = {"models": [target[0] | {"name": "before", "digest": "e" * 16}, target[0]]}
    scripted(played / "play", target[0], [("token", target[2], 140, 3.0, False)], **two)
    arms = worklist.experiment_in("people", played).arms("quick", TASK)
    assert {"people, full", "people, full, 2 models"} <= set(arms)
    assert people.of_people(arms["people, full, 2 models"], played / "play")["spent"] == [140]
    assert len(people.of_people(arms["people, full"], played / "play")["spent"]) == 3


def test_who_played_and_has_no_record_is_not_told_as_nobody(played):
    asked = worklist.experiment_in("people", played)
    row = {"task": TASK, "arm": "gcg", "seed": 0, "first": [3, None], "spent": [9, 9], "found_at": [], "clock": []}
    runs = pd.DataFrame([row | {"seconds": 1.0}])
    assert asked.table(runs).loc["people", "searchers"] == people.LOST
    assert f"People: {people.LOST}." in " ".join(asked.figure(runs).get_supxlabel().split())


def test_a_search_by_people_compiles_once_for_all_files(target, lively):
    task = TASKS["injury"](length=4)
    goal = Objective(task, lively(task, seed=1, layers=2), greedy(task))
    attack = finds.people(finds.written(target[1][:3]))
    attack_model(jax.random.key(0), attack, goal, attackers=4, budget=3)
    with compilations() as names:
        attack_model(jax.random.key(1), finds.people(finds.written(target[1][:3])), goal, attackers=4, budget=3)
    assert not names
