"""The experiment contract: a question as data, from its arms to the rule that judges it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments import effects as effect_tables
from experiments.bench import measure_arm
from experiments.figures import draw_arms
from experiments.tables import of_arms
from testbed.plots import Figure

OUTCOMES = ("supported", "refuted", "equivalent", "undecided", "not tested")


class Preset(NamedTuple):
    """How much of a question is asked: tasks by name, paired seeds, and about how many minutes.

    Minutes are those of two cores. Tasks or seeds given by hand change them in proportion.
    """

    tasks: tuple[str, ...]
    seeds: int
    minutes: float


class Verdict(NamedTuple):
    """What a rule, fixed before the runs, makes of the effects.

    Attributes:
      outcome: one of `OUTCOMES`.
      effects: a row a contrast and task (`experiments.effects.COLUMNS`).
      lacks: what the rule asks for, where it is undecided; else empty.
    """

    outcome: str
    effects: pd.DataFrame
    lacks: str = ""


class Experiment(NamedTuple):
    """A question as data. What is shown of it is rendered from its effects.

    Attributes:
      question: one line that ends with a question mark.
      hypothesis: what was expected.
      design: which arms there are, and why.
      decides: the rule in words.
      presets: name -> Preset; every experiment has `quick` and `full`.
      arms: `(preset, task) -> {name: config}`. A ValueError says why a task cannot be asked.
      rule: `effects -> outcome`, asked only if a declared contrast has a pair.
      lacks: what an undecided rule asks for.
      contrasts: declared before the runs; exploratory: not declared, so they decide nothing.
      measure: `(config, bench) -> plain numbers`, of one run.
      effects: `runs -> effects`; by default those of the contrasts.
      table: `runs of one task -> text`, for people.
      figure: `runs of one task -> Figure`.
      note: at most sixty words by hand, for the results page.
      within: `folder of results -> Experiment`, where what is asked hangs on what lies there.
    """

    question: str
    hypothesis: str
    design: str
    decides: str
    presets: dict[str, Preset]
    arms: Callable[[str, str], dict[str, Any]]
    rule: Callable[[pd.DataFrame], str]
    lacks: str = ""
    contrasts: tuple[effect_tables.Contrast, ...] = ()
    exploratory: tuple[effect_tables.Contrast, ...] = ()
    measure: Callable[..., dict[str, Any]] = measure_arm
    effects: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    table: Callable[[pd.DataFrame], pd.DataFrame] = of_arms
    figure: Callable[[pd.DataFrame], Figure] = draw_arms
    note: str = ""
    within: Callable[[Path], "Experiment"] | None = None


def effects_of(experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    """Every effect of an experiment in a table of runs.

    Raises:
      ValueError: two runs share task, arm and seed, so that pairs would be averages.
    """
    effect_tables.refuse_duplicates(runs)
    if experiment.effects is not None:
        return experiment.effects(runs)
    return effect_tables.of_contrasts(runs, experiment.contrasts, experiment.exploratory)


def judge(experiment: Experiment, runs: pd.DataFrame) -> Verdict:
    """The verdict of an experiment on a table of runs.

    Raises:
      ValueError: two runs share task, arm and seed.
    """
    effects = effects_of(experiment, runs)
    outcome = experiment.rule(effects) if effects["declared"].any() else "not tested"
    if outcome not in OUTCOMES:
        raise ValueError(f"a rule gives one of {', '.join(OUTCOMES)}, not {outcome!r}")
    return Verdict(outcome, effects, experiment.lacks if outcome == "undecided" else "")
