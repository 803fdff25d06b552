"""Records read back: as a table of runs, as the job that they make up, as figures and effects."""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from experiments import columns, protocol
from experiments.arm import Arm, is_counted
from experiments.experiment import Experiment, effects_of
from experiments.worklist import ABLATION, Job, experiment_in, experiment_named, runs_of
from tasks import spelled
from testbed import plots
from testbed.runs import results

RECORDS = Path(__file__).parent / "records"  # those that are shipped


def load(folder: str | Path, name: str | None = None, preset: str | None = None) -> pd.DataFrame:
    """The runs of an experiment as a table: a row a run, with `task`, `arm`, `seed` and the `presets` it belongs to.

    Args:
      folder: of the records; name: the experiment's, by default the folder's.
      preset: only its runs. Runs of several presets may share an arm's name, and then no effect can
        be taken over them.

    Raises:
      ValueError: there is no such experiment or preset, or the folder holds no such record.
    """
    name = name or Path(folder).name
    runs = columns.tidy(results.load(folder, name))
    if name == ABLATION:
        return runs.assign(presets="")
    experiment = experiment_in(name, Path(folder).parent)
    refuse_unknown_preset(name, experiment, preset)
    ids = {one: _ids_of(name, experiment, one, runs) for one in experiment.presets}
    of = [",".join(one for one in ids if run in ids[one]) for run in runs["run"]]
    runs = runs.assign(presets=of)
    if preset is None:
        return runs
    chosen = runs[runs["run"].isin(ids[preset])].reset_index(drop=True)
    if chosen.empty:
        raise ValueError(f"{folder} holds no record of {name}, preset {preset}")
    return chosen


def refuse_unknown_preset(name: str, experiment: Experiment, preset: str | None) -> None:
    """Make sure that an experiment has a preset, if one is named.

    Raises:
      ValueError: it has not; says which it has.
    """
    if preset is not None and preset not in experiment.presets:
        raise ValueError(f"{name} has no preset {preset!r}; choose from {', '.join(experiment.presets)}")


def _ids_of(name: str, experiment, preset: str, runs: pd.DataFrame) -> set[str]:
    """The ids of a preset's runs, on the tasks and seeds that a table holds."""
    known = set()
    for task, rows in columns.by_task(runs).items():
        try:
            listed = runs_of(name, experiment, preset, task, 0)
        except ValueError:  # a task of another version, or one on which this question is asked no more
            continue
        known |= {run._replace(seed=int(seed)).id for run in listed for seed in rows["seed"].unique()}
    return known


def recorded(
    name: str,
    folder: Path,
    preset: str | None = None,
    admits: Callable[[str, int], bool] = lambda task, seed: True,
    *,
    largest: int | None = None,
    experiment: Experiment | None = None,
) -> Job:
    """The job that the records of a folder make up, so that they can be drawn without saying how they were made.

    Of a registered question it is what the protocol asks for, as soon as one run is there that was made under it.
    Else it is of the preset that most of them belong to (of equals the smaller), unless one is named; of every task
    that has some of its runs, if this code knows it; and of the seeds from the first that has any up to the first
    without. Only tasks and seeds that `admits` takes are looked at, and runs that count spaces of up to `largest`
    prompts. `experiment` is that of the name, if it is not given.
    """
    experiment, records = experiment or experiment_in(name, folder.parent), results.read(folder)[0]
    if preset is None and (job := _registered(Job(name, experiment, "", (), range(0), folder), records, admits)):
        return job
    presets = [preset] if preset else list(experiment.presets)
    usual = [task for one in reversed(experiment.presets.values()) for task in one.tasks]
    pairs = {(columns.task_of(record), record["seed"]) for record in records.values()}
    pairs = {(task, seed) for task, seed in pairs if task and admits(task, seed)}

    def finished(preset):
        """(task, seed) of each run of the preset that has a record."""
        lists = {}
        for task, _ in pairs:
            try:
                lists[task] = Job(name, experiment, preset, (task,), range(1), folder, largest=largest).runs
            except ValueError:  # a task of another version, or one on which this question is asked no more
                lists[task] = []
        return [pair for pair in pairs for run in lists[pair[0]] if run._replace(seed=pair[1]).id in records]

    of_preset = {preset: finished(preset) for preset in presets}
    preset = max(of_preset, key=lambda preset: len(of_preset[preset]))
    seeds = {seed for _, seed in of_preset[preset]}
    first = min(seeds, default=0)
    seeds = range(first, first + len(list(itertools.takewhile(seeds.__contains__, itertools.count(first)))))
    tasks = {task for task, seed in of_preset[preset] if seed in seeds}
    tasks = sorted(tasks, key=lambda task: (usual.index(task) if task in usual else len(usual), task))
    return Job(name, experiment, preset, tuple(tasks), seeds, folder, largest=largest, population=_together(records))


def _registered(job: Job, records: dict[str, dict], admits: Callable[[str, int], bool]) -> Job | None:
    """A job as its question's protocol asks for it; None if no record was made under it, or it holds no more."""
    entry = protocol.newest(job.name)
    made = protocol.counting(entry, records) if entry else []
    if not any(admits(record["task"], record["seed"]) for record in made) or protocol.changed(entry, job.experiment):
        return None
    tasks = tuple(task for task in entry.tasks if any(admits(task, seed) for seed in entry.seeds))
    seeds = [seed for seed in entry.seeds if any(admits(task, seed) for task in tasks)]
    seeds = range(seeds[0], seeds[-1] + 1)
    return job._replace(preset=protocol.REGISTERED, tasks=tasks, seeds=seeds, population=_together(records))


def _together(records: dict[str, dict]) -> int:
    """How many seeds at most had their models made together."""
    return max((len(record.get("population", ())) for record in records.values()), default=0) or 1


def beside(job: Job) -> Job | None:
    """What else a folder holds than the runs of a registered question: the job of the others, if there are any."""
    if job.preset != protocol.REGISTERED:
        return None
    others = recorded(job.name, job.folder, admits=lambda task, seed: seed not in job.seeds)
    return others if others.tasks else None


def recorded_runs(name: str, folder: str | Path | None, preset: str | None) -> tuple[Job, pd.DataFrame]:
    """The job that a folder's records make up, and its runs; the shipped records by default.

    Raises:
      ValueError: there is no such experiment, or no record of it.
    """
    refuse_unknown_preset(name, experiment_named(name), preset)
    if folder is None and not RECORDS.is_dir():
        raise ValueError("the shipped records are in the repository, not in the package; give the folder of yours")
    folder = RECORDS / name if folder is None else Path(folder)
    job = recorded(name, folder, preset)
    runs = frame_of(job)
    if runs.empty:
        raise ValueError(f"{folder} holds no records of {name}" + (f", preset {preset}" if preset else ""))
    return job, runs


def figure(name: str, task: str, *, folder: str | Path | None = None, preset: str | None = None) -> plots.Figure:
    """The figure of an experiment on one task, from its records: a matplotlib Figure.

    Args:
      name: of the experiment; task: of its tasks, by name.
      folder: of the records, by default the shipped ones; preset: by default what most of them belong to.

    Raises:
      ValueError: there is no such experiment, task or preset, or no record of it.
    """
    job, runs = recorded_runs(name, folder, preset)
    by_task = columns.by_task(runs)
    if spelled(task) not in by_task:
        raise ValueError(f"the records of {name} have no task {task!r}; choose from {', '.join(by_task)}")
    return drawn_of(job.experiment, by_task[spelled(task)])


def recorded_effects(name: str, *, folder: str | Path | None = None, preset: str | None = None) -> pd.DataFrame:
    """The effects of an experiment, from its records: a row a contrast and task; arguments as of `figure`.

    Raises:
      ValueError: there is no such experiment or preset, or no record of it.
    """
    job, runs = recorded_runs(name, folder, preset)
    return effects_of(job.experiment, runs)


def frame_of(job: Job) -> pd.DataFrame:
    """The runs of a job that have records, in the order of its worklist, as a tidy table."""
    records, _ = results.read(job.folder)
    ids = [run.id for run in job.runs if run.id in records]
    if not ids:
        return pd.DataFrame()
    return columns.tidy(results.tabulate([records[run] for run in ids]))


def same_models(job: Job) -> list[str]:
    """A line for the arms of a task whose models are alike in every seed, though their configs differ."""
    records, _ = results.read(job.folder)
    last: dict[tuple[str, str], dict[int, tuple[str, str]]] = {}  # (task, arm) -> seed -> its last model
    for run in job.runs:
        if models := records.get(run.id, {}).get("models"):
            last.setdefault((run.task, run.arm), {})[run.seed] = list(models.items())[-1]
    alike: dict[tuple, dict[str, tuple[str, ...]]] = {}  # (task, digests by seed) -> arm -> names
    for (task, arm), of_seed in last.items():
        names, digests = zip(*(of_seed[seed] for seed in sorted(of_seed)), strict=True)
        alike.setdefault((task, tuple(sorted(of_seed)), digests), {})[arm] = names
    why = "ended as the same models in every seed: what differs between them changed nothing"
    return [f"{task}: {' and '.join(arms)} {why}" for (task, *_), arms in alike.items() if len(set(arms.values())) > 1]


def other_starts(job: Job) -> list[str]:
    """A line of tasks and seeds where one name stands for several models: runs did not start alike."""
    records, _ = results.read(job.folder)
    digests: dict[tuple[str, int], dict[str, set[str]]] = {}  # (task, seed) -> name -> digests
    for run in job.runs:
        for name, digest in records.get(run.id, {}).get("models", {}).items():
            digests.setdefault((run.task, run.seed), {}).setdefault(name, set()).add(digest)
    seeds: dict[str, list[int]] = {}
    for (task, seed), of_name in sorted(digests.items()):
        if any(len(several) > 1 for several in of_name.values()):
            seeds.setdefault(task, []).append(seed)
    tasks: dict[tuple[int, ...], list[str]] = {}
    for task, of in seeds.items():
        tasks.setdefault(tuple(of), []).append(task)
    why = "several processors made models of one name, so some arms start from other weights and are no close pairs"
    told = {" and ".join(several): ", ".join(map(str, of)) for of, several in tasks.items()}
    return [f"{several}, seed {of}: {why}; another --out makes all anew" for several, of in told.items()]


def uncomparable(job: Job) -> list[str]:
    """A line for each task on which some arms are counted and others sampled."""
    known: dict[str, set[bool]] = {}
    for run in job.runs:
        with contextlib.suppress(ValueError):  # records may be of a task that is there no more
            if isinstance(arm := run.config, Arm):
                known.setdefault(run.task, set()).add(is_counted(arm.plain, arm.largest_space))
    why = "some arms are counted and others sampled, so no effect compares them; a smaller task is counted for all"
    return [f"{task}: {why}" for task, kinds in known.items() if len(kinds) > 1]


def doubts(job: Job) -> list[str]:
    """What must be said of a job's runs before they are compared, in lines."""
    return uncomparable(job) + same_models(job) + other_starts(job)


def drawn_of(experiment: Experiment, rows: pd.DataFrame) -> plots.Figure:
    """The figure of one task's runs, which says so where numbers are sampled, or an arm is given all failures."""
    figure, note, limit = experiment.figure(rows), columns.sampled_note(rows), columns.limit_note(rows)
    if limit:
        plots.say_more(figure, limit)
    return plots.not_counted(figure, note) if note else figure


def figures_of(experiment: Experiment, runs: pd.DataFrame) -> dict[str, plots.Figure]:
    """The figure of each task."""
    return {task: drawn_of(experiment, rows) for task, rows in columns.by_task(runs).items()}
