"""The rules and figures of the questions about labels and soft prompts, on synthetic runs; who is declared where."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from spending import spent
from synthetic import FEW, MANY, SOME, table

from experiments import EXPERIMENTS
from experiments.arm import attack_of, defence_of, schedule_of
from experiments.effects import only
from experiments.grids import EQUAL_LABELS, LARGE, LARGE_TWO
from experiments.questions.labels import DEFENCES, NUMBERS, named
from experiments.questions.relaxed_prompts import BALLS, PRICE, SEARCH, SLOW, SOFT
from experiments.verdict import judge
from testbed.training.defence import access_of, labels_used

LATE, EARLY = named("16 rounds", 2048), named("uniform", 2048)
MIDDLE = [300, 9000, 90, 9000]  # between few and many, and no steady effect with either


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        ({EARLY: MANY, LATE: FEW}, "supported"),
        ({EARLY: SOME, LATE: [n + n // 3 * (seed % 2) for seed, n in enumerate(SOME)]}, "equivalent"),
        ({EARLY: FEW, LATE: MANY}, "refuted"),
        ({EARLY: MANY, LATE: MIDDLE}, "undecided"),
    ],
)
def test_labels_are_judged_in_the_large_space_alone(left, outcome):
    small = table("injury", {EARLY: FEW, LATE: MANY})
    verdict = judge(EXPERIMENTS["labels"], pd.concat([small, table(LARGE, left)], ignore_index=True))
    assert verdict.outcome == outcome and bool(verdict.lacks) == (outcome == "undecided")
    assert only(verdict.effects, declared=True)["task"].tolist() == [LARGE]
    assert judge(EXPERIMENTS["labels"], small).outcome == "not tested"


@pytest.mark.parametrize(
    ("one", "two", "outcome"),
    [(FEW, FEW, "supported"), (FEW, MANY, "refuted"), (FEW, MIDDLE, "undecided"), (FEW, None, "undecided")],
)
def test_soft_prompts_must_beat_search_on_both_large_tasks(one, two, outcome):
    parts = [table("injury", {SEARCH: FEW, "soft, drawn": MANY})]
    parts += [
        table(task, {SEARCH: MANY, "soft, drawn": left}) for task, left in ((LARGE, one), (LARGE_TWO, two)) if left
    ]
    assert judge(EXPERIMENTS["relaxed_prompts"], pd.concat(parts, ignore_index=True)).outcome == outcome
    assert judge(EXPERIMENTS["relaxed_prompts"], parts[0]).outcome == "not tested"


@pytest.mark.parametrize("task", ["injury", LARGE])
def test_defences_have_equally_many_labels_at_equal_steps(task):
    arms = {name: arm for name, arm in EXPERIMENTS["labels"].arms("full", task).items() if name != "plain"}
    assert len({arm.steps for arm in arms.values()}) == 1
    for defence in DEFENCES:
        for number in NUMBERS["full"]:
            arm = arms[named(defence, number)]
            chosen = labels_used(schedule_of(arm), defence_of(arm.recipe).lesson)
            assert chosen + arm.finds * bool(arm.rounds) == number
    given = {name: access_of(schedule_of(a), attack_of(a), defence_of(a.recipe)) for name, a in arms.items()}
    assert [name for name, access in given.items() if "failures" in access] == [
        named("oracle", number) for number in NUMBERS["full"]
    ]


@pytest.mark.parametrize("task", ["injury", LARGE])
def test_relaxed_arms_and_their_baselines_take_the_same_steps_and_in_full_the_same_price(task):
    arms = EXPERIMENTS["relaxed_prompts"].arms("full", task)
    usual = {name for name in arms if "equal price" not in name} - {"plain"}
    assert len({arms[name].steps for name in usual}) == 1 and {*BALLS, *SOFT, SEARCH} <= usual
    cost = {name: spent(arms[name])["training_gradients"] for name in arms}
    assert cost["soft, drawn"] == cost["control, equal price"] == PRICE * cost["control"]
    study = defence_of(arms["soft, learned"].recipe).lesson.loss.study
    assert cost["soft, learned"] - cost["soft, drawn"] == study.gradients > 0
    registered = EXPERIMENTS["relaxed_prompts"].arms("registered", task)
    assert {f"{name}, equal price" for name in ("control", "uniform", "hazards", SEARCH)} <= registered.keys()
    assert (SLOW in registered) == (task == "injury") and registered.items() <= arms.items()
    assert arms["uniform"].recipe.fresh_labels == arms[SEARCH].finds == EQUAL_LABELS


def test_a_single_number_of_labels_is_drawn_by_defence():
    arms = list(EXPERIMENTS["labels"].arms("registered", LARGE))
    figure = EXPERIMENTS["labels"].figure(table(LARGE, dict.fromkeys(arms, FEW)))
    figure.canvas.draw()
    left, _ = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["plain", "control", "2048 labels", *DEFENCES]
    assert "2,048 labels" in " ".join(figure.get_supxlabel().split())
    plt.close(figure)


@pytest.mark.parametrize("name", ["labels", "relaxed_prompts"])
def test_their_figures_draw_every_defence_that_had_labels(name):
    arms = [arm for arm in EXPERIMENTS[name].arms("quick", "injury") if arm != "plain"]
    runs = table("injury", dict.fromkeys(arms, FEW), **{"compute.labels": 64, "compute.checker_calls": 640})
    figure = EXPERIMENTS[name].figure(runs)
    figure.canvas.draw()
    drawn = {line.get_label() for line in figure.axes[0].lines}
    assert (set(DEFENCES) if name == "labels" else set(arms)) <= drawn
    assert "injury" in figure.get_supxlabel() and len(figure.axes) == (2 if name == "labels" else 3)
    plt.close(figure)
