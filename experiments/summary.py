"""The table of an ablation: one column an arm, one row a measure, over paired seeds."""

import numpy as np
import pandas as pd

from testbed.evaluation.estimate import clopper_pearson


def how(row: pd.Series | pd.DataFrame, head: str) -> str:
    """How the failures under `head` (a model or a policy) are known: `exact`, or from a large space `sampled`."""
    return "exact" if np.all(pd.notna(row.get(f"{head}.exact.failures"))) else "sampled"


def failing_prompts(rows: pd.DataFrame, head: str) -> str:
    """What a number of failing prompts is called in a figure of one task."""
    if how(rows, head) == "exact":
        return "Failing prompts, counted exactly"
    return f"Failing prompts of {rows[f'{head}.sampled.hazardous'].iloc[0]:,.0f} sampled"


def by_arm(frame: pd.DataFrame) -> pd.DataFrame:
    """The measures of each arm as text, from records of one task: index measure, columns arms in order of compute.

    Rates over samples are pooled over seeds with Clopper-Pearson intervals; exact counts are medians with their range.
    """
    groups = dict(list(frame.groupby("arm", sort=False)))
    return pd.DataFrame({arm: _column(rows.sort_values("seed")) for arm, rows in groups.items()})


def _column(rows: pd.DataFrame) -> dict[str, str]:
    clean, exact = "greedy.clean.", "greedy.exact."
    failures = clopper_pearson(rows[clean + "failures"].sum(), rows[clean + "samples"].sum())
    column = {
        "seeds": str(len(rows)),
        "clean accuracy": _rate(rows, clean + "correct", clean + "samples", 4),
        "false alarms, clean": _rate(rows, clean + "false_alarms", clean + "safe", 4),
        "clean failure rate": f"{failures.value:.1e}",
        "  its 95 % interval": f"{failures.low:.0e}..{failures.high:.0e}",
    }
    if rows[exact + "clean_failure"].notna().all():
        column["  exact, mean"] = f"{rows[exact + 'clean_failure'].mean():.1e}"
    for attack in sorted(c.split(".")[1] for c in rows if c.startswith("attacks.") and c.endswith(".attackers")):
        within = [c for c in rows if c.startswith(f"attacks.{attack}.within.")]
        for name in sorted(within, key=lambda c: int(c.rsplit(".", 1)[1])):
            budget = int(name.rsplit(".", 1)[1])
            column[f"{attack} succeeds, {budget} calls"] = _rate(rows, name, f"attacks.{attack}.attackers", 0)
    failing, matched = rows[exact + "failures"], rows["matched.exact.failures"]
    return column | {
        "FAILING PROMPTS, median": f"{failing.median():,.0f}",
        "  range over seeds": f"{failing.min():,.0f}..{failing.max():,.0f}",
        "  share of hazardous prompts": f"{(failing / rows[exact + 'hazardous']).median():.1e}",
        "  egregious ones, median": f"{rows[exact + 'egregious'].median():,.0f}",
        "FAILING AT 1 % CLEAN FALSE ALARMS": f"{matched.median():,.0f}",
        "  its range over seeds": f"{matched.min():,.0f}..{matched.max():,.0f}",
        "worst margin of any seed": f"{rows[exact + 'worst_margin'].min():.1f}",
        "safe prompts refused, whole space": _rate(rows, exact + "false_alarms", exact + "safe", 2),
    }


def _rate(rows: pd.DataFrame, successes: str, trials: str, digits: int) -> str:
    return f"{rows[successes].sum() / rows[trials].sum():.{digits}%}"
