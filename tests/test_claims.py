"""Verdicts, tables and figures from records whose effects are known because they were written by hand."""

import contextlib
import re
import signal

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments.questions import update_frequency
from experiments.questions.update_frequency import claim
from experiments.summary import by_arm, of_arms

ROUNDS = ("1 round", "16 rounds")
COUNTS = ("greedy.exact.failures", "matched.exact.failures")


def contrast(task: str, pairs: list[tuple[float, float]], more: list[float] | None = None) -> pd.DataFrame:
    """Records of one task: failing prompts after 1 round and after 16, one pair a seed; None for a run not done.

    `more`: those after one round with four times the finds.
    """
    rows = [
        {"config.plain.task": task, "seed": seed, "arm": arm} | dict.fromkeys(COUNTS, failures)
        for seed, pair in enumerate(pairs)
        for arm, failures in zip(ROUNDS, pair, strict=True)
        if failures is not None
    ]
    rows += [
        {"config.plain.task": task, "seed": seed, "arm": "1 round, 4x finds"} | dict.fromkeys(COUNTS, failures)
        for seed, failures in enumerate(more or [])
    ]
    return pd.DataFrame(rows, columns=["config.plain.task", "seed", "arm", *COUNTS])


def effects(why: str) -> dict[str, tuple[float, float, float]]:
    """What a verdict says of each task: mean, low and high of the first contrast."""
    number = r"(-?\d+\.\d+|-?inf)"
    pattern = rf"(\w+): '16 rounds' leaves {number} decades fewer failing prompts than '1 round' "
    found = re.findall(rf"{pattern}\[95 % {number}, {number}\]", why)
    return {task: tuple(map(float, numbers)) for task, *numbers in found}


# log10(failing + 1) falls by 2.0, 2.5 and 3.0: 2.5 in the mean.
STRONG = [(999, 9), (10**4 - 1, 10**1.5 - 1), (10**4 - 1, 9)]
RISE = [(after, before) for before, after in STRONG]
WEAK = [(99, 49), (99, 59), (99, 39), (99, 49)]  # a third of a decade, sure
NULL = [(99, 9), (9, 99), (50, 50), (9, 99), (99, 9)]
BOTH = ("injury", "cipher_vault")


@pytest.mark.parametrize(
    ("more", "outcome"), [([200, 400, 300], "supported"), ([9, 30, 9], "undecided"), (None, "undecided")]
)
def test_a_strong_drop_on_two_tasks_is_supported_only_if_more_finds_do_not_make_up_for_rounds(more, outcome):
    verdict = claim(pd.concat([contrast(task, STRONG, more) for task in BOTH]))
    assert verdict.outcome == outcome
    for mean, low, high in (effects(verdict.why)[task] for task in BOTH):
        assert mean == pytest.approx(2.5, abs=0.005)
        assert 1.99 <= low < 2.5 < high <= 3.01, "a bootstrap of means cannot leave the range of the differences"
    assert "3 seeds" in verdict.why


def test_a_strong_drop_on_one_task_is_not_enough():
    verdict = claim(contrast("injury", STRONG))
    assert verdict.outcome == "undecided"
    assert "on two tasks, it holds on 1" in verdict.why
    assert list(effects(verdict.why)) == ["injury"]


def test_a_sure_drop_below_a_decade_does_not_count():
    verdict = claim(pd.concat([contrast(task, WEAK) for task in BOTH]))
    assert verdict.outcome == "undecided"
    assert "two tasks, it holds on 0" in verdict.why
    assert effects(verdict.why)["injury"][1] > 0


def test_a_large_drop_that_is_not_sure_does_not_count():
    unsure = [(10**5 - 1, 0), (9, 99), (10**4 - 1, 9), (9, 999)]  # 5, -1, 3, -2: mean 1.25
    verdict = claim(pd.concat([contrast(task, unsure) for task in BOTH]))
    assert verdict.outcome == "undecided"
    assert "two tasks, it holds on 0" in verdict.why
    mean, low, high = effects(verdict.why)["injury"]
    assert mean == pytest.approx(1.25, abs=0.005)
    assert low < 0 < high


@pytest.mark.parametrize("other", [[], [STRONG], [NULL]])
def test_a_rise_on_any_task_refutes(other):
    verdict = claim(pd.concat([contrast("injury", RISE), *(contrast("cipher_vault", pairs) for pairs in other)]))
    assert verdict.outcome == "refuted"
    mean, _, high = effects(verdict.why)["injury"]
    assert mean == pytest.approx(-2.5, abs=0.005)
    assert high < 0


def test_no_effect_is_undecided_and_its_interval_holds_zero():
    verdict = claim(pd.concat([contrast(task, NULL) for task in BOTH]))
    assert verdict.outcome == "undecided"
    for mean, low, high in effects(verdict.why).values():
        assert mean == pytest.approx(0, abs=0.005)
        assert low < 0 < high


def test_no_failure_anywhere_is_undecided():
    verdict = claim(contrast("injury", [(0, 0)] * 3))
    assert verdict.outcome == "undecided"
    assert effects(verdict.why)["injury"] == (0, 0, 0)


def test_a_single_seed_says_nothing_for_sure():
    verdict = claim(pd.concat([contrast(task, [(10**5 - 1, 0)]) for task in BOTH]))
    assert verdict.outcome == "undecided"
    assert effects(verdict.why)["injury"] == (5, -np.inf, np.inf)
    assert "two tasks, it holds on 0" in verdict.why


def test_arms_that_are_missing_are_undecided():
    for frame in (
        contrast("injury", [(9, None), (9, None)]),
        contrast("injury", [(None, 9), (None, 9)]),
        contrast("injury", [(9, 9)]).replace({"arm": {"1 round": "plain", "16 rounds": "control"}}),
    ):
        verdict = claim(frame)
        assert verdict.outcome == "undecided"
        assert "no seed has both arms of a contrast" in verdict.why


def test_arms_that_share_no_seed_are_undecided():
    verdict = claim(contrast("injury", [(9, None), (None, 9)]))
    assert verdict.outcome == "undecided"
    assert "no seed has both arms of a contrast" in verdict.why


def test_a_task_without_pairs_does_not_hide_the_other():
    verdict = claim(pd.concat([contrast("injury", STRONG), contrast("cipher_vault", [(9, None), (None, 9)])]))
    assert list(effects(verdict.why)) == ["injury"]


def test_only_complete_pairs_count():
    verdict = claim(contrast("injury", [*STRONG, (10**9, None), (None, 10**9)]))
    assert effects(verdict.why)["injury"][0] == pytest.approx(2.5, abs=0.005)
    assert "3 seeds" in verdict.why


@contextlib.contextmanager
def within(seconds: float):
    """Fail instead of waiting longer than this."""

    def late(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_many_seeds_are_judged_soon():
    rng = np.random.default_rng(0)
    pairs = [(10**4 - 1, 10**exponent - 1) for exponent in rng.normal(2, 1, 40)]
    with within(10):
        verdict = claim(contrast("injury", pairs))
    assert effects(verdict.why)["injury"][0] == pytest.approx(2, abs=0.5)
    assert "40 seeds, Holm p = 0.00" in verdict.why


ACCOUNT = {
    "clean.samples": 100_000, "clean.correct": 99_000, "clean.safe": 50_000, "clean.false_alarms": 250,
    "clean.failures": 0, "exact.failures": 0, "exact.hazardous": 1000, "exact.safe": 3000, "exact.egregious": 0,
    "exact.worst_margin": 1.0, "exact.false_alarms": 30, "exact.clean_failure": 0.0,
}  # fmt: skip


def record(arm: str, seed: int, matched: float = 0.0, task: str = "injury", within=(0, 0), **greedy) -> dict:
    """One row of a table of records; `greedy` names what differs from ACCOUNT with `__` for the dot."""
    greedy = {name.replace("__", "."): value for name, value in greedy.items()}
    assert set(greedy) <= set(ACCOUNT)
    return (
        {"config.plain.task": task, "arm": arm, "seed": seed, "matched.exact.failures": matched}
        | {f"greedy.{name}": value for name, value in (ACCOUNT | greedy).items()}
        | {"attacks.coordinate.attackers": 8, "matched.exact.false_alarms": 0}
        | {f"attacks.coordinate.within.{n}": hits for n, hits in zip((10, 100), within, strict=True)}
    )


TABLE = pd.DataFrame(
    [
        record("plain", 1, 6, within=(4, 8), exact__failures=30, exact__egregious=3, clean__correct=99_500,
               exact__worst_margin=-2.5, clean__failures=5, exact__clean_failure=2e-4),
        record("plain", 0, 4, within=(1, 7), exact__failures=10, exact__egregious=1, exact__worst_margin=-0.5,
               clean__failures=1, exact__clean_failure=1e-4),
        record("plain", 2, 5, within=(1, 6), exact__failures=1500, exact__egregious=11, exact__worst_margin=-9.25,
               exact__clean_failure=3e-4),
        record("16 rounds", 0, exact__worst_margin=0.75),
        record("16 rounds", 1, exact__false_alarms=300),
        record("16 rounds", 2, clean__false_alarms=1000),
    ]
)  # fmt: skip


def test_the_table_against_hand_worked_numbers():
    text = by_arm(TABLE)
    assert list(text) == ["plain", "16 rounds"]
    plain, rounds = text["plain"], text["16 rounds"]
    assert plain["seeds"] == "3"
    assert plain["clean accuracy"] == "99.1667%"  # (99,000 + 99,500 + 99,000) / 300,000
    assert rounds["clean accuracy"] == "99.0000%"
    assert plain["false alarms, clean"] == "0.5000%"
    assert rounds["false alarms, clean"] == "1.0000%"  # (250 + 250 + 1000) / 150,000
    assert plain["clean failure rate"] == "2.0e-05"  # 6 / 300,000
    assert plain["  exact, mean"] == "2.0e-04"
    assert plain["coordinate succeeds, 10 calls"] == "25%"  # (4 + 1 + 1) / 24
    assert plain["coordinate succeeds, 100 calls"] == "88%"  # (8 + 7 + 6) / 24 = 87.5 %
    assert plain["FAILING PROMPTS, median"] == "30"
    assert plain["  range over seeds"] == "10..1,500"
    assert plain["  share of hazardous prompts"] == "3.0e-02"
    assert plain["  egregious ones, median"] == "3"
    assert plain["FAILING AT 1 % CLEAN FALSE ALARMS"] == "5"
    assert plain["  its range over seeds"] == "4..6"
    assert plain["worst margin of any seed"] == "-9.2"
    assert rounds["worst margin of any seed"] == "0.8"
    assert plain["safe prompts refused, whole space"] == "1.00%"
    assert rounds["safe prompts refused, whole space"] == "4.00%"  # (30 + 300 + 30) / 9000


def test_zero_observed_is_not_zero():
    rounds = by_arm(TABLE)["16 rounds"]
    assert rounds["clean failure rate"] == "0.0e+00"
    # With no failure in n trials the upper Clopper-Pearson bound solves (1 - p)^n = 0.025.
    upper = 1 - 0.025 ** (1 / 300_000)
    assert rounds["  its 95 % interval"] == f"0e+00..{upper:.0e}"


def test_budgets_stand_in_the_order_of_their_size():
    frame = TABLE.rename(columns={"attacks.coordinate.within.10": "attacks.coordinate.within.1000"})
    rows = [row for row in by_arm(frame).index if row.startswith("coordinate succeeds")]
    assert rows == ["coordinate succeeds, 100 calls", "coordinate succeeds, 1000 calls"]


def test_a_task_without_a_closed_form_has_no_exact_clean_rate():
    frame = TABLE.assign(**{"greedy.exact.clean_failure": None})
    assert "  exact, mean" not in by_arm(frame).index


@pytest.fixture
def figure():
    sizes = {"plain": (0, 512), "16 rounds": (16, 512)}
    drawn = update_frequency.plot(with_sizes(TABLE, sizes))
    drawn.canvas.draw()  # a figure that cannot be drawn is found out here
    yield drawn
    plt.close(drawn)


def with_sizes(frame, sizes):
    """The records with what the figure reads of their configs: rounds and finds by arm."""
    rounds, finds = ([sizes[arm][at] for arm in frame["arm"]] for at in (0, 1))
    names = {"config.rounds": rounds, "config.finds": finds, "config.attack": "gcg"}
    return frame.assign(**names)


def thin(ax) -> list:
    """The lines of single seeds: those with markers."""
    return [line for line in ax.lines if line.get_marker() not in ("None", None, "")]


def test_the_figure_has_titled_panels_with_named_axes(figure):
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert all(len(title) > 10 for title in titles)
    assert len(set(titles)) == len(figure.axes) == 2, "a third panel where finds differ"
    for ax in figure.axes:
        assert ax.get_ylabel() and ax.get_xlabel()
    caption = figure.get_supxlabel()
    assert "injury" in caption
    assert "3 paired seeds" in caption


def test_every_seed_is_drawn_along_the_rounds_and_nothing_lies_outside(figure):
    drawn = sorted(float(line.get_ydata()[0]) for line in thin(figure.axes[0]))
    rows = TABLE[TABLE["arm"] == "16 rounds"]
    assert drawn == sorted([*rows["greedy.exact.failures"], *rows["matched.exact.failures"]])
    low, high = figure.axes[0].get_ylim()
    assert low < 0 and high > max(drawn)


def test_the_thick_line_is_the_mean_of_the_logarithms():
    sizes = {"plain": (1, 512), "16 rounds": (16, 512)}
    drawn = update_frequency.plot(with_sizes(TABLE, sizes))
    [line] = [line for line in drawn.axes[0].lines if line.get_label() == "gcg"]
    mean = (np.log10(11) + np.log10(31) + np.log10(1501)) / 3
    np.testing.assert_allclose(line.get_ydata(), [10**mean - 1, 0], atol=1e-9)
    plt.close(drawn)


def test_the_figure_shows_finds_where_they_differ():
    drawn = update_frequency.plot(with_sizes(TABLE, {"plain": (1, 128), "16 rounds": (16, 512)}))
    assert len(drawn.axes) == 3
    plt.close(drawn)


def test_many_arms_are_told_a_row_each():
    frame = pd.concat([TABLE.assign(arm=f"{name} " + TABLE["arm"]) for name in "abcd"])
    text = of_arms(frame.assign(**{"compute.gradient_steps": 768, "compute.forwards": 1e6}))
    assert list(text.index) == list(frame["arm"].unique())
    assert text.loc["a plain", "FAILING"] == "30 (10..1,500)"
    assert text.loc["a plain", "safe refused"] == "1.00%"
    assert list(of_arms(TABLE)) == ["plain", "16 rounds"]
