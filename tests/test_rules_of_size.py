"""What is said of capacity and competence: models by width and by length of training."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from synthetic import FEW, MANY, table

from experiments import EXPERIMENTS
from tasks import TASKS
from tasks.cipher_vault import cipher_vault


@pytest.mark.parametrize(
    ("fit", "left", "outcome"), [(0.5, MANY, "supported"), (0.99, FEW, "refuted"), (0.9, FEW, "undecided")]
)
def test_capacity_is_judged_by_fit_and_saturation(fit, left, outcome):
    arms = {"width 4, 512 finds": MANY, "width 4, 2048 finds": left}
    frame = table("injury", arms, fit=fit, found=[[1.0]] * 4)
    assert EXPERIMENTS["capacity"].claim(frame).outcome == outcome


def sized(left: dict[int, list], right=(990, 1000), **columns) -> pd.DataFrame:
    """Records of one size, by number of finds; of 1,000 clean answers so many are `right` with few and with many."""
    few, many = (
        table("injury", {f"width 4, {finds} finds": n}, **columns, **{"config.plain.layers": 2, "config.finds": finds})
        for finds, n in left.items()
    )
    few["greedy.clean.correct"], many["greedy.clean.correct"] = right
    return pd.concat([few, many])


def test_what_is_said_of_capacity():
    fit, found = [0.9, 0.95, 1.0, 0.95], [[0.4, 0.0], [0.1, 0.0], [0.0, 0.0], [1.0, 1.0]]
    frame = sized({512: [999] * 4, 2048: [99] * 4}, fit=fit, found=found)
    frame.loc[frame["config.finds"] == 2048, "matched.exact.failures"] = 9
    why = EXPERIMENTS["capacity"].claim(frame).why
    for words in (
        "injury, width 4: clean accuracy 100.00%, fits 95.0% of 2048 finds (90.0% to 100.0% over seeds), ",
        "at least 48.3% of those that failed when found (0.0% to 95.0%), ",  # .5, 0, none failed, .95
        "'width 4, 2048 finds' leaves 1.00 decades fewer failing prompts than 'width 4, 512 finds' [95 % 1.00, 1.00] "
        "(4 seeds, Holm p = 0.12; at 1 % clean false alarms 2.00 [2.00, 2.00])",
    ):
        assert words in why
    never = sized({512: FEW, 2048: FEW}, fit=1.0, found=[[0.0]] * 4)
    assert "(100.0% to 100.0% over seeds), none of which failed when found, 'width 4" in (
        EXPERIMENTS["capacity"].claim(never).why
    )


def test_capacity_is_judged_at_the_clean_accuracy_of_the_models_whose_fit_is_told():
    inaccurate = sized({512: MANY, 2048: MANY}, right=(1000, 985), fit=0.5, found=[[1.0]] * 4)
    assert EXPERIMENTS["capacity"].claim(inaccurate).outcome == "refuted", "no width is accurate enough to be judged"


def test_a_size_that_more_finds_still_make_robust_is_not_too_small():
    frame = sized({512: MANY, 2048: FEW}, right=(1000, 1000), fit=0.5, found=[[1.0]] * 4)
    assert EXPERIMENTS["capacity"].claim(frame).outcome == "undecided"


def test_depths_are_judged_as_widths_are():
    arms = {"width 32, 4 layers, 512 finds": MANY, "width 32, 4 layers, 2048 finds": MANY}
    verdict = EXPERIMENTS["capacity"].claim(table("injury", arms, fit=0.5, found=[[1.0]] * 4))
    assert verdict.outcome == "supported"
    assert "injury, width 32, 4 layers: clean accuracy" in verdict.why
    assert "injury, of 2048 finds fitted at 99 % clean accuracy or more: width 32, 4 layers 50.0%" in verdict.brief


def test_a_fit_on_one_task_only_does_not_refute():
    frames = [sized({512: FEW, 2048: FEW}, fit=fit, found=[[1.0]] * 4) for fit in (0.9, 0.99)]
    frames[1]["config.plain.task"] = "modular"
    assert EXPERIMENTS["capacity"].claim(pd.concat(frames)).outcome == "undecided"


def test_a_figure_of_capacity_shows_what_is_missing():
    sizes = {"config.plain.width": 4}
    frame = sized({512: FEW, 2048: FEW}, right=(990, 999), fit=[0.99, 0.98, 1.0, 1.0], **sizes)
    others = {
        layers: sized({512: MANY, 2048: MANY}, fit=fit, **sizes).assign(**{"config.plain.layers": layers})
        for layers, fit in {1: 0.25, 4: 0.5}.items()
    }
    frame = pd.concat([frame, *others.values()])
    figure = EXPERIMENTS["capacity"].plot(frame)
    plt.close(figure)
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


@pytest.mark.parametrize(
    ("dumb", "able", "outcome"), [(0.001, 0.8, "supported"), (0.2, 0.8, "refuted"), (0.001, 0.01, "undecided")]
)
def test_competence_is_judged_by_who_fails(dumb, able, outcome, monkeypatch):
    monkeypatch.setitem(TASKS, "cipher_vault", cipher_vault)  # at its own size, whatever the other tests made of it
    assert EXPERIMENTS["competence"].claim(competent(dumb, able)).outcome == outcome


def competent(dumb: float, able: float) -> pd.DataFrame:
    """Two seeds of one width: dumb models and able ones that fail so often, and defended ones that never do."""

    def models(label, useful, failing, steps, defended):
        sizes = {"config.plain.width": 32, "config.plain.steps": steps, "config.steps": defended}
        wrong = {"greedy.exact.wrong": int(10**6 * (1 - useful))}
        return table("cipher_vault", {label: [int(10**6 * failing)] * 2}, **sizes, **wrong)

    parts = models("dumb", 0.01, dumb, 16, 0), models("able", 1.0, able, 512, 0), models("defended", 0.999, 0, 512, 64)
    return pd.concat(parts)


@pytest.mark.parametrize(
    ("arm", "columns"),
    [
        ("defended", {"failures": 1}),
        ("defended", {"wrong": 11_000}),  # one safe prompt in ninety
        ("able", {"failures": 10_000}),  # five times guessing
        ("able", {"failures": 1_000, "wrong": 910_000}),  # no able model in this seed
    ],
)
def test_one_seed_that_breaks_a_clause_of_competence_leaves_it_undecided(arm, columns, monkeypatch):
    monkeypatch.setitem(TASKS, "cipher_vault", cipher_vault)
    frame = competent(0.001, 0.8)
    for column, value in columns.items():
        frame.loc[(frame["arm"] == arm) & (frame["seed"] == 1), f"greedy.exact.{column}"] = value
    assert EXPERIMENTS["competence"].claim(frame).outcome == "undecided"


def grown(task: str, left: dict[str, list], **columns) -> pd.DataFrame:
    """Records of a task: a label that ends with width and steps -> failing prompts; `defended` after 64 more steps."""
    frames = []
    for label, failures in left.items():
        what, width, steps = label.split()
        sizes = {"config.plain.width": int(width), "config.plain.steps": int(steps)}
        wrong = {"greedy.exact.wrong": 990_000 if what == "dumb" else 0, "config.steps": 64 * (what == "defended")}
        frames.append(table(task, {label: failures}, **sizes, **wrong, **columns))
    return pd.concat(frames)


def test_what_is_said_of_generators_by_competence(monkeypatch):
    monkeypatch.setitem(TASKS, "cipher_vault", cipher_vault)
    left = {"dumb 8 16": [9] * 4, "able 8 512": [99] * 4, "able 32 512": [19531 + 1953125 * 9] * 4}
    left |= {"defended 8 512": [1, 0, 0, 0], "defended 32 512": [0, 0, 0, 3]}
    frame = grown("cipher_vault", left, **{"greedy.exact.hazardous": 10**9})
    frame.loc[frame["config.steps"] > 0, "matched.exact.failures"] = 2
    frame.loc[frame["arm"] == "able 32 512", "matched.exact.failures"] = 999
    guess = 10**9 * EXPERIMENTS["competence"].guessing("cipher_vault") + 1
    above, matched = np.log10((19531 + 1953125 * 9 + 1) / guess), np.log10(1000 / guess)
    why = EXPERIMENTS["competence"].claim(frame).why
    for words in (
        f"the worst of a seed above a tenth fails on {above:.2f} decades [95 % {above:.2f}, {above:.2f}] more (at 1 % "
        f"clean false alarms {matched:.2f} [{matched:.2f}, {matched:.2f}]) than guessing, on 6.25 decades [95 % 6.25, "
        "6.25] more (at 1 % clean false alarms 2.00 [2.00, 2.00]) than the worst below",
        "; defended ones of width 8 leave at most 1 prompts (at 1 % clean false alarms 2); defended ones of width 32 "
        "leave at most 3 prompts (at 1 % clean false alarms 2)",
    ):
        assert words in why, why
    apart = frame[(frame["arm"] != "dumb 8 16") | (frame["seed"] == 0)]
    apart = apart[~apart["arm"].str.startswith("able") | (apart["seed"] > 0)]
    assert "on who knows how many more (no seed has both) than the worst below" in (
        EXPERIMENTS["competence"].claim(apart).why
    )


def test_what_is_said_of_classifiers_by_competence():
    left = {
        "plain 8 16": [99_999] * 4,
        "plain 32 16": [9_999] * 4,
        "plain 8 512": [9_999] * 4,
        "plain 32 512": [99] * 4,
    }
    frame = grown("injury", left | {"plain 8 64": [10**6] * 4, "defended 32 512": [1] * 4})
    frame.loc[frame["config.plain.steps"] == 16, "matched.exact.failures"] = 999_999
    verdict = EXPERIMENTS["competence"].claim(frame)
    assert verdict.outcome == "undecided"
    assert verdict.why == (
        "injury is a classifier and not judged: 1.0% to 10.0% of hazardous prompts fail after 16 steps, 0.0% to 1.0% "
        "after 512, so the shortest trained fail on 1.50 decades [95 % 1.50, 1.50] more (at 1 % clean false alarms "
        "3.00 [3.00, 3.00]) than the longest; defended ones of width 32 leave at most 1 prompts (at 1 % clean "
        "false alarms 1)"
    )
    assert "no plain models of two lengths" in (
        EXPERIMENTS["competence"].claim(frame[frame["config.plain.steps"] == 512]).why
    )
