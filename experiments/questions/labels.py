"""Labels: what a defence makes of the prompts that it may have labelled."""

from typing import Any

import pandas as pd

from experiments.arm import Arm, Recipe
from experiments.columns import by_task, failures, typical
from experiments.effects import Contrast, of_contrast, outcome_of, rows_of, table
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_against, draw_arms
from experiments.grids import EQUAL_LABELS, LARGE, SEARCHED, counted_arm
from experiments.protocol import REGISTERED
from experiments.tables import by_row
from tasks import task_named
from testbed import plots

NUMBERS = {"quick": (128, EQUAL_LABELS), REGISTERED: (EQUAL_LABELS,), "full": (128, 512, EQUAL_LABELS, 8192)}
LEAST, SAME = 1.0, 0.5  # decades: supported from the one on, equivalent within the other

# What each defence does with so many labels.
DEFENCES = {
    "uniform": lambda labels: dict(recipe=Recipe(fresh="uniform", fresh_labels=labels)),
    "hazards": lambda labels: dict(recipe=Recipe(fresh="hazards", fresh_labels=labels)),
    "1 round": lambda labels: dict(rounds=1, finds=labels, recipe=SEARCHED),
    "16 rounds": lambda labels: dict(rounds=16, finds=labels, recipe=SEARCHED),
    "soft": lambda labels: dict(recipe=Recipe(loss="soft", overseer="learned", overseer_labels=labels)),
    "oracle": lambda labels: dict(rounds=16, finds=labels, attack="oracle"),
}
CLASSIFIERS = {"soft"}  # a learned overseer says hazardous or not


def named(defence: str, labels: int) -> str:
    """What an arm is called."""
    return f"{defence}, {labels} labels"


def arms(preset: str, task: str) -> dict[str, Arm]:
    """The control, and every defence with each number of labels; all take the same steps."""
    fit = [name for name in DEFENCES if task_named(task).answer_length == 1 or name not in CLASSIFIERS]
    made = {named(name, n): counted_arm(task, **DEFENCES[name](n)) for n in NUMBERS[preset] for name in fit}
    return {"plain": counted_arm(task, steps=0), "control": counted_arm(task)} | made


SEARCH = Contrast(named("uniform", EQUAL_LABELS), named("16 rounds", EQUAL_LABELS))
PAIRS = (
    *((before, "16 rounds") for before in ("uniform", "hazards", "1 round")),
    *(("16 rounds", after) for after in ("soft", "oracle")),
)
BESIDE = (
    SEARCH._replace(of="false_alarms"),
    *(
        Contrast(named(before, n), named(after, n))
        for n in NUMBERS["full"]
        for before, after in PAIRS
        if (named(before, n), named(after, n)) != SEARCH[:2]
    ),
)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The contrasts: that of search with coverage is declared in the large space alone."""
    rows: list[dict[str, Any]] = []
    for task, part in by_task(runs).items():
        rows += rows_of(part, [SEARCH], declared=task == LARGE)
    return table(rows + rows_of(runs, BESIDE, declared=False))


def rule(effects: pd.DataFrame) -> str:
    """Search leaves a decade less than coverage at equal labels, where the space is large."""
    [row] = of_contrast(effects[effects["declared"]], SEARCH).itertuples()
    return outcome_of(row, LEAST, SAME)


def figure(runs: pd.DataFrame) -> plots.Figure:
    """Failing prompts against labels and against compute, a curve a defence, from one task.

    Of a single number of labels: failing prompts and refused safe ones, by defence.
    """
    numbers = runs["arm"].str.extract(r", (\d+) labels$")[0].dropna().nunique()
    if numbers == 1:
        caption = f"the same steps; all but plain and control have {EQUAL_LABELS:,} labels."
        return draw_arms(runs, caption)
    curves = {name: [named(name, n) for n in NUMBERS["full"]] for name in DEFENCES}
    caption = "thick lines the mean; counted exactly. Dashed: the same steps without labels."
    drawn = draw_against(runs, curves, ("labels", "forwards"), caption)
    control = typical(failures(runs[runs["arm"] == "control"]))
    for ax in drawn.axes:
        plots.reference_line(ax, control, "control")
    return drawn


LABELS = Experiment(
    question="What does a defence make of the prompts that it may have labelled?",
    hypothesis="In a large space, labels of prompts that were searched for remove more failures than labels of "
    "random ones.",
    design=f"""
    Labels are what costs: Ziegler et al. 2022 had thousands of examples made by hand. In a small
    space nearly any labels suffice. So the question is asked in two, of 2^21 prompts with
    transformers and of 2^64 with finite-state models. Failures are counted in both.

    Each defence has the same number of labels, beside clean batches, and takes the same steps.
    `uniform` has random prompts labelled, `hazards` random hazards, once and before it begins. The
    rounds have the finds of gcg labelled, and with each its safe twin: a safe prompt a few edits
    away. Without twins a model would soon refuse most of what is safe. `soft` has an overseer learn
    from labels, and trains on soft prompts by its verdict. The oracle has failures and false alarms
    labelled that were drawn from all there are: an upper limit. What is not equal is the price of
    search, so the figure stands beside one by compute. The declared contrast is at {EQUAL_LABELS:,} labels.
    """,
    decides=f"16 rounds of gcg against uniform prompts at {EQUAL_LABELS:,} labels and 2^64 prompts. Supported if they "
    f"leave at least {LEAST:g} decade less, with the interval above zero. Refuted if the interval shows more; "
    f"equivalent if it lies within {SAME:g} decades of zero.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=40),
        "full": Preset(("injury", LARGE), seeds=10, minutes=900),
        REGISTERED: Preset(("injury", LARGE), seeds=10, minutes=150, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"an interval above zero with a mean of {LEAST:g} decade, or one within {SAME:g} decades of zero",
    contrasts=(SEARCH,),
    exploratory=BESIDE,
    effects=effects,
    note=(
        "Runs are of two revisions. Those of soft prompts are of the later: their overseer had learnt its labels by "
        "heart, so nine earlier ones were made anew. Others were missing then, of seeds 18 and 19. The rule reads no "
        "arm with soft prompts."
    ),
    table=by_row,
    figure=figure,
)
