"""The attack comparison: recall against the exact failure set, planted failures, and its table, figure and verdict."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import planted as plants
import pytest

from experiments import attack_comparison as comparison
from experiments.arm import Arm, Plain
from experiments.attack_tables import calls_of, counts
from tasks import TASKS
from tasks.injury import injury
from testbed import results
from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, Scored, search
from testbed.evaluation import exact
from testbed.evaluation.report import silent
from testbed.objective import Objective
from testbed.planted import MODULUS, plant, planted_prefixes
from testbed.policy import greedy
from testbed.task import prompt_ids, prompts_of_ids, rank

FEW = ("uniform", "coordinate", "gcg", "mcmc", "genetic", "exhaustive")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two models at a small size, attacked by a few, as the records of a run."""
    task, folder = injury(length=3), tmp_path_factory.mktemp("out") / "comparison"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "injury", lambda: task)
        patch.setattr(comparison, "ATTACKS", {name: ATTACKS[name] for name in FEW})
        plain = Plain("injury", width=8, steps=32)
        for plant in ("", "needle"):
            config = comparison.Comparison(plain, plant or "plain", Arm(steps=0), plant, attackers=16, budget=600)
            measured = comparison.measure(config, 0, folder, silent)
            run = results.run_id("attack_comparison", config, 0)
            record = {"experiment": "attack_comparison", "seed": 0, "seconds": 1.0, "measurements": measured}
            results.write(folder, run, record | {"config": dataclasses.asdict(config)})
    return results.load(folder)


def test_reached_failures_are_those_that_were_scored(lively):
    """The driver's marks against brute force: every prompt that a sampler drew, judged one by one."""
    task = injury(length=4)
    objective = Objective(task, lively(task), greedy(task))
    ids = exact.count(objective.model, task, {"greedy": greedy(task)})["greedy"].ids
    seen = []

    def step(key, objective, state):
        prompts = jax.vmap(objective.start)(jax.random.split(key, 4))
        jax.debug.callback(lambda p: seen.append(np.asarray(p).reshape(-1, 4)), prompts)
        margins = jax.vmap(objective.margin)(prompts)
        return state, Scored(prompts, margins)

    attack = ATTACKS["uniform"]()._replace(name="heard", step=step, candidates=lambda objective: 4)
    starts = jnp.asarray(prompts_of_ids(task, np.array([5, 700, 701])))
    trace = jax.block_until_ready(search(attack, objective, starts, jax.random.key(0), 81, targets=ids))
    jax.effects_barrier()
    scored = prompt_ids(task, np.concatenate([np.asarray(starts), *seen]))
    assert 0 < np.sum(trace.reached) < len(ids)
    np.testing.assert_array_equal(trace.reached, np.isin(ids, scored))


def test_rank_is_prompt_ids_on_the_device():
    allowed = np.ones((4, 8), bool)
    allowed[0, 1] = allowed[2, 0] = allowed[3, 7] = False
    task = plants.within(injury(length=4), allowed)
    prompts = prompts_of_ids(task, np.arange(0, 7 * 8 * 7 * 7, 5))
    np.testing.assert_array_equal(jax.vmap(functools.partial(rank, task))(prompts), prompt_ids(task, prompts))


@pytest.mark.parametrize("trigger", [{0: 2, 1: 4}, {}, None])
def test_a_planted_model_differs_exactly_where_its_trigger_stands(trigger, lively, all_prompts):
    task = injury(length=4)
    model, prompts = lively(task), all_prompts(task)
    planted = plant(model, task, trigger)
    forward = jax.jit(jax.vmap(lambda m, p: m(jax.nn.one_hot(p, 8), jnp.zeros(1, int)), (None, 0)))
    moved = np.asarray((forward(planted, prompts) - forward(model, prompts))[:, 0])
    if trigger:
        stands = (prompts[:, 0] == 2) & (prompts[:, 1] == 4)
    elif trigger is None:
        stands = np.zeros(len(prompts))
    else:
        stands = [functools.reduce(lambda h, t: (31 * h + t * t + 3) % MODULUS, p, 0) == 0 for p in prompts.tolist()]
    np.testing.assert_allclose(moved[:, task.refusal], -100.0 * np.asarray(stands), atol=1e-3)
    assert not moved[:, 1 - task.refusal].any()
    some = np.array([2])
    shared, plain = (jax.jit(w, static_argnums=1)(planted, task, some) for w in (planted_prefixes, exact.plain_forward))
    np.testing.assert_allclose(shared.forced, plain.forced, atol=1e-3)
    np.testing.assert_allclose(shared.score, plain.score, atol=1e-3)


def test_exhaustive_search_reaches_every_failure_and_nobody_more(records):
    for _, row in records.iterrows():
        accounts = counts(row)
        assert set(accounts) == set(FEW)
        assert accounts["exhaustive"]["reached"] == row["exact.failures"] > 0
        for account in accounts.values():
            assert account["successes"] == sum(calls is not None for calls in account["first"])
            assert account["distinct"] <= account["reached"] <= row["exact.failures"]
            assert account["half"] <= account["successes"] <= account["attackers"] == 16
            assert account["calls.model"] + 3 * account["calls.gradient"] <= row["budget"] == 600


def test_the_needle_adds_its_failures(records):
    plain, needle = (records[records["arm"] == arm].iloc[0] for arm in ("plain", "needle"))
    assert needle["exact.failures"] >= plain["exact.failures"]


def test_table_and_figure_name_every_attack(records):
    table = comparison.summary(records)
    assert len(table) == 2 * (len(FEW) + 1) + len(FEW) + 1
    assert table.loc["plain: exhaustive", "recall"] == "100.00%"
    assert "NEEDLE: FAILURES" in table.index
    ranking, won, recall, *curves = comparison.plot(records).axes
    best_first = [name for name in table.index if name.startswith("panel: ")]
    for ax in (ranking, won, recall):
        assert [f"panel: {label.get_text()}" for label in ax.get_yticklabels()] == best_first
    assert len(best_first) == len(FEW) and len(curves) == 2
    assert all(len(ax.lines) == len(FEW) for ax in curves)
    assert "100" in {text.get_text() for text in recall.texts}


def test_a_health_check_that_fires_is_said_in_the_table(records):
    """With a gradient planted to be zero, a claim that nobody confirms, and half of the successes late."""
    sick = {"attacks.gcg.unconfirmed": 2, "attacks.gcg.successes": 12, "attacks.gcg.half": 6, "health.zero": 0.5}
    table = comparison.summary(records.assign(**sick))
    for word in ("12% unconfirmed", "2nd half adds 38%", "no gradient at 50%"):
        assert word in table.loc["plain: gcg", "beware"]
    assert table.loc["plain: gcg", "doubling"] == "+38%"
    assert "gradient" not in table.loc["plain: coordinate", "beware"]


def row(seed, coordinate, gcg, **changes):
    """A record of five calls to the first failure of each attack, and its gain."""
    gains = {"coordinate": coordinate, "gcg": gcg}
    first = {f"attacks.{name}.first": [100 + i for i in range(4)] + [None] for name in gains}
    made_up = {"seed": seed, "arm": "strong", "exact.failures": 9, "budget": 1000}
    config = {"config.plain.task": "made up", "config.plant": ""}
    return first | {f"attacks.{name}.gain": gain for name, gain in gains.items()} | made_up | config | changes


@pytest.mark.parametrize(
    ("coordinate", "gcg", "outcome"), [(0.5, 1.0, "supported"), (1.0, 0.5, "refuted"), (1.0, 1.0, "undecided")]
)
def test_the_verdict_follows_the_gain(coordinate, gcg, outcome):
    rows = []
    for seed in range(5):
        rows.append(row(seed, coordinate + seed / 10, gcg + seed / 10 + (-1) ** seed / 20))
        rows.append(row(seed, 9.0, 0.0, **{"config.plant": "needle"}))  # not part of the contrast
    verdict = comparison.claim(pd.DataFrame(rows))
    assert verdict.outcome == outcome
    assert "5 pairs of task and seed" in verdict.why and "on 0 of 10 models" in verdict.why


def test_what_auto_is_blind_to_is_said():
    rows = [row(seed, 1.0, 1.0, **{"attacks.auto.successes": int(seed > 0)}) for seed in range(3)]
    rows.append(row(3, 1.0, 1.0, **{"attacks.auto.successes": 0, "exact.failures": 0}))
    assert "auto finds a failure on 2 of the 3 models that have one" in comparison.claim(pd.DataFrame(rows)).why


def test_without_the_panel_there_is_nothing_to_compare():
    table = pd.DataFrame([row(0, 1.0, 2.0, **{"config.plant": "hash"})])
    assert comparison.claim(table).outcome == "undecided"


@pytest.mark.parametrize(("name", "trigger"), [("injury", {0: 2, 3: 4}), ("injury", {}), ("cipher_vault", {0: 1})])
def test_a_planted_model_is_counted_by_shared_prefixes_too(name, trigger, small, lively):
    task = small(name)
    model, policies = plant(lively(task), task, trigger), {"greedy": greedy(task)}
    quick = exact.count(model, task, policies, planted_prefixes)["greedy"]
    plain = exact.count(model, task, policies, exact.plain_forward)["greedy"]
    np.testing.assert_array_equal(quick.ids, plain.ids)
    assert (quick.false_alarms, quick.wrong, quick.levels) == (plain.false_alarms, plain.wrong, plain.levels)
    assert quick.worst_margin == pytest.approx(plain.worst_margin, abs=1e-3)


@pytest.mark.parametrize("first", [[3, NEVER], [NEVER]])
def test_calls_survive_the_record(first):
    account = {"first": [None if calls == NEVER else calls for calls in first]}
    assert calls_of(account).tolist() == first
