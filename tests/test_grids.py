"""What the arms of several questions share: who is asked in which space, and with how many finds."""

import pandas as pd
import pytest

from experiments import EXPERIMENTS
from experiments.arm import USUAL, Arm, Plain, Recipe, is_counted, schedule_of
from experiments.grids import ARENA, LARGE, LARGER, TIMES, arm_on, finds_on, twins_kept
from experiments.protocol import REGISTERED
from experiments.questions import attack_strength, building_blocks, diversity, worst_failures
from experiments.questions.capacity import widths_of


def test_an_arm_is_of_a_transformer_but_on_the_larger_tasks_of_a_machine_as_it_is_usually_trained():
    fields = dict(rounds=4, finds=64, steps=10, learning_rate=1.0, attackers=7)
    assert arm_on("injury", **fields) == Arm(Plain("injury"), **fields)
    assert arm_on("injury:length=12", **fields).plain.model == "transformer"  # which a person may ask, and have sampled
    for task in (*LARGER, "injury(vocab=16,length=16)"):
        arm = arm_on(task, **fields)
        assert arm.plain.model == "machine" and is_counted(arm.plain)
        assert (arm.rounds, arm.finds, arm.attackers) == (4, 64, 0)
        assert {name: getattr(arm, name) for name in USUAL["machine"].arm} == USUAL["machine"].arm


def test_machines_have_more_finds_and_keep_twins_of_them_and_nobody_else_does():
    assert [finds_on(task, 8) for task in ("injury", LARGE)] == [8, 128]
    recipe = Recipe(order="diverse", candidates=4)
    for rounds in (0, 4):
        small, large = (arm_on(task, rounds=rounds, recipe=recipe) for task in ("injury", LARGE))
        assert twins_kept(small) == small
        assert twins_kept(large).recipe.kept_twins == (rounds > 0)
    assert twins_kept(large).recipe.order == "diverse"


@pytest.mark.parametrize("question", [attack_strength, building_blocks, diversity, worst_failures])
@pytest.mark.parametrize("task", LARGER)
def test_machines_take_equal_steps_on_equally_many_labels_and_are_asked_what_transformers_are(question, task):
    small, large = (question.arms(REGISTERED, name) for name in ("injury", task))
    beside = {building_blocks.TWINS, building_blocks.NO_TWINS}
    assert set(small) - beside == set(large) - beside
    assert {arm.steps for name, arm in large.items() if name != "plain"} == {USUAL["machine"].arm["steps"]}
    searching = {name: arm for name, arm in large.items() if arm.rounds}
    assert {schedule_of(arm).finds for arm in searching.values()} == {2048}
    assert {arm.recipe.fresh_labels for arm in large.values() if arm.recipe.fresh != "none"} == {2048}
    assert {name for name, arm in searching.items() if not arm.recipe.kept_twins} <= {building_blocks.NO_TWINS}


@pytest.mark.parametrize("name", ["update_frequency", "random_failures"])
def test_a_question_in_large_spaces_is_the_same_question_with_a_protocol_of_its_own(name):
    small, large = EXPERIMENTS[name], EXPERIMENTS[f"{name}_large"]
    assert large.rule is small.rule and large.contrasts == small.contrasts and large.decides == small.decides
    assert large.presets[REGISTERED].tasks == LARGER and ARENA in large.design and small.design in large.design
    assert large.question.endswith("among 2^64 prompts?") and large.question != small.question
    there, here = (question.arms(REGISTERED, task) for question, task in ((large, LARGE), (small, "injury")))
    assert there.keys() == here.keys() and all(is_counted(arm.plain) for arm in there.values())
    for arm, like in zip(there.values(), here.values(), strict=True):
        assert (arm.plain.model, bool(arm.steps), arm.rounds) == ("machine", bool(like.steps), like.rounds)
        assert (arm.finds, arm.attack, arm.units) == (TIMES * like.finds, like.attack, like.units)
        assert arm.recipe.kept_twins == (arm.rounds > 0)
        assert arm.recipe.fresh_labels == TIMES * like.recipe.fresh_labels
    if name == "random_failures":  # it asks how long attackers need, also where all failures are counted
        assert {arm.attackers for arm in there.values()} == {Arm().attackers}


def test_sizes_of_machines_are_those_of_their_step():
    arms = EXPERIMENTS["capacity"].arms("registered", LARGE)
    assert [arm.plain.hidden for arm in arms.values()] == [8, 8, 16, 16, 32, 32, 64, 64, 64, 64]
    assert {arm.plain.model for arm in arms.values()} == {"machine"}
    assert [arm.recipe.kept_twins for arm in arms.values()] == [True] * 8 + [False] * 2
    *_, largest, labels, hazards = arms.values()
    assert labels.recipe.fresh_labels == hazards.recipe.fresh_labels == largest.finds
    runs = pd.DataFrame({"config.plain.width": [32, 16], "config.plain.hidden": [8, 64]})
    assert widths_of(runs).tolist() == [32, 16]
    runs["config.plain.model"] = ["machine", "transformer"]
    assert widths_of(runs).tolist() == [8, 16]
