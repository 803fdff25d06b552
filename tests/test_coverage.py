"""Coverage: labelled prompts that no search chose, how many there are, and what does not fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from reference import Q
from reference import injury as rule

from experiments.ablate import arms
from experiments.arm import Arm, Plain, Recipe
from experiments.axes import axes_of
from experiments.bench import bench, defended_model
from tasks.injury import injury
from testbed.attacks.twins import TRIES
from testbed.training import defence
from testbed.training.coverage import DRAWS, Fresh, fresh_prompts, labels_used
from testbed.training.defence import Defence, Lesson
from testbed.training.schedule import Schedule
from testbed.training.units import batch_of, begin, programs

TASK, KEY = injury(length=4), jax.random.key(0)
SCHEDULE = Schedule(steps=8, rounds=2, finds=4, budget=1, batch=200, units=4)


@functools.partial(jax.jit, static_argnames=("fresh", "number"))
def drawn(key, run_key, fresh, number):
    return fresh_prompts(key, TASK, fresh, number, run_key=run_key)


def prompts_of(fresh, key=KEY, number=400, run_key=KEY):
    return np.asarray(drawn(key, run_key, fresh, number))


def hazardous(prompts):
    return np.array([bool(rule(prompt).forbidden) for prompt in prompts.tolist()])


def distinct(prompts):
    return len(np.unique(prompts, axis=0))


def test_uniform_prompts_are_of_the_whole_space_hazards_are_all_hazardous_and_mixed_is_half_of_each(all_prompts):
    share = hazardous(all_prompts(TASK)).mean()
    counted = {name: hazardous(prompts_of(Fresh(draw), number=4000)).mean() for name, draw in DRAWS.items()}
    assert counted["hazards"] == 1
    assert counted["uniform"] == pytest.approx(share, abs=0.03)
    assert counted["mixed"] == pytest.approx((1 + share) / 2, abs=0.03)
    tokens = prompts_of(Fresh(DRAWS["uniform"]), number=4000)
    np.testing.assert_allclose([np.bincount(column, minlength=8) / 4000 for column in tokens.T], 1 / 8, atol=0.025)


def test_a_fixed_number_of_labels_goes_to_the_same_prompts_in_every_batch():
    fixed = Fresh(DRAWS["uniform"], labels=32)
    several = [prompts_of(fixed, jax.random.key(step)) for step in range(3)]
    number = distinct(several[0])
    assert 28 <= number <= 32 and distinct(np.concatenate(several)) == number
    other = prompts_of(fixed, run_key=jax.random.key(1))
    assert distinct(np.concatenate([*several, other])) > 1.8 * number, "those of another run are others"
    anew = [prompts_of(Fresh(DRAWS["uniform"]), jax.random.key(step), 32) for step in range(3)]
    assert distinct(np.concatenate(anew)) > 80


def batch(lesson, pool=True):
    """A batch with a pool of prompts that are all 1, and clean prompts that are all Q."""
    clean = dataclasses.replace(TASK, sample=lambda key: jnp.full(4, Q))
    state = begin(jnp.zeros(1), clean, SCHEDULE)
    state = state._replace(pool=jnp.ones((4, 4), jnp.int32), usable=jnp.full(4, pool))
    how = dict(lesson=lesson, first=jnp.asarray(0), run_key=KEY)
    return np.asarray(jax.jit(lambda state: batch_of(KEY, state, clean, SCHEDULE.descent, **how))(state))


def test_a_batch_has_finds_in_front_clean_prompts_and_fresh_ones_at_the_end():
    lesson = Lesson(share=0.3, fresh=Fresh(DRAWS["hazards"], share=0.25))
    prompts = batch(lesson)
    assert (prompts[:60] == 1).all() and (prompts[60:150] == Q).all() and hazardous(prompts[150:]).all()
    assert (batch(lesson, pool=False)[:150] == Q).all()
    np.testing.assert_array_equal(batch(Lesson(share=0.3))[:150], prompts[:150], "the others are drawn as without it")


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [(Fresh(None), 8 * 100), (Fresh(None, share=0.25), 8 * 50), (Fresh(None, labels=64), 64)],
)
def test_labels_count_every_draw_or_the_fixed_number(fresh, expected):
    assert labels_used(fresh, steps=8, batch=200) == expected


@pytest.mark.parametrize(("batch", "twins"), [(200, 50), (250, 62)])
def test_replayed_twins_cost_a_label_each_and_every_try_a_verdict(batch, twins):
    """Half of each batch are finds, and every other of these is replaced; of 125 finds 62 are."""
    schedule, lesson = Schedule(steps=32, batch=batch, rounds=4, finds=64, budget=19), Lesson(twins=True)
    assert defence.labels_used(schedule, lesson) == 32 * twins
    spent = defence.training_cost(schedule, TASK, defence.Defence(lesson=lesson))
    assert spent.checker == 32 * twins * TRIES
    alone = dataclasses.replace(schedule, rounds=0, finds=0, budget=0)
    assert (
        defence.labels_used(alone, lesson)
        == defence.training_cost(alone, TASK, defence.Defence(lesson=lesson)).checker
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["fresh=uniform", "share=0.9"],
            "share=0.9 and fresh_share=0.5 are more than a batch of 256 prompts",
        ),
        (["fresh=uniform", "batch=7"], "share=0.5 and fresh_share=0.5 are more than a batch of 7 prompts; lower one"),
        (["share=0.001"], "share=0.001 is no prompt of a batch of 256; give more, or 0"),
        (["fresh=uniform", "fresh_share=0"], "fresh_share must be above 0 and at most 1, not 0"),
        (["fresh=hazards", "fresh_labels=-1"], "fresh_labels must be at least 0 .*, not -1"),
        (["fresh=unifrom"], "recipe.fresh must be one of none, uniform, .*did you mean 'uniform'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(words, message):
    with pytest.raises(ValueError, match=message):
        arms(axes_of(words), "injury")


def test_the_library_refuses_it_too_and_without_rounds_the_pool_has_no_part():
    crowded = Defence(lesson=Lesson(share=0.9, fresh=Fresh(DRAWS["uniform"])))
    with pytest.raises(ValueError, match="more than a batch"):
        programs(TASK, SCHEDULE, None, crowded)
    assert programs(TASK, dataclasses.replace(SCHEDULE, rounds=0), None, crowded)


def test_an_arm_without_rounds_is_named_after_its_prompts():
    assert Arm(recipe=Recipe(fresh="hazards")).name == "fresh hazards" and Arm().name == "control"


SMALL = dict(width=8, layers=1)
ANEW, FIXED = dict(fresh="mixed"), dict(fresh="mixed", fresh_labels=48)
MACHINE = dict(model="machine", bits=4, hidden=4)


@pytest.mark.parametrize(
    ("sizes", "recipe", "labels"),
    [
        slow(MACHINE, {}, 0),
        slow(MACHINE, ANEW, 16 * 128),
        (MACHINE, FIXED, 48),
        slow(SMALL, ANEW, 16 * 128),
    ],
)
def test_both_kinds_of_models_learn_from_it_and_their_labels_are_counted(sizes, recipe, labels, tmp_path_factory):
    plain, at = Plain("injury:length=4", steps=16, **sizes), bench(0, tmp_path_factory.getbasetemp() / "e")
    made = defended_model(at, Arm(plain, steps=16, recipe=Recipe(**recipe)))
    assert made.compute["labels"] == labels
    assert len(set(at.digests.values())) == 2, "it is another model than the plain one"
