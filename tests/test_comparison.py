"""The attack comparison: recall against the exact failure set, planted failures, and its table, figure and verdict."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import planted as plants
import pytest
from conftest import slow
from synthetic import measured

from experiments.arm import Arm, Plain
from experiments.attack_tables import accounts, calls_of, draw_attacks, of_attacks
from experiments.bench import Defended, bench
from experiments.columns import sampled_note
from experiments.effects import only
from experiments.experiment import OUTCOMES
from experiments.questions import attack_comparison as comparison
from experiments.verdict import judge
from tasks import TASKS, task_named
from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, Cost, Scored, Trace, search
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import prompt_ids, prompts_of_ids, rank

FEW = ("uniform", "coordinate", "gcg", "mcmc", "genetic", "exhaustive")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two models at a small size, attacked by a few, as the runs of one seed."""
    task, folder, made = injury(length=3), tmp_path_factory.mktemp("out"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "injury", lambda: task)
        # What is slow to compile stands for itself in the contract tests; here it is a name.
        few = {name: ATTACKS[name if name in ("gcg", "exhaustive") else "coordinate"] for name in FEW}
        patch.setattr(comparison, "ATTACKS", few)
        plain = Plain("injury", width=8, steps=32, layers=1)
        for name, plant in ("plain", ""), ("needle", "tokens"):
            config = comparison.Comparison(plain, name, Arm(steps=0), plant, attackers=16, budget=600)
            made.append(measured(comparison.ATTACK_COMPARISON, config, folder, name))
    return pd.concat(made, ignore_index=True)


def test_reached_failures_are_those_that_were_scored(lively):
    """The driver's marks against brute force: every prompt that a sampler drew, judged one by one."""
    task = injury(length=4)
    objective = Objective(task, lively(task, layers=2), greedy(task))
    ids = exact.count(objective.model, task, {"greedy": greedy(task)})["greedy"].ids
    seen = []

    def step(key, objective, state):
        prompts = jax.vmap(objective.start)(jax.random.split(key, 4))
        jax.debug.callback(lambda p: seen.append(np.asarray(p).reshape(-1, 4)), prompts)
        margins = jax.vmap(objective.margin)(prompts)
        return state, Scored(prompts, margins)

    attack = ATTACKS["uniform"]()._replace(name="heard", step=step, candidates=lambda objective: 4)
    starts = jnp.asarray(prompts_of_ids(task, np.array([5, 700, 701])))
    trace = jax.block_until_ready(search(jax.random.key(0), attack, objective, starts, budget=81, targets=ids))
    jax.effects_barrier()
    scored = prompt_ids(task, np.concatenate([np.asarray(starts), *seen]))
    assert 0 < np.sum(trace.reached) < len(ids)
    np.testing.assert_array_equal(trace.reached, np.isin(ids, scored))


def test_rank_is_prompt_ids_on_the_device():
    allowed = np.ones((4, 8), bool)
    allowed[0, 1] = allowed[2, 0] = allowed[3, 7] = False
    task = plants.within(injury(length=4), allowed)
    prompts = prompts_of_ids(task, np.arange(0, 7 * 8 * 7 * 7, 5))
    np.testing.assert_array_equal(jax.jit(jax.vmap(functools.partial(rank, task)))(prompts), prompt_ids(task, prompts))


def test_exhaustive_search_reaches_every_failure_and_nobody_more(records):
    for _, row in records.iterrows():
        attacked = accounts(row)
        assert set(attacked) == set(FEW)
        assert attacked["exhaustive"]["reached"] == row["exact.failures"] > 0
        for account in attacked.values():
            assert account["successes"] == sum(calls is not None for calls in account["first"])
            assert account["distinct"] <= account["reached"] <= row["exact.failures"]
            assert account["half"] <= account["successes"] <= account["attackers"] == 16
            assert account["calls.model"] + 3 * account["calls.gradient"] <= row["budget"] == 600


@pytest.mark.parametrize("task", ["cipher_vault", slow("agent"), slow("password:secret=4:length=12:vocab=16")])
def test_what_is_planted_stands_on_a_hazard_of_any_task(task, monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "defended_model", lambda *_: Defended(None, {}, [], None))
    task_of, free = task_named(task), task_named(task).allowed.sum(axis=1) > 1
    draw = jax.jit(lambda seed: task_of.sample_hazard(jax.random.fold_in(jax.random.key(seed), 8)))
    configs = [config for config in comparison.arms("quick", task).values() if config.plant]
    for seed in (0, 1):
        hazard = draw(seed)
        needle, hashed = (comparison.attacked_model(config, bench(seed, tmp_path)) for config in configs)
        for planted in (needle, hashed):
            pushed = np.asarray(planted.bias(jax.nn.one_hot(hazard, task_of.vocab)))
            assert task_of.catastrophe(hazard, pushed.argmax(axis=1)) and pushed.max(axis=1).min() == 100
        fixed = needle.pattern.sum(axis=1) == 1
        assert fixed.sum() == 4 and free[fixed].all(), "four tokens, none of which goes without saying"
        assert hashed.pattern.all() and hashed.modulus == 4093


@pytest.mark.slow
@pytest.mark.parametrize("task", ["password:length=5:vocab=4", "sort_guard:length=4:vocab=4", "injury:length=16"])
def test_any_task_is_compared_from_arms_to_verdict(task, tmp_path, monkeypatch):
    """A classifier, a generator and a space that nobody can count; the defended models have hardly been trained."""
    monkeypatch.setattr(comparison, "ATTACKS", {name: ATTACKS[name] for name in FEW})
    monkeypatch.setattr(comparison, "SAMPLES", 4096)
    made = []
    for name, config in comparison.arms("quick", task).items():
        arm = dataclasses.replace(config.defence, steps=min(config.defence.steps, 16), finds=16, budget=30)
        small = dataclasses.replace(config, plain=Plain(task, width=8, steps=32), defence=arm, attackers=8, budget=100)
        made.append(measured(comparison.ATTACK_COMPARISON, small, tmp_path, name))
    frame = pd.concat(made, ignore_index=True)
    assert set(frame["arm"]) == {"plain", "weak", "strong", "needle", "hash"}
    failures = frame.set_index("arm")["exact.failures"]
    if not sampled_note(frame):
        assert min(failures["needle"], failures["hash"]) >= max(1, failures["strong"])
    table = of_attacks(frame)
    for arm, number in failures.items():
        assert (table.loc[f"{arm}: gcg", "recall"] == "-") == (bool(sampled_note(frame)) or number == 0)
    assert draw_attacks(frame) is not None
    assert judge(comparison.ATTACK_COMPARISON, frame).outcome in OUTCOMES[:-1]


def test_table_and_figure_name_every_attack(records):
    table = of_attacks(records)
    assert len(table) == 2 * (len(FEW) + 1) + len(FEW) + 1
    assert table.loc["plain: exhaustive", "recall"] == "100.00%"
    assert "NEEDLE: FAILURES" in table.index
    ranking, won, recall, *curves = draw_attacks(records).axes
    best_first = [name for name in table.index if name.startswith("panel: ")]
    for ax in (ranking, won, recall):
        assert [f"panel: {label.get_text()}" for label in ax.get_yticklabels()] == best_first
    assert len(best_first) == len(FEW) and len(curves) == 2
    assert all(len(ax.lines) == len(FEW) for ax in curves)
    assert "100" in {text.get_text() for text in recall.texts}


def test_a_health_check_that_fires_is_said_in_the_table(records):
    """With a gradient planted to be zero, a claim that nobody confirms, and half of the successes late."""
    sick = {"attacks.gcg.unconfirmed": 2, "attacks.gcg.successes": 12, "attacks.gcg.half": 6, "health.zero": 0.5}
    table = of_attacks(records.assign(**sick))
    for word in ("12% unconfirmed", "2nd half adds 38%", "no gradient at 50%"):
        assert word in table.loc["plain: gcg", "beware"]
    assert table.loc["plain: gcg", "doubling"] == "+38%"
    assert "gradient" not in table.loc["plain: coordinate", "beware"]


def test_starts_that_only_a_black_box_wins_are_masked():
    blind = [NEVER, NEVER, NEVER, NEVER]
    firsts = {"coordinate": [9, NEVER, NEVER, 5], "mcmc": [NEVER, 3, NEVER, NEVER], "genetic": blind}
    firsts |= {"gcg": [8, NEVER, NEVER, NEVER], "uniform": [NEVER, NEVER, 2, NEVER]}
    shares = comparison.masked({name: np.array(first) for name, first in firsts.items()})
    assert shares == {"coordinate": 0.25, "mcmc": 0.5, "genetic": 0.75, "gcg": 0.5, "uniform": 0.75}


def test_an_attack_that_found_nothing_where_something_was_is_told(records):
    nothing = {"attacks.gcg.successes": 0, "attacks.gcg.half": 0}
    table = of_attacks(records.assign(**nothing))
    assert table.loc["plain: gcg", "falsely robust"] == "1 of 1"
    assert table.loc["plain: exhaustive", "falsely robust"] == "0 of 1"
    table = of_attacks(records.assign(**nothing, **{"exact.failures": 0.0}))
    assert table.loc["plain: gcg", "falsely robust"] == "0 of 0", "robust it is"


def test_only_what_is_confirmed_counts():
    """A true failure, a claim that the model's own answer denies, and an attacker that claims nothing."""
    objective = Objective(plants.TASK, plants.PLANTED["needle"], greedy(plants.TASK))
    others = [prompt for prompt in plants.HAZARDOUS if prompt != plants.NEEDLE][:2]
    first, margin = np.array([7, 9, NEVER]), np.array([-0.5, -0.1, 2.0])
    trace = Trace(np.array([plants.NEEDLE, *others]), margin, first, margin[None], np.array([1]), Cost(10, 2, 12))
    found, confirmed = comparison.account(objective, trace, budget=16)
    np.testing.assert_array_equal(confirmed, [7, NEVER, NEVER])
    assert found.pop("egregiousness") == pytest.approx(1 / 3), "one event"
    assert found == {
        "attackers": 3, "successes": 1, "half": 1, "unconfirmed": 1, "first": [7, None, None], "distinct": 1,
        "reached": None, "best_margin": -0.5, "calls": {"model": 10, "gradient": 2, "checker": 12},
    }  # fmt: skip


def row(seed, coordinate, gcg, **changes):
    """A record of five calls to the first failure of each attack, and its gain."""
    gains = {"coordinate": coordinate, "gcg": gcg}
    first = {f"attacks.{name}.first": [100 + i for i in range(4)] + [None] for name in gains}
    made_up = {"seed": seed, "arm": "strong", "exact.failures": 9, "budget": 1000}
    config = {"task": "made up", "config.plant": ""}
    return first | {f"attacks.{name}.gain": gain for name, gain in gains.items()} | made_up | config | changes


@pytest.mark.parametrize(
    ("coordinate", "gcg", "outcome"), [(0.5, 1.0, "supported"), (1.0, 0.5, "refuted"), (1.0, 1.0, "equivalent")]
)
def test_the_verdict_follows_the_gain(coordinate, gcg, outcome):
    rows, signs = [], [1, -1, 1, -1, 0]
    for seed, sign in enumerate(signs):
        rows.append(row(seed, coordinate + seed / 10, gcg + seed / 10 + sign / 20))
        planted = {"arm": "needle", "config.plant": "tokens"}  # no part of the contrast
        rows.append(row(seed, 9.0, 0.0, **planted))
    verdict = judge(comparison.ATTACK_COMPARISON, pd.DataFrame(rows))
    assert verdict.outcome == outcome and bool(verdict.lacks) == (outcome == "undecided")
    (declared,) = only(verdict.effects, declared=True).itertuples()
    assert (declared.task, declared.before, declared.after, declared.n) == ("made up", "gcg", "coordinate", 5)
    assert declared.effect == pytest.approx(gcg - coordinate), "positive: coordinate has less of a gain"
    (calls,) = only(verdict.effects, unit="share").itertuples()
    assert (calls.after, calls.effect, calls.n) == ("gcg", 0, 10), "the calls of no model differ"
    gains = only(verdict.effects, of="search gain over random prompts").set_index("after")["effect"]
    assert gains.to_dict() == pytest.approx({"gcg": gcg + 0.2, "coordinate": coordinate + 0.2})


def test_what_auto_is_blind_to_is_an_effect():
    rows = [row(seed, 1.0, 1.0, **{"attacks.auto.successes": int(seed > 0)}) for seed in range(3)]
    rows.append(row(3, 1.0, 1.0, **{"attacks.auto.successes": 0, "exact.failures": 0}))
    table = pd.DataFrame(rows).assign(**{"attacks.auto.first": [[None]] * 4, "attacks.auto.gain": 0.5})
    (seen,) = only(judge(comparison.ATTACK_COMPARISON, table).effects, after="auto", unit="share").itertuples()
    assert (seen.effect, seen.n) == (pytest.approx(2 / 3), 3)


def test_without_the_panel_nothing_is_tested():
    table = pd.DataFrame([row(0, 1.0, 2.0, **{"config.plant": "remainder"})])
    assert judge(comparison.ATTACK_COMPARISON, table).outcome == "not tested"


@pytest.mark.parametrize("first", [[3, NEVER], [NEVER]])
def test_calls_survive_the_record(first):
    account = {"first": [None if calls == NEVER else calls for calls in first]}
    assert calls_of(account).tolist() == first
