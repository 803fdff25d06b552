"""A user's own ablation: any field, a grid of names, effects over it, and refusals in one line."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
from command_line import command
from matplotlib import pyplot as plt

from experiments.ablate import ablate, ablation, arms, contrast_of, layout_of
from experiments.arm import Arm, Plain, Recipe
from experiments.axes import BASE, axes_of, fields, points, shown
from experiments.columns import column_of, decades
from experiments.effects import differences, of_contrasts, refuse_duplicates

WORDS = ["rounds=1,4,16", "budget=19,190", "learning_rate=5e-4,2e-3"]


def test_the_evaluation_attacks_where_nothing_is_counted_or_where_that_is_asked():
    def attackers(task, *words):
        return {arm.attackers for arm in arms(axes_of(["rounds=1", *words]), task).values()}

    assert attackers("password") == {0}
    assert attackers("password", "attackers=8") == {8}
    assert attackers("injury:length=12") == {BASE.attackers}


def test_a_grid_is_every_combination_by_name():
    made = arms(axes_of(WORDS), "password")
    assert list(made)[:3] == [
        "plain",
        "rounds=1, budget=19, learning_rate=0.0005",
        "rounds=1, budget=19, learning_rate=0.002",
    ]
    assert len(made) == 1 + 3 * 2 * 2
    arm = made["rounds=16, budget=190, learning_rate=0.002"]
    assert arm == dataclasses.replace(
        BASE, plain=Plain("password"), rounds=16, budget=190, learning_rate=2e-3, attackers=0
    )
    assert made["plain"].steps == 0 and made["plain"].plain == arm.plain


def test_every_field_of_arm_recipe_plain_and_attack_can_be_named():
    known = fields(["gcg"])
    for part, kind in {"": Arm, "recipe.": Recipe, "plain.": Plain}.items():
        hidden = {"plain", "recipe", "options", "label", "task", "evaluation", "largest_space"}
        assert {part + f.name for f in dataclasses.fields(kind) if f.name not in hidden} <= known.keys()
    assert {"attack.candidates", "attack.patience"} & known.keys()
    others = dict(learning_rate=5e-4, batch=64, weight_decay=0.1, width=16, layers=1, heads=2, replay="newest")
    for name, value in others.items():
        [axis] = axes_of([f"{name}={value}"])
        [arm] = [arm for point, arm in arms([axis], "injury").items() if point != "plain"]
        part, _, field = axis.name.rpartition(".")
        of = lambda arm, part=part, field=field: getattr(getattr(arm, part) if part else arm, field)
        assert of(arm) == value != of(BASE), name


def test_a_parameter_of_the_attack_reaches_it():
    [axis] = axes_of(["attack.candidates=8,16"])
    made = arms([axis], "injury")
    assert made["attack.candidates=8"].options == (("candidates", 8),)
    assert made["attack.candidates=16"].options == (("candidates", 16),)


def test_a_parameter_that_is_none_until_it_is_given_can_be_varied():
    made = arms(axes_of(["attack=coordinate", "tokens=2,4", "rounds=1"]), "injury")
    assert made["attack.tokens=4"].options == (("tokens", 4),)
    with pytest.raises(ValueError, match=r"attack.tokens must be a whole number, not 'many'"):
        axes_of(["attack=coordinate", "tokens=many"])


def test_plain_models_of_each_size_stand_beside_the_grid():
    made = arms(axes_of(["plain.width=8,16", "rounds=1,4"]), "injury")
    assert [name for name in made if name.startswith("plain, ")] == ["plain, plain.width=8", "plain, plain.width=16"]
    assert {made[name].plain.width for name in made} == {8, 16}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["round=1,4"], "unknown field 'round'; did you mean 'rounds'?"),
        (["learning_rat=1e-3"], "unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        (["rounds=one"], "rounds must be a whole number, not 'one'"),
        (["rounds=1.5"], "rounds must be a whole number"),
        (["learning_rate=fast"], "learning_rate must be a finite number, not 'fast'"),
        (["twins=maybe"], "recipe.twins must be true or false, not 'maybe'"),
        (["order=worts"], "recipe.order must be one of anyone, worst, .*; did you mean 'worst'"),
        (["attack=gcgg"], "unknown attack 'gcgg'; choose from .*; did you mean 'gcg'?"),
        (["rounds"], "unknown argument 'rounds'; an ablation takes name=value,value"),
        (["rounds="], "unknown argument 'rounds='"),
        (["rounds=1,,4"], "rounds has an empty value"),
        (["rounds=1,1"], "rounds=1,1 has a value twice"),
        (["rounds=1", "rounds=4"], "a field is given twice"),
        (["width=16", "plain.width=32"], "a field is given twice, by its short name and in full"),
        (["attack=uniform,gcg", "attack.candidates=8"], "attack uniform has no parameter 'candidates'"),
        (["label=x"], "unknown field 'label'"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_in_one_line(words, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        arms(axes_of(words), "injury")
    assert "\n" not in str(refusal.value)


def test_a_value_is_named_in_as_many_digits_as_tell_it_from_others():
    """So a command that is printed makes the same runs, and two values never share a name."""
    assert axes_of({"rounds": np.array([1, 4])}) == axes_of(["rounds=1,4"])
    with pytest.raises(ValueError, match="rounds is a set, which has no order"):
        axes_of({"rounds": {1, 4}})
    values = (0.00031622776601683794, 0.000316228, 1e-3, 0.00100000001, 1e-05)
    axes = axes_of({"learning_rate": values})
    assert axes == axes_of([f"learning_rate={','.join(map(shown, values))}"])
    assert len(arms(axes, "injury")) == 1 + len(values)
    [ends] = ablation(axes).exploratory
    assert ends.names == ("learning_rate=0.00031622776601683794", "learning_rate=1e-05")
    assert [shown(value) for value in values[2:]] == ["0.001", "0.00100000001", "1e-05"]


def table(left: dict[str, list[float]]) -> pd.DataFrame:
    """Runs of one task whose failing prompts are given, arm -> seeds."""
    rows = [
        {"task": "injury", "arm": arm, "seed": seed}
        | {column_of(of, policy): n for of in ("failures", "false_alarms") for policy in ("greedy", "matched")}
        for arm, counts in left.items()
        for seed, n in enumerate(counts)
    ]
    return pd.DataFrame(rows)


GRID = axes_of(["rounds=1,16", "budget=19,190"])
LEFT = {
    "rounds=1, budget=19": [9999, 999, 9999],  # 4, 3, 4 decades
    "rounds=1, budget=190": [999, 99, 99],  # 3, 2, 2
    "rounds=16, budget=19": [99, 9, 9],  # 2, 1, 1
    "rounds=16, budget=190": [0, 0, 0],
}


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        ("soft_every=1,4", "recipe.soft_every=1,4"),
        ("layer=1", "recipe.layer=1"),
        ("loss=noise eps=0.5 ascent_steps=3,6", "recipe.ascent_steps=3,6"),
        ("loss=untargeted eps=0.5 ascent_steps=3,6", ""),
        ("loss=soft draws=8,32", ""),
        ("loss=soft overseer=exact draws=8", "recipe.draws=8"),
        ("rounds=0 budget=10,20", "budget=10,20"),
        ("rounds=0,4 budget=10,20", ""),
        ("rounds=0 attack=uniform", "attack=uniform"),
        ("rounds=0 replay=newest", "recipe.replay=newest"),
        ("order=diverse", "recipe.order=diverse"),
        ("order=anyone,diverse candidates=4", ""),
        ("fresh_labels=64", "recipe.fresh_labels=64"),
        ("fresh=uniform fresh_labels=64", ""),
        ("attack=oracle failures=1", ""),
        ("attack=oracle budget=10,20", "budget=10,20"),
        ("attack=gcg,oracle budget=10,20", ""),
        ("patience=7", ""),
        ("patience=7 rounds=0", "attack.patience=7"),
        ("rounds=16 finds=512", ""),
    ],
)
def test_a_field_that_nothing_reads_is_refused(words, idle):
    axes = axes_of(words.split())
    if not idle:
        arms(axes, "injury")
        return
    with pytest.raises(ValueError, match=re.escape(f"{idle} changes nothing: nothing reads it with the other fields")):
        arms(axes, "injury")


PARTLY = axes_of(["rounds=0,4", "budget=10,39"])


def test_points_that_differ_in_what_nothing_reads_there_are_one_arm():
    assert list(arms(PARTLY, "injury")) == ["plain", "rounds=0", "rounds=4, budget=10", "rounds=4, budget=39"]
    assert list(arms(axes_of(["attack=gcg,oracle", "budget=10,39"]), "injury"))[1:] == [
        "attack=gcg, budget=10", "attack=gcg, budget=39", "attack=oracle",
    ]  # fmt: skip
    assert list(arms(axes_of(["steps=0,64", "rounds=1,2"]), "injury")) == [
        "plain", "steps=64, rounds=1", "steps=64, rounds=2",
    ]  # fmt: skip


def test_an_arm_that_does_not_read_a_field_is_no_zero_in_its_effect():
    """A budget that takes two decades off where there are rounds takes off two, not one."""
    left = {"rounds=0": [9999], "rounds=4, budget=10": [999], "rounds=4, budget=39": [9]}
    rounds, budget = ablation(PARTLY).exploratory
    assert differences(table(left), budget) == pytest.approx([2.0])
    assert differences(table(left), rounds) == pytest.approx([4 - (3 + 1) / 2])
    named = contrast_of("rounds=0 budget=10:rounds=4 budget=10", PARTLY)
    assert differences(table(left), named) == pytest.approx([1.0])
    steps, _ = ablation(axes_of(["steps=0,64", "rounds=1,2"])).exploratory
    assert steps.before == ("plain",)
    _, attacked = ablation(axes_of(["steps=0,64", "attackers=0,8"])).exploratory
    assert attacked[:2] == (("steps=64, attackers=0",), ("steps=64, attackers=8",)), "plain stands on both sides"
    figure = ablation(PARTLY).figure(table(left))
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose([lines["budget=10"][0], lines["budget=39"][0]], 9999)
    plt.close(figure)


def test_a_contrast_takes_the_mean_over_everything_else_by_hand():
    effects = of_contrasts(table(LEFT), [contrast_of("rounds=1:rounds=16", GRID)])
    [row] = effects.itertuples()
    by_seed = np.array([(4 + 3) / 2 - (2 + 0) / 2, (3 + 2) / 2 - 1 / 2, (4 + 2) / 2 - 1 / 2])
    assert (row.before, row.after, row.n) == ("rounds=1", "rounds=16", 3)
    assert row.effect == pytest.approx(by_seed.mean())
    half = 4.302652729749464 * by_seed.std(ddof=1) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert (row.low, row.high) == pytest.approx((row.effect - half, row.effect + half))
    assert (row.least, row.most) == pytest.approx((by_seed.min(), by_seed.max()))


def test_a_difference_of_effects_by_hand():
    contrast = contrast_of("budget=19:budget=190 > rounds=1:rounds=16", GRID)
    budget = np.array([(4 + 2) / 2 - 3 / 2, (3 + 1) / 2 - 2 / 2, (4 + 1) / 2 - 2 / 2])
    rounds = np.array([2.5, 2.0, 2.5])
    np.testing.assert_allclose(differences(table(LEFT), contrast), budget - rounds)
    assert contrast.names == ("rounds=1 to rounds=16", "budget=19 to budget=190")


def test_a_seed_that_lacks_an_arm_of_the_mean_is_left_out():
    runs = table(LEFT)
    runs = runs[~((runs["arm"] == "rounds=1, budget=19") & (runs["seed"] == 2))]
    assert len(differences(runs, contrast_of("rounds=1:rounds=16", GRID))) == 2


def test_a_pair_of_one_point_of_the_grid():
    contrast = contrast_of("rounds=1 budget=19:rounds=16 budget=190", GRID)
    np.testing.assert_allclose(differences(table(LEFT), contrast), decades(np.array([9999, 999, 9999])))


def test_a_value_of_a_contrast_may_hold_a_colon():
    grid = axes_of(["attack=gcg,testbed.attacks.beam:beam"])
    contrast = contrast_of("attack=testbed.attacks.beam:beam:attack=gcg", grid)
    assert contrast.names == ("attack=testbed.attacks.beam:beam", "attack=gcg")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rounds=1", "write BEFORE:AFTER"),
        ("rounds=1:16", "one side of a contrast names values of axes"),
        ("rounds=1:budget=19", "both sides must name the same axes"),
        ("rounds=1:rounds=4", "rounds is 1, 16, not 4"),
        ("steps=1:steps=2", "unknown field 'steps'"),
        ("a:b > c:d > e:f", "write BEFORE:AFTER, or A:B > C:D"),
    ],
)
def test_a_contrast_that_names_what_the_grid_has_not_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        contrast_of(text, GRID)


def test_a_contrast_of_one_arm_with_itself_is_refused():
    with pytest.raises(ValueError, match="both sides are the same arms; name values that change something"):
        contrast_of("rounds=0 budget=10:rounds=0 budget=39", PARTLY)


def test_the_ends_of_each_axis_are_exploratory_and_named_contrasts_declared():
    experiment = ablation(axes_of(WORDS), ["rounds=1:rounds=16"])
    assert [c.names for c in experiment.contrasts] == [("rounds=1", "rounds=16")]
    assert [c.names for c in experiment.exploratory] == [
        ("budget=19", "budget=190"), ("learning_rate=0.0005", "learning_rate=0.002")
    ]  # fmt: skip


def test_runs_that_share_an_arm_and_a_seed_are_refused():
    runs = pd.concat([table(LEFT), table(LEFT).head(1)])
    with pytest.raises(
        ValueError, match=r"2 of 13 runs share task, arm and seed \(first: injury, 'rounds=1, budget=19'"
    ):
        refuse_duplicates(runs)


def test_the_figure_has_the_longest_axis_along_x_and_the_next_by_colour():
    axes = axes_of(WORDS)
    assert layout_of(axes) == ("rounds", "budget", "learning_rate")
    assert layout_of(axes, hue="learning_rate").hue == "learning_rate"
    assert layout_of(axes_of(["attack=gcg,uniform", "rounds=1,4"])) == ("rounds", "attack", "")
    with pytest.raises(ValueError, match="unknown field 'steps'"):
        layout_of(axes, x="steps")
    experiment = ablation(GRID)
    figure = experiment.figure(table(LEFT))
    figure.canvas.draw()
    lines = [line for line in figure.axes[0].lines if line.get_label() == "budget=19"]
    np.testing.assert_allclose(lines[0].get_ydata(), [10 ** (11 / 3) - 1, 10 ** (4 / 3) - 1])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "16"]
    plt.close(figure)


def test_a_figure_of_which_every_run_failed_is_empty():
    figure = ablation(GRID).figure(table({"plain": [9, 9, 9]}))
    assert any("no run to draw" in text.get_text() for text in figure.texts)
    plt.close(figure)


@pytest.mark.parametrize(("seeds", "first"), [(0, 0), (-1, 0), (1, -1)])
def test_no_seeds_are_refused(seeds, first, tmp_path):
    with pytest.raises(ValueError, match=f"seeds must be at least 1 .* not {seeds} and {first}"):
        ablate("injury", rounds=1, seeds=seeds, first_seed=first, out=tmp_path)


@pytest.mark.slow
def test_it_runs_from_python_and_a_second_call_does_nothing_anew(tmp_path):
    grid = dict(rounds=(1, 4))
    small = {"plain.steps": 64, "plain.width": 8, "steps": 32, "finds": 32, "attackers": 0}
    result = ablate("injury(length=4)", small, **grid, seeds=2, out=tmp_path, quiet=True, contrasts="rounds=1:rounds=4")
    assert len(result.runs) == 3 * 2 and result.effects["declared"].sum() == 1
    assert list(result.figures) == ["injury:length=4"], "one spelling, as the command has it"
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*.json")}
    again = ablate("injury(length=4)", small, **grid, seeds=2, out=tmp_path, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.json")}
    pd.testing.assert_frame_equal(again.runs, result.runs)
    words = [*(f"{name}={value}" for name, value in small.items()), "rounds=1,4"]
    status, out, _ = command("--ablate", *words, f"--out={tmp_path}", "--plot_only")
    assert status == 0 and "6 of 6 runs" in out, "tasks and seeds are those of the records"


def test_points_are_named_by_what_is_varied_only():
    assert list(points(axes_of(["rounds=1,4", "budget=19"]))) == ["rounds=1", "rounds=4"]
    assert list(points(axes_of(["budget=19"]))) == ["as asked"]
