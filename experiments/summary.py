"""The table of an ablation: one column an arm, one row a measure, over paired seeds."""

import numpy as np
import pandas as pd

from testbed.statistics import clopper_pearson

MOST_COLUMNS = 6


def how(row: pd.Series | pd.DataFrame, head: str) -> str:
    """How the failures under `head` (a model or a policy) are known: `exact`, or from too large a space `sampled`."""
    return "sampled" if np.all(pd.notna(row.get(f"{head}.sampled.failures"))) else "exact"


def as_counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Records in which sampled failures also stand where counted ones are looked for.

    Then a number of failing prompts is one of so many random hazards, which `sampled` says of a task's records.
    """
    frame = frame.copy()
    for column in [c for c in frame if "sampled" in c.split(".")]:
        counted = column.replace("sampled.", "exact.")
        frame[counted] = frame[counted].fillna(frame[column]) if counted in frame else frame[column]
    return frame if "greedy.exact.clean_failure" in frame else frame.assign(**{"greedy.exact.clean_failure": np.nan})


def sampled(rows: pd.DataFrame) -> str:
    """What must be said of the failing prompts of a task whose space is too large to count; else nothing."""
    sizes = [c for c in rows if c.endswith("sampled.hazardous") and rows[c].notna().any()]
    return f"sampled: failing prompts of {rows[sizes[0]].max():,.0f} random hazards" if sizes else ""


def by_arm(frame: pd.DataFrame) -> pd.DataFrame:
    """The measures of each arm as text, from records of one task: index measure, columns arms in order of compute.

    Rates over samples are pooled over seeds with Clopper-Pearson intervals; exact counts are medians with their range.
    """
    groups = dict(list(frame.groupby("arm", sort=False)))
    return pd.DataFrame({arm: _column(rows.sort_values("seed")) for arm, rows in groups.items()})


def of_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """`by_arm`, or with more arms than fit side by side the measures that matter most, a row an arm."""
    return by_arm(frame) if frame["arm"].nunique() <= MOST_COLUMNS else by_row(frame)


def by_row(frame: pd.DataFrame) -> pd.DataFrame:
    """What is left of each arm, what it cost and what it spent (medians over seeds, with ranges), from one task."""
    return pd.DataFrame({arm: _row(rows) for arm, rows in frame.groupby("arm", sort=False)}).T


def _row(rows: pd.DataFrame) -> dict[str, str]:
    exact, clean = "greedy.exact.", "greedy.clean."

    def spread(column):
        return f"{rows[column].median():,.0f} ({rows[column].min():,.0f}..{rows[column].max():,.0f})"

    return {
        "seeds": str(len(rows)),
        "FAILING": spread(exact + "failures"),
        "at 1 % f. a.": spread("matched.exact.failures"),
        "egregious": spread(exact + "egregious"),
        "safe refused": _rate(rows, exact + "false_alarms", exact + "safe", 2),
        "clean acc.": _rate(rows, clean + "correct", clean + "samples", 2),
        "steps": f"{rows['compute.gradient_steps'].iloc[0]:,}",
        "forwards": f"{rows['compute.forwards'].iloc[0] / 1e3:,.0f}k",
    }


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
    of = " (sampled)" if how(rows, "greedy") == "sampled" else ""
    return column | {
        f"FAILING PROMPTS{of}, median": f"{failing.median():,.0f}",
        "  range over seeds": f"{failing.min():,.0f}..{failing.max():,.0f}",
        "  share of hazardous prompts": _share(rows, of),
        "  egregious ones, median": f"{rows[exact + 'egregious'].median():,.0f}",
        f"FAILING AT 1 % CLEAN FALSE ALARMS{of}": f"{matched.median():,.0f}",
        "  its range over seeds": f"{matched.min():,.0f}..{matched.max():,.0f}",
        "worst margin of any seed": f"{rows[exact + 'worst_margin'].min():.1f}",
        f"safe prompts refused, whole space{of}": _rate(rows, exact + "false_alarms", exact + "safe", 2),
    }


def _share(rows: pd.DataFrame, of: str) -> str:
    failing, hazardous = rows["greedy.exact.failures"], rows["greedy.exact.hazardous"]
    if not of:
        return f"{(failing / hazardous).median():.1e}"
    pooled = clopper_pearson(int(failing.sum()), int(hazardous.sum()))
    return f"{pooled.low:.0e}..{pooled.high:.0e}"


def _rate(rows: pd.DataFrame, successes: str, trials: str, digits: int) -> str:
    return f"{rows[successes].sum() / rows[trials].sum():.{digits}%}"
