"""Relaxed prompts: distributions over prompts and an overseer, in place of prompts that were found."""

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import pandas as pd

from experiments.arm import Arm, Recipe
from experiments.columns import by_task
from experiments.effects import Contrast, holding, of_contrast, rows_of, table
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_against
from experiments.grids import EQUAL_LABELS, LARGER, SEARCHED, counted_arm, counted_kind
from experiments.protocol import REGISTERED
from experiments.tables import by_row
from tasks import task_named
from testbed import plots
from testbed.training.latent import USUAL_ASCENT

# Prompts of a batch for each soft prompt. On seed 100 four times as many soft prompts left no fewer failures at 2^64.
# At 2^21 sixteen times as many left half a decade fewer, at six times the price.
EVERY = 16
LEAST = 1.0  # decades
# Soft prompts that are kept, and prompts of a batch for each that is climbed on: one step, which costs about as much.
KEPT, KEPT_EVERY = 1024, 4
PRICE = 1 + Fraction(USUAL_ASCENT.steps + 1, EVERY)  # of a step on soft prompts, in plain ones of a classifier
SPARSE = Recipe(soft_every=EVERY)
LAYER = {"transformer": 1, "machine": 0}  # between the blocks; under the signs
BALLS = {"residual balls": ("untargeted", 0.3), "noise": ("noise", 0.3), "linear overseer": ("pseudo", 1.0)}
SOFT = {
    name: dataclasses.replace(SPARSE, **how)
    for name, how in {
        "soft, drawn": dict(loss="soft"),
        "soft, exact": dict(loss="soft", overseer="exact"),
        "soft, learned": dict(loss="soft", overseer="learned", overseer_labels=EQUAL_LABELS),
        "soft, kept": dict(loss="soft", soft_every=KEPT_EVERY, soft_kept=KEPT, ascent_steps=1),
        "drawn prompts": dict(loss="guided"),
    }.items()
}
WRONG = {
    "1 % misjudged": dict(overseer_errors=0.01),
    "10 % misjudged": dict(overseer_errors=0.1),
    "half of the hazards unseen": dict(overseer_unseen=0.5),
}
SLOW = "linear overseer"  # whose covariance, of as many numbers as a machine has bits and tokens, takes minutes an arm
CLASSIFIERS = {"soft, exact", "soft, learned"}  # they need a rule of a finite state, or two answers
SEARCH, GUIDED = "16 rounds", "16 rounds, gbda"  # whose finds are drawn from soft prompts that climb


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Control, coverage, search, residual balls and soft prompts at equal steps.

    Registered are also the first three at the price of soft prompts, and `SLOW` only of transformers. In full also
    search with soft steps, search that draws from soft prompts, and a checker that makes mistakes.
    """
    kind = counted_kind(task)
    arm, layer = functools.partial(counted_arm, task), LAYER[kind]
    baselines: dict[str, dict[str, Any]] = {
        "control": {},
        "uniform": dict(recipe=Recipe(fresh="uniform", fresh_labels=EQUAL_LABELS)),
        "hazards": dict(recipe=Recipe(fresh="hazards", fresh_labels=EQUAL_LABELS)),
        SEARCH: dict(rounds=16, finds=EQUAL_LABELS, recipe=SEARCHED),
    }
    judged_exactly = task_named(task).checker is not None and task_named(task).answer_length == 1
    fit = [name for name in SOFT if judged_exactly or name not in CLASSIFIERS]
    made = {"plain": arm(steps=0)} | {name: arm(**fields) for name, fields in baselines.items()}
    balls = [name for name in BALLS if name != SLOW or preset == "full" or kind == "transformer"]
    places = {name: BALLS[name] for name in balls}
    made |= {name: arm(recipe=Recipe(loss=loss, layer=layer, eps=eps)) for name, (loss, eps) in places.items()}
    made |= {name: arm(recipe=SOFT[name]) for name in fit}
    if preset == "quick":
        return made
    steps = int(PRICE * made["control"].steps)
    made |= {f"{name}, equal price": arm(**fields, steps=steps) for name, fields in baselines.items()}
    if preset != "full":
        return made
    judged = SOFT["soft, drawn"]
    both = dataclasses.replace(judged, kept_twins=True)
    wrong = {f"soft, {name}": arm(recipe=dataclasses.replace(judged, **how)) for name, how in WRONG.items()}
    wrong = wrong if task_named(task).answer_length == 1 else {}
    rounds = dict(rounds=16, finds=EQUAL_LABELS)
    searched = {
        "16 rounds and soft": arm(**rounds, recipe=both),
        GUIDED: arm(**rounds, attack="gbda", recipe=SEARCHED),
    }
    return made | wrong | searched


DECLARED = (Contrast(SEARCH, "soft, drawn"),)
BESIDE = (
    *(Contrast(SEARCH, name) for name in SOFT if name != "soft, drawn"),
    *(Contrast(before, "soft, drawn") for before in ("control", "uniform", "hazards", *BALLS)),
    *(Contrast(f"{before}, equal price", "soft, drawn") for before in ("control", "uniform", "hazards", SEARCH)),
    *(Contrast("control", name) for name in BALLS),
    Contrast(SEARCH, "16 rounds and soft"),
    Contrast(SEARCH, GUIDED),
    *(Contrast("soft, drawn", f"soft, {name}") for name in WRONG),
    Contrast(SEARCH, "soft, drawn", "false_alarms"),
)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The contrasts; that of soft prompts with search is declared in large spaces alone."""
    rows: list[dict[str, Any]] = []
    for task, part in by_task(runs).items():
        rows += rows_of(part, DECLARED, declared=task in LARGER)
    return table(rows + rows_of(runs, BESIDE, declared=False))


def rule(effects: pd.DataFrame) -> str:
    """Soft prompts leave a decade less than search on both large tasks."""
    rows = of_contrast(effects[effects["declared"]], DECLARED[0])
    if len(holding(rows, LEAST)) == len(LARGER):
        return "supported"
    return "refuted" if (rows["high"] < LEAST).any() else "undecided"


def figure(runs: pd.DataFrame) -> plots.Figure:
    """Failing prompts against labels, against all verdicts of the checker, and against compute, from one task."""
    names = [name for name in dict.fromkeys(runs["arm"]) if name != "plain"]
    return draw_against(runs, {name: [name] for name in names}, caption="large points the mean; counted exactly.")


RELAXED_PROMPTS = Experiment(
    question="Do soft prompts and an overseer remove failures that search does not find?",
    hypothesis="Where the overseer's verdicts cost no labels, training on soft prompts leaves fewer failing prompts "
    "than search does.",
    design=f"""
    `relaxed_training` perturbs residuals, in a space so small that random labelled prompts solve the
    task. Here the relaxed inputs are distributions over prompts, and the space may have 2^64 of
    them, all counted.

    An adversary climbs the probability of a catastrophe under such a soft prompt. An overseer says
    how likely what it draws is hazardous: `exact` by a sum over all prompts, `drawn` by 32 prompts
    that are checked, `learned` as a model that has {EQUAL_LABELS:,} labels. `drawn prompts` trains on a
    prompt that each soft prompt draws. For {EVERY} prompts of a batch there is one soft prompt, which
    climbs {USUAL_ASCENT.steps} steps from noise. With `kept` there is one for {KEPT_EVERY}, of {KEPT:,} that are
    kept from step to step and climb one more each time. Beside them stand residual balls, noise and a
    linear overseer, as in `relaxed_training`; the last, which is slow, in small spaces alone.

    Every defence must beat the same steps on clean data, on {EQUAL_LABELS:,} labelled prompts, uniform or
    hazardous, and on {EQUAL_LABELS:,} finds of gcg in 16 rounds. The presets `{REGISTERED}` and full give these
    also {float(PRICE):.3g} times the steps. That is the price of soft prompts, but for what a learned overseer's
    own training costs. The full preset also has a search that draws from soft prompts (gbda), whose
    finds are pooled in rounds, and overseers whose checker errs, always on the same prompts:
    {", ".join(WRONG)}. Labels do not count the overseer's verdicts; the figure's second panel does.
    """,
    decides=f"Soft prompts with `drawn` against 16 rounds of gcg on the two tasks of 2^64 prompts. Supported if they "
    f"leave at least {LEAST:g} decade less on both, with intervals above zero. Refuted if an interval of either lies "
    f"below {LEAST:g}.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=12),
        "full": Preset(("injury", *LARGER), seeds=10, minutes=400),
        REGISTERED: Preset(("injury", *LARGER), seeds=10, minutes=100, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"{LEAST:g} decade less than search on both tasks, or an interval below that on one",
    contrasts=DECLARED,
    exploratory=BESIDE,
    effects=effects,
    table=by_row,
    figure=figure,
    note="Soft prompts leave fewer failures than more clean steps do, and more than search. In the large spaces "
    "they refuse half of what is safe, as labelled hazards do. Residual balls mostly leave nothing there "
    "because they refuse everything; at matched false alarms they leave more than the control. At their "
    "price search leaves fewer still on `injury_two`.",
)
