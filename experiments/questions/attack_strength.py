"""Attack strength: a ladder of attacks to train against, judged by what each rung leaves."""

import dataclasses

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from experiments import arm as arm_data
from experiments.arm import Arm, Recipe, attack_of
from experiments.bench import Bench, measure_arm, plain_model
from experiments.columns import (
    POLICIES,
    attacked,
    attackers,
    by_task,
    column_of,
    decades,
    failures,
    setting,
    successes,
)
from experiments.effects import Contrast, of_contrast, outcome_of, outcome_of_tasks, row, rows_of, share, table
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of, draw_arms, prompts_of
from experiments.grids import ARENA, COVERAGE, LARGER, arm_on, covered, finds_on, twins_kept, with_finds
from experiments.protocol import REGISTERED
from experiments.tables import by_row
from tasks import task_named
from testbed import plots
from testbed.attacks.search import attack_model
from testbed.evaluation import exact
from testbed.evaluation.strength import strength
from testbed.evaluation.walk import countable
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.statistics import Interval
from testbed.text import plural

BASE, FEW = Arm(rounds=4, finds=128), 32
SAMPLES = "clean_rejection"  # the weakest: samples of the clean distribution, no search at all
QUICK = (("clean_edits", 190), ("uniform", 10), ("uniform", 190), ("gcg", 190))
MORE = (("gcg", 1900), (SAMPLES, 190), ("coordinate", 190), ("auto", 1900))
LADDER = {"quick": QUICK, "full": (*QUICK, *MORE), REGISTERED: (("uniform", 10), ("gcg", 190), ("gcg", 1900))}
PART = ((SAMPLES, 190), *QUICK[1:])  # of the ladder, which is also climbed with fewer finds
EVALUATION = ("clean_edits", *arm_data.EVALUATION)
WITHIN = (100, 1000)
WEAKER, STRONGER, SLOPE = "weaker attacks", "stronger attacks", "decades a decade of strength"
LEAST, SAME = 0.5, 0.3  # decades: supported from the one on, equivalent within the other
CHOICE = 4  # candidates a place of the pool
ATTACKERS = 64  # of the plain model, where an evaluation has none
STRENGTH, APART = "strength", "apart"


def named(attack: str, budget: int, finds: int = BASE.finds) -> str:
    """What an arm is called."""
    return with_finds(f"{attack}, {budget}", finds, BASE.finds)


WEAK, STRONG, LONG = named("uniform", 10), named("gcg", 190), named("gcg", 1900)
SPREAD = f"{LONG}, spread"
DECLARED = Contrast(WEAK, STRONG), Contrast(LONG, STRONG)
BESIDE = Contrast(LONG, SPREAD), *(Contrast(name, STRONG) for name in COVERAGE)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """The control, and each rung of the ladder; in full a part of it also with fewer finds.

    Registered are three rungs, the long search with finds that were chosen to lie apart, and labels without a search.
    """
    base = arm_on(task, rounds=BASE.rounds, finds=finds_on(task, BASE.finds))

    def rungs(ladder, finds=BASE.finds):
        own = dataclasses.replace(base, finds=finds_on(task, finds))
        return {
            named(attack, budget, finds): twins_kept(dataclasses.replace(own, attack=attack, budget=budget))
            for attack, budget in ladder
        }

    made = {"control": dataclasses.replace(base, rounds=0)} | rungs(LADDER[preset])
    if preset == REGISTERED:
        spread = Recipe(order="diverse", candidates=CHOICE)
        return made | {SPREAD: twins_kept(dataclasses.replace(made[LONG], recipe=spread))} | covered(base)
    return made | (rungs(PART, FEW) if preset == "full" else {})


def measure(arm: Arm, bench: Bench) -> dict:
    """An arm's account, how far its attack's finds lie apart, and in a space that can be visited how strong it is."""
    measured = measure_arm(arm, bench, attacks=EVALUATION)
    if not arm.rounds:
        return measured
    task, plain = task_named(arm.plain.task), plain_model(bench, arm.plain)
    objective = Objective(task, plain, greedy(task))
    trace = attack_model(
        bench.key("strength"), attack_of(arm), objective, attackers=arm.attackers or ATTACKERS, budget=arm.budget
    )
    measured |= {APART: apart(trace.prompt)}
    if not countable(task):
        return measured
    return measured | {STRENGTH: strength(trace.margin, exact.hazardous_margins(plain, task, objective.policy))}


def apart(prompts: np.ndarray) -> float:
    """In how many tokens two of the prompts `[P, T]` differ, in the mean of all pairs."""
    return float(pdist(prompts, "hamming").mean() * prompts.shape[1])


def slopes(runs: pd.DataFrame, policy: str = "greedy") -> np.ndarray:
    """For each seed with three rungs or more, the decades that a decade of strength removes."""
    fits = []
    for _, rungs in runs[runs[STRENGTH].notna()].groupby("seed"):
        if rungs[STRENGTH].nunique() > 2:
            fits.append(-np.polyfit(rungs[STRENGTH], decades(failures(rungs, policy)), 1)[0])
    return np.array(fits)


def ladders(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a part of the runs is called -> its runs. The first has the usual finds."""

    def searching(rungs):
        samples = setting(rungs, "attack") == SAMPLES
        return rungs[~samples & samples.any()]

    few = setting(runs, "finds") == FEW
    parts = {"": runs[~few], f", {FEW} finds": runs[few]}
    if few.any():
        both = runs["arm"].isin([named(*rung) for rung in PART])
        parts |= {f", the same with {BASE.finds}": runs[both]}
    return {
        f"{name}{without}": rungs
        for name, part in parts.items()
        for without, rungs in (("", part), (f", without {SAMPLES}", searching(part)))
    }


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The contrasts, the slope of each ladder, and how many attacks leave a failing prompt on each task."""
    rows = rows_of(runs, DECLARED) + rows_of(runs, BESIDE, declared=False)
    runs = runs if STRENGTH in runs else runs.assign(**{STRENGTH: np.nan})  # where no arm with attacks is done yet
    for task, part in by_task(runs).items():
        for name, ladder in ladders(part).items():
            fits = slopes(ladder)
            if len(fits):
                names = task, WEAKER, f"{STRONGER}{name}", "failing prompts"
                matched = slopes(ladder, "matched")
                rows.append(row(*names, fits, matched=matched, unit=SLOPE, declared=False))
    return table(rows + saturation(runs))


def saturation(runs: pd.DataFrame) -> list[dict]:
    """Of each task's attacks with usual finds, the share that leaves a failing prompt in any seed.

    A task on which none does, or one alone, tells little. There is no interval: it is a fact.
    """
    rows, rungs = [], runs[runs[STRENGTH].notna() & (setting(runs, "finds") != FEW)]
    for task, part in by_task(rungs).items():
        leaves = failures(part).groupby(part["arm"]).max() > 0
        what = "attacks that leave a failing prompt in any seed"
        known = Interval(leaves.mean(), np.nan, np.nan)
        rows.append(share(task, "every attack", what, known, len(leaves), declared=False))
    return rows


def rule(effects: pd.DataFrame) -> str:
    """Half a decade more is left by the weak attack on two tasks; less on any refutes it."""
    return outcome_of_tasks([outcome_of(r, LEAST, SAME) for r in of_contrast(effects, DECLARED[0]).itertuples()])


def of_ladder(runs: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: mean strength, tokens between two finds of its attack, and a score.

    The score is the mean of `defended` over attacks and budgets.
    """
    own = runs.reindex(columns=["arm", STRENGTH, APART])  # older records have no `apart`
    means = own.groupby("arm", sort=False).mean()
    text = means.map(lambda mean: f"{mean:.1f}" if pd.notna(mean) else "-")
    rows = by_row(runs).drop(columns=["egregious", "steps"])  # so that the table fits
    rows = rows.assign(strength=text[STRENGTH], apart=text[APART])
    if not attacked(runs.dropna(axis="columns", how="all")):
        return rows
    return rows.assign(withstands=defended(runs).mean(axis=1).map("{:.0%}".format))


def defended(runs: pd.DataFrame) -> pd.DataFrame:
    """`[arm, attack and budget]`: attackers that find nothing, their share over the best arm's."""

    def pooled(numbers):
        return numbers.groupby(runs["arm"], sort=False).sum()

    shares = pd.DataFrame(
        {
            f"{attack}, {budget}": 1 - pooled(successes(runs, attack, budget)) / pooled(attackers(runs, attack))
            for attack in EVALUATION
            for budget in WITHIN
        }
    )
    return shares / shares.max().where(shares.max() > 0)


def figure(runs: pd.DataFrame) -> plots.Figure:
    """Failing prompts by the strength trained against, and who defends against whom: one task.

    Where no strength is known, failing prompts by arm.
    """
    if runs.reindex(columns=[STRENGTH])[STRENGTH].isna().all():
        return draw_arms(runs, f"same steps and finds; half the finds are safe twins. {plural(BASE.rounds, 'round')}.")
    withstands, runs = defended(runs), runs[setting(runs, "finds") != FEW]
    caption = "thick: means; in brackets the mean strength, weakest first.\nRight: share of attackers that find "
    caption += "nothing in so many calls, over the best arm's (%); last column: failing prompts, median."
    titles = ["Failing prompts, counted exactly", "Trained (rows), attacked (columns)"]
    drawn, (left, right) = plots.panels(titles, caption_of(runs, caption))
    # Finds that are chosen apart are of the same attack, and no rung of the ladder.
    rungs = runs[runs[STRENGTH].notna() & (runs["arm"] != SPREAD)]
    for (policy, label), color in zip(POLICIES.items(), ("C3", "C0"), strict=True):
        value = column_of("failures", policy)
        plots.arms_along(left, rungs, STRENGTH, value, label=label, color=color)
    left.set_xlabel("strength trained against (decades of uniform samples)")
    left.set_ylabel(prompts_of(runs))
    legend = left.get_legend_handles_labels()
    drawn.legend(*legend, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    strengths = runs.groupby("arm", sort=False)[STRENGTH].mean().sort_values(na_position="first", kind="stable")
    failing = failures(runs).groupby(runs["arm"]).median()[strengths.index].rename("exact")
    names = [f"{arm} ({mean:.1f})" if mean == mean else arm for arm, mean in strengths.items()]
    plots.shares(right, withstands.loc[strengths.index].set_axis(names), failing)
    right.tick_params(axis="x", rotation=90)
    return drawn


ATTACK_STRENGTH = Experiment(
    question="To what extent does training on weaker attacks defend against stronger ones?",
    hypothesis="Weak attacks do not suffice: training against the best of ten random prompts leaves more failures than "
    "training against a gradient search.",
    design=f"""
    "To what extent can we generalize from training on weaker attacks to defending against
    stronger attacks?" (Redwood Research 2022)

    Arms train against a ladder of attacks, with the same finds and gradient steps. The ladder
    goes from edits of clean prompts and the best of ten random ones to gradient searches. In
    full it reaches from samples of the clean distribution to long searches, and a part of it is
    also climbed with a quarter of the finds. Every arm is counted exactly. Those of small spaces are
    attacked by weak and strong attacks, too.

    An attack's strength is the number of decades of uniform sampling that it is worth on the
    plain model (`testbed.evaluation.strength`). Beside it stands in how many tokens two of its
    finds there differ: a search that always ends at the same prompts teaches little else. The
    figure's matrix holds the share of attackers that find nothing. It is divided by the best
    share that any arm reaches against that attack and budget (after UAR; Kang et al. 2019). The
    table holds its mean.

    `{SAMPLES}` takes samples and does not search, so ladders without it stand beside. So does
    the share of attacks that leave any failing prompt: where none does, or one alone, a task
    tells little.

    What decides is the best of a few random prompts, `{WEAK}`, against a gradient search, `{STRONG}`. A
    second contrast asks whether `{LONG}` teaches less, since long searches end at like prompts.
    If so, choosing finds that lie apart, of {CHOICE} candidates a place, should mend it. That arm and labels
    without a search are in the preset `{REGISTERED}`. It also asks
    {ARENA}.
    There no strength is known.
    """,
    decides=f"`{WEAK}` against `{STRONG}`: failing prompts, counted exactly at threshold 0. Supported if the search "
    f"leaves at least {LEAST:g} decades fewer, with the interval above zero, on two tasks. Refuted if the interval "
    f"shows more on any task; equivalent if it lies within {SAME:g} decades of zero on every task. Declared beside it, "
    f"though the rule does not read it: whether `{LONG}` leaves more than `{STRONG}`.",
    presets={
        "quick": Preset(("injury", "cipher_vault"), seeds=3, minutes=10),
        "full": Preset(("injury", "password", "cipher_vault"), seeds=5, minutes=55),
        REGISTERED: Preset(("injury", "password", *LARGER), seeds=10, minutes=60, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"{LEAST:g} decades on two tasks, or intervals within {SAME:g} on all",
    measure=measure,
    contrasts=DECLARED,
    exploratory=BESIDE,
    effects=effects,
    table=of_ladder,
    figure=figure,
)
