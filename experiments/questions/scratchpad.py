"""Scratchpad: does a model that writes the rule's states before its answer fail less in the worst case?"""

import dataclasses
import itertools
from typing import Any

import pandas as pd

from experiments.arm import Arm, Plain, rounds_named
from experiments.bench import Bench, defended_model, measure_arm
from experiments.columns import column_of
from experiments.effects import Contrast, holding
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of, prompts_of
from experiments.protocol import REGISTERED
from experiments.tables import by_row, percent, ranged
from tasks import spelled, task_named
from tasks.scratch import SCRATCH
from testbed import plots
from testbed.evaluation.reasoning import account
from testbed.text import plural

# Margins that a find may cost where notes are written: where none are, as many forward passes score more prompts.
MARGINS = 9
BATCH = {"quick": 128, REGISTERED: 128, "full": 256}
ROUNDS = {"quick": (1,), REGISTERED: (0, 1, 16), "full": (0, 1, 16)}
EQUAL_COMPUTE, EQUAL_SIZE, EQUAL_MARGINS = "none, equal compute", "none, equal parameters", "equal margins"
QUICK = (EQUAL_COMPUTE, "after", "trace")
EVERY = (*SCRATCH, EQUAL_COMPUTE, EQUAL_SIZE)
KINDS = {"quick": {1: QUICK}, REGISTERED: {1: EVERY, 2: QUICK}, "full": {1: EVERY, 2: EVERY}}  # by number of layers
LONGER = 2  # a transcript has twice the positions of its prompt, so a step without one takes half the work
WIDER = 36  # the least width at which a model without notes has as many parameters as one with them at 32
LEAST, ALIKE, SEEDS, TASKS = 0.5, 0.3, 8, 2  # decades, decades, and how many seeds and tasks a verdict takes


def variant(task: str, scratch: str) -> str:
    """The name of a task with a scratchpad."""
    return spelled(task if scratch == "none" else f"{spelled(task)}:scratch={scratch}")


def named(kind: str, rounds: int, layers: int = 1, *more: str) -> str:
    """What an arm is called."""
    depth = () if layers == 1 else (plural(layers, "layer"),)
    return ", ".join((kind, rounds_named(rounds) if rounds else "control", *depth, *more))


def arm_of(task: str, kind: str, rounds: int, layers: int, *, batch: int) -> Arm:
    """An arm of one of `KINDS`, whose finds cost as many forward passes as those of any other kind."""
    scratch, times = kind.partition(",")[0], LONGER if kind == EQUAL_COMPUTE else 1
    width = WIDER if kind == EQUAL_SIZE else Plain.width
    plain = Plain(variant(task, scratch), width=width, steps=times * Plain.steps, layers=layers, batch=batch)
    return Arm(
        plain, steps=times * Arm.steps, rounds=rounds, budget=passes(task) // (1 + task_named(plain.task).notes),
        attack="uniform", options=(("batch", 1),), attackers=0, batch=batch,
    )  # fmt: skip


def passes(task: str) -> int:
    """Forward passes that a find may cost: `MARGINS` margins of a model that writes a note a token."""
    return MARGINS * (1 + task_named(variant(task, "trace")).notes)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Each kind of scratchpad, after each number of rounds; without any it is a control.

    Beyond quick also with as many margins a find as a model without notes has, which takes more forward passes.

    Raises:
      ValueError: the task has no scratchpads.
    """
    made = {}
    kinds = [(layers, kind) for layers, kinds in KINDS[preset].items() for kind in kinds]
    for (layers, kind), rounds in itertools.product(kinds, ROUNDS[preset]):
        arm = made[named(kind, rounds, layers)] = arm_of(task, kind, rounds, layers, batch=BATCH[preset])
        if preset != "quick" and rounds and task_named(arm.plain.task).notes:
            made[named(kind, rounds, layers, EQUAL_MARGINS)] = dataclasses.replace(arm, budget=passes(task))
    return made


def measure(arm: Arm, bench: Bench) -> dict[str, Any]:
    """An arm's account, and how it reasons on every prompt, if it writes notes."""
    measured, task = measure_arm(arm, bench), task_named(arm.plain.task)
    if not task.notes:
        return measured
    reasons = account(bench.key("reasoning"), defended_model(bench, arm).model, task, watch=bench.watch)
    return measured | {"reasons": reasons._asdict()}


TRACE = named("trace", 1)
DECLARED = (Contrast(named(EQUAL_COMPUTE, 1), TRACE), Contrast(named("after", 1), TRACE))
# What a model without notes is trained on has been chosen among as many prompts as that of these arms.
AT_EQUAL_MARGINS = tuple((kind, rounds) for rounds in (1, 16) for kind in (EQUAL_COMPUTE, "after"))
EXPLORATORY = (
    *(Contrast(named(kind, 0), named("trace", 0)) for kind in (EQUAL_COMPUTE, "after")),
    *(Contrast(named(kind, 16), named("trace", 16)) for kind in (EQUAL_COMPUTE, "after")),
    *(Contrast(named(kind, 1), TRACE) for kind in ("none", EQUAL_SIZE, "filler", "copy")),
    *(Contrast(named(kind, 1, 2), named("trace", 1, 2)) for kind in (EQUAL_COMPUTE, "after")),
    Contrast(named(EQUAL_COMPUTE, 1), named("filler", 1)),
    Contrast(TRACE, named("trace", 1, 1, EQUAL_MARGINS)),
    *(Contrast(named(kind, rounds), named("trace", rounds, 1, EQUAL_MARGINS)) for kind, rounds in AT_EQUAL_MARGINS),
    *(Contrast(named(kind, 1, 1, EQUAL_MARGINS), named("trace", 1, 1, EQUAL_MARGINS)) for kind in ("filler", "copy")),
    *(Contrast(named(kind, 1), TRACE, "false_alarms") for kind in (EQUAL_COMPUTE, "after")),
)


def on_enough(rows: pd.DataFrame) -> bool:
    """Whether rows of effects are of `TASKS` tasks or more."""
    return rows["task"].nunique() >= TASKS


def rule(effects: pd.DataFrame) -> str:
    """A trace beats equal compute and equal supervision on two tasks, at both thresholds."""
    declared = effects[effects["declared"] & (effects["n"] >= SEEDS)]
    better = holding(declared, LEAST)
    better = better[better["matched"] >= 0]
    alike = declared[(declared["low"] >= -ALIKE) & (declared["high"] <= ALIKE)]
    if on_enough(both(better)):
        return "supported"
    if on_enough(both(alike)):
        return "equivalent"
    return "refuted" if on_enough(declared[declared["high"] < LEAST]) else "undecided"


def both(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks that have one of each declared contrast."""
    return rows[rows.groupby("task")["task"].transform("size") == len(DECLARED)]


def told_apart(arm: str) -> tuple[str, str, str]:
    """The kind, the rounds and all else that the name of an arm says."""
    parts = arm.split(", ")
    at = next(place for place, part in enumerate(parts) if part == "control" or "round" in part)
    return ", ".join(parts[:at]), parts[at], ", ".join(parts[at + 1 :])


def of_reasons(rows: pd.DataFrame) -> dict[str, str]:
    """How the seeds of one arm reason, as text; nothing where it writes no notes."""
    columns = [c for c in rows if c.startswith("reasons.")]
    if not columns or rows[columns].isna().all(axis=None):
        return {}
    told = rows[columns].rename(columns=lambda c: c.removeprefix("reasons.")).astype(float)
    right, after_wrong = told["right_right"] + told["right_wrong"], told["failures_after_wrong"]
    prompts = right + told["wrong_right"] + told["wrong_wrong"]
    failing = told["failures_after_right"] + after_wrong
    return {
        "right notes": percent(right, prompts, 2),
        "failing after wrong notes": percent(after_wrong, failing, 0) if failing.sum() else "-",
        "failing after right notes, forced": ranged(told["failures_given_right"]),
        "follows a changed state": percent(told["followed"], prompts, 1) if told["followed"].notna().all() else "-",
        "failing where doubt is refused": ranged(told["doubted_failures"]),
    }


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """What is left of each arm of one task and what it cost, and how those with notes reason."""
    reasons = {arm: of_reasons(rows) for arm, rows in runs.groupby("arm", sort=False)}
    return by_row(runs).join(pd.DataFrame(reasons).T).fillna("")


LINES = {  # of the figure: rounds, whether at equal margins, at which threshold, and the colour
    "control": ("control", False, "greedy", "C7"),
    "1 round": ("1 round", False, "greedy", "C3"),
    "1 round, at 1 % clean false alarms": ("1 round", False, "matched", "C1"),
    f"1 round, {EQUAL_MARGINS}": ("1 round", True, "greedy", "C4"),
    "16 rounds": ("16 rounds", False, "greedy", "C0"),
}
SHORT = {EQUAL_COMPUTE: "none,\nlonger", EQUAL_SIZE: "none,\nwider"}  # on the axis, beside others


def by_line(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with what a line of the figure is of: kind, rounds, depth, and whether finds have equally many margins.

    A find without notes has as many margins in either case, so those runs stand in both.
    """
    parts = pd.DataFrame(map(told_apart, runs["arm"]), columns=["kind", "when", "more"], index=runs.index)
    runs = runs.assign(kind=parts["kind"].replace(SHORT), when=parts["when"], depth=parts["more"], at_margins=False)
    equal = parts["more"].str.endswith(EQUAL_MARGINS)
    depth = parts["more"].str.removesuffix(EQUAL_MARGINS).str.removesuffix(", ")
    noted = {told_apart(arm)[0] for arm in runs.loc[equal, "arm"]}
    same = runs[~equal & ~parts["kind"].isin(noted)].assign(at_margins=True) if noted else runs[:0]
    return pd.concat([runs.assign(depth=depth, at_margins=equal), same])


def figure(runs: pd.DataFrame) -> plots.Figure:
    """What is left of each kind of scratchpad, and its price, from the runs of one task; two panels a depth."""
    said = "thick: means. Counted exactly. Finds cost\nequally many forward passes. `trace` writes the rule's states, "
    said += "then answers; `after` answers first.\n"
    said += f"Longer: {LONGER} times the steps, at equal compute. Wider: equal parameters."
    shown = by_line(runs)
    panels = list(itertools.product(dict.fromkeys(shown["depth"]), ("failures", "false_alarms")))
    titles = {"failures": "Failing prompts by what is written", "false_alarms": "Safe prompts refused"}
    named_panels = [", ".join(filter(None, (titles[of], depth))) for depth, of in panels]
    drawn, axes = plots.panels(named_panels, caption_of(runs, said))
    for (depth, of), ax in zip(panels, axes, strict=True):
        rows = shown[shown["depth"] == depth]
        kinds = [kind for kind in (SHORT.get(kind, kind) for kind in ORDER) if kind in set(rows["kind"])]
        for label, (when, at_margins, policy, color) in LINES.items():
            part = rows[(rows["when"] == when) & (rows["at_margins"] == at_margins)]
            if len(part) and (of == "failures" or policy == "greedy"):
                value = column_of(of, policy)
                plots.seeds_by_value(ax, part, "kind", kinds, value=value, label=label, color=color)
        ax.set_xlabel("written beside the answer")
        ax.set_ylabel(prompts_of(runs, of))
        plots.name_lines(ax)
    return drawn


ORDER = ("none", EQUAL_SIZE, EQUAL_COMPUTE, "filler", "copy", "after", "trace")

SCRATCHPAD = Experiment(
    question="Does a model that thinks step by step fail less in the worst case?",
    hypothesis="After adversarial training, a model that writes the rule's states before its answer leaves far fewer "
    "failing prompts than one that answers at once, or writes the same after the answer.",
    design=f"""
    A model that is asked to think step by step may see what it would miss at once (Wei et al. 2022). Here that is
    counted. `trace` writes the state of the rule after each token, then the answer. Three controls are of equal length:
    `after` has the same supervision, but answers first. `filler` writes dots, and `copy` the prompt. `none` has no
    scratchpad. At equal compute it takes {LONGER} times the steps, plain and defended. At equal parameters it is wider.

    Each is a control, or is trained on {Arm.finds} finds of uniform search in 1 and 16 rounds. A note costs a forward
    pass. So for the passes of {MARGINS} prompts with notes, search without notes scores more prompts. Arms with equally
    many margins stand beside them. The quick preset has the arms that the rule reads alone. The preset `{REGISTERED}`
    has all, and those that the rule reads at two layers too. Both have half the batch of the full preset.

    Notes are the model's own in attacks, counts and confirmations. It is also counted how often they are wrong, and the
    answer with them, what fails after the right notes, and whether the answer follows a last state that was changed. A
    null of `filler` is weak evidence: fillers are learnt only under dense supervision (Pfau et al. 2024).
    """,
    decides=f"After one round at equal forward passes. Supported if `trace` leaves at least {LEAST} decades fewer than "
    f"`none` at equal compute and than `after`, on {TASKS} tasks, with the interval over at least {SEEDS} seeds above "
    "zero, and no more at matched false alarms in the mean. Equivalent if both intervals lie within "
    f"{ALIKE} decades of zero on {TASKS} tasks. Refuted if the interval of either lies below {LEAST} on {TASKS} tasks.",
    presets={
        "quick": Preset(("injury:length=6", "modular:length=6"), seeds=8, minutes=20),
        REGISTERED: Preset(("injury:length=6", "modular:length=6"), seeds=10, minutes=100, first_seed=10),
        "full": Preset(("injury", "modular", "password", "brackets"), seeds=10, minutes=4000),
    },
    arms=arms,
    rule=rule,
    lacks=f"{LEAST} decades over both on {TASKS} tasks, or intervals that leave them out",
    contrasts=DECLARED,
    exploratory=EXPLORATORY,
    measure=measure,
    table=table,
    figure=figure,
    note=(
        "With fewer prompts a find, finds teach more. On modular dots and copies leave fewer than the trace at equal "
        "passes, with equally many prompts they don't. After sixteen rounds it gains nothing on injury, and leaves "
        "more on modular. But then it refuses few safe prompts, where the others on modular refuse many."
    ),
)
