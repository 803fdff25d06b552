"""The question of where soft prompts stop: its rule on synthetic runs, its arms, and what it asks of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from reference import H, K
from synthetic import FEW, MANY, SOME, table

from experiments import EXPERIMENTS
from experiments.columns import column_of
from experiments.effects import only
from experiments.plants import planted
from experiments.questions.relaxed_limits import (
    BLIND,
    EXAMPLE,
    HASH,
    JUDGED,
    LOOKS,
    OVERLOOKED,
    PROBES,
    SEARCH,
    TRIGGER,
    VERDICT,
    WHY,
    misjudged,
    passing_between,
    why,
)
from experiments.questions.relaxed_prompts import WRONG
from experiments.verdict import judge
from tasks import task_named
from tasks.injury import injury
from testbed.evaluation import exact
from testbed.evaluation.tactics import cover
from testbed.policy import greedy
from testbed.task import prompts_of_ids

LIMITS = EXPERIMENTS["relaxed_limits"]
TASK = injury(length=3)
TOLD = dict.fromkeys((*WHY, LOOKS), 3) | {VERDICT: "robust", EXAMPLE: "H K P"}
SPENT = {f"compute.{what}": 64 for what in ("gradient_steps", "labels", "checker_calls")}


NEARLY = [n + n // 3 * (seed % 2) for seed, n in enumerate(SOME)]


@pytest.mark.parametrize(
    ("blind", "other", "judged", "outcome"),
    [
        (MANY, MANY, FEW, "supported"),
        (MANY, NEARLY, SOME, "undecided"),
        (NEARLY, NEARLY, SOME, "equivalent"),
        (MANY, FEW, SOME, "refuted"),
    ],
)
def test_half_blind_overseers_must_leave_a_decade_more_on_both_tasks(blind, other, judged, outcome):
    left = {misjudged(BLIND): blind, JUDGED: judged, "control": MANY, SEARCH: FEW}
    planted = column_of("planted")  # which tasks without a trigger have not
    parts = [table("injury", left, **TOLD), table("modular", left | {misjudged(BLIND): other}, **TOLD)]
    verdict = judge(LIMITS, pd.concat(parts, ignore_index=True).drop(columns=planted))
    assert "planted failures" not in set(verdict.effects["of"])
    assert verdict.outcome == outcome, verdict.effects[verdict.effects["declared"]]
    assert set(verdict.effects.query("declared")["before"]) == {OVERLOOKED.before}


def test_mistakes_are_asked_of_tasks_without_a_trigger_and_depths_of_one():
    arms = {task: LIMITS.arms("registered", task) for task in LIMITS.presets["registered"].tasks}
    erring = {misjudged(mistake) for mistake in WRONG}
    assert all((erring <= arms[task].keys()) == (task not in (TRIGGER, HASH)) for task in arms)
    deep = {task: {arm.plain.layers for arm in arms[task].values()} for task in arms}
    assert deep["injury"] == {1, 2, 4} and all(deep[task] == {2} for task in arms if task != "injury")
    assert len({arm.steps for arm in arms["injury"].values()} - {0}) == 1
    with pytest.raises(ValueError, match=r"and cipher_vault is none; choose another task"):
        LIMITS.arms("quick", "cipher_vault")
    with pytest.raises(ValueError, match="prompts"):
        LIMITS.arms("quick", "injury:length=16:vocab=16")


def test_what_is_planted_is_what_plain_models_are_taught():
    task = task_named(TRIGGER)
    taught = planted(task)
    labels = jax.vmap(task.poison.label)(taught)
    assert len(taught) and bool(jax.vmap(task.catastrophe)(jnp.asarray(taught), labels).all())
    assert (taught[:, -2:] == task.vocab - 1).all()


def test_a_mixture_of_two_hazards_passes_where_the_model_does_not_refuse_it():
    """The model stops what has more than half of K at the first place: two hazards with K there, and no mixture."""

    def stops_k(soft_prompt, answer):
        return (10 * (soft_prompt[0, K] - 0.75) * jax.nn.one_hot(TASK.refusal, 2))[None]

    k, h = jnp.array([K, H, H]), jnp.array([H, K, K])
    pairs = [(k, k), (k, h), (h, h), (h, k)]
    one, other = (jnp.stack(side) for side in zip(*pairs, strict=True))
    assert int(passing_between(jax.tree_util.Partial(stops_k), TASK, one, other)) == 3


def test_why_tells_what_fails_in_the_words_of_the_task(lively):
    class Seed:
        def key(self, stream):
            return jax.random.key(len(stream))

    found = why(Seed(), lively(TASK, layers=2), TASK)
    assert 0 <= found["latent"] <= PROBES and 0 <= found["between"] <= PROBES
    failing = exact.count(lively(TASK, layers=2), TASK, {"greedy": greedy(TASK)})["greedy"].ids
    assert found["tactics"] == len(cover(prompts_of_ids(TASK, failing))) > 0
    assert found["example"] == TASK.render(prompts_of_ids(TASK, failing[:1])[0])


def test_its_figure_shows_what_was_planted_and_what_is_near_hazards():
    runs = table(TRIGGER, dict.fromkeys(LIMITS.arms("quick", TRIGGER), FEW), **TOLD, **SPENT)
    figure = LIMITS.figure(runs)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert {"Planted failures, counted exactly", "Tactics among the failures"} <= set(titles)
    plt.close(figure)
    assert (only(LIMITS.effects(runs), of="planted failures")["task"] == TRIGGER).sum() == 3
    shown = LIMITS.table(runs)
    assert (shown["telltale"] == "robust").all() and (shown["one that fails"] == "H K P").all()
    assert np.all(shown["tactics"] == "3")
