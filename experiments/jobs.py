"""Jobs: an experiment on tasks and seeds, from its worklist to its tables, figures and verdict."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import EXPERIMENTS
from experiments.summary import as_counted, sampled
from testbed import plots
from testbed.runs import results
from testbed.runs.sweep import Run, crowded, status, sweep
from testbed.statistics import Verdict
from testbed.training import rounds as training


class Job(NamedTuple):
    """One experiment to run, or to draw: its name, preset, tasks, seeds and folder."""

    name: str
    preset: str
    tasks: list[str]
    seeds: range
    folder: Path

    @property
    def experiment(self):
        """The module."""
        return EXPERIMENTS[self.name]

    @property
    def runs(self) -> list[Run]:
        """The worklist: the grid of each task for each seed, so that a stopped sweep leaves whole paired seeds.

        Arm by arm, the tasks take turns: runs side by side then compile other programs and make other plain models,
        where arms of one task would wait for each other.
        """
        grids = [self.experiment.grid(self.preset, task) for task in self.tasks]
        turns = [config for turn in itertools.zip_longest(*grids) for config in turn if config is not None]
        return [Run(self.name, config, seed) for seed in self.seeds for config in turns]

    def minutes(self, missing: int) -> float:
        """About how long so many of the runs take on two cores."""
        usual = self.experiment.PRESETS[self.preset]
        runs = len(self.runs) / len(self.tasks) / len(self.seeds) * len(usual.tasks.split(",")) * usual.seeds
        return usual.minutes * missing / runs


def recorded(
    name: str, folder: Path, preset: str | None = None, admits: Callable[[str, int], bool] = lambda task, seed: True
) -> Job:
    """The job that the records of a folder make up, so that they can be drawn without saying how they were made.

    It is of the preset that most of them belong to (of equals the smaller), unless one is named; of every task that
    has some of its runs, if this code knows it; and of the seeds from the first that has any up to the first without.
    Only tasks and seeds that `admits` takes are looked at.
    """
    experiment, records = EXPERIMENTS[name], results.read(folder)[0]
    presets = [preset] if preset else list(experiment.PRESETS)
    usual = [task for one in reversed(experiment.PRESETS.values()) for task in one.tasks.split(",")]
    plain = ((record["config"].get("plain"), record["seed"]) for record in records.values())
    pairs = {(config["task"], seed) for config, seed in plain if config and admits(config["task"], seed)}

    def arms(preset, task):
        try:
            return experiment.grid(preset, task)
        except ValueError:  # a task of another version, or one on which this question is asked no more
            return []

    def there(preset):
        """(task, seed) of each run of the preset that has a record."""
        grids = {task: arms(preset, task) for task, _ in pairs}
        return [pair for pair in pairs for arm in grids[pair[0]] if Run(name, arm, pair[1]).id in records]

    held = {preset: there(preset) for preset in presets}
    preset = max(held, key=lambda preset: len(held[preset]))
    seeds = {seed for _, seed in held[preset]}
    first = min(seeds, default=0)
    seeds = range(first, first + len(list(itertools.takewhile(seeds.__contains__, itertools.count(first)))))
    tasks = {task for task, seed in held[preset] if seed in seeds}
    tasks = sorted(tasks, key=lambda task: (usual.index(task) if task in usual else len(usual), task))
    return Job(name, preset, tasks, seeds, folder)


def file_name(task: str) -> str:
    """A task's name without colons, which are no letters of a file name everywhere."""
    return task.replace(":", "-")


def show(console: Console, experiment, frame, folder: Path) -> Verdict:
    """Print the table of each task and the verdict, and write tables and figures beside the records."""
    for task, rows in frame.groupby("config.plain.task", sort=False):
        text, note = experiment.summary(rows), sampled(rows)
        title = ", ".join(filter(None, (folder.name, f"task {task}", note)))
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("measure", no_wrap=True)
        for arm in text:
            table.add_column(arm, justify="right")
        for measure, cells in text.iterrows():
            table.add_row(measure, *cells, style="bold" if measure[:2].isupper() else None)
        console.print(table)
        file = file_name(task)
        results.write_atomically(folder / f"{file}.csv", text.to_csv().encode())
        figure = experiment.plot(rows)
        plots.save(plots.not_counted(figure, note) if note else figure, folder / f"{file}.png")
    verdict = experiment.claim(frame)
    console.print(f"[bold]{verdict.outcome}[/bold]: {verdict.why}", highlight=False)
    if sampled(frame):
        console.print("Where a task says sampled, its numbers of failing prompts are no counts of the space.")
    return verdict


def announce(console: Console, job: Job, missing: int) -> None:
    """Say what will be done, and about how long it takes."""
    console.print(
        f"{job.name}, preset {job.preset}, {', '.join(job.tasks)}: {len(job.runs)} runs ({len(job.seeds)} seeds), "
        f"{missing} to do, about {job.minutes(missing):.0f} minutes on two cores; records go to {job.folder}",
        markup=False, highlight=False,
    )  # fmt: skip


def missing_of(job: Job) -> int:
    """Runs of a job that have no record."""
    records, _ = results.read(job.folder)
    return sum(run.id not in records for run in job.runs)


class Done(NamedTuple):
    """What came of a job: its verdict, if it has records, and a line for each run that failed."""

    verdict: Verdict | None
    failed: list[str]


def do(console: Console, job: Job, place: AbstractContextManager | None) -> Done:
    """Run what is missing of a job, in its place, then show all of it; without a place, show what there is."""
    runs = job.runs
    for problem in results.read(job.folder)[1]:
        console.print(problem, style="yellow", markup=False, highlight=False)
    failed = []
    if place is not None:
        announce(console, job, missing_of(job))
        failed = sweep(runs, job.experiment.measure, job.folder, console, place).failed
        if crowded(0.5):  # the next question mostly trains otherwise; what measures is worth remembering
            training.forget()
    records, _ = results.read(job.folder)
    there = [run.id for run in runs if run.id in records]
    if not there and not failed:
        raise ValueError(f"{job.folder} holds no record of these runs; leave out --plot_only to make them")
    verdict = None
    if there:
        frame = results.load(job.folder, job.name).set_index("run", drop=False).loc[there].reset_index(drop=True)
        verdict = show(console, job.experiment, as_counted(frame), job.folder)
    console.print(f"{len(there)} of {len(runs)} runs; records, tables and figures: {job.folder.resolve()}")
    for failure in failed:
        console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
    return Done(verdict, failed)


def page(console: Console, jobs: list[Job], done: list[Done]) -> None:
    """Every question with its verdict, effects and figures; more of each stands above, where its tables are."""
    table = Table(title="What was found", title_justify="left", box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column("verdict", no_wrap=True)
    table.add_column("question", overflow="fold")
    for job, (verdict, _) in zip(jobs, done, strict=True):
        outcome, why, brief = verdict or Verdict("not run", "")
        question = f"[bold]{job.experiment.__doc__.splitlines()[0]}[/bold]"
        table.add_row(outcome, "\n".join([question, *map(escape, filter(None, [brief or why, _figures(job)]))]))
    console.print(table)


def _figures(job: Job) -> str:
    """Where a job's figures are, as a shell would spell it; nothing if there are none."""
    drawn = [name for name in map(file_name, job.tasks) if (job.folder / f"{name}.png").exists()]
    names = drawn[0] if len(drawn) == 1 else "{" + ",".join(drawn) + "}"
    return f"{job.folder}/{names}.png" if drawn else ""


def show_status(console: Console, job: Job) -> int:
    """Print what a job's folder holds; returns 0 if every run is done."""
    runs, held = job.runs, status(job.runs, job.folder)
    console.print(f"{job.name}, preset {job.preset}: {job.folder}", markup=False, highlight=False)
    for kind, lines in held.items():
        console.print(f"[bold]{len(lines):4} {kind}[/bold]", highlight=False)
        for line in lines if kind != "done" else []:
            console.print(f"       {line}", markup=False, highlight=False)
    return 0 if len(held["done"]) == len({run.id for run in runs}) else 1
