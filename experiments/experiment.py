"""The experiment contract: a question as data, its arms as runs, and its effects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments import effects as effect_tables
from experiments.arm import labelled
from experiments.bench import measure_arm
from experiments.figures import draw_arms
from experiments.tables import of_arms
from testbed.plots import Figure
from testbed.runs.sweep import Run

OUTCOMES = ("supported", "refuted", "equivalent", "undecided", "not tested")


class Preset(NamedTuple):
    """How much of a question is asked: tasks by name, paired seeds, and about how many minutes.

    Minutes are those of two cores. Tasks or seeds given by hand change them in proportion.
    Seeds begin at `first_seed`. The preset `experiments.protocol.REGISTERED` is what decides.
    """

    tasks: tuple[str, ...]
    seeds: int
    minutes: float
    first_seed: int = 0

    @property
    def paired(self) -> range:
        """Its seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


class Experiment(NamedTuple):
    """A question as data. What is shown of it is rendered from its effects.

    Attributes:
      question: one line that ends with a question mark.
      hypothesis: what was expected.
      design: which arms there are, and why.
      decides: the rule in words.
      presets: name -> Preset; every experiment of the table has `quick` and `full`.
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

    @property
    def quickest(self) -> str:
        """The preset that is meant where none is named: `quick`, or the first of a question that has no such."""
        return "quick" if "quick" in self.presets else next(iter(self.presets))


def runs_of(name: str, experiment: Experiment, preset: str, task: str, seed: int) -> list[Run]:
    """The runs of one task and seed, in order of the arms.

    Raises:
      ValueError: the question cannot be asked on the task.
    """
    arms = experiment.arms(preset, task)
    return [Run(name, labelled(config, arm), seed, arm, task) for arm, config in arms.items()]


def effects_of(experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    """Every effect of an experiment in a table of runs.

    Raises:
      ValueError: two runs share task, arm and seed, so that pairs would be averages.
    """
    effect_tables.refuse_duplicates(runs)
    if experiment.effects is not None:
        return experiment.effects(runs)
    return effect_tables.of_contrasts(runs, experiment.contrasts, experiment.exploratory)
