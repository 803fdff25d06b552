"""The rules of the questions, on synthetic runs whose effects are known."""

import numpy as np
import pandas as pd
import pytest
from spending import ABLATIONS
from synthetic import FEW, MANY, MIXED, SIGNS, SOME, TWO, on_two, table, values

from experiments import EXPERIMENTS
from experiments.columns import column_of
from experiments.effects import Contrast, differences, of_contrasts
from experiments.grids import LARGE
from experiments.questions import (
    attack_strength,
    random_failures,
    relaxed_training,
    tool_ablation,
    worst_failures,
)
from experiments.verdict import Verdict, judge
from tasks import task_named
from testbed.statistics import holm

RULES = {
    "update_frequency": {
        "supported": {"1 round": MANY, "1 round, 4x finds": SOME, "16 rounds": FEW},
        "refuted": {"1 round": FEW, "1 round, 4x finds": FEW, "16 rounds": MANY},
        "undecided": {"1 round": MANY, "1 round, 4x finds": SOME, "16 rounds": MIXED},
    },
    "attack_strength": {
        "supported": {"uniform, 10": MANY, "gcg, 190": FEW},
        "refuted": {"uniform, 10": FEW, "gcg, 190": MANY},
        "equivalent": {"uniform, 10": MANY, "gcg, 190": [n + 9 * n // 10 for n in MANY]},
        "undecided": {"uniform, 10": MANY, "gcg, 190": MIXED},
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
}  # fmt: skip
CASES = [(name, outcome) for name, rules in RULES.items() for outcome in rules]
CLEAN_FAILURE = column_of("clean_failure")


def judged(name: str, *runs: pd.DataFrame) -> Verdict:
    return judge(EXPERIMENTS[name], pd.concat(runs, ignore_index=True))


@pytest.mark.parametrize(("name", "outcome"), CASES)
def test_the_verdict_follows_the_rule(name, outcome):
    verdict = judged(name, on_two(RULES[name][outcome]))
    assert verdict.outcome == outcome
    assert bool(verdict.lacks) == (outcome == "undecided"), "only an undecided verdict says what it lacks"
    declared = verdict.effects[verdict.effects["declared"]]
    assert set(declared["task"]) == set(TWO)


@pytest.mark.parametrize("name", ["update_frequency", "attack_strength", "diversity", "relaxed_training"])
def test_support_on_one_task_only_is_undecided(name):
    tables = [table(task, RULES[name][outcome]) for task, outcome in zip(TWO, ("supported", "undecided"), strict=True)]
    assert judged(name, *tables).outcome == "undecided"


def test_a_latent_arm_that_beats_both_controls_is_not_refuted_whatever_else_it_lacks():
    better, worse = (RULES["relaxed_training"][outcome] for outcome in ("supported", "refuted"))
    runs = pd.concat([table("injury", better), table("cipher_vault", worse)])
    runs[CLEAN_FAILURE] = np.where(runs["arm"] == "latent", 1e-4, 1e-5)
    assert judged("relaxed_training", runs).outcome == "undecided"
    assert judged("relaxed_training", table("cipher_vault", worse)).outcome == "refuted"


@pytest.mark.parametrize(
    ("injury", "cipher_vault", "outcome"),
    [
        (MANY, MANY[::-1], "refuted"),  # no effect: the same numbers in the same or another order
        (MANY, [n // 2 for n in MANY], "refuted"),  # below half a decade
        (MIXED, [n // 2 for n in MANY], "undecided"),  # an effect for nobody to see in the noise
        (FEW, MANY, "undecided"),  # a decade on one task, none on the other
        (FEW, SOME, "supported"),
    ],
)
def test_blocks_are_judged_by_what_they_are_worth_on_every_task(injury, cipher_vault, outcome):
    kept = {"injury": injury, "cipher_vault": cipher_vault}
    tables = [table(task, {"without search": MANY, "whole recipe": left}) for task, left in kept.items()]
    assert judged("building_blocks", *tables).outcome == outcome


def test_two_blocks_each_of_which_matters_on_another_task_are_undecided():
    others = {"injury": "without search", "cipher_vault": "without replay"}
    usual = {"whole recipe": FEW, "without search": FEW, "without replay": FEW}
    tables = [table(task, usual | {other: MANY}) for task, other in others.items()]
    assert judged("building_blocks", *tables).outcome == "undecided"


@pytest.mark.parametrize(
    ("name", "outcome", "before", "after"),
    [
        ("diversity", "undecided", "unselected, 1", "diverse, 1"),
        ("building_blocks", "refuted", "without search, 32 finds", "whole recipe, 32 finds"),
        ("relaxed_training", "undecided", "1 round, 64 finds", "1 round and latent, 64 finds"),
    ],
)
def test_what_no_rule_named_is_exploratory_and_decides_nothing(name, outcome, before, after):
    without = judged(name, on_two(RULES[name][outcome]))
    beside = judged(name, on_two(RULES[name][outcome] | {before: MANY, after: FEW}))
    assert without.outcome == beside.outcome == outcome
    pd.testing.assert_frame_equal(*(v.effects[v.effects["declared"]] for v in (without, beside)))
    assert without.effects["declared"].all()
    assert values(beside.effects, "task", "effect", before=before, after=after, declared=False) == [
        [task, 3.277] for task in TWO
    ]


def kept(task: str, left: dict[str, list], borderline: float = 0.4, egregious: float = 0.9) -> pd.DataFrame:
    """Runs of `worst_failures`, whose arms kept finds that are so egregious in the mean."""
    runs = table(task, left)
    return runs.assign(**{worst_failures.POOL: np.where(runs["arm"] == "egregious", egregious, borderline)})


LITTLE = {"borderline": MANY, "egregious": [n + n // 2 * (seed % 2) for seed, n in enumerate(MANY)]}


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        ({"borderline": MANY, "egregious": FEW}, "supported"),
        ({"borderline": FEW, "egregious": MANY}, "refuted"),
        ({"borderline": MANY, "egregious": MIXED}, "undecided"),
        (LITTLE, "equivalent"),
    ],
)
def test_worst_failures_are_judged_where_the_kept_finds_differ(left, outcome):
    one, two = (kept(task, left) for task in TWO)
    verdict = judged("worst_failures", one, two)
    assert verdict.outcome == outcome and bool(verdict.lacks) == (outcome == "undecided")
    told = values(verdict.effects, "task", "before", "effect", "declared", of=worst_failures.CHECKED)
    assert told == [[task, "egregious", 0.5, True] for task in TWO]
    assert judged("worst_failures", one).outcome == "not tested", "on one task"
    assert judged("worst_failures", one, kept(TWO[1], left, borderline=0.71)).outcome == "not tested"
    assert judged("worst_failures", one, kept(TWO[1], left, borderline=0.69)).outcome == outcome
    assert judged("worst_failures", one, table(TWO[1], left)).outcome == "not tested", "nobody knows what was kept"


def test_what_is_no_better_on_the_other_task_leaves_worst_failures_undecided():
    better, same = {"borderline": MANY, "egregious": FEW}, LITTLE
    assert judged("worst_failures", kept(TWO[0], better), kept(TWO[1], same)).outcome == "undecided"


def test_a_latent_arm_more_than_a_decade_behind_prompts_is_not_supported():
    left = RULES["relaxed_training"]["supported"] | {"latent": [99, 120, 80, 70], "16 rounds": [0] * 4}
    assert judged("relaxed_training", on_two(left)).outcome == "undecided"


def ranked(correct: int) -> pd.DataFrame:
    """Runs of one task: three models whose latent failures rank as their failing prompts do, and one far from it.

    That one answers so many of 1,000 clean prompts right, the others 990.
    """
    models = {"control": (10, 100, 990), "latent": (20, 200, 990), "noise": (30, 300, 990), "odd": (0, 5000, correct)}
    tables = [
        table("injury", {name: [left] * 3}, **{relaxed_training.LATENT: failing, "greedy.clean.correct": right})
        for name, (failing, left, right) in models.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_latent_failures_are_ranked_with_failing_prompts_among_models_that_are_not_broken():
    def ranks(runs):
        effects = judged("relaxed_training", runs).effects
        return values(effects, "effect", "n", of=relaxed_training.RANKS, declared=False)

    assert ranks(ranked(correct=990)) == [[round(1 - 6 * (1 + 1 + 1 + 9) / (4 * 15), 3), 3]]
    assert ranks(ranked(correct=989)) == [[1, 3]]
    assert ranks(ranked(correct=989).assign(**{"greedy.clean.correct": 989})) == []


def ladder(task: str, left, suffix: str = "", **columns) -> list[pd.DataFrame]:
    """Runs of three rungs: strength and seed -> failing prompts."""
    return [
        table(task, {f"attack {s}{suffix}": [left(s, seed) for seed in range(4)]}, strength=s, **columns)
        for s in (1.0, 2.0, 4.0)
    ]


def falling(slope: float):
    """Failing prompts that fall by so many decades a decade of strength; seeds differ a little."""
    return lambda strength, seed: 10 ** (6 - slope * strength + 0.01 * seed) - 1


def slopes_of(*rungs: pd.DataFrame) -> list[list]:
    """After, effect and that at matched false alarms, of each slope."""
    verdict = judged("attack_strength", *rungs)
    assert verdict.outcome == "not tested", "slopes decide nothing"
    return values(verdict.effects, "after", "effect", "matched", unit=attack_strength.SLOPE, declared=False)


def test_a_ladder_with_fewer_finds_has_a_slope_of_its_own():
    usual = ladder("injury", falling(0.35))
    few = ladder("injury", falling(1), suffix=", 32 finds", **{"config.finds": attack_strength.FEW})
    assert slopes_of(*usual) == [["stronger attacks", 0.35, 0.35]]
    assert slopes_of(*usual, *few) == [["stronger attacks", 0.35, 0.35], ["stronger attacks, 32 finds", 1, 1]]


def test_the_slope_over_the_attacks_that_search_stands_beside_that_of_all():
    rungs = {"samples": 0.0, "a": 2.0, "b": 3.0, "c": 4.0}
    left = {"samples": [9999] * 4, "a": [9999] * 4, "b": [999] * 4, "c": [99] * 4, "control": MANY}
    runs = pd.concat([table("injury", {arm: n}, strength=rungs.get(arm, np.nan)) for arm, n in left.items()])
    runs.loc[runs["arm"] == "samples", "config.attack"] = attack_strength.SAMPLES
    without = f"stronger attacks, without {attack_strength.SAMPLES}"
    assert slopes_of(runs) == [["stronger attacks", 0.486, 0.486], [without, 1, 1]]
    assert slopes_of(runs[runs["arm"] != "samples"]) == [["stronger attacks", 1, 1]]


def test_the_share_of_attacks_that_leave_a_failure_tells_how_much_a_slope_says():
    def leaving(runs):
        effects = judged("attack_strength", runs).effects
        return values(effects, "effect", "n", unit="share", declared=False)

    runs = pd.concat(ladder("injury", lambda strength, seed: 0), ignore_index=True)
    assert not attack_strength.slopes(runs).any()
    assert leaving(runs) == [[0, 3]]
    for arm, seed, share in (("attack 1.0", 2, 1 / 3), ("attack 4.0", 1, 2 / 3)):
        runs.loc[(runs["arm"] == arm) & (runs["seed"] == seed), column_of("failures")] = 7
        assert leaving(runs) == [[round(share, 3), 3]]


def test_finds_are_apart_by_the_tokens_of_each_pair():
    assert attack_strength.apart(np.array([[0, 0], [0, 1], [1, 1]])) == pytest.approx((1 + 2 + 1) / 3)


def test_the_ladders_table_tells_strength_and_how_far_finds_lie_apart():
    attacks, within = attack_strength.EVALUATION, attack_strength.WITHIN
    attacked = {f"attacks.{name}.attackers": 10 for name in attacks} | {"compute.gradient_steps": 1}

    def found(number):
        return attacked | {f"attacks.{name}.within.{budget}": number for name in attacks for budget in within}

    old = table("injury", {"control": [9, 9]}, strength=np.nan, **found(8))
    new = table("injury", {"gcg, 190": [1, 2]}, strength=2.04, apart=[3.0, 4.0], **found(2))
    shown = attack_strength.of_ladder(pd.concat([old, new], ignore_index=True))
    assert list(shown.loc["gcg, 190", ["strength", "apart"]]) == ["2.0", "3.5"]
    assert list(shown["withstands"]) == ["25%", "100%"], "a fifth of the attackers find nothing, against four fifths"
    assert list(attack_strength.of_ladder(old).loc["control", ["strength", "apart"]]) == ["-", "-"]


@pytest.mark.parametrize(
    ("calls", "rate", "outcome"),
    [(100, 1.0, "supported"), (100, 0.01, "refuted"), (1.0, 1.0, "undecided")],
)
def test_random_failures_are_judged_by_calls_and_rate(calls, rate, outcome):
    jitter = [0.9, 1.1, 1.2, 0.8]
    tables = []
    for name, times, part in (("control", 1, [1.0] * 4), ("16 rounds", calls, [rate * j for j in jitter])):
        first = [[int(20 * times * j)] * 3 for j in (jitter if name == "control" else jitter[::-1])]
        columns = {"first": first, "budget": 10_000, CLEAN_FAILURE: [1e-5 * p for p in part]}
        tables.append(table("injury", {name: FEW}, **columns))
    assert judged("random_failures", *tables).outcome == outcome


def test_calls_and_rates_of_random_failures_are_decades():
    rates = {"control": (1e-5, 1e-7), "16 rounds": (1e-7, 0.0)}
    first = {("injury", "16 rounds"): [2000] * 4, ("cipher_vault", "16 rounds"): [19, 21, 19, 21]}
    tables = []
    for task in TWO:
        for name, (rate, matched) in rates.items():
            columns = {"first": [[calls] * 3 for calls in first.get((task, name), [20] * 4)], "budget": 10_000}
            columns |= {CLEAN_FAILURE: rate, column_of("clean_failure", "matched"): matched}
            tables.append(table(task, {name: FEW}, **columns))
    runs = pd.concat(tables, ignore_index=True)
    effects = judged("random_failures", runs).effects
    calls = values(effects, "task", "effect", "n", of=random_failures.CALLS)
    assert calls == [["injury", -2, 4], ["cipher_vault", round(-np.log10(19 * 21 / 400) / 2, 3), 4]]
    # A rate of zero counts as 1e-12.
    assert values(effects, "effect", "matched", "holm", of=random_failures.RATE) == [[2, 5, 0.5]] * 2
    without = judged("random_failures", runs.drop(columns=column_of("clean_failure", "matched"))).effects
    assert np.isnan(values(without, "matched", of=random_failures.RATE)).all()
    unknown = judged("random_failures", runs.assign(**{CLEAN_FAILURE: np.nan}))
    assert unknown.outcome == "not tested" and unknown.effects.empty


UNSURE = [5, 200, 900, 900]


@pytest.mark.parametrize(
    ("after", "outcome"),
    [
        ({"injury": [900] * 4}, "supported"),
        ({"injury": [5] * 4}, "refuted"),
        ({"injury": UNSURE}, "undecided"),
        ({"cipher_vault": [5] * 4}, "supported"),
        ({"cipher_vault": [900] * 4}, "refuted"),
        ({"injury": [900] * 4, "cipher_vault": [5] * 4}, "supported"),
        ({"injury": [900] * 4, "cipher_vault": UNSURE}, "undecided"),  # one claim of two
        ({"injury": UNSURE, "cipher_vault": [900] * 4}, "refuted"),
        ({"password": [5] * 4}, "not tested"),  # of which nothing is claimed
    ],
)
def test_thresholds_are_judged_by_the_claim_on_each_task(after, outcome):
    tables = []
    for task, left in after.items():
        blocked = [[{"share": 0.0, "failures": 1000}, {"share": 0.05, "failures": n}] for n in left]
        tables.append(table(task, {"plain": [1000] * 4}, blocked=blocked))
    assert judged("conservative_threshold", *tables).outcome == outcome


def test_where_no_strength_is_known_attacks_are_compared_by_what_they_leave():
    """Of machines, whose spaces are too large for it; beside transformers, whose columns their rows then have too."""
    weak, strong = attack_strength.WEAK, attack_strength.STRONG
    known = table("injury", {weak: MANY, strong: FEW}, **{attack_strength.STRENGTH: 1.0, "config.rounds": 4})
    for attack in attack_strength.EVALUATION:
        known[f"attacks.{attack}.attackers"] = 4
        for budget in attack_strength.WITHIN:
            known[f"attacks.{attack}.within.{budget}"] = 1
    large = table(LARGE, {weak: MANY, strong: FEW}, **{attack_strength.APART: 3.0, "config.rounds": 4})
    both = pd.concat([known, large], ignore_index=True)
    assert judged("attack_strength", both).outcome == "supported"
    for runs in (large, both[both["task"] == LARGE]):
        shown = attack_strength.of_ladder(runs.assign(**{"compute.gradient_steps": 768}))
        assert (
            "withstands" not in shown and list(shown["strength"]) == ["-", "-"] and list(shown["apart"]) == ["3.0"] * 2
        )
        assert len(attack_strength.figure(runs).axes) == 2


RANDOM_EDITS = [90, 110, 120, 80]


def test_every_tool_and_no_tool_begin_at_the_same_prompts():
    """Attackers of one key begin alike where their attacks share what draws a start."""
    starts = {way: make(task_named("injury")).start for way, make in tool_ablation.WAYS.items()}
    assert len({starts[way] for way in (tool_ablation.NO_TOOL, *tool_ablation.TOOLS)}) == 1
    assert starts["clean_edits"] != starts[tool_ablation.NO_TOOL]


@pytest.mark.parametrize(
    ("injury", "cipher_vault", "outcome"),
    [
        ([9, 11, 12, 8], [9, 11, 12, 8], "supported"),
        (RANDOM_EDITS, RANDOM_EDITS[::-1], "refuted"),  # no effect: the same numbers in the same or another order
        ([1, 110, 900, 100], [1, 110, 900, 100], "undecided"),  # nobody can tell
        ([9, 11, 12, 8], [70, 80, 90, 60], "refuted"),  # surely less than half of them saved on one task
        ([900, 1000, 990, 890], [900, 1000, 990, 890], "refuted"),  # tools in the way
        ([9, 11, 12, 8], [1, 110, 900, 100], "undecided"),  # on one task only
    ],
)
def test_tools_are_judged_by_the_calls_that_they_save(injury, cipher_vault, outcome):
    def searched(task, calls):
        tools = dict.fromkeys(tool_ablation.TOOLS, calls) | {tool_ablation.NO_TOOL: RANDOM_EDITS}
        first = {tool_ablation.FIRST[way]: [[n] * 3 for n in each_seed] for way, each_seed in tools.items()}
        return table(task, {"searched": FEW}, budget=1000, **first)

    tables = [searched(task, calls) for task, calls in (("injury", injury), ("cipher_vault", cipher_vault))]
    assert judged("tool_ablation", *tables).outcome == outcome


def test_runs_of_fewer_ways_to_search_beside_newer_ones_show_what_all_have():
    old = table("injury", {"searched": [1]}, **{"first.clean_edits": [[9, 9]], "budget": 99})
    new = table("injury", {"searched": [1]}, **{"first.clean_edits": [[5, 5]], "first.uniform": [[3, 3]], "budget": 99})
    assert list(tool_ablation.medians(pd.concat([old, new], ignore_index=True))) == ["clean_edits"]


def test_a_part_of_the_tool_is_worth_the_calls_that_it_saves():
    decades = dict.fromkeys(tool_ablation.WAYS, 2.0)
    decades |= {"uniform": 1.5, "saliency": 0.5, "saliency, one pass": 1.0}
    first = {column: [[10 ** decades[way]]] * 3 for way, column in tool_ablation.FIRST.items()}
    effects = judged("tool_ablation", table("injury", {"searched": FEW[:3]}, budget=1000, **first)).effects
    saved = values(effects, "effect", declared=False)
    assert saved == [[0.0], [-0.5], [1.5], [0.5], [1.5], [-1.5]], "in the order of PARTS"


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "tool_ablation"])  # it has one arm only
def test_without_the_arms_of_its_rule_nothing_is_tested(name):
    sizes = {"config.steps": 1, "config.plain.width": 1, "config.plain.steps": 1}
    measured = {"taught.prompts": 9, "taught.tokens": 1} | dict.fromkeys(SIGNS, 0.5)
    task = "cipher_vault" if name == "competence" else "injury"  # that one judges generators only
    runs = table(task, {"another": [1, 2, 3]}, strength=np.nan, fit=1.0, budget=9, **sizes, **measured)
    runs = runs.assign(first=[[1]] * 3, blocked=[[{"share": 0.0, "failures": 1}]] * 3)
    assert judged(name, runs).outcome == "not tested"


def test_holm_against_hand_worked_numbers():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    assert holm([]).size == 0


def test_effects_are_paired_and_in_decades():
    runs = table("injury", {"a": [99, 999], "b": [9, 9]}).query("not (arm == 'b' and seed == 1)")
    np.testing.assert_allclose(differences(runs, Contrast("a", "b")), [1])
    effects = of_contrasts(runs, [Contrast("a", "b"), Contrast("b", "missing")])
    assert values(effects, "before", "after", "effect", "n") == [["a", "b", 1, 1]]
