"""Verdicts: what a question's rule makes of its effects, and whether that is final."""

from typing import NamedTuple

import pandas as pd

from experiments import protocol
from experiments.effects import seeds_to_tell
from experiments.experiment import OUTCOMES, Experiment, effects_of

NARROW = 0.5  # decades either way: an effect of one is told by such an interval


class Standing(NamedTuple):
    """What a verdict is worth, by the runs that it was judged on.

    Attributes:
      kind: `registered` if they are all that the protocol asks for, and were made under it;
        `incomplete` if some of these are missing; else `exploratory`.
      made: runs that were made under the protocol; asked: those that it asks for.
      digest: of the protocol; empty if it is exploratory.
    """

    kind: str = "exploratory"
    made: int = 0
    asked: int = 0
    digest: str = ""

    @property
    def told(self) -> str:
        """The same for people."""
        return f"{self.kind}: {self.made} of {self.asked} runs" if self.kind == "incomplete" else self.kind


EXPLORATORY = Standing()


class Verdict(NamedTuple):
    """What a rule makes of the effects.

    Attributes:
      outcome: one of `OUTCOMES`.
      effects: a row a contrast and task (`experiments.effects.COLUMNS`).
      lacks: what the rule asks for, where it is undecided; else empty.
      standing: whether that is final.
      tasks: of several tasks, each with what the rule makes of it (`of_tasks`).
    """

    outcome: str
    effects: pd.DataFrame
    lacks: str = ""
    standing: Standing = EXPLORATORY
    tasks: tuple[tuple[str, str], ...] = ()

    @property
    def told(self) -> str:
        """The outcome for people: of runs that are incomplete it is not final."""
        return f"so far {self.outcome}" if self.standing.kind == "incomplete" else self.outcome

    @property
    def by_task(self) -> str:
        """What the rule makes of each task, as a sentence; empty where a single one is judged."""
        told = "; ".join(f"{task}: {outcome}" for task, outcome in self.tasks)
        return told and f"By task, if each other were like it: {told}."

    @property
    def would_take(self) -> str:
        """What would narrow the intervals that leave it undecided, as a sentence; empty where none is wide."""
        needed = seeds_to_tell(self.effects, NARROW) if self.outcome == "undecided" else {}
        told = "; ".join(f"{task}: {seeds}" for task, seeds in needed.items())
        return told and f"Seeds for declared intervals within {NARROW} decades either way: {told}."

    @property
    def details(self) -> str:
        """What is said of it beside the outcome."""
        return " ".join(filter(None, [self.by_task, self.would_take]))


def judge(experiment: Experiment, runs: pd.DataFrame) -> Verdict:
    """The verdict of an experiment on a table of runs.

    Raises:
      ValueError: two runs share task, arm and seed.
    """
    effects = effects_of(experiment, runs)
    outcome = experiment.rule(effects) if effects["declared"].any() else "not tested"
    if outcome not in OUTCOMES:
        raise ValueError(f"a rule gives one of {', '.join(OUTCOMES)}, not {outcome!r}")
    lacks = experiment.lacks if outcome == "undecided" else ""
    return Verdict(outcome, effects, lacks, standing_of(experiment, runs), of_tasks(experiment, effects))


def of_tasks(experiment: Experiment, effects: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """What a rule would make of each task, if the effects on all others were the same; nothing of a single task.

    So a rule that asks for two tasks judges one as if it had seen its like twice.
    """
    tasks = effects.loc[effects["declared"], "task"].unique()

    def alike(task: str) -> pd.DataFrame:
        part = effects[effects["task"] == task]
        return pd.concat([part, *(part.assign(task=f"{task}, again {n}") for n in range(1, len(tasks)))])

    if len(tasks) < 2:
        return ()
    return tuple((task, experiment.rule(alike(task).reset_index(drop=True))) for task in tasks)


def standing_of(experiment: Experiment, runs: pd.DataFrame) -> Standing:
    """What a verdict on a table of runs is worth; exploratory if one of them is not in the protocol."""
    names = runs["experiment"].unique() if "experiment" in runs else []
    entry = protocol.newest(names[0]) if len(names) == 1 else None
    if entry is None or not protocol.holds(entry, experiment):
        return EXPLORATORY
    asked = protocol.covered(entry, experiment)
    if not set(runs["run"]) <= asked:
        return EXPLORATORY
    told = runs.reindex(columns=["protocol", "finished"]).itertuples(index=False)
    made = sum(protocol.counts(entry, *pair) for pair in told)
    return Standing(protocol.REGISTERED if made == len(asked) else "incomplete", made, len(asked), entry.digest)
