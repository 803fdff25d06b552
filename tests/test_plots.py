"""How figures are laid out: names that don't overlap, arms under headings, points at zero counted."""

import numpy as np
import pandas as pd
import pytest
from synthetic import table

from experiments.figures import draw_arms
from testbed import plots


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["plain", "control"], [("", "plain"), ("", "control")]),
        (["a", "a, 32 finds", "b, 32 finds"], [("", "a"), ("32 finds", "a"), ("32 finds", "b")]),
        (["noise, layer 0", "noise, layer 2"], [("noise", "layer 0"), ("noise", "layer 2")]),
        (["noise, layer 0", "latent, all layers"], [("", "noise, layer 0"), ("", "latent, all layers")]),
        (
            ["x, 1", "x, 2", "x, 1, few", "y, 1, few", "y, 2, few"],
            [("x", "1"), ("x", "2"), ("few", "x, 1"), ("few", "y, 1"), ("few", "y, 2")],
        ),
    ],
)
def test_neighbours_that_share_a_part_of_their_name_stand_under_it(names, told):
    assert plots.under_headings(names) == told


def test_a_group_ends_with_a_free_row_where_no_heading_follows():
    runs = table("injury", {"plain": [5], "few, a": [3], "few, b": [2], "last": [1]})
    left = draw_arms(runs).axes[0]
    shown = [label.get_text() for label in left.get_yticklabels()]
    assert shown == ["plain", "few", "a", "b", "", "last"]


def test_the_same_arms_under_headings_are_the_same_bytes_at_every_drawing():
    """A spine reaches as far as one of its ticks, which matplotlib picks from a set: all must be alike to it."""
    runs = table("injury", {"plain": [5], "few, a": [3], "few, b": [2], "last": [1]})
    drawn = {plots.drawn(draw_arms(runs), "svg") for _ in range(8)}
    assert len(drawn) == 1
    ticks = draw_arms(runs).axes[0].yaxis.get_major_ticks()
    assert all(tick.tick1line.get_visible() for tick in ticks)
    assert [tick.tick1line.get_marker() == "None" for tick in ticks] == [False, True, False, False, True, False]


@pytest.mark.parametrize("wanted", [[0.5, 0.5, 0.5], [1.0, 1.0], [0.0, 0.02, 0.9], [0.3]])
def test_names_beside_lines_keep_apart_in_order_and_within_the_panel(wanted):
    room = [0.1] * len(wanted)
    heights = plots.moved_apart(wanted, room)
    assert (np.diff(heights) >= 0.1 - 1e-9).all() and heights.max() <= 0.95 + 1e-9


def test_names_of_lines_stand_at_their_ends_in_their_colours():
    _, (ax,) = plots.panels(["one"], "")
    ax.plot([0, 1], [0, 1], color="C0", label="up")
    ax.plot([0, 1], [1, 0], color="C1", label="down")
    ax.plot([0, 1], [0.5, 0.5], color="C2")
    plots.name_lines(ax)
    named = {text.get_text(): text for text in ax.texts}
    assert named.keys() == {"up", "down"}
    assert named["up"].get_color() == "C0" and named["up"].get_position()[1] > named["down"].get_position()[1]


def zeros_of(ax):
    return [text.get_text() for text in ax.texts if text.get_gid() == plots.ZEROS]


def test_seeds_at_zero_are_counted_beside_their_arm_and_spread_out():
    runs = table("injury", {"plain": [5, 7, 9], "16 rounds": [0, 0, 3]})
    left = draw_arms(runs).axes[0]
    assert "2/3" in zeros_of(left)
    of_arm = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    heights = [line.get_ydata()[1] for line in of_arm if line.get_xdata()[1] == 0]
    assert len(heights) == 2 and len(set(heights)) == 2, "two points at zero don't hide each other"


def test_seeds_at_zero_are_counted_below_each_place_of_a_line_and_no_tick_is_below_zero():
    _, (ax,) = plots.panels(["one"], "")
    runs = pd.DataFrame({"rounds": [1, 1, 4, 4], "seed": [0, 1, 0, 1], "n": [3, 0, 0, 0]})
    plots.seeds_along(ax, runs, "rounds", "n", label="gcg", color="C3")
    plots.seeds_along(ax, runs.assign(n=5), "rounds", "n", label="other", color="C0")
    assert zeros_of(ax) == ["1/2", "2/2", "at 0"]
    assert min(ax.get_yticks()) == 0 > ax.get_ylim()[0]


def test_what_no_run_has_any_of_has_no_panel_but_is_said():
    runs = table("injury", {"plain": [5, 7], "16 rounds": [1, 0]})
    runs["greedy.exact.egregious"] = runs["matched.exact.egregious"] = 0
    figure = draw_arms(runs, of=("failures", "egregious"))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["Failing prompts, counted exactly", "Safe prompts refused, whole space"]
    assert "No run has egregious failures." in figure.get_supxlabel()


def test_what_is_sampled_is_called_counted_nowhere():
    figure, _ = plots.panels(["Failing prompts, counted exactly"], "thick: means; " + "word " * 9 + "counted exactly.")
    text = plots.not_counted(figure, "sampled: of 300").get_supxlabel()
    assert figure.axes[0].get_title(loc="left") == "Failing prompts, sampled" and text.endswith("sampled.")
    assert "counted" not in text and text.startswith("thick")


def test_a_long_caption_is_broken_to_the_width_of_its_figure():
    figure, _ = plots.panels(["one", "two"], "word " * 60)
    assert max(map(len, figure.get_supxlabel().split("\n"))) <= 14 * figure.get_figwidth()


def test_a_number_that_a_point_says_hangs_on_no_last_bit():
    assert {plots.number(np.nextafter(2.734375, towards)) for towards in (0, 2.734375, 9)} == {"2.73438"}
    assert [plots.number(value) for value in (0, 1234.5, 1.6e18)] == ["0", "1,234.5", "1.6e+18"]


@pytest.mark.parametrize("shift", [0.0, *plots.SHIFTS])
def test_seeds_at_zero_stay_in_the_row_of_their_arm(shift):
    """However many they are: beyond it they would be read as another arm's."""
    _, [ax] = plots.panels(["one"], "")
    table = pd.DataFrame([{"arm": arm, "seed": seed, "n": 0.0} for arm in ("a", "b") for seed in range(20)])
    plots.dots_by_arm(ax, table, "n", "zero", color="C0", shift=shift)
    heights = np.array(
        [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2 and line.get_marker() == "o"]
    )
    low, high = heights.min(axis=0), heights.max(axis=0)
    assert ((high - low) <= (0.8 if not shift else 2 * abs(shift))).all() and len(np.unique(heights[:, 0])) == 20
