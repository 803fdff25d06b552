"""Losses on soft prompts: what a step costs, where its soft prompts come from, and runs that keep what they need."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import injury as rule

from experiments.arm import Recipe, defence_of
from tasks.agent import agent
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.training.defence import Defence, Lesson, labels_used, refuse_unfit, training_cost
from testbed.training.latent import Ascent
from testbed.training.losses import cross_entropy
from testbed.training.rounds import program_digest, train
from testbed.training.schedule import Schedule
from testbed.training.soft_losses import Supply, guided, soft
from testbed.training.soft_prompts import drawn, exact, learned
from testbed.training.units import begin, studied

TASK, VAULT, KEY = injury(length=3), cipher_vault(length=4, vocab=4), jax.random.key(0)
SCHEDULE = Schedule(steps=4, batch=8, units=2)


@pytest.mark.parametrize(
    ("loss", "gradients", "checks", "labels"),
    [
        (soft(exact()), 1 + 6 + 1, 0, 0),
        (soft(drawn(5)), 1 + 6 + 1, 7 * 5, 0),
        (guided(drawn(5)), 1 + 6 + 1, 6 * 5, 1),
        (soft(drawn(5), Ascent(2)), 1 + 2 + 1, 3 * 5, 0),
        (soft(drawn(5), supply=Supply(4)), 1 + Fraction(6 + 1, 4), Fraction(7 * 5, 4), 0),
        (guided(drawn(5), supply=Supply(8, 16)), 1 + Fraction(6 + 1, 8), Fraction(6 * 5, 8), Fraction(1, 8)),
    ],
)
def test_what_a_step_costs_a_classifier(loss, gradients, checks, labels):
    assert (loss.gradients(TASK), loss.checks, loss.labels) == (gradients, checks, labels)
    schedule, lesson = Schedule(steps=16, batch=8), Lesson(loss=loss)
    cost = training_cost(schedule, TASK, Defence(lesson=lesson))
    assert cost == (0, 128 * gradients, 128 * checks)
    assert labels_used(schedule, lesson) == 128 * labels
    assert {type(number) for number in (*cost, labels_used(schedule, lesson))} == {int}  # JSON knows no fraction


def test_fewer_soft_prompts_weigh_as_much(lively):
    """The soft half is a mean: one soft prompt for each eight prompts is a batch of eight's, with one."""
    model = lively(TASK, layers=2)
    prompts = jax.vmap(TASK.sample)(jax.random.split(KEY, 8))
    every = [soft(exact(), Ascent(1), Supply(each)).value(KEY, model, TASK, prompts) for each in (1, 2, 8)]
    alone = soft(exact(), Ascent(1)).value(KEY, model, TASK, prompts[:1])
    clean = cross_entropy(model, TASK, prompts), cross_entropy(model, TASK, prompts[:1])
    assert 2 * every[2] - clean[0] == pytest.approx(float(2 * alone - clean[1]), rel=1e-5)
    assert len({round(float(loss), 6) for loss in every}) == 3


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (dict(soft_every=0), "soft_every must be a whole number of at least 1, not 0"),
        (dict(soft_every=2.0), "soft_every must be a whole number of at least 1, not 2.0"),
        (dict(soft_kept=-1), "soft_kept must be a whole number of at least 0, not -1"),
        (dict(soft_kept=8, soft_renewed=1.5), "soft_renewed must be a share between 0 and 1, not 1.5"),
        (dict(soft_renewed=0.5), "soft_renewed=0.5 is of soft prompts that are kept; give soft_kept, too"),
        (dict(relaxed_weight=0.0), "relaxed_weight must be above 0 and at most 1, not 0.0"),
        (dict(relaxed_weight=1.5), "relaxed_weight must be above 0 and at most 1, not 1.5"),
        (dict(soft_every=3), "a batch of 256 has no soft prompt for each 3 prompts; choose a soft_every"),
        (dict(soft_kept=63, soft_every=4), "a step takes 64 soft prompts, and soft_kept=63 are fewer; keep more"),
    ],
)
def test_a_recipe_of_soft_prompts_that_makes_no_sense_is_refused(recipe, why):
    with pytest.raises(ValueError, match=why):
        refuse_unfit(Schedule(batch=256), defence_of(Recipe(loss="soft", **recipe)))


def test_kept_soft_prompts_are_climbed_on_and_some_begin_anew(lively):
    """A step takes four of eight. What it took has climbed; with everything renewed it is a climb from noise."""
    model, prompts = lively(TASK, layers=2), jax.vmap(TASK.sample)(jax.random.split(KEY, 8))

    def step(renewed, pool=None):
        loss = soft(exact(), Ascent(3), Supply(2, 8, renewed))
        _, pool = (None, pool) if pool is not None else loss.study.learn(KEY, TASK)
        value, (judge, after) = loss.value(KEY, model, TASK, prompts, (None, pool))
        moved = np.flatnonzero((np.asarray(after) != np.asarray(pool)).any(axis=(1, 2)))
        assert len(moved) == 4 and judge is None and np.isfinite(value)
        return pool, after, moved

    def risk(z):
        return jnp.exp(jax.vmap(lambda z: exact().height(KEY, model, TASK, z, None))(z)).mean()

    pool, after, moved = step(0.0)
    assert risk(after[moved]) > risk(pool[moved])
    again = step(0.0, after)[1]
    assert risk(again[moved]) > risk(after[moved])  # the same key takes the same four
    anew, fresh = step(1.0)[1], soft(exact(), Ascent(3), Supply(2)).value(KEY, model, TASK, prompts)
    assert float(fresh) == float(
        soft(exact(), Ascent(3), Supply(2, 8, 1.0)).value(KEY, model, TASK, prompts, (None, pool))[0]
    )
    assert (np.asarray(anew[moved]) != np.asarray(after[moved])).any()


def test_a_run_that_keeps_soft_prompts_goes_on_from_them(lively, tmp_path):
    """In one piece, and stopped half way: the pool is a part of the state, and so of its checkpoint."""
    defence = Defence(lesson=Lesson(loss=soft(exact(), Ascent(1), Supply(2, 16))))
    model = lively(TASK, layers=2)
    whole, _ = train(KEY, model, TASK, SCHEDULE, defence=defence)

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        train(KEY, model, TASK, SCHEDULE, defence=defence, watch=stop, checkpoint=tmp_path / "half.npz")
    later, _ = train(KEY, model, TASK, SCHEDULE, defence=defence, checkpoint=tmp_path / "half.npz")
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(later), strict=True))
    other, _ = train(
        KEY, model, TASK, SCHEDULE, defence=Defence(lesson=Lesson(loss=soft(exact(), Ascent(1), Supply(2))))
    )
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True))


def test_what_a_generator_costs_is_a_pass_for_each_answer_that_is_scored():
    assert soft(drawn(5)).gradients(VAULT) == 1 + 6 * 5 + 5
    several = agent(rows=3, columns=3)
    routes = Objective(several, None, greedy(several)).forwards
    assert routes == 6 and soft(drawn(5)).gradients(several) == 1 + 6 * 5 * routes + 5, "the loss scores right ones"


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (
            dict(overseer="exact", overseer_errors=0.1),
            "overseer_errors=0.1 is of the overseer 'drawn', not of 'exact'",
        ),
        (dict(overseer="learned", overseer_unseen=0.5), "overseer_unseen=0.5 is of the overseer 'drawn'"),
        (dict(overseer_steps=64), "overseer_steps=64 is of the overseer 'learned', not of 'drawn'"),
    ],
)
def test_what_belongs_to_another_overseer_is_refused(recipe, complaint):
    with pytest.raises(ValueError, match=complaint):
        defence_of(Recipe(loss="soft", **recipe))


def test_how_an_overseer_learns_are_fields():
    usual, longer = (
        defence_of(Recipe(loss="soft", overseer="learned", overseer_steps=steps)).lesson.loss for steps in (1024, 2048)
    )
    assert usual == defence_of(Recipe(loss="soft", overseer="learned")).lesson.loss
    assert longer.study.gradients == 2 * usual.study.gradients
    with pytest.raises(ValueError, match="a learned overseer's rate must be above 0, not -1"):
        defence_of(Recipe(loss="soft", overseer="learned", overseer_rate=-1.0))


@pytest.mark.slow
def test_a_learned_overseer_learns_hazards_once_a_run_and_is_part_of_what_a_run_is(lively):
    task, model = injury(length=2), lively(injury(length=2))
    losses = {labels: soft(learned(labels, steps=200, batch=32), Ascent(1)) for labels in (256, 128)}
    loss = losses[256]
    learnt = studied(KEY, task, loss)
    prompts = jax.vmap(task.sample_hazard)(jax.random.split(KEY, 50))
    safe = [[0, 0], [4, 2], [2, 5], [6, 4]]
    assert not any(rule(tuple(prompt)).forbidden for prompt in safe)
    stops = lambda prompt: jax.nn.softmax(learnt(jax.nn.one_hot(prompt, 8), jnp.zeros(1, jnp.int32))[0])[1]
    assert jax.vmap(stops)(prompts).mean() > 0.6 > 0.4 > jax.vmap(stops)(jnp.asarray(safe)).mean()
    defence = Defence(lesson=Lesson(loss=loss))
    state = begin(model, task, SCHEDULE, learnt)
    assert len(jax.tree.leaves(state)) > len(jax.tree.leaves(begin(model, task, SCHEDULE)))
    names = {
        program_digest(task, SCHEDULE, None, Defence(lesson=Lesson(loss=one)), model=model) for one in losses.values()
    }
    assert len(names) == 2, "other labels are another run"
    _, history = train(KEY, model, task, SCHEDULE, defence=defence)
    assert np.isfinite(history.loss).all()
