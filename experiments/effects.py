"""Effects as a table: a row a contrast and task, from which everything that is shown is rendered.

An effect is positive where `after` has less of what is counted than `before`. Its unit is decades
of log10(count + 1), unless a row says otherwise.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.columns import COUNTED, PAIRING, by_task, counts, decades, is_sampled, wide, worst_margin
from testbed.statistics import Effect, Interval, holm, paired_effect, seeds_for

COLUMNS = {
    "task": str, "before": str, "after": str, "of": str, "unit": str, "declared": bool, "n": int,
    "effect": float, "low": float, "high": float, "least": float, "most": float,
    "matched": float, "matched_low": float, "matched_high": float, "p": float, "holm": float,
}  # fmt: skip


MARGIN = "worst_margin"  # what no count of zero hides: how far a model is from failing


class Contrast(NamedTuple):
    """Two arms, and what is counted: does `after` leave less than `before`?

    `of` is one of `COUNTED`, or `MARGIN`: is the worst margin of `after` higher? An arm may also be
    several, named together in a tuple: then they are averaged within each seed. With `minus` it is a
    difference of effects: how much more this contrast removes than that one.
    """

    before: str | tuple[str, ...]
    after: str | tuple[str, ...]
    of: str = "failures"
    before_name: str = ""
    after_name: str = ""
    minus: "Contrast | None" = None

    @property
    def counted(self) -> str:
        """What is counted, in words."""
        named = COUNTED | {MARGIN: "worst margin"}
        return named.get(self.of, self.of) + (", how much more" if self.minus else "")

    @property
    def unit(self) -> str:
        """What an effect is told in."""
        return "threshold steps" if self.of == MARGIN else "decades"

    @property
    def names(self) -> tuple[str, str]:
        """What both sides are called."""
        own = self.before_name or str(self.before), self.after_name or str(self.after)
        return own if self.minus is None else (" to ".join(self.minus.names), " to ".join(own))


def refuse_duplicates(runs: pd.DataFrame) -> None:
    """Make sure that no two runs share task, arm and seed.

    Raises:
      ValueError: some do: a pair would be an average over different configs.
    """
    twice = runs.duplicated(PAIRING, keep=False)
    if twice.any():
        task, arm, seed = runs.loc[twice, PAIRING].iloc[0]
        raise ValueError(
            f"{twice.sum()} of {len(runs)} runs share task, arm and seed (first: {task}, {arm!r}, seed {seed}): "
            "runs of several presets are mixed; choose one (preset=...), or rows of one config_id"
        )


def amounts(runs: pd.DataFrame, of: str, policy: str = "greedy") -> pd.Series:
    """What a contrast compares, a run each, the less the better: decades of a count, or the worst margin below zero.

    The latter is NaN at matched false alarms: a threshold moves all margins alike.
    """
    if of != MARGIN:
        return decades(counts(runs, of, policy))
    return -worst_margin(runs) if policy == "greedy" else pd.Series(np.nan, runs.index)


def differences(runs: pd.DataFrame, contrast: Contrast, policy: str = "greedy") -> np.ndarray:
    """By how much `after` leaves less than `before`, in the contrast's unit, one for each seed that has all arms.

    There is none where some of these arms are counted and others sampled: these numbers are of different prompts.
    """
    alike = wide(runs, is_sampled(runs)).reindex(columns=_arms(contrast)).nunique(axis=1) == 1
    return _by_seed(runs, contrast, policy)[alike].dropna().to_numpy()


def _sides(contrast: Contrast) -> tuple[list[str], list[str]]:
    before, after = ([arms] if isinstance(arms, str) else list(arms) for arms in contrast[:2])
    return before, after


def _arms(contrast: Contrast) -> list[str]:
    """All arms that a contrast compares, each once."""
    before, after = _sides(contrast)
    return list(dict.fromkeys([*before, *after, *(_arms(contrast.minus) if contrast.minus else [])]))


def _by_seed(runs: pd.DataFrame, contrast: Contrast, policy: str) -> pd.Series:
    """The difference in each seed; NaN where an arm is missing."""
    left, (before, after) = wide(runs, amounts(runs, contrast.of, policy)), _sides(contrast)
    sides = [left.reindex(columns=arms).mean(axis=1, skipna=False) for arms in (before, after)]
    dropped = sides[0] - sides[1]
    return dropped if contrast.minus is None else dropped - _by_seed(runs, contrast.minus, policy)


def row(
    task: str,
    before: str,
    after: str,
    of: str,
    values: np.ndarray,
    *,
    matched: np.ndarray | None = None,
    unit: str = "decades",
    declared: bool = True,
) -> dict[str, Any]:
    """One effect: the mean of a difference a seed, its t-interval, and its range.

    Args:
      values: `[seeds]`, positive where `after` has less.
      matched: the same at matched clean false alarms, if that is known.
    """
    values = np.asarray(values, float)
    effect = paired_effect(values)
    known = matched is not None and len(matched)
    other = paired_effect(np.asarray(matched, float)) if known else Effect(*[np.nan] * 4, 0)
    return dict(
        task=task, before=before, after=after, of=of, unit=unit, declared=declared, n=len(values),
        effect=effect.mean, low=effect.low, high=effect.high, least=values.min(), most=values.max(),
        matched=other.mean, matched_low=other.low, matched_high=other.high, p=effect.p_value,
    )  # fmt: skip


def share(task: str, after: str, of: str, interval: Interval, n: int, *, declared: bool = True) -> dict[str, Any]:
    """A share of seeds or prompts with its interval, as a row: no contrast, so no `before` and no p."""
    nothing = dict.fromkeys(("matched", "matched_low", "matched_high", "p"), np.nan)
    return dict(
        task=task, before="", after=after, of=of, unit="share", declared=declared, n=n,
        effect=interval.value, low=interval.low, high=interval.high, least=np.nan, most=np.nan,
    ) | nothing  # fmt: skip


def mean_of(
    task: str,
    after: str,
    of: str,
    values: np.ndarray,
    *,
    matched: np.ndarray | None = None,
    unit: str = "decades",
    declared: bool = False,
) -> dict[str, Any]:
    """The mean of a number a seed, with its t-interval: no contrast, so no `before` and no p.

    Seeds where it is not known are left out.
    """
    known = [np.asarray(part, float) for part in (values, () if matched is None else matched)]
    values, matched = (part[~np.isnan(part)] for part in known)
    made = row(task, "", after, of, values, matched=matched, unit=unit, declared=declared)
    # Not rounded as effects are: a share of exactly .99 is at least .99.
    return made | {"effect": float(np.mean(values)), "p": np.nan}


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table of effects; p-values are Holm's, over the declared and over the others."""
    effects = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    for declared in (True, False):
        family = effects.index[(effects["declared"] == declared) & effects["p"].notna()]
        effects.loc[family, "holm"] = holm(effects.loc[family, "p"].to_numpy())
    return effects


def of_contrasts(
    runs: pd.DataFrame, declared: Sequence[Contrast], exploratory: Sequence[Contrast] = ()
) -> pd.DataFrame:
    """Each contrast on each task that has a complete pair of it, in order of the contrasts."""
    return table(rows_of(runs, declared) + rows_of(runs, exploratory, declared=False))


def rows_of(runs: pd.DataFrame, contrasts: Sequence[Contrast], declared: bool = True) -> list[dict[str, Any]]:
    """The rows of contrasts, for tables that hold other effects too."""
    rows = []
    for task, part in by_task(runs).items():
        for contrast in contrasts:
            values = differences(part, contrast)
            if len(values):
                matched = differences(part, contrast, "matched")
                rows.append(
                    row(
                        task, *contrast.names, contrast.counted, values,
                        matched=matched, unit=contrast.unit, declared=declared,
                    )
                )  # fmt: skip
    return rows


def only(effects: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows that have these values in these columns: `only(effects, after="16 rounds")`."""
    keep = np.ones(len(effects), bool)
    for column, value in equal.items():
        keep &= (effects[column] == value).to_numpy()
    return effects[keep]


def of_contrast(effects: pd.DataFrame, contrast: Contrast) -> pd.DataFrame:
    """The rows of one contrast, a task each."""
    before, after = contrast.names
    return only(effects, before=before, after=after, of=contrast.counted)


def holding(effects: pd.DataFrame, least: float = 0.0) -> pd.DataFrame:
    """The rows whose mean is at least so much, with the whole interval above zero."""
    return effects[(effects["effect"] >= least) & (effects["low"] > 0)]


def seeds_to_tell(effects: pd.DataFrame, width: float) -> dict[str, int]:
    """Task -> how many seeds bring every declared interval, in decades, down to `width` either way.

    Tasks where they are as narrow now are left out, and so are rows of a single seed, whose interval has no end.
    """
    rows = only(effects, declared=True, unit="decades")
    spread = (rows["high"] - rows["low"]) / 2
    wide_ones = rows.assign(spread=spread)[np.isfinite(spread) & (spread > width)]
    needed = [(row.task, seeds_for(width, row.spread, row.n)) for row in wide_ones.itertuples()]
    return {task: max(n for other, n in needed if other == task) for task, _ in needed}


def outcome_of(row: Any, least: float = 0.0, band: float = 0.0) -> str:
    """The verdict of one row, as of one task: supported, refuted, equivalent or undecided.

    Args:
      row: of a table of effects.
      least: supported if the mean is at least so much, with the whole interval above zero.
      band: equivalent if the whole interval lies within so much of zero; with 0 it never does.

    Refuted if the whole interval lies below zero. A small effect that is surely there is
    equivalent if it is within the band. Undecided if no seed has any difference.

    Raises:
      ValueError: an effect could be equivalent and yet as large as it must be.
    """
    if band > least > 0:
        raise ValueError(f"the band {band} must not reach beyond the least effect {least}; make it smaller")
    if row.least == row.most == 0:  # of counts, that is zero failures on both sides, and a floor compares nothing
        return "undecided"
    if -band < row.low and row.high < band:
        return "equivalent"
    if row.low > 0 and row.effect >= least:
        return "supported"
    return "refuted" if row.high < 0 else "undecided"


def outcome_of_tasks(told: Sequence[str], least: int = 2) -> str:
    """The verdict of a question, by those of its tasks (`outcome_of`).

    One that refutes it does. Else so many that support it do, and it is equivalent if all are.
    """
    if "refuted" in told:
        return "refuted"
    if told.count("supported") >= least:
        return "supported"
    return "equivalent" if set(told) == {"equivalent"} else "undecided"
