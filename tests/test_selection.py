"""Which finds enter the pool, how often each is drawn, its safe twin, and what a batch is made of."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import F0, H, K, O, P, Q
from reference import injury as rule

from tasks.injury import injury
from testbed.attacks.twins import safe_twin, with_twins
from testbed.training import units as training
from testbed.training.defence import Lesson, Selection
from testbed.training.schedule import Schedule, Unit
from testbed.training.selection import ORDERS, Candidates, newest, potential
from testbed.training.units import attack_unit, batch_of, begin

TASK = injury(length=4)
KEY = jax.random.key(0)
PROMPTS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [7, 7, 7, 7], [0, 0, 0, 0], [5, 5, 0, 0]])
MARGINS = np.array([-3.0, 2.0, -0.5, -8.0, 0.25, -1.0], np.float32)
LEVELS = np.array([1 / 3, 1.0, 2 / 3, 1 / 3, 1 / 3, 1.0], np.float32)
NO_POOL = jnp.zeros((2, 4), jnp.int32), jnp.zeros(2, bool)


@functools.partial(jax.jit, static_argnames="name")
def ordered(name, key, *pool):
    return ORDERS[name](key, Candidates(jnp.asarray(PROMPTS), jnp.asarray(MARGINS), jnp.asarray(LEVELS)), *pool)


def order(name, key=KEY, pool=NO_POOL):
    return ordered(name, key, *pool).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("worst", [3, 0, 5, 2, 4, 1]),
        ("borderline", [2, 5, 0, 3, 4, 1]),  # failures by how little they fail, then what nearly does
        ("egregious", [5, 2, {0, 3}, {0, 3}, 1, 4]),  # failures by level, then the rest by level
    ],
)
def test_orders_against_hand_worked_ones(name, expected):
    for got, want in zip(order(name), expected, strict=True):
        assert got == want or got in (want if isinstance(want, set) else ())


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_names_each_candidate_once_and_hangs_on_the_key_alone(name):
    assert sorted(order(name)) == list(range(len(PROMPTS)))
    assert order(name) == order(name)


def test_anyone_is_any():
    firsts = {order("anyone", key)[0] for key in jax.random.split(KEY, 40)}
    assert firsts == set(range(len(PROMPTS)))


def test_mixed_takes_turns():
    assert set(order("mixed")[:3]) == {order(name)[0] for name in ("worst", "borderline", "egregious")}


def test_diverse_is_the_greedy_k_centre_by_brute_force():
    pool = jnp.asarray([[7, 7, 7, 0], [0, 0, 0, 0]]), jnp.asarray([True, False])  # the second place is not taken
    chosen = order("diverse", pool=pool)
    centres = [[7, 7, 7, 0]]
    for step, pick in enumerate(chosen):
        left = [i for i in range(len(PROMPTS)) if i not in chosen[:step]]
        far = {i: min((PROMPTS[i] != c).sum() for c in centres) for i in left}
        assert far[pick] == max(far.values())
        centres.append(PROMPTS[pick])


def test_clustered_keeps_what_is_nearest_to_one():
    chosen = order("clustered")
    distances = (PROMPTS[chosen] != PROMPTS[chosen[0]]).sum(axis=1)
    assert (np.diff(distances) >= 0).all()


def test_potential_is_the_level_of_the_worst_answer():
    prompts = np.array([[K, P, Q, Q], [K, P, H, P], [Q, Q, Q, Q]])
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda p: potential(TASK, p)))(prompts), [1 / 3, 2 / 3, 0])


def test_a_safe_twin_is_safe_and_as_near_as_can_be():
    prompts = np.array([[K, P, Q, Q], [K, P, H, P], [K, F0, F0, P], [H, P, O, Q]])
    twins = jax.jit(jax.vmap(lambda prompt: safe_twin(KEY, TASK, prompt, tries=500)))(prompts)
    space = np.array(list(itertools.product(range(8), repeat=4)))
    safe = np.array([not rule(p).forbidden for p in space.tolist()])
    for prompt, twin in zip(prompts, np.asarray(twins), strict=True):
        assert not rule(twin.tolist()).forbidden
        assert (twin != prompt).sum() == (space[safe] != prompt).sum(axis=1).min()


SCHEDULE = Schedule(steps=4, rounds=2, finds=8, budget=1, batch=400, units=4)
POOL = np.array([[K, P, Q, i] for i in range(8)])
CLEAN = dataclasses.replace(TASK, sample=lambda key: jnp.full(4, Q))


@functools.partial(jax.jit, static_argnames="lesson")
def batch_with(lesson, state, first):
    return batch_of(KEY, state, CLEAN, SCHEDULE.descent, lesson=lesson, first=first)


def batch(lesson, first=0, usable=None):
    """The batch of one step with a pool of eight marked finds and clean prompts that are all Q."""
    state = begin(None, CLEAN, SCHEDULE)
    usable = jnp.ones(8, bool) if usable is None else jnp.asarray(usable, bool)
    state = state._replace(pool=jnp.asarray(POOL), usable=usable, filled=jnp.asarray(8))
    return np.asarray(batch_with(lesson, state, first))


@pytest.fixture(autouse=True)
def no_optimizer(monkeypatch):
    class Nothing:
        init = staticmethod(lambda model: ())

    monkeypatch.setattr(training, "optimizer", lambda descent, rates: Nothing)


def drawn(prompts):
    found = prompts[prompts[:, 0] == K]
    return len(found), set(found[:, 3].tolist())


def test_a_batch_is_shared_between_pool_and_clean():
    assert drawn(batch(Lesson())) == (200, set(range(8)))
    assert drawn(batch(Lesson(share=0.9))) == (360, set(range(8)))


def test_only_the_newest_round_is_replayed_if_so_asked():
    assert drawn(batch(Lesson(replay=newest), first=4)) == (200, {4, 5, 6, 7})
    assert drawn(batch(Lesson(replay=newest), first=0)) == (200, set(range(8)))


def test_finds_that_are_not_usable_are_never_drawn():
    assert drawn(batch(Lesson(), usable=[0, 1, 0, 0, 1, 0, 0, 0])) == (200, {1, 4})
    assert drawn(batch(Lesson(), usable=np.zeros(8))) == (0, set())


def test_every_other_find_becomes_its_safe_twin():
    prompts = batch(Lesson(twins=True))[:200]
    hazardous = [bool(rule(p).forbidden) for p in prompts.tolist()]
    assert hazardous[::2] == [True] * 100
    assert hazardous[1::2] == [False] * 100


def pool_of(selection, margins, monkeypatch):
    """The pool as far as it is filled, which of it is usable, and the share that failed: of a unit with such finds."""
    marked = jnp.asarray([[K, P, Q, i] for i in range(8)])

    def attack_model(key, attack, objective, *, attackers, budget):
        number = jnp.arange(attackers) % 8
        return Found(marked[number], jnp.asarray(margins, jnp.float32)[number])

    monkeypatch.setattr(training, "attack_model", attack_model)
    unit = Unit(np.True_, np.int32(0), np.int32(0))
    state, failed = attack_unit.__wrapped__(
        KEY, begin(None, TASK, SCHEDULE), unit, TASK, search=SCHEDULE.search, attack=None, selection=selection
    )
    return np.asarray(state.pool)[: int(state.filled)], state.usable.tolist(), float(failed)


def found_by(selection, margins, monkeypatch):
    """The same with the margins of the pool in its place."""
    pool, *told = pool_of(selection, margins, monkeypatch)
    return np.asarray(margins)[pool[:, 3]], *told


class Found(NamedTuple):
    """What a unit reads of an attack's trace."""

    prompt: jax.Array
    margin: jax.Array


def test_a_unit_keeps_its_room_of_the_candidates_and_marks_failures(monkeypatch):
    margins = [-4, -3, -2, -1, 1, 2, 3, 4]
    found, usable, _ = found_by(Selection(), margins, monkeypatch)
    assert found.tolist() == [-4, -3] and usable == [True] * 2 + [False] * 6
    found, _, failed = found_by(Selection(ORDERS["worst"], candidates=8), margins, monkeypatch)
    assert found.tolist() == [-4, -4], "two of sixteen candidates, the worst"
    assert failed == 0.5
    found, usable, _ = found_by(Selection(candidates=8, failures_only=True), margins, monkeypatch)
    assert (found <= 0).all() and usable[:2] == [True, True]
    found, usable, failed = found_by(Selection(failures_only=True), [1] * 8, monkeypatch)
    assert failed == 0 and not any(usable)


def test_every_find_has_its_safe_twin_behind_it_where_twins_are_kept(monkeypatch):
    selection = Selection(candidates=8, failures_only=True, twins=True)
    pool, usable, failed = pool_of(selection, [-4, -3, -2, -1, 1, 2, 3, 4], monkeypatch)
    find, twin = pool
    assert find[:3].tolist() == [K, P, Q] and find[3] < 4, "one find that failed has the first of two places"
    assert not rule(twin.tolist()).forbidden and (twin != find).sum() == 1
    assert usable == [True, True] + [False] * 6 and failed == 0.5
    *_, usable, _ = pool_of(selection, [1] * 8, monkeypatch)
    assert not any(usable), "the twin of a find that did not fail is not trained on either"


def test_a_find_without_a_safe_edit_has_no_twin():
    finds, usable = jnp.asarray([[K, P, Q, Q], [Q, Q, Q, Q]]), jnp.array([True, True])
    unsafe = dataclasses.replace(TASK, hazardous=lambda prompt: jnp.array(True))
    paired = jax.jit(with_twins, static_argnums=1)
    both, kept = paired(KEY, TASK, finds, usable)
    assert both.shape == (4, 4) and (both[::2] == finds).all() and kept.all()
    both, kept = paired(KEY, unsafe, finds, usable)
    assert (both == jnp.repeat(finds, 2, axis=0)).all() and kept.tolist() == [True, False] * 2
