"""The rule of proof: failures that no attacker finds, in most seeds, where an oracle shows that they can be removed."""

import pandas as pd
import pytest
from synthetic import table, values

from experiments.questions import proof
from experiments.questions.proof import LARGE, PROOF, RIGHT, UNSEEN, ZERO, arms, named
from experiments.verdict import judge

HUGE = [3 * 10**13, 4 * 10**12, 10**10, 2 * 10**9]


def runs_of(gcg, oracle, hits=0):
    """Four seeds of both arms at the largest size, and how many of gcg's attackers find a failure."""
    left = {named("gcg", LARGE): gcg, named("oracle", LARGE): oracle}
    found = {"attacks.auto.attackers": 256, "attacks.auto.within.39": 0, "attacks.auto.within.190": hits}
    return table("injury", left, **found)


@pytest.mark.parametrize(
    ("gcg", "oracle", "hits", "outcome"),
    [
        (HUGE, [0, 0, 9, 0], 0, "supported"),
        (HUGE, [0, 0, 9, 0], [0, 0, 1, 0], "supported"),
        (HUGE, [0, 0, 9, 0], [0, 0, 1, 1], "undecided"),
        (HUGE, [0, 0, 9, 0], 1, "refuted"),
        ([9, 0, 0, 10**10], [0, 0, 9, 0], 0, "refuted"),
        (HUGE, HUGE[::-1], 0, "undecided"),
    ],
)  # fmt: skip
def test_the_rule(gcg, oracle, hits, outcome):
    verdict = judge(PROOF, runs_of(gcg, oracle, hits))
    assert verdict.outcome == outcome
    assert set(verdict.effects.loc[verdict.effects["declared"], "of"]) == {"failing prompts", UNSEEN}


def test_of_models_that_nobody_attacked_it_is_not_said_that_no_attacker_finds_a_failure():
    middle = named("gcg", "2^48")
    runs = pd.concat([runs_of(HUGE, [0] * 4), table("injury", {middle: HUGE})], ignore_index=True)
    effects = judge(PROOF, runs).effects
    assert values(effects, "after", of=UNSEEN) == [[named("gcg", LARGE)]]
    assert values(effects, "effect", of=ZERO, after=middle) == [[0]]
    assert {config.attackers for arm, config in arms("sizes", "injury").items() if arm.endswith("2^48")} == {0}


def test_an_arm_alone_decides_nothing():
    both = runs_of(HUGE, [0] * 4)
    assert judge(PROOF, both[both["arm"] == named("gcg", LARGE)]).outcome == "undecided"
    assert judge(PROOF, both[both["arm"] == named("oracle", LARGE)]).outcome == "not tested"


def test_seeds_without_failures_are_counted_with_and_without_false_alarms():
    runs = runs_of(HUGE, [0, 0, 0, 7])
    runs.loc[runs["arm"] == named("oracle", LARGE), "greedy.exact.false_alarms"] = [0, 5, 0, 0]
    effects = judge(PROOF, runs).effects
    assert values(effects, "of", "effect", "n", after=named("oracle", LARGE), unit="share") == [
        [ZERO, 0.75, 4],
        [RIGHT, 0.5, 4],
    ]


def test_the_figure_draws_the_defences_that_there_are():
    left = {named(arm, size): [9, 99, 0, 9] for arm in ("plain", "gcg", "oracle") for size in ("2^21", LARGE)}
    found = {"attacks.auto.attackers": 256, "attacks.auto.within.190": 3}
    drawn = PROOF.figure(table("injury", left, **found))
    assert drawn.axes[0].get_title(loc="left").startswith("Failing prompts left")
    assert {"plain", "gcg", "oracle"} == {text.get_text() for text in drawn.axes[0].texts if text.get_gid() is None}
    drawn.canvas.draw()


def test_arms_differ_in_what_they_train_on_alone(monkeypatch):
    made = arms("quick", "injury")
    for size in ("2^21", LARGE):
        defended = [config for name, config in made.items() if name.endswith(size) and config.steps]
        assert len(defended) == 4 and len({config.plain for config in defended}) == 1
        assert len({(config.steps, config.finds, config.learning_rate, config.b2) for config in defended}) == 1
    monkeypatch.setattr(proof, "is_counted", lambda plain: False)
    with pytest.raises(ValueError, match="its rule has no automaton"):
        arms("quick", "injury")
