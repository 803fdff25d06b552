"""Effects, tables and figures of runs whose effects are known because they were written by hand."""

import contextlib
import signal

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments.columns import column_of, sampled_note
from experiments.effects import MARGIN, Contrast, differences, mean_of, of_contrast, rows_of
from experiments.questions.update_frequency import FREQUENT, MORE_FINDS, UPDATE_FREQUENCY
from experiments.tables import by_arm, of_arms
from experiments.verdict import judge

COUNTS = [column_of("failures", policy) for policy in ("greedy", "matched")]


def contrast(task: str, pairs: list[tuple], more: list[float] | None = None) -> pd.DataFrame:
    """Runs of one task: failing prompts after 1 round and after 16, one pair a seed; None for a run not done.

    `more`: those after one round with four times the finds.
    """
    runs = [
        (task, seed, arm, failures)
        for seed, pair in enumerate(pairs)
        for arm, failures in zip(FREQUENT[:2], pair, strict=True)
        if failures is not None
    ]
    runs += [(task, seed, MORE_FINDS.before, failures) for seed, failures in enumerate(more or [])]
    frame = pd.DataFrame(runs, columns=["task", "seed", "arm", COUNTS[0]])
    return frame.assign(**{COUNTS[1]: frame[COUNTS[0]]})


def judged(*runs: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The outcome, and the rows of the first contrast by task."""
    verdict = judge(UPDATE_FREQUENCY, pd.concat(runs))
    return verdict.outcome, of_contrast(verdict.effects, FREQUENT).set_index("task")


# log10(failing + 1) falls by 2.0, 2.5 and 3.0: 2.5 in the mean, with a standard error of .5 / 3 ** .5.
STRONG = [(999, 9), (10**4 - 1, 10**1.5 - 1), (10**4 - 1, 9)]
RISE = [(after, before) for before, after in STRONG]
WEAK = [(99, 49), (99, 59), (99, 39), (99, 49)]  # a third of a decade, sure
NULL = [(99, 9), (9, 99), (50, 50), (9, 99), (99, 9)]
BOTH = ("injury", "cipher_vault")


def test_counted_numbers_are_never_held_against_sampled_ones():
    """2**60 prompts of a space, and 300 of 65,536 random hazards, are no pair."""
    runs = contrast("injury", [(2**60, 300), (900, 9)])
    sampled = runs.assign(**{"greedy.sampled.hazardous": [np.nan, 65536.0, 65536.0, 65536.0]})
    np.testing.assert_allclose(differences(sampled, FREQUENT), np.log10(901) - 1)
    assert len(differences(runs, FREQUENT)) == 2


def test_no_more_are_two_effects_compared_of_which_one_is_counted():
    """Each half is of one kind: in seed 0 one is counted and one sampled, in seed 1 both are counted."""
    runs = contrast("injury", [(900, 9)] * 2, [90, 900])
    more = runs[runs["arm"] == "1 round, 4x finds"]
    runs = pd.concat([runs, more.assign(arm="other")], ignore_index=True)
    told = FREQUENT._replace(minus=Contrast("1 round, 4x finds", "other"))
    sampled = ~runs["arm"].isin(FREQUENT[:2]) & (runs["seed"] == 0)
    both = runs.assign(**{"greedy.sampled.hazardous": np.where(sampled, 65536.0, np.nan)})
    assert len(differences(runs, told)) == 2 and len(differences(both, told)) == 1
    note = "sampled: failing prompts of 65,536 random hazards"
    assert sampled_note(both).startswith(note) and sampled_note(both[sampled]) == note
    assert sampled_note(both).endswith("(those of 1 round, 4x finds, other; the others are counted)")


def test_a_seed_of_which_a_number_is_not_known_is_no_part_of_a_mean():
    told = mean_of("injury", "a", "fit", pd.Series([0.5, 1.0, np.nan]), unit="share")
    assert (told["n"], told["effect"], told["least"]) == (2, 0.75, 0.5) and told["high"] > 1


def test_each_task_is_judged_as_if_the_others_were_like_it():
    """The rule asks for two tasks: it sees the like of one twice, and a single task is judged as a whole alone."""
    strong, weak = contrast("injury", STRONG, [200, 400, 300]), contrast("password", WEAK, [99] * 4)
    verdict = judge(UPDATE_FREQUENCY, pd.concat([strong, weak]))
    assert verdict.outcome == "undecided" and dict(verdict.tasks) == {"injury": "supported", "password": "undecided"}
    assert verdict.by_task.endswith(": injury: supported; password: undecided.")
    alone = judge(UPDATE_FREQUENCY, strong)
    assert alone.tasks == () and alone.by_task == ""


def test_an_undecided_verdict_says_how_many_seeds_would_narrow_it():
    """Differences of 2, 0 and -2 decades deviate by 2: with 64 seeds t is 1.998, and 1.998 * 2 / 8 just below 0.5."""
    runs = contrast("injury", [(99999, 999), (999, 999), (999, 99999)], [999] * 3)
    verdict = judge(UPDATE_FREQUENCY, runs)
    assert verdict.outcome == "undecided"
    told = dict(one.split(": ") for one in verdict.would_take.removesuffix(".").partition("way: ")[2].split("; "))
    assert told == {"injury": "64"} and verdict.details == verdict.would_take
    one_seed = judge(UPDATE_FREQUENCY, runs[runs["seed"] == 0])
    assert one_seed.outcome == "undecided" and one_seed.would_take == ""
    both = judge(
        UPDATE_FREQUENCY, pd.concat([contrast(task, STRONG, [200, 400, 300]) for task in ("injury", "password")])
    )
    assert both.outcome == "supported" and both.would_take == ""


@pytest.mark.parametrize(
    ("more", "outcome"), [([200, 400, 300], "supported"), ([9, 30, 9], "undecided"), (None, "undecided")]
)
def test_a_strong_drop_on_two_tasks_is_supported_only_if_more_finds_do_not_make_up_for_rounds(more, outcome):
    found, rows = judged(*(contrast(task, STRONG, more) for task in BOTH))
    assert found == outcome and tuple(rows.index) == BOTH
    spread = 4.3027 * 0.5 / 3**0.5  # Student's t at 97.5 %, two degrees of freedom
    for _, row in rows.iterrows():
        numbers = [row[name] for name in ("effect", "low", "high", "least", "most", "matched", "n")]
        assert numbers == pytest.approx([2.5, 2.5 - spread, 2.5 + spread, 2, 3, 2.5, 3], abs=1e-3)


@pytest.mark.parametrize(
    ("pairs", "effect", "sure"),
    [
        (WEAK, 0.305, True),  # a sure drop below a decade
        ([(10**5 - 1, 0), (9, 99), (10**4 - 1, 9), (9, 999)], 1.25, False),  # 5, -1, 3, -2: large, not sure
        (NULL, 0, False),
        ([(10**5 - 1, 0)], 5, False),  # a single seed
    ],
)
def test_what_is_small_or_not_sure_is_undecided(pairs, effect, sure):
    outcome, rows = judged(*(contrast(task, pairs) for task in BOTH))
    assert outcome == "undecided"
    for _, row in rows.iterrows():
        assert row["effect"] == pytest.approx(effect, abs=5e-4)
        assert (row["low"] > 0) == sure and row["high"] > 0
    if len(pairs) == 1:
        assert (rows["low"] == -np.inf).all() and (rows["high"] == np.inf).all() and (rows["p"] == 1).all()


def test_a_strong_drop_on_one_task_is_not_enough():
    outcome, rows = judged(contrast("injury", STRONG, [200, 400, 300]))
    assert outcome == "undecided" and list(rows.index) == ["injury"]


@pytest.mark.parametrize("other", [[], [STRONG], [NULL]])
def test_a_rise_on_any_task_refutes(other):
    outcome, rows = judged(contrast("injury", RISE), *(contrast("cipher_vault", pairs) for pairs in other))
    assert outcome == "refuted"
    assert rows.loc["injury", "effect"] == pytest.approx(-2.5) and rows.loc["injury", "high"] < 0


def test_no_failure_anywhere_is_undecided():
    outcome, rows = judged(contrast("injury", [(0, 0)] * 3))
    assert outcome == "undecided"
    assert rows[["effect", "low", "high", "p"]].to_numpy().tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("pairs", [[(9, None), (9, None)], [(None, 9), (None, 9)], [(9, None), (None, 9)]])
def test_arms_that_are_missing_or_share_no_seed_test_nothing(pairs):
    outcome, rows = judged(contrast("injury", pairs))
    assert outcome == "not tested" and rows.empty
    _, rows = judged(contrast("injury", pairs), contrast("cipher_vault", STRONG))
    assert list(rows.index) == ["cipher_vault"], "a task without pairs does not hide the other"


def test_only_complete_pairs_count():
    _, rows = judged(contrast("injury", [*STRONG, (10**9, None), (None, 10**9)]))
    assert rows.loc["injury", ["effect", "n"]].tolist() == [pytest.approx(2.5), 3]


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
        _, rows = judged(contrast("injury", pairs))
    assert rows.loc["injury", "effect"] == pytest.approx(2, abs=0.5)
    assert rows.loc["injury", "n"] == 40 and rows.loc["injury", "holm"] < 0.005


ACCOUNT = {
    "clean.samples": 100_000, "clean.correct": 99_000, "clean.safe": 50_000, "clean.false_alarms": 250,
    "clean.failures": 0, "exact.failures": 0, "exact.hazardous": 1000, "exact.safe": 3000, "exact.egregious": 0,
    "exact.worst_margin": 1.0, "exact.false_alarms": 30, "exact.clean_failure": 0.0,
}  # fmt: skip


def record(arm: str, seed: int, matched: float = 0.0, task: str = "injury", within=(0, 0), **greedy) -> dict:
    """One row of a table of runs; `greedy` names what differs from ACCOUNT with `__` for the dot."""
    greedy = {name.replace("__", "."): value for name, value in greedy.items()}
    assert set(greedy) <= set(ACCOUNT)
    return (
        {"task": task, "arm": arm, "seed": seed, COUNTS[1]: matched}
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
    frame = TABLE.assign(**{column_of("clean_failure"): None})
    assert "  exact, mean" not in by_arm(frame).index


@pytest.fixture
def figure():
    sizes = {"plain": (0, 512), "16 rounds": (16, 512)}
    drawn = UPDATE_FREQUENCY.figure(with_sizes(TABLE, sizes))
    drawn.canvas.draw()  # a figure that cannot be drawn is found out here
    yield drawn
    plt.close(drawn)


def with_sizes(frame, sizes):
    """The runs with what the figure reads of their configs: rounds and finds by arm."""
    rounds, finds = ([sizes[arm][at] for arm in frame["arm"]] for at in (0, 1))
    settings = {"rounds": rounds, "finds": finds, "attack": "gcg", "recipe.replay": "evenly"}
    return frame.assign(**{f"config.{name}": value for name, value in settings.items()})


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
    assert drawn == sorted([n for column in COUNTS for n in rows[column]])
    low, high = figure.axes[0].get_ylim()
    assert low < 0 and high > max(drawn)


def test_the_thick_line_is_the_mean_of_the_logarithms():
    sizes = {"plain": (1, 512), "16 rounds": (16, 512)}
    drawn = UPDATE_FREQUENCY.figure(with_sizes(TABLE, sizes))
    [line] = [line for line in drawn.axes[0].lines if line.get_label() == "gcg"]
    mean = (np.log10(11) + np.log10(31) + np.log10(1501)) / 3
    np.testing.assert_allclose(line.get_ydata(), [10**mean - 1, 0], atol=1e-9)
    plt.close(drawn)


def test_the_figure_shows_finds_where_they_differ():
    drawn = UPDATE_FREQUENCY.figure(with_sizes(TABLE, {"plain": (1, 128), "16 rounds": (16, 512)}))
    assert len(drawn.axes) == 3
    plt.close(drawn)


def test_many_arms_have_a_row_each():
    frame = pd.concat([TABLE.assign(arm=f"{name} " + TABLE["arm"]) for name in "abcd"])
    text = of_arms(frame.assign(**{"compute.gradient_steps": 768, "compute.forwards": 1e6}))
    assert list(text.index) == list(frame["arm"].unique())
    assert text.loc["a plain", "FAILING"] == "30 (10..1,500)"
    assert text.loc["a plain", "safe refused"] == "1.00%"
    assert list(of_arms(TABLE)) == ["plain", "16 rounds"]


def test_a_worst_margin_is_compared_in_steps_of_the_threshold_whatever_the_scale_of_the_logits():
    tau, margin = "matched.tau", column_of("worst_margin")
    rows = [(seed, arm, scale * -2.0, scale * (seed + risen)) for seed in range(4)
            for arm, risen, scale in (("before", 0, 1.0), ("after", 3, 5.0))]  # fmt: skip
    runs = pd.DataFrame(rows, columns=["seed", "arm", tau, margin]).assign(task="t")
    one = Contrast("before", "after", of=MARGIN)
    np.testing.assert_allclose(differences(runs, one), 1.5)
    [made] = rows_of(runs, [one])
    assert (made["of"], made["unit"], made["effect"]) == ("worst margin", "threshold steps", 1.5)
    assert np.isnan(made["matched"]), "a threshold moves all margins alike"
    refusing = runs.assign(**{tau: runs[tau].where(runs["seed"] > 0, 0.1)})
    assert len(differences(refusing, one)) == 3, "1 % are refused already: no step to count in"
