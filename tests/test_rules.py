"""The rules of the questions, and what their verdicts tell, on synthetic tables whose effects are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from spending import ABLATIONS
from synthetic import FEW, MANY, MIXED, SIGNS, SOME, TWO, on_two, table

from experiments import EXPERIMENTS
from experiments.ablation import Contrast, drops, findings, holm

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


@pytest.mark.parametrize("name", ["update_frequency", "worst_failures", "diversity", "relaxed_training"])
def test_support_on_one_task_only_is_undecided(name):
    frames = [table(task, RULES[name][outcome]) for task, outcome in zip(TWO, ("supported", "undecided"), strict=True)]
    verdict = EXPERIMENTS[name].claim(pd.concat(frames))
    assert verdict.outcome == "undecided", verdict.why


def test_a_seed_without_failures_whose_model_is_wrong_on_clean_prompts_is_not_reliable():
    frame = on_two({"best recipe": [0] * 4})
    assert EXPERIMENTS["reliability"].claim(frame.assign(**{"greedy.clean.correct": 989})).outcome == "refuted"


def test_a_latent_arm_that_beats_both_controls_is_not_refuted_whatever_else_it_lacks():
    left = RULES["relaxed_training"]["refuted"]
    frame = pd.concat([table("injury", RULES["relaxed_training"]["supported"]), table("cipher_vault", left)])
    frame["greedy.exact.clean_failure"] = np.where(frame["arm"] == "latent", 1e-4, 1e-5)
    verdict = EXPERIMENTS["relaxed_training"].claim(frame)
    assert verdict.outcome == "undecided", verdict.why
    assert EXPERIMENTS["relaxed_training"].claim(table("cipher_vault", left)).outcome == "refuted"


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


@pytest.mark.parametrize(
    ("name", "outcome", "before", "after"),
    [
        ("diversity", "undecided", "unselected, 1", "diverse, 1"),
        ("building_blocks", "refuted", "without search, 32 finds", "whole recipe, 32 finds"),
        ("relaxed_training", "undecided", "1 round, 64 finds", "1 round and latent, 64 finds"),
    ],
)
def test_what_no_rule_named_is_told_as_such_and_decides_nothing(name, outcome, before, after):
    declared, claim = RULES[name][outcome], EXPERIMENTS[name].claim
    without, beside = claim(on_two(declared)), claim(on_two(declared | {before: MANY, after: FEW}))
    assert without.outcome == beside.outcome == outcome and "not pre-declared" not in without.why
    first, told = beside.why.split("; not pre-declared: ")
    assert first == without.why
    assert f"injury: '{after}' leaves 3.28 decades fewer failing prompts than '{before}'" in told
    assert after not in beside.brief


def test_a_short_verdict_that_is_undecided_says_what_it_lacks():
    for outcome, told in (("supported", False), ("undecided", True)):
        verdict = EXPERIMENTS["worst_failures"].claim(on_two(RULES["worst_failures"][outcome]))
        assert ("the rule asks for a factor of ten on two tasks" in verdict.brief) is told


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
    note, why = "cannot tell in {} of 4 seeds: 'egregious' left what 'anyone' left", claim(frame).why
    assert all(f"; {task} {note.format(4)}" in why for task in TWO) and "the others" not in why
    # One seed that differs in one count: there was a choice.
    differs = (frame["config.plain.task"] == "injury") & (frame["arm"] == "anyone") & (frame["seed"] == 2)
    for column in ("greedy.exact.failures", "greedy.exact.false_alarms", "matched.exact.failures"):
        changed = frame.copy()
        changed.loc[differs, column] += 1
        why = claim(changed).why
        assert f"; injury {note.format(3)}" in why and f"; cipher_vault {note.format(4)}" in why
        assert why.count("(the others, not pre-declared: 'egregious' leaves 1.05 decades fewer egregious failures") == 1
    for unlike in (frame[frame["arm"] != "anyone"], on_two(arms | {"anyone": FEW})):
        assert "cannot tell" not in claim(unlike).why


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


def test_a_ladder_that_suffices_on_one_task_only_is_undecided():
    frames = []
    for strength in (1.0, 2.0, 4.0):
        for task, slope in zip(TWO, (0.0, 0.35), strict=True):
            left = {f"attack {strength}": [10 ** (6 - slope * strength + 0.01 * seed) - 1 for seed in range(4)]}
            frames.append(table(task, left, strength=strength))
    assert EXPERIMENTS["attack_strength"].claim(pd.concat(frames)).outcome == "undecided"


def test_rungs_with_fewer_finds_stand_beside_the_rule():
    module = EXPERIMENTS["attack_strength"]
    usual = [table("injury", {f"attack {s}": [999] * 4}, strength=s) for s in (1.0, 2.0, 4.0)]
    few = [table("injury", {f"attack {s}, 32 finds": [10 ** (6 - s) - 1] * 4}, strength=s) for s in (1.0, 2.0, 4.0)]
    outcome, why, brief = module.claim(pd.concat(usual + few))
    assert outcome == "supported" and "1.00" not in brief
    assert "; with 32 finds (not pre-declared): injury 1.00 [1.00, 1.00] (matched" in why
    assert "32 finds" not in module.claim(pd.concat(usual)).why


def test_the_slope_over_the_attacks_that_search_stands_beside_that_of_all():
    module, rungs = EXPERIMENTS["attack_strength"], {"samples": 0.0, "a": 2.0, "b": 3.0, "c": 4.0}
    left = {"samples": [9999] * 4, "a": [9999] * 4, "b": [999] * 4, "c": [99] * 4, "control": MANY}
    frame = pd.concat([table("injury", {arm: n}, strength=rungs.get(arm, np.nan)) for arm, n in left.items()])
    frame.loc[frame["arm"] == "samples", "config.attack"] = module.SAMPLES
    verdict = module.claim(frame)
    assert "injury: failing prompts fall by 0.49 decades a decade of strength" in verdict.why
    assert (
        "; without clean_rejection (not pre-declared): injury 1.00 [1.00, 1.00] (matched injury 1.00 [1.00, 1.00])"
        in verdict.why
    )
    assert verdict.outcome == "undecided", "the rule is that of all attacks"
    assert "without" not in module.claim(frame[frame["arm"] != "samples"]).why


def test_a_task_that_every_attack_solves_has_slope_zero_and_is_said_to_tell_little():
    module = EXPERIMENTS["attack_strength"]
    frame = pd.concat([table("injury", {f"attack {s}": [0] * 4}, strength=s) for s in (1.0, 2.0, 4.0)])
    assert not module.slopes(frame).any()
    assert "where none of these attacks leaves a failure, so this task tells little" in module.claim(frame).why
    frame.loc[(frame["arm"] == "attack 1.0") & (frame["seed"] == 2), "greedy.exact.failures"] = 7
    assert "which rests on 'attack 1.0': no other attack leaves a failure" in module.claim(frame).why
    frame.loc[(frame["arm"] == "attack 4.0") & (frame["seed"] == 1), "greedy.exact.failures"] = 1
    assert not any(words in module.claim(frame).why for words in ("tells little", "rests on"))


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
    _, why, brief = EXPERIMENTS["random_failures"].claim(frame)
    assert brief.splitlines()[0] == (
        "injury: calls times 1e+02 [95 % 1e+02, 1e+02], clean failure rate times 0.01 [95 % 0.01, 0.01]"
    )
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


def test_a_threshold_that_pays_on_one_task_only_leaves_it_undecided():
    frames = []
    for task, spread in zip(TWO, ([5] * 4, [5, 200, 900, 900]), strict=True):
        blocked = [[{"share": 0.0, "failures": 1000}, {"share": 0.05, "failures": n}] for n in spread]
        frames.append(table(task, {"plain": [1000] * 4}, blocked=blocked))
    assert EXPERIMENTS["conservative_threshold"].claim(pd.concat(frames)).outcome == "undecided"


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


def test_records_of_fewer_ways_to_search_beside_newer_ones_show_what_all_have():
    old = table("injury", {"searched": [1]}, **{"first.clean_edits": [[9, 9]], "budget": 99})
    new = table("injury", {"searched": [1]}, **{"first.clean_edits": [[5, 5]], "first.uniform": [[3, 3]], "budget": 99})
    assert list(EXPERIMENTS["tool_ablation"].medians(pd.concat([old, new]))) == ["clean_edits"]


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


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "tool_ablation"])  # it has one arm only
def test_without_the_arms_of_its_rule_a_question_is_undecided(name):
    sizes = {"config.steps": 1, "config.plain.width": 1, "config.plain.steps": 1}
    told = {"taught.prompts": 9, "taught.tokens": 1} | dict.fromkeys(SIGNS, 0.5)
    task = "cipher_vault" if name == "competence" else "injury"  # that one judges generators only
    frame = table(task, {"another": [1, 2, 3]}, strength=np.nan, fit=1.0, budget=9, **sizes, **told)
    frame = frame.assign(first=[[1]] * 3, blocked=[[{"share": 0.0, "failures": 1}]] * 3)
    assert EXPERIMENTS[name].claim(frame).outcome == "undecided"


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
