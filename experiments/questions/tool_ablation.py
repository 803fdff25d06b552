"""What is each part of the rewriting tool worth?

"We did not analyze the effectiveness of the individual tools." (Redwood Research 2022)

People in that project edited text with a tool that showed which words matter (saliency), which replacements lower the
score, and filled in phrases. Here the same parts are searches, with and without each other, and time is calls of the
model: random edits of clean prompts (no tool), replacements anywhere, replacements where the gradient points (in one
pass over the prompt and in two; without insertions and deletions), phrases filled in, and both. Every tool starts at a
random hazardous prompt, not at a clean one; what that alone is worth, uniform sampling tells.

Hypothesis: tools at least halve the time to the first failure (13 against 26 minutes in Ziegler et al. 2022). Pre-
declared contrasts, on models trained in one round against uniform search: log10 of the median calls to the first
failure, each tool against random edits, paired by seed (a median beyond the budget counts as the budget). Supported if
some tool at least halves it, 95 % interval below one, on every task; refuted if none does on any, so that noise alone
can refute: read the intervals.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments import arm as arms
from experiments.ablation import BY_TASK, brief_effects, caption_of, holm, times
from experiments.arm import Arm, Plain, defended_model
from experiments.preset import Preset
from tasks import task_named
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.attacks.combine import chain
from testbed.attacks.saliency import infill, saliency
from testbed.evaluation.account import calls_to_failure
from testbed.evaluation.survival import median_within
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.statistics import Effect, Verdict, paired_effect
from testbed.watch import Watch

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

TASKS = "injury,password"
PRESETS = {
    "quick": Preset(TASKS, seeds=3, minutes=5),
    "full": Preset(TASKS, seeds=10, minutes=15),
}
NO_TOOL, TOOLS = "clean_edits", ("coordinate", "saliency", "infill")
WAYS = {name: lambda task, name=name: ATTACKS[name]() for name in (NO_TOOL, "uniform", *TOOLS)} | {
    "saliency, one pass": lambda task: saliency(patience=task.prompt_length),
    "saliency, no shifts": lambda task: saliency(shifts=False),
    "saliency and infill": lambda task: chain(saliency(), infill(), steps=1),
}
PARTS = {  # not pre-declared: what is compared with what
    "where to start": ("uniform", NO_TOOL),
    "saliency": ("saliency", "coordinate"),
    "a second pass": ("saliency", "saliency, one pass"),
    "insertion and deletion": ("saliency", "saliency, no shifts"),
    "phrases besides": ("saliency and infill", "saliency"),
}
BUDGET = 10_000


def grid(preset: str, task: str) -> list[Arm]:
    """The model that is searched."""
    return [Arm(Plain(task), rounds=1, finds=128, attack="uniform", label="1 round of uniform")]


def measure(arm: Arm, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """The searched model's account, and for each way to search the calls that each attacker needed to a failure."""
    measured = arms.measure(arm, seed, folder, watch, evaluation=())
    task, key = task_named(arm.plain.task), jax.random.fold_in(jax.random.key(seed), 7)
    objective = Objective(task, defended_model(arm, seed, folder, watch).model, greedy(task))
    budget, first = BUDGET * objective.forwards, {}
    for number, (name, make) in enumerate(WAYS.items()):
        watch("attacking", number, len(WAYS))
        first[name] = calls_to_failure(key, objective, make(task), arm.attackers, budget)
    return measured | {"budget": budget, "first": first}


def medians(frame):
    """Median calls, a row a seed, a column a way to search."""
    names = [name for name in WAYS if f"first.{name}" in frame and frame[f"first.{name}"].notna().all()]  # older: fewer
    of = lambda row: [median_within(row[f"first.{name}"], row["budget"]) for name in names]
    return frame.set_index("seed").apply(of, axis=1, result_type="expand").set_axis(names, axis=1)


def worth(calls: pd.DataFrame) -> dict[str, Effect]:
    """What each of `PARTS` saves, from log10 of the median calls; of those that the records hold."""
    there = {part: pair for part, pair in PARTS.items() if set(pair) <= set(calls)}
    return {part: paired_effect((calls[less] - calls[more]).to_numpy()) for part, (more, less) in there.items()}


def summary(frame):
    """Median calls to the first failure, seed by seed."""
    return medians(frame).T.map("{:,.0f}".format).rename(columns=lambda seed: f"seed {seed}")


def plot(frame) -> plots.Figure:
    """Median calls to the first failure by tool, from one task."""
    table = medians(frame).reset_index().melt("seed", var_name="arm", value_name="calls")
    figure, (ax,) = plots.panels(["Median calls to the first failure"], caption_of(frame, f"at most {BUDGET:,}."))
    plots.dots_by_arm(ax, table, "calls", "calls", "C0")
    return figure


def claim(frame) -> Verdict:
    """What each tool is worth on each task, and the verdict."""
    effects = {}
    for task, rows in frame.groupby(BY_TASK, sort=False):
        calls = np.log10(medians(rows))
        effects |= {(task, tool): paired_effect((calls[tool] - calls[NO_TOOL]).to_numpy()) for tool in TOOLS}
    p_values = holm([effect.p_value for effect in effects.values()])
    lines = [
        f"{task}: {tool} times {times(e)} (Holm p = {p:.2f})"
        for ((task, tool), e), p in zip(effects.items(), p_values, strict=True)
    ]
    halves = {key for key, e in effects.items() if e.mean <= np.log10(0.5) and e.high < 0}
    tasks = dict.fromkeys(task for task, _ in effects)
    everywhere = any(all((task, tool) in halves for task in tasks) for tool in TOOLS)
    why = f"calls to the first failure against random edits of clean prompts: {'; '.join(lines)}"
    for task, rows in frame.groupby(BY_TASK, sort=False):
        if parts := worth(np.log10(medians(rows))):
            why += f"; not pre-declared, decades of calls that parts save on {task}: {brief_effects(parts)}"
    brief = "\n".join(
        f"decades of calls, {tool} over {NO_TOOL}: {brief_effects({task: effects[task, tool] for task in tasks})}"
        for tool in TOOLS
    )
    return Verdict("supported" if everywhere else "undecided" if halves else "refuted", why, brief)
