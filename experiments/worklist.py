"""Worklists: an experiment on tasks and seeds, as runs that any launcher can do."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import experiments
from experiments.arm import Arm, decided_by
from experiments.bench import bench, measure_arm
from experiments.experiment import Experiment, runs_of
from experiments.protocol import protocol_of
from testbed.outside import lookup
from testbed.runs import results
from testbed.runs.sweep import Run
from testbed.watch import Watch

ABLATION = "ablation"  # the name under which records of a user's own ablation are kept


def experiment_named(name: str) -> Experiment:
    """The experiment of a name: of the table, of an installed package, or `module:name` in the user's own folder.

    Raises:
      ValueError: there is none, or it is no Experiment.
    """
    found = lookup("experiment", name, experiments.EXPERIMENTS)
    if not isinstance(found, Experiment):
        raise ValueError(f"experiment {name!r} is a {type(found).__name__}, not an experiments.Experiment")
    return found


def experiment_in(name: str, out: Path) -> Experiment:
    """The experiment of a name in a folder of results: with what it finds there, if it looks.

    Raises:
      ValueError: there is none, or what lies there is damaged.
    """
    experiment = experiment_named(name)
    return experiment if experiment.within is None else experiment.within(out)


class Job(NamedTuple):
    """One experiment to run, or to draw: its name and value, preset, tasks, seeds and folder.

    `words` are what the command says of it beside these: of an ablation its grid and contrasts.
    Arms are counted in spaces of up to `largest` prompts, if it is given. At most `population` seeds of an arm have
    their models made together.
    """

    name: str
    experiment: Experiment
    preset: str
    tasks: tuple[str, ...]
    seeds: range
    folder: Path
    words: tuple[str, ...] = ()
    largest: int | None = None
    population: int = 1

    @property
    def runs(self) -> list[Run]:
        """The arms of each task for each seed, so that a stopped sweep leaves whole paired seeds.

        Arm by arm, the tasks take turns: runs side by side then compile other programs and make other plain models,
        where arms of one task would wait for each other.
        """
        lists = [runs_of(self.name, self.experiment, self.preset, task, 0) for task in self.tasks]
        turns = [run for turn in itertools.zip_longest(*lists) for run in turn if run is not None]
        turns = [run._replace(config=counted_up_to(self.largest, run.config)) for run in turns]
        groups = groups_of(self.seeds, self.population)
        return [run._replace(seed=seed, together=groups[seed]) for seed in self.seeds for run in turns]

    def minutes(self, missing: int) -> float:
        """About how long so many of the runs take on two cores."""
        usual = self.experiment.presets[self.preset]
        runs = len(self.runs) / len(self.tasks) / len(self.seeds) * len(usual.tasks) * usual.seeds
        return usual.minutes * missing / runs


def groups_of(seeds: range, population: int) -> dict[int, tuple[int, ...]]:
    """The seeds with which each seed's models are made: at most `population`, in groups as equal as can be.

    A seed by itself has none: its models are made alone, as ever.
    """
    parts = max(1, -(-len(seeds) // population))
    cuts = [len(seeds) * part // parts for part in range(parts + 1)]
    groups = [tuple(seeds[first:last]) for first, last in itertools.pairwise(cuts)]
    return {seed: group if len(group) > 1 else () for group in groups for seed in group}


def counted_up_to(largest: int | None, config: Any) -> Any:
    """The config; an arm's with the limit `largest` of what is counted."""
    if largest is None or not isinstance(config, Arm):
        return config
    return dataclasses.replace(config, largest_space=decided_by(largest, config.plain.task))


def perform(run: Run, folder: Path, watch: Watch) -> dict[str, Any]:
    """Do a run, wherever it is done: the parts of its record.

    They hold a digest of each model that was measured, and of the protocol that the run was made under, if any.

    Raises:
      ValueError: a measurement has the name of a column that every table of runs has.
    """
    experiment = None if run.experiment == ABLATION else experiment_named(run.experiment)
    measure = experiment.measure if experiment else measure_arm
    registered = protocol_of(run, experiment) if experiment else None  # asked first: it may change meanwhile
    at = bench(run.seed, folder, watch, run.together)
    measured = measure(run.config, at)
    if taken := results.OWN & measured.keys():
        names = ", ".join(sorted(taken))
        raise ValueError(f"a table of runs has columns of its own called {names}; give the measurement another name")
    parts = {"arm": run.arm, "task": run.task, "models": at.digests, "measurements": {"arm": run.arm} | measured}
    # Only where it is so: other records stay as they were.
    more = {"protocol": registered, "population": list(run.together)}
    return parts | {name: value for name, value in more.items() if value}
