"""The oracle draws from all that is wrong, both ways; training on it leaves fewer failures than plain steps."""

import jax
import numpy as np
import pytest
from machines import Whole, by_hand, random_machine
from reference import REFERENCE

from experiments.ablate import arms
from experiments.arm import Arm, attack_of, usual_plain
from experiments.axes import axes_of
from tasks import task_named
from testbed.attacks import attack_named
from testbed.evaluation import exact, paths
from testbed.evaluation.wrong import wrong_kinds
from testbed.objective import Objective
from testbed.policy import greedy, unrefused
from testbed.training.defence import Defence, Selection, attack_cost
from testbed.training.oracle import oracle, wrong_prompts
from testbed.training.rounds import program_digest, train
from testbed.training.schedule import Schedule

TASK = task_named("injury:length=5")


def test_half_of_the_draw_fails_and_half_is_refused():
    machine = random_machine(TASK, 1, bits=6, hidden=8)
    drawn, share = wrong_prompts(jax.random.key(0), machine, TASK, 64)
    hazardous = np.array([bool(REFERENCE["injury"](tuple(prompt)).forbidden) for prompt in drawn.tolist()])
    assert drawn.shape == (64, 5) and share == 0.5
    np.testing.assert_array_equal(hazardous, np.arange(64) < 32)
    np.testing.assert_array_equal(Whole(machine).leads(drawn) <= 0, hazardous)


def test_of_what_is_not_wrong_nothing_is_drawn():
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK), TASK, 8)
    assert drawn.shape == (0, 5) and share == 0
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK, without_negation=True), TASK, 8)
    assert drawn.shape == (8, 5) and share == 0, "only false alarms"
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK, without_negation=True), TASK, 8, failures=1.0)
    assert drawn.shape == (0, 5), "none is asked for"


def test_of_a_unit_of_one_find_half_the_units_draw_a_failure():
    machine, keys = random_machine(TASK, 1, bits=6, hidden=8), jax.random.split(jax.random.key(0), 40)
    shares = [wrong_prompts(key, machine, TASK, 1)[1] for key in keys]
    assert set(shares) == {0.0, 1.0} and 10 <= sum(shares) <= 30
    only = by_hand(TASK, target=[4] + [8] * 4)
    assert len(wrong_prompts(keys[0], only, TASK, 1)[0]) == any(kind.any for kind in wrong_kinds(only, TASK))


@pytest.mark.slow
def test_training_with_it_leaves_fewer_failures_than_plain_steps():
    schedule = Schedule(steps=256, rounds=8, finds=256, budget=1, units=8, batch=64, learning_rate=5e-3)
    start, policy = random_machine(TASK, 0, bits=8, hidden=16), {"it": greedy(TASK)}
    plain, _ = train(jax.random.key(1), start, TASK, Schedule(steps=256, batch=64, learning_rate=5e-3))
    asked, history = train(jax.random.key(1), start, TASK, schedule, attack=oracle())
    assert history.loss.shape == (256,) and history.pool.shape == (256, 5) and (history.found == 0.5).all()
    before, after = (exact.count(model, TASK, policy)["it"] for model in (plain, asked))
    assert after.failures < before.failures
    assert after.failures + after.false_alarms < (before.failures + before.false_alarms) / 2, "not by refusing"


def test_draws_by_visiting_the_space_are_all_that_is_wrong_and_nothing_else(lively, all_prompts):
    task = task_named("injury:length=4")
    model, prompts = lively(task, 4), all_prompts(task)
    fails = np.asarray(jax.jit(jax.vmap(Objective(task, model, greedy(task)).margin))(prompts)) <= 0
    refused = np.asarray(jax.jit(jax.vmap(lambda prompt: unrefused(model, task, prompt)[1] > 0))(prompts))
    hazardous = np.array([bool(REFERENCE["injury"](tuple(prompt)).forbidden) for prompt in prompts.tolist()])
    for kind, wanted in zip(wrong_kinds(model, task), (fails, refused & ~hazardous), strict=True):
        drawn = kind.draw(jax.random.key(0), 2**15)
        assert kind.any and wanted.sum() > 10
        assert {tuple(prompt) for prompt in drawn.tolist()} == {tuple(p) for p in prompts[wanted].tolist()}


def test_a_machines_draws_are_the_same_kinds_by_paths_and_by_visits(monkeypatch):
    task = task_named("injury:length=4")
    machine = random_machine(task, 1, bits=6, hidden=8)

    def draws():
        return [{tuple(p) for p in kind.draw(jax.random.key(0), 2**15).tolist()} for kind in wrong_kinds(machine, task)]

    by_paths = draws()
    monkeypatch.setattr(paths, "walkable", lambda model, task: False)
    assert draws() == by_paths and all(by_paths)


def test_the_share_of_failures_is_a_field_and_part_of_the_name():
    drawn, share = wrong_prompts(jax.random.key(0), random_machine(TASK, 1, bits=6, hidden=8), TASK, 64, failures=0.75)
    assert len(drawn) == 64 and share == 0.75
    schedule = Schedule(steps=16, rounds=1, finds=16, budget=1)
    model = random_machine(TASK, 1, bits=6, hidden=8)
    names = [program_digest(TASK, schedule, finder, model=model) for finder in (oracle(), oracle(0.75), oracle(0.5))]
    assert names[0] == names[2] != names[1]
    with pytest.raises(ValueError, match="a share between 0 and 1, not 2"):
        oracle(2)
    with pytest.raises(ValueError, match="keep the usual selection"):
        program_digest(TASK, schedule, oracle(), Defence(Selection(failures_only=True)), model=model)


def test_it_stands_in_for_an_attack_in_arms_and_nowhere_else():
    grid = axes_of(["attack=gcg,oracle", "model=machine"])
    assert {arm.attack for arm in arms(grid, "injury:length=5").values()} == {"gcg", "oracle"}
    assert axes_of(["attack=oracle", "failures=0.5,1"])[1].name == "attack.failures"
    large = "injury:length=16:vocab=16"
    assert attack_of(Arm(usual_plain(large, "machine"), attack="oracle")).name == "oracle"
    with pytest.raises(ValueError, match="those of a transformer are not counted; choose a smaller task"):
        arms(axes_of(["attack=oracle"]), large)
    with pytest.raises(ValueError, match="unknown attack 'oracle'"):
        attack_named("oracle")
    schedule = Schedule(steps=16, rounds=1, finds=16, budget=1)
    assert tuple(attack_cost(schedule, oracle(), None)) == (0, 0, 0)
