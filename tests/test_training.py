"""Schedules, supervised steps, and rounds of attack and training."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from conftest import compilations, slow
from planted import Ear
from reference import H, K, N, Q
from reference import injury as injury_rule

from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.attacks.search import Attack, Scored
from testbed.evaluation import exact
from testbed.evaluation.samples import clean_behaviour
from testbed.model import Transformer, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.pytree import register
from testbed.training.defence import USUAL, Defence, Lesson, Selection, attack_cost
from testbed.training.losses import Loss, cross_entropy
from testbed.training.rounds import advance, identity, program_digest, train
from testbed.training.schedule import Schedule, Unit, units
from testbed.training.selection import ORDERS, REPLAYS
from testbed.training.units import State, begin, forget, optimizer

ROOT = Path(__file__).parents[1]
TASK = injury(length=3)
TINY = Schedule(steps=8, rounds=2, finds=8, budget=9, batch=8, learning_rate=1e-2, units=4)


@register
@dataclasses.dataclass(frozen=True)
class Linear:
    """A classifier that is compiled in no time: a weight a position, token and answer."""

    weight: jax.Array

    def __call__(self, soft_prompt, answer, latent=None):
        return jnp.einsum("tv,tva->a", soft_prompt, self.weight)[None]


def linear(seed=0, length=3):
    return Linear(jax.random.normal(jax.random.key(seed), (length, 8, 2)))


@register(meta=["limit"])
@dataclasses.dataclass(frozen=True)
class Clock:
    """A classifier that is always undecided; each step adds its learning rate to `time`, and beyond `limit` it breaks.

    The loss is log 2 and its slope in `time` is -1/2 whatever the prompts, so Adam moves `time` by the learning rate.
    """

    time: jax.Array
    limit: float = np.inf

    def __call__(self, soft_prompt, answer, latent=None):
        logits = jnp.zeros((1, 2)).at[0, answer[0]].add(self.time - jax.lax.stop_gradient(self.time))
        return jnp.where(self.time > self.limit, jnp.nan, logits)


def equal(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(steps=0), "steps must be at least 1, not 0"),
        (dict(batch=0), "batch must be at least 1, not 0"),
        (dict(units=-4), "units must be at least 1, not -4"),
        (dict(rounds=-1), "rounds must not be negative, not -1"),
        (dict(finds=-8), "finds must not be negative, not -8"),
        (dict(budget=-2), "budget must not be negative, not -2"),
        (dict(rounds=2, finds=0), "2 rounds need finds and a budget, not 0 and 9"),
        (dict(rounds=2, budget=0), "2 rounds need finds and a budget, not 8 and 0"),
        (dict(rounds=3), "3 rounds must divide the schedule's 4 units"),
        (dict(rounds=8), "8 rounds must divide the schedule's 4 units"),
        (dict(steps=10), "steps 10 must be a multiple of its 4 units"),
        (dict(finds=6), "finds 6 must be a multiple of its 4 units"),
    ],
)
def test_schedule_refuses_numbers_that_do_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **wrong)


@pytest.mark.parametrize(
    ("rounds", "order"),
    [
        (0, "T" * 16),
        (1, "A" * 16 + "T" * 16),
        (2, ("A" * 8 + "T" * 8) * 2),
        (4, "AAAATTTT" * 4),
        (8, "AATT" * 8),
        (16, "AT" * 16),
    ],
)
def test_rounds_only_order_the_same_units(rounds, order):
    work = units(Schedule(rounds=rounds, finds=16, budget=1))
    assert "".join("TA"[int(attacks)] for attacks in work.attacks) == order
    for kind in {*order}:
        of_kind = work.attacks == (kind == "A")
        np.testing.assert_array_equal(work.number[of_kind], np.arange(16))
        length = 16 // max(rounds, 1)
        np.testing.assert_array_equal(work.first[of_kind], np.arange(16) // length * length)


def follow(key, objective, prompt):
    """A step of one gradient and two candidates."""
    steepest = objective.gradient(prompt)[0].argmin()
    candidates = jnp.stack([prompt, prompt.at[0].set(steepest)])
    return prompt, Scored(candidates, jax.vmap(objective.margin)(candidates))


@pytest.fixture(scope="module")
def by_rounds():
    """rounds -> the Ear that heard a run of TINY in so many rounds, and its attack_cost."""
    attack = Attack("follow", lambda key, objective, prompt, margin: prompt, follow, 1, lambda objective: 2)
    listener, ears = Ear(), {}
    task, model, loud = listener.task(TASK), listener.model(linear()), listener.attack(attack)
    for rounds in (1, 2, 4):
        schedule = dataclasses.replace(TINY, rounds=rounds)
        listener.clear()
        train(jax.random.key(0), model, task, schedule, attack=loud)
        jax.effects_barrier()
        ears[rounds] = copy.copy(listener), attack_cost(schedule, attack, Objective(task, model, greedy(task)))
    return ears


def test_attack_cost_is_what_a_run_calls_however_many_rounds(by_rounds):
    # A find costs its start and the one step that fits: (9 - 1) // (2 + 3).
    attacking = Counter(model=8 * (1 + 2), gradient=8 * 1, checker=8 * (1 + 2 + 1))
    for ear, cost in by_rounds.values():
        assert cost._asdict() == attacking
        assert ear.calls == attacking + Counter(gradient=TINY.steps * TINY.batch)
        assert len(ear.labelled) == TINY.steps * TINY.batch


def test_every_update_frequency_draws_the_same_starts_and_clean_prompts(by_rounds):
    starts, clean = [], []
    for ear, _ in by_rounds.values():
        assert len(ear.starts) == TINY.finds  # no two attackers share a key
        starts.append(Counter(start for start, _ in ear.starts.values()))
        clean.append(Counter(prompt for prompt in ear.labelled if not injury_rule(prompt).forbidden))
    assert starts[0] == starts[1] == starts[2]
    assert clean[0] == clean[1] == clean[2]


def test_no_rounds_cost_nothing():
    schedule = dataclasses.replace(TINY, rounds=0)
    assert tuple(attack_cost(schedule, ATTACKS["gcg"](), Objective(TASK, linear(), greedy(TASK)))) == (0, 0, 0)


def test_rounds_without_an_attack_are_refused():
    with pytest.raises(ValueError, match="2 rounds need an attack"):
        train(jax.random.key(0), linear(), TASK, TINY)


def test_numbers_depend_on_the_key_alone():
    attack, seen = ATTACKS["coordinate"](), []
    run = functools.partial(train, model=linear(), task=TASK, schedule=TINY, attack=attack)
    with compilations() as names:
        model, history = run(jax.random.key(0))
    for program in ("train_unit", "attack_unit"):
        assert sum(program in name for name in names) <= 1, "all parts of a run should share it"
    assert equal((model, history), run(jax.random.key(0)))
    assert equal((model, history), run(jax.random.key(0), watch=lambda *at: seen.append(at)))
    other_model, other = run(jax.random.key(1))
    assert not np.array_equal(model.weight, other_model.weight)
    assert not np.intersect1d(history.loss, other.loss).size
    assert history.loss.shape == (TINY.steps,) and history.found.shape == (TINY.units,)
    assert np.isfinite(history.loss).all()
    assert ((history.found >= 0) & (history.found <= 1)).all()

    done, totals = zip(*seen, strict=True)
    assert set(totals) == {2 * TINY.units}
    assert done[0] == 0 and done[-1] == 2 * TINY.units
    assert (np.diff(done) == 1).all()


def test_arms_share_the_programs_of_what_is_alike_in_them():
    def compiled(rate, order, replay, attack="uniform"):
        schedule = dataclasses.replace(TINY, learning_rate=rate)
        defence = Defence(Selection(ORDERS[order], candidates=2), Lesson(REPLAYS[replay]))
        with compilations() as names:
            train(jax.random.key(0), linear(), TASK, schedule, attack=cheap[attack], defence=defence)
        return [program for program in ("train_unit", "attack_unit") if any(program in name for name in names)]

    stay = lambda key, objective, prompt: (prompt, Scored(prompt[None], objective.margin(prompt)[None]))
    cheap = {name: Attack(name, lambda *start: start[2], stay, 0, lambda _: 1) for name in ("uniform", "another")}
    forget()
    assert compiled(0.1, "worst", "evenly") == ["train_unit", "attack_unit"]
    assert compiled(0.1, "diverse", "evenly") == compiled(0.1, "worst", "evenly", "another") == ["attack_unit"]
    assert compiled(0.2, "worst", "evenly") == [], "a rate is a number, not a program"
    assert compiled(0.1, "worst", "newest") == ["train_unit"]
    assert compiled(0.2, "diverse", "evenly", "uniform") == []
    forget()
    assert compiled(0.1, "worst", "evenly") == ["train_unit", "attack_unit"]


def named(task=TASK, model=None, attack="coordinate", lesson=USUAL.lesson, selection=USUAL.selection, **changes):
    """The digest of the programs of TINY with some of it changed."""
    schedule, model = dataclasses.replace(TINY, **changes), linear() if model is None else model
    return program_digest(task, schedule, ATTACKS[attack](), Defence(selection, lesson), model=model)


def drawn_from(seed):
    """The task, drawn from a random table of prompts."""
    rows = jnp.asarray(np.random.default_rng(seed).integers(0, 8, (5000, 3)), jnp.int32)
    return dataclasses.replace(TASK, sample=lambda key: rows[jax.random.randint(key, (), 0, 5000)])


def changed():
    """Digests of programs with some of it changed: of each kind one."""
    twice = Loss(lambda key, model, task, prompts: 2 * cross_entropy(model, task, prompts))
    yield from (named(learning_rate=2e-2), named(rounds=0), named(finds=16), named(budget=60), named(attack="uniform"))
    yield from (named(lesson=Lesson(loss=twice)), named(lesson=Lesson(REPLAYS["newest"])))
    yield from (named(selection=Selection(ORDERS["worst"], candidates=2)), named(drawn_from(0)), named(drawn_from(1)))


def changed_in_other_numbers():
    yield from changed()
    for changes in (
        dict(weight_decay=1e-3),
        dict(batch=16),
        dict(steps=16),
        dict(units=2),
        dict(adam_eps=1e-4),
        dict(b2=0.99),
        dict(clip=0.5),
        dict(warm_up=1),
    ):
        yield named(**changes)
    yield from (named(lesson=Lesson(share=0.25)), named(selection=Selection(failures_only=True)))
    yield from (named(injury(length=3, r=0.5)), named(injury(length=4), linear(length=4)))


@pytest.mark.parametrize("changed", [changed, slow(changed_in_other_numbers)])
def test_programs_are_named_by_all_that_changes_them_and_by_nothing_else(changed):
    others = list(changed())
    assert len({named(), *others}) == 1 + len(others)
    with compilations() as names:
        assert named() == named(model=linear(1)) == named(model=jax.eval_shape(linear)), "weights are no program"
        assert named() == named(rounds=4), "rounds order the same units"
    assert not names, "a text is made once"


@pytest.mark.slow
def test_programs_have_the_same_name_in_every_process():
    """A fresh one with another hash seed, and this one, which has trained before."""
    env = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", "import test_training; print(test_training.named(attack='gcg'))"]
    fresh = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    train(jax.random.key(0), linear(), TASK, TINY, attack=ATTACKS["uniform"]())
    assert named(attack="gcg") == fresh


def test_a_run_is_named_by_its_programs_key_weights_and_order():
    def name(seed=0, model=None, rounds=2, rate=0.01):
        schedule = dataclasses.replace(TINY, rounds=rounds, learning_rate=rate)
        model = linear() if model is None else model
        return identity(jax.random.key(seed), model, TASK, schedule, attack=ATTACKS["coordinate"]())

    assert name() == name()
    assert len({name(), name(seed=1), name(model=linear(1)), name(rounds=4), name(rate=0.02)}) == 5


def test_other_rates_make_other_models():
    made = {}
    rates = [("learning_rate", 1e-3), ("learning_rate", 0.1), ("weight_decay", 0.9), ("adam_eps", 0.1)]
    for field, value in [*rates, ("clip", 1e-9), ("warm_up", 0)]:
        schedule = dataclasses.replace(TINY, rounds=0, **{field: value})
        made[field, value], _ = train(jax.random.key(0), linear(), TASK, schedule)
    weights = {str(jax.tree.leaves(model)) for model in made.values()}
    assert len(weights) == len(made)


def test_weight_decay_shrinks_what_has_no_slope():
    decaying, keeping = (Schedule(steps=8, units=8, weight_decay=decay) for decay in (0.25, 0.0))
    decayed, kept = (optimizer(schedule.descent, schedule.rates) for schedule in (decaying, keeping))
    weight, state = jnp.float32(8.0), decayed.init(jnp.float32(8.0))
    _, state = decayed.update(jnp.zeros(()), state, weight)  # the first step's rate is zero
    shrunk, _ = decayed.update(jnp.zeros(()), state, weight)
    _, bare = kept.update(jnp.zeros(()), kept.init(weight), weight)
    unshrunk, _ = kept.update(jnp.zeros(()), bare, weight)
    assert unshrunk == 0
    assert shrunk == pytest.approx(-0.25 * 8.0 * 2e-3 / 4), "a quarter of the peak rate after one step of four"


def test_a_slope_far_below_eps_hardly_moves_a_weight():
    schedule = Schedule(steps=8, units=8, weight_decay=0.0)
    slope = jnp.float32(1e-6)
    for eps, share in ((1e-8, 1 / 1.01), (1e-4, 1 / 101)):  # Adam: the rate times g / (|g| + eps), of a constant g
        adam = optimizer(schedule.descent, schedule.rates._replace(adam_eps=eps))
        update = adam.update
        _, state = update(slope, adam.init(jnp.zeros(())), jnp.zeros(()))
        moved, _ = update(slope, state, jnp.zeros(()))
        assert moved == pytest.approx(-share * 2e-3 / 4, rel=1e-3), "a quarter of the peak rate after one step of four"


def test_a_long_gradient_is_shortened_and_a_rise_may_be_left_out():
    """Clipped to the size of eps, a slope moves a weight by half the rate; without a rise that is the peak at once."""
    schedule = Schedule(steps=8, units=8, weight_decay=0.0, clip=1e-4, warm_up=0)
    adam = optimizer(schedule.descent, schedule.rates._replace(adam_eps=1e-4))
    moved, _ = adam.update(jnp.float32(1e3), adam.init(jnp.zeros(())), jnp.zeros(()))
    assert moved == pytest.approx(-2e-3 / 2, rel=1e-3)


def test_one_call_equals_a_run_in_parts():
    attack, key = ATTACKS["coordinate"](), jax.random.key(0)
    model, history = train(key, linear(), TASK, TINY, attack=attack)
    work = units(TINY)
    state, (losses, found) = advance(key, begin(linear(), TASK, TINY), work, TASK, schedule=TINY, attack=attack)
    assert equal(state.model, model)
    assert equal(history, (losses[~work.attacks].ravel(), found[work.attacks], state.pool))
    assert np.isnan(losses[work.attacks]).all() and np.isnan(found[~work.attacks]).all()
    assert (state.step, state.filled) == (TINY.steps, TINY.finds)


def test_the_model_of_the_best_unit_is_kept_if_that_is_asked():
    key, schedule = jax.random.key(0), Schedule(steps=32, batch=4, learning_rate=0.5, units=8)
    asked = dataclasses.replace(schedule, best=True)
    model, history = train(key, linear(), TASK, asked)
    best = history.loss.reshape(8, -1).mean(axis=1).argmin()
    upto = Unit(*(column[: best + 1] for column in units(schedule)))
    state, _ = advance(key, begin(linear(), TASK, schedule), upto, TASK, schedule=schedule, attack=None)
    assert best < 7 and equal(model, state.model)
    last, same = train(key, linear(), TASK, schedule)
    assert equal(history, same) and not equal(model, last)
    assert len({program_digest(TASK, one, model=linear()) for one in (schedule, asked)}) == 2
    with pytest.raises(ValueError, match="cannot be had with 2 rounds"):
        dataclasses.replace(TINY, best=True)


def test_seeds_are_an_array_axis():
    attack, work = ATTACKS["coordinate"](), units(TINY)
    keys = jax.random.split(jax.random.key(0), 2)
    models = [linear(0), linear(1)]

    def run(key, model):
        return advance(key, begin(model, TASK, TINY), work, TASK, schedule=TINY, attack=attack)

    state, (losses, found) = jax.vmap(run)(keys, jax.tree.map(lambda *leaves: jnp.stack(leaves), *models))
    for seed, (key, model) in enumerate(zip(keys, models, strict=True)):
        alone, history = train(key, model, TASK, TINY, attack=attack)
        np.testing.assert_allclose(losses[seed, ~work.attacks].ravel(), history.loss, atol=1e-4)
        np.testing.assert_array_equal(found[seed, work.attacks], history.found)
        for a, b in zip(*map(jax.tree.leaves, (state.model, alone)), strict=True):
            np.testing.assert_allclose(a[seed], b, atol=1e-4)


class Heard(NamedTuple):
    """What a unit did: its kind, the states around it, the share it found, and what was heard meanwhile."""

    attacks: bool
    before: State
    after: State
    found: float
    best: list
    batch: Counter


@pytest.fixture(scope="module")
def heard():
    """The units of a run in two rounds, one step each, on a small space whose clean distribution is one safe prompt."""
    allowed = np.ones((4, 8), bool)
    allowed[0], allowed[1] = np.isin(range(8), [N, H, Q]), np.isin(range(8), [K, Q])
    ear = Ear()
    constant = dataclasses.replace(planted.within(planted.TASK, allowed), sample=lambda key: jnp.full(4, Q))
    task, attack = ear.task(constant), ear.attack(ATTACKS["uniform"]())
    schedule = Schedule(steps=4, rounds=2, finds=16, budget=40, batch=256, units=4)
    work, state, heard = units(schedule), begin(linear(length=4), task, schedule), []
    # One more train unit in front, while the pool is empty.
    for attacks, number in [(False, 0), *zip(work.attacks, work.number, strict=True)]:
        ear.clear()
        unit = Unit(np.array([attacks]), np.array([number]), np.array([0]))
        after, (_, found) = advance(jax.random.key(0), state, unit, task, schedule=schedule, attack=attack)
        jax.effects_barrier()
        heard.append(Heard(attacks, state, jax.device_get(after), found[0], ear.best(), Counter(ear.labelled)))
        state = after
    return heard


def rows_of(pool):
    return Counter(map(tuple, np.asarray(pool).tolist()))


def test_pool_holds_the_best_that_each_attack_found_and_nothing_else(heard):
    filled = 0
    for attacks, before, after, found, best, _ in heard:
        np.testing.assert_array_equal(after.pool[:filled], before.pool[:filled])
        assert rows_of(after.pool[filled : after.filled]) == Counter(prompt for prompt, _ in best)
        assert len(best) == (4 if attacks else 0)
        filled += len(best)
        assert after.filled == filled
        if attacks:
            assert equal(after.model, before.model)
            assert found == np.mean([margin <= 0 for _, margin in best])
    assert filled == 16
    assert set(rows_of(after.pool)) <= set(planted.HAZARDOUS)
    assert np.isin(after.pool[:, 0], [N, H, Q]).all() and np.isin(after.pool[:, 1], [K, Q]).all()


def test_half_of_a_batch_comes_from_the_pool_once_there_is_one(heard):
    clean = (Q, Q, Q, Q)
    shares = []
    for attacks, before, _, _, _, batch in heard:
        if attacks:
            assert not batch
            continue
        shares.append(batch.pop(clean, 0) / 256)
        pool = rows_of(before.pool[: before.filled])
        assert set(batch) == set(pool)  # 128 draws of at most 16
        assert batch.total() == 256 * (1 - shares[-1])
    assert shares == [1.0, 0.5, 0.5, 0.5, 0.5]
    drawn = [batch for attacks, *_, batch in heard if not attacks]
    assert drawn[1] != drawn[2], "two units drew the same rows of the same pool"


@pytest.fixture(scope="module")
def times():
    """The `time` of a Clock before each of 40 steps, and after the last."""
    schedule = Schedule(steps=40, batch=2, units=40)
    state, at = begin(Clock(jnp.zeros(())), TASK, schedule), [0.0]
    for number in range(40):
        unit = Unit(np.array([False]), np.array([number]), np.array([0]))
        state, _ = advance(jax.random.key(0), state, unit, TASK, schedule=schedule, attack=None)
        at.append(float(state.model.time))
    return np.array(at)


def test_learning_rate_rises_to_its_peak_and_ends_near_zero(times):
    rates = np.diff(times)
    peak = rates.argmax()
    assert rates[peak] == pytest.approx(Schedule().learning_rate, rel=0.01)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert 0 < rates[-1] < 0.01 * rates[peak]


@pytest.mark.parametrize(("rounds", "step"), [(0, 5), (2, 32)])
def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(times, rounds, step):
    schedule, seen = Schedule(steps=40, rounds=rounds, finds=4, budget=1, batch=2, units=4), []
    attack = ATTACKS["uniform"]() if rounds else None
    model = Clock(jnp.zeros(()), limit=times[step - 1 : step + 1].mean())
    with pytest.raises(FloatingPointError, match=f"became nan at step {step} of 40"):
        train(jax.random.key(0), model, TASK, schedule, attack=attack, watch=lambda *at: seen.append(at))
    assert seen[-1][0] < seen[-1][1]


@pytest.fixture(scope="module")
def plain():
    task = injury(length=4)
    blank = Transformer(model_config(task, width=16, heads=2, layers=1), jax.random.key(0))
    schedule = Schedule(steps=288, batch=64, learning_rate=1e-2)
    return task, train(jax.random.key(1), blank, task, schedule)[0]


def clean_accuracy(task, model):
    behaviour = clean_behaviour(jax.random.key(2), model, task, {"it": greedy(task)}, samples=8192)["it"]
    return behaviour.correct / behaviour.samples


@pytest.mark.slow
def test_plain_training_learns_the_clean_distribution(plain):
    assert clean_accuracy(*plain) >= 0.99


def test_adversarial_training_leaves_fewer_failures_than_more_plain_training(plain):
    task, model = plain
    schedule = Schedule(steps=96, rounds=4, finds=64, budget=60, batch=64, learning_rate=5e-3, units=8)
    control = dataclasses.replace(schedule, rounds=0)
    (hardened, history), (more, _) = (
        train(jax.random.key(3), model, task, each, attack=ATTACKS["coordinate"]()) for each in (schedule, control)
    )
    failures = [exact.count(it, task, {"it": greedy(task)})["it"].failures for it in (model, more, hardened)]
    assert failures[2] < min(failures[:2]) / 4, f"plain, control, 4 rounds: {failures}"
    assert history.found[0] > 0.5 > history.found[-1]
    assert clean_accuracy(task, hardened) >= 0.99
