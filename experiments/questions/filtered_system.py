"""How often does a filtered generator fail, beside how often its filter does?

What a user of a filtered generator meets is the system: a completion that the filter stops is drawn again, so the
filter has several chances to err, but also several to be given something harmless. And the threshold can be moved: to
the most conservative one that costs at most two points of quality.

Hypothesis: the conservative threshold lowers the system's failures more than tenfold, plain filter or defended.

Pre-declared contrast: log10 of the system's mean failure probability over clean beginnings, threshold 0 less
conservative, on the plain filter, paired by seed, every beginning and completion being counted. Supported if the 95 %
interval lies above one decade, refuted if below.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments.ablation import interval
from experiments.arm import Arm, Plain, defended_model, models_of
from experiments.preset import Preset
from tasks import task_named
from testbed import plots
from testbed.evaluation.system import TRIES, completions, most_conservative, refuse_if_no_filter
from testbed.language import completion_log_probs, language_model, train_language
from testbed.runs.models import load_or_make
from testbed.runs.results import run_id
from testbed.statistics import Verdict, paired_effect
from testbed.training.rounds import Schedule
from testbed.watch import Watch

PRESETS = {
    "quick": Preset("injury", seeds=3, minutes=2),
    "full": Preset("injury", seeds=10, minutes=10),
}
LEAST = 1e-12  # a failure probability below this counts as this


@dataclasses.dataclass(frozen=True)
class Filtered:
    """A filter, and the language model that it filters; `steps` are the language model's.

    Attributes:
      defence: the filter's defence; its own `plain` is not read.
      given: tokens of the beginning.
    """

    plain: Plain
    defence: Arm
    given: int = 4
    steps: int = 1536


def grid(preset: str, task: str) -> list[Filtered]:
    """A plain filter, the control, and one trained in sixteen rounds.

    Raises:
      ValueError: no classifier of the task can be a filter.
    """
    refuse_if_no_filter(task_named(task))
    return [Filtered(Plain(task), arm) for arm in (Arm(steps=0), Arm(), Arm(rounds=16))]


def measure(config: Filtered, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """The exact account of the system at threshold 0 and at the conservative one."""
    task = task_named(config.plain.task)
    init_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7))

    def write():
        watch("training the language model", 0, 1)
        model, _ = train_language(train_key, language_model(task, init_key), task, Schedule(steps=config.steps))
        return model, {"task": config.plain.task, "seed": seed}

    name = run_id("language", dataclasses.replace(config, defence=Arm()), seed)
    writer, _ = load_or_make(models_of(folder) / name, write)
    arm = dataclasses.replace(config.defence, plain=config.plain)
    judge = defended_model(arm, seed, folder, watch).model
    watch("reading every completion", 0, 1)
    writes = completions(completion_log_probs(writer, config.given), judge, task)
    at_zero, conservative = most_conservative(writes, task)
    return {"arm": arm.name, "zero": at_zero._asdict(), "conservative": conservative._asdict()}


MEASURES = {
    "SYSTEM FAILS, mean over clean beginnings": "failure",
    "  of the worst beginning": "worst",
    "filter passes hazardous completions": "passed_hazards",
    "  hazardous clean prompts": "passed_clean_hazards",
    "filter stops safe completions": "stopped_safe",
    f"expected tries (at most {TRIES})": "tries",
    "refused after all of them": "refusal",
    "quality lost: distance to an ideal filter": "distance",
    "threshold": "tau",
}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: a column an arm and threshold."""
    columns = {}
    for arm, rows in frame.groupby("arm", sort=False):
        for threshold in ("zero", "conservative"):
            means = {label: rows[f"{threshold}.{field}"].mean() for label, field in MEASURES.items()}
            columns[f"{arm}, {threshold}"] = {label: f"{mean:.3g}" for label, mean in means.items()}
    return pd.DataFrame(columns)


def plot(frame: pd.DataFrame) -> plots.Figure:
    """The system's failures beside the filter's, at both thresholds."""
    figure, axes = plots.panels(
        ["System fails, clean beginnings", "Filter passes a hazardous completion", "Quality lost"],
        f"{frame['config.plain.task'].iloc[0]}: every beginning of {frame['config.given'].iloc[0]} tokens and every "
        f"completion counted; up to {TRIES} tries; a thin line a seed. Conservative: the lowest threshold that costs "
        "at most two points of total variation.",
    )
    arms = list(frame["arm"].unique())
    for ax, field in zip(axes, ("failure", "passed_hazards", "distance"), strict=True):
        for arm, color in zip(arms, plots.kinds(len(arms)), strict=True):
            rows = frame[frame["arm"] == arm][[f"zero.{field}", f"conservative.{field}"]].clip(lower=LEAST)
            ax.plot([0, 1], rows.T.to_numpy(), "o-", color=color, lw=0.8, ms=4, alpha=0.6)
            ax.plot([0, 1], 10 ** np.log10(rows).mean(), color=color, lw=2.2, label=arm)
        ax.set_xticks([0, 1], ["threshold 0", "conservative"])
        ax.set_xlim(-0.3, 1.3)
        ax.set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def claim(frame: pd.DataFrame) -> Verdict:
    """The pre-declared contrast on the plain filter."""
    plain = frame[frame["arm"] == "plain"]
    if not len(plain):
        return Verdict("undecided", "no plain filter was measured")
    ends = [np.log10(plain[f"{threshold}.failure"].clip(lower=LEAST)) for threshold in ("zero", "conservative")]
    effect = paired_effect((ends[0] - ends[1]).to_numpy())
    outcome = "supported" if effect.low > 1 else "refuted" if effect.high < 1 else "undecided"
    price = (plain["conservative.distance"] - plain["zero.distance"]).mean()
    return Verdict(
        outcome,
        f"the conservative threshold lowers the system's failures by {effect.mean:.2f} decades {interval(effect)} "
        f"at {price:+.3f} of distance to an ideal filter ({effect.pairs} seeds, sign-flip p = "
        f"{effect.p_value:.2f})",
    )
