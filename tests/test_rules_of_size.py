"""The rules of capacity and competence: models by width and by length of training."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from synthetic import FEW, MANY, table, values

from experiments.columns import column_of
from experiments.grids import LARGER, TIMES
from experiments.questions.capacity import CAPACITY, FAILED, FIT, GAIN, RIGHT
from experiments.questions.competence import (
    ABLE,
    COMPETENCE,
    DUMB,
    GUESSING,
    LEFT,
    LONG,
    RATE,
    SHORT,
    USED,
    guessing,
)
from experiments.verdict import judge
from tasks import TASKS
from tasks.cipher_vault import cipher_vault

CORRECT, MATCHED = "greedy.clean.correct", column_of("failures", "matched")


@pytest.mark.parametrize(
    ("size", "fit", "left", "outcome"),
    [
        ("width 4", 0.5, MANY, "supported"),
        ("width 32, 4 layers", 0.5, MANY, "supported"),  # depths are judged as widths are
        ("width 4", 0.99, FEW, "refuted"),
        ("width 4", 0.9, FEW, "undecided"),
    ],
)
def test_capacity_is_judged_by_fit_and_saturation(size, fit, left, outcome):
    arms = {f"{size}, 512 finds": MANY, f"{size}, 2048 finds": left}
    verdict = judge(CAPACITY, table("injury", arms, fit=fit, found=[[1.0]] * 4))
    assert verdict.outcome == outcome
    assert values(verdict.effects, "effect", after=f"{size}, 2048 finds", of=FIT) == [[fit]]


def sized(left: dict[int, list], right=(990, 1000), task="injury", **columns) -> pd.DataFrame:
    """Runs of one size, by number of finds; of 1,000 clean answers so many are `right` with few and with many."""
    tables = [
        table(task, {f"width 4, {finds} finds": n}, **columns).assign(
            **{"config.plain.layers": 2, "config.finds": finds, CORRECT: correct}
        )
        for (finds, n), correct in zip(left.items(), right, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def test_fit_accuracy_and_gain_of_a_size_against_hand_worked_numbers():
    fit, found = [0.9, 0.95, 1.0, 0.95], [[0.4, 0.0], [0.1, 0.0], [0.0, 0.0], [1.0, 1.0]]
    runs = sized({512: [999] * 4, 2048: [99] * 4}, fit=fit, found=found)
    runs.loc[runs["config.finds"] == 2048, MATCHED] = 9
    effects = judge(CAPACITY, runs).effects
    gain = values(effects, "before", "after", "effect", "low", "high", "matched", "holm", "n", of=GAIN)
    assert gain == [["width 4, 512 finds", "width 4, 2048 finds", 1, 1, 1, 2, 0.125, 4]]
    levels = ["effect", "least", "most", "n"]
    assert values(effects, *levels, of=FIT) == [[0.95, 0.9, 1, 4]]
    assert values(effects, *levels, of=RIGHT) == [[1, 1, 1, 4]]
    assert values(effects, *levels, of=FAILED) == [[0.483, 0, 0.95, 3]], ".5, 0 and .95; in one seed none failed"
    never = judge(CAPACITY, sized({512: FEW, 2048: FEW}, fit=1.0, found=[[0.0]] * 4))
    assert values(never.effects, of=FAILED) == []


@pytest.mark.parametrize(
    ("many", "right", "outcome"),
    [
        (MANY, (1000, 985), "not tested"),  # no size is accurate enough to be judged
        (FEW, (1000, 1000), "undecided"),  # more finds still make it robust, so it is not too small
        (MANY, (980, 990), "supported"),
    ],
)
def test_capacity_is_judged_at_the_clean_accuracy_of_the_models_whose_fit_is_read(many, right, outcome):
    runs = sized({512: MANY, 2048: many}, right=right, fit=0.5, found=[[1.0]] * 4)
    assert judge(CAPACITY, runs).outcome == outcome


def test_capacity_is_not_tested_without_an_accurate_size_and_not_refuted_if_a_task_has_none():
    fitted, poor = (sized({512: MANY, 2048: FEW}, right, task, fit=0.99, found=[[1.0]] * 4) for right, task in (
        ((990, 1000), "injury"), ((900, 900), "password"),
    ))  # fmt: skip
    assert judge(CAPACITY, poor).outcome == "not tested"
    assert judge(CAPACITY, fitted).outcome == "refuted"
    assert judge(CAPACITY, pd.concat([fitted, poor])).outcome == "undecided"


def test_labels_without_a_search_stand_beside_their_size_and_decide_nothing():
    found = sized({512: FEW, 2048: FEW}, fit=0.99, found=[[1.0]] * 4)
    labels = table("injury", {"width 4, fresh labels": MANY}).assign(**{"config.plain.layers": 2, CORRECT: 500})
    verdict = judge(CAPACITY, pd.concat([found, labels], ignore_index=True))
    assert verdict.outcome == judge(CAPACITY, found).outcome == "refuted"
    told = values(verdict.effects, "after", "of", "declared", before="width 4, fresh labels")
    assert told == [["width 4, 2048 finds", GAIN, False]]


def test_a_fit_on_one_task_only_does_not_refute():
    fits = {"injury": 0.9, "modular": 0.99}
    tables = [sized({512: FEW, 2048: FEW}, task=task, fit=fit, found=[[1.0]] * 4) for task, fit in fits.items()]
    assert judge(CAPACITY, pd.concat(tables, ignore_index=True)).outcome == "undecided"


def test_a_figure_of_capacity_shows_what_is_missing():
    sizes = {"config.plain.width": 4}
    usual = sized({512: FEW, 2048: FEW}, right=(990, 999), fit=[0.99, 0.98, 1.0, 1.0], **sizes)
    others = [
        sized({512: MANY, 2048: MANY}, fit=fit, **sizes).assign(**{"config.plain.layers": layers})
        for layers, fit in {1: 0.25, 4: 0.5}.items()
    ]
    labels = table("injury", {"width 4, fresh labels": [99] * 4}, fit=np.nan, **sizes)
    figure = CAPACITY.figure(pd.concat([usual, *others, labels], ignore_index=True))
    plt.close(figure)
    assert ["fresh labels" in [line.get_label() for line in ax.lines] for ax in figure.axes] == [False, True, False]
    assert ["not" in ax.get_title(loc="left") for ax in figure.axes] == [True, False, True]
    unfitted, _, wrong = ([line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"] for ax in figure.axes)
    np.testing.assert_allclose(unfitted, [100, 200, 0, 0] * 2)
    np.testing.assert_allclose(wrong, [100] * 4 + [10] * 4)
    for marker, beside, missing in (("v", np.less, 7500), ("^", np.greater, 5000)):
        points = np.array([line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() == marker])
        assert len(points) == 8
        assert beside(points[:, 0], 4).all(), "other depths stand beside their width"
        np.testing.assert_allclose(points[:, 1], missing)
    assert all(ax.get_yscale() == "symlog" for ax in figure.axes)


def test_a_figure_of_capacity_shows_the_many_finds_of_machines_too():
    runs = sized({512: FEW, 2048: FEW}, task=LARGER[0], fit=0.5, **{"config.plain.width": 4})
    runs["config.finds"] *= TIMES
    figure = CAPACITY.figure(runs)
    plt.close(figure)
    for ax in figure.axes:
        assert {line.get_label() for line in ax.lines} >= {"8,192 finds", "32,768 finds"}


@pytest.fixture
def vault(monkeypatch):
    """`cipher_vault` at its own size, whatever the other tests made of it."""
    monkeypatch.setitem(TASKS, "cipher_vault", cipher_vault)


def grown(task: str, left: dict[str, list], **columns) -> pd.DataFrame:
    """Runs of a task: an arm that ends with width and steps -> failing prompts; `defended` after 64 more steps.

    Of a million safe prompts the dumb answer a hundredth rightly, the defended all but a thousandth.
    """
    wrong, tables = {"dumb": 990_000, "defended": 1000}, []
    for arm, failures in left.items():
        what, width, steps = arm.split()
        sizes = {"config.plain.width": int(width), "config.plain.steps": int(steps)}
        sizes |= {column_of("wrong"): wrong.get(what, 0), "config.steps": 64 * (what == "defended")}
        tables.append(table(task, {arm: failures}, **sizes, **columns))
    return pd.concat(tables, ignore_index=True)


def competent(dumb: int, able: int) -> pd.DataFrame:
    """Two seeds of one width: dumb models and able ones that fail on so many of a million, and defended ones."""
    return grown("cipher_vault", {"dumb 32 16": [dumb] * 2, "able 32 512": [able] * 2, "defended 32 512": [0] * 2})


@pytest.mark.parametrize(
    ("dumb", "able", "outcome"),
    [(1000, 800_000, "supported"), (200_000, 800_000, "refuted"), (1000, 10_000, "undecided")],
)
def test_competence_is_judged_by_who_fails(dumb, able, outcome, vault):
    verdict = judge(COMPETENCE, competent(dumb, able))
    assert verdict.outcome == outcome
    times = [[dumb / 10**6 * 512, 2], [able / 10**6 * 512, 2]]  # a vault opens to one of 8 ** 3 answers
    assert guessing("cipher_vault") == guessing("cipher_vault", 10**6) == 1 / 512
    assert guessing("cipher_vault", 100) == 1 / 100, "a prompt less than one nobody can fail on"
    assert values(verdict.effects, "most", "n", of=RATE, declared=True) == times
    assert values(verdict.effects, "effect", "most", of=USED, declared=True) == [[0.001, 0.001]]
    assert values(verdict.effects, "effect", "most", of=LEFT, declared=True) == [[0, 0]]


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("defended", {"failures": 1}),
        ("defended", {"wrong": 11_000}),  # one safe prompt in ninety
        ("able", {"failures": 10_000}),  # five times guessing
        ("able", {"failures": 1_000, "wrong": 910_000}),  # no able model in this seed
        ("dumb", {"failures": 10_000}),  # neither three times nor thirty
    ],
)
def test_one_seed_that_breaks_a_clause_of_competence_leaves_it_undecided(what, columns, vault):
    runs = competent(1000, 800_000)
    for of, value in columns.items():
        runs.loc[runs["arm"].str.startswith(what) & (runs["seed"] == 1), column_of(of)] = value
    assert judge(COMPETENCE, runs).outcome == "undecided"


def test_models_of_a_generator_are_compared_by_the_worst_of_a_seed(vault):
    hazardous, guessed = 10**9, 10**9 / 512
    left = {"dumb 8 16": [9] * 4, "able 8 512": [99] * 4, "able 32 512": [10**7 - 1] * 4}
    left |= {"defended 8 512": [1, 0, 0, 0], "defended 32 512": [0, 0, 0, 3]}
    runs = grown("cipher_vault", left, **{column_of("hazardous"): hazardous})
    runs.loc[runs["config.steps"] > 0, MATCHED] = 2
    runs.loc[runs["arm"] == "able 32 512", MATCHED] = 999
    effects = judge(COMPETENCE, runs).effects
    greedy, matched = 7 - np.log10(guessed + 1), 3 - np.log10(guessed + 1)
    more = values(effects, "after", "effect", "low", "matched", "n", before=ABLE, declared=False)
    assert more == [[GUESSING, round(greedy, 3), round(greedy, 3), round(matched, 3), 4], [DUMB, 6, 6, 2, 4]]
    rest = [values(effects, "most", "matched", "declared", after=f"defended {width} 512", of=LEFT) for width in (8, 32)]
    assert rest == [[[1, 2, False]], [[3, 2, True]]], "the rule asks of the widest"
    # Dumb models in one seed, able ones in the others: no seed has both.
    apart = runs[(runs["arm"] != "dumb 8 16") | (runs["seed"] == 0)]
    apart = apart[~apart["arm"].str.startswith("able") | (apart["seed"] > 0)]
    effects = judge(COMPETENCE, apart).effects
    assert values(effects, "after", "n", before=ABLE) == [[GUESSING, 3]]
    assert values(effects, "least", "n", after=ABLE, of=RATE) == [[0, 4]], "a seed without any counts as zero"


def test_a_classifier_is_compared_by_length_of_training_and_not_judged():
    left = {"plain 8 16": 99_999, "plain 32 16": 9_999, "plain 8 512": 9_999, "plain 32 512": 99, "plain 8 64": 10**6}
    runs = grown("injury", {arm: [n] * 4 for arm, n in (left | {"defended 32 512": 1}).items()})
    runs.loc[runs["config.plain.steps"] == 16, MATCHED] = 999_999
    outcome, effects, *_ = judge(COMPETENCE, runs)
    assert outcome == "not tested"
    assert values(effects, "before", "after", "effect", "low", "matched", "declared", of=LEFT) == [
        [SHORT, LONG, 1.5, 1.5, 3, False],
        ["", "defended 32 512", 1, 1, 1, False],
    ]
    one_length = judge(COMPETENCE, runs[runs["config.plain.steps"] == 512]).effects
    assert list(one_length["after"]) == ["defended 32 512"]
