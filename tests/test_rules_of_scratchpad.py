"""The question about scratchpads: its rule and figure on synthetic runs, and what its arms spend."""

import jax
import pandas as pd
import pytest
from spending import spent
from synthetic import table

from experiments.arm import sizes_of
from experiments.protocol import REGISTERED
from experiments.questions.scratchpad import (
    EQUAL_COMPUTE,
    EQUAL_MARGINS,
    EQUAL_SIZE,
    EVERY,
    QUICK,
    SCRATCHPAD,
    arms,
    by_line,
    named,
)
from experiments.verdict import judge
from testbed.model import Transformer

TASKS = ("injury:length=6", "modular:length=6")
MANY = [900, 1100, 1300, 700, 800, 1500, 1000, 990]
FEWER = [n // 2 for n in MANY]  # 0.3 decades
FEW = [n // 50 for n in MANY]
MIXED = [9, 2000, 30, 9000, 1, 400, 7, 5000]
NONE, AFTER, TRACE = named(EQUAL_COMPUTE, 1), named("after", 1), named("trace", 1)


def runs_of(none, after, trace, tasks=TASKS, **columns):
    return pd.concat([table(t, {NONE: none, AFTER: after, TRACE: trace}, **columns) for t in tasks], ignore_index=True)


@pytest.mark.parametrize(
    ("none", "after", "trace", "outcome"),
    [
        (MANY, MANY, FEW, "supported"),
        (MANY, MANY, [n + 1 for n in MANY], "equivalent"),
        (MANY, MANY, FEWER, "refuted"),
        (MANY, FEW, FEW, "refuted"),  # the states help on either side of the answer
        (FEW, FEW, MANY, "refuted"),
        (MANY, MANY, MIXED, "undecided"),
        (MIXED, MANY, FEW, "undecided"),
        (MANY[:7], MANY[:7], FEW[:7], "undecided"),  # seven seeds
    ],
)
def test_the_rule(none, after, trace, outcome):
    verdict = judge(SCRATCHPAD, runs_of(none, after, trace))
    assert verdict.outcome == outcome and bool(verdict.lacks) == (outcome == "undecided")
    assert judge(SCRATCHPAD, runs_of(none, after, trace, TASKS[:1])).outcome == "undecided", "it reads two tasks"


def test_a_trace_that_is_worse_at_matched_false_alarms_is_not_supported():
    runs = runs_of(MANY, MANY, FEW)
    runs.loc[runs["arm"] == TRACE, "matched.exact.failures"] = 2000
    assert judge(SCRATCHPAD, runs).outcome == "undecided"


@pytest.mark.parametrize("task", SCRATCHPAD.presets["full"].tasks)
def test_finds_cost_equal_forward_passes_and_the_longer_arm_steps_of_equal_work(task):
    made = arms("full", task)
    trace, none, after = (made[named(kind, 1)] for kind in ("trace", EQUAL_COMPUTE, "after"))
    attacks = {name: spent(arm)["model_calls"] for name, arm in made.items() if ", 1 round" in name}
    assert len({calls for name, calls in attacks.items() if EQUAL_MARGINS not in name}) == 1
    assert made[named("trace", 1, 1, EQUAL_MARGINS)].budget == after.budget == none.budget > trace.budget
    positions = {arm: sizes_of(arm.plain).positions for arm in (trace, none, after)}
    for steps in (lambda arm: arm.steps, lambda arm: arm.plain.steps):
        assert steps(none) * positions[none] == steps(trace) * positions[trace] == steps(after) * positions[after]


@pytest.mark.parametrize("task", SCRATCHPAD.presets["full"].tasks)
def test_the_wider_arm_has_as_many_parameters_as_any(task):
    made = arms("full", task)

    def parameters(kind):
        config = sizes_of(made[named(kind, 1)].plain)
        blank = jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(blank))

    others = [parameters(kind) for kind in ("none", "trace", "after", "filler", "copy")]
    assert parameters("none") < max(others) <= parameters(EQUAL_SIZE)


def test_the_table_says_how_arms_with_notes_reason_and_the_figure_draws_every_kind():
    runs = runs_of(MANY, MANY, FEW, TASKS[:1])
    reasons = dict(right_right=900, right_wrong=10, wrong_right=80, wrong_wrong=10, failures_after_right=0)
    reasons |= dict(failures_after_wrong=9, failures_given_right=0, followed=990, doubted_failures=2, doubted_alarms=5)
    for name, number in reasons.items():
        runs.loc[runs["arm"] == TRACE, f"reasons.{name}"] = number
    runs = runs.assign(**{"compute.gradient_steps": 768})
    shown = SCRATCHPAD.table(runs)
    assert shown.loc[TRACE, ["right notes", "failing after wrong notes", "follows a changed state"]].tolist() == [
        "91.00%", "100%", "99.0%",
    ]  # fmt: skip
    assert shown.loc[AFTER, "right notes"] == ""
    figure = SCRATCHPAD.figure(runs)
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["none,\nlonger", "after", "trace"]


def test_the_line_of_equal_margins_has_those_arms_and_all_whose_finds_have_as_many_anyway():
    equal, deep = named("trace", 1, 1, EQUAL_MARGINS), named("trace", 1, 2)
    arms = {NONE: MANY, AFTER: MANY, TRACE: FEW, equal: FEWER, deep: FEW}
    shown = by_line(table("injury:length=6", arms))
    at_margins = shown[shown["at_margins"]]
    assert set(at_margins["arm"]) == {NONE, AFTER, equal} and set(at_margins["depth"]) == {""}
    assert set(shown.loc[~shown["at_margins"], "arm"]) == {NONE, AFTER, TRACE, deep}
    assert set(shown.loc[shown["arm"] == deep, "depth"]) == {"2 layers"}
    alone = by_line(table("injury:length=6", {NONE: MANY, TRACE: FEW}))
    assert not alone["at_margins"].any() and len(alone) == 2 * len(MANY)  # where no arm has equal margins, no line does


def test_the_registered_preset_has_every_kind_in_one_layer_and_what_the_rule_reads_in_two():
    made = arms(REGISTERED, TASKS[0])
    for rounds in (0, 1, 16):
        assert {named(kind, rounds) for kind in EVERY} | {named(kind, rounds, 2) for kind in QUICK} <= set(made)
    assert {arm.plain.layers for arm in made.values()} == {1, 2}
    noted = {name for name in made if EQUAL_MARGINS in name}
    assert noted == {
        named(kind, rounds, layers, EQUAL_MARGINS)
        for rounds in (1, 16)
        for kind, layers in (("trace", 1), ("trace", 2), ("filler", 1), ("copy", 1))
    }
