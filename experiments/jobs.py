"""Jobs: from a worklist to its tables, figures and verdict."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import experiments
from experiments import columns, export, protocol, tables
from experiments.arm import attack_of
from experiments.page import BEGINS, is_ours, results_page
from experiments.reading import beside, doubts, figures_of, frame_of, uncomparable
from experiments.report import INDEX, index, report
from experiments.verdict import EXPLORATORY, Verdict, judge
from experiments.worklist import Job, perform
from tasks import task_named
from testbed import plots
from testbed.attacks.search import short_of_steps
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs import provenance, results
from testbed.runs.packing import pack
from testbed.runs.sweep import crowded, status, sweep
from testbed.text import plural
from testbed.training import units
from testbed.training.source import Source

REPORT = "report.html"
SHOWN = ("svg", "png")  # formats that a page can show; the shipped figures are SVG, a tenth of PNG's size in git
PAGE_COMMAND = "python -m experiments.run --experiment=all --plot_only --format=svg --out=experiments/records"


def file_name(task: str) -> str:
    """A task's name in the letters of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_.=" else "-" for letter in task)


@contextlib.contextmanager
def or_told(unwritten: list[str], path: Path) -> Iterator[Path]:
    """Let the block write `path`; where that fails, the disk being full, a line in `unwritten` says so."""
    try:
        yield path
    except OSError as error:
        unwritten.append(f"{path} could not be written: {error.strerror or error}")


def write_beside(
    job: Job,
    runs: pd.DataFrame,
    verdict: Verdict,
    figures: dict[str, plots.Figure],
    *,
    formats: Sequence[str] = ("png",),
) -> list[str]:
    """Write figures, runs, effects and the report beside the records; a line for each that cannot be written.

    Args:
      formats: of figures (`plots.FORMATS`; the first if none is named) and of tables beside CSV (`export.FORMATS`).
    """
    folder, unwritten = job.folder, []
    effects = verdict.effects.assign(standing=verdict.standing.told)  # beside it may lie a verdict on other runs
    of_figures = [form for form in formats if form in plots.FORMATS] or plots.FORMATS[:1]
    for task, figure in figures.items():
        for form in of_figures:
            with or_told(unwritten, folder / f"{file_name(task)}.{form}") as path:
                plots.save(figure, path)
    with or_told(unwritten, folder / "runs.csv") as path:
        results.write_atomically(path, export.csv_of_runs(runs))
    with or_told(unwritten, folder / "effects.csv") as path:
        results.write_atomically(path, export.csv_of_effects(effects))
    if verdict.standing != EXPLORATORY:
        with or_told(unwritten, folder / export.VERDICT) as path:
            results.write_atomically(path, export.csv_of_verdict(job.name, verdict))
    for form in filter(export.FORMATS.__contains__, formats):
        for name, data in export.as_files(form, runs, effects).items():
            with or_told(unwritten, folder / name) as path:
                results.write_atomically(path, data)
    with or_told(unwritten, folder / REPORT) as path:
        results.write_atomically(path, report(job, runs, verdict, figures).encode())
    return unwritten


def show(console: Console, job: Job, runs: pd.DataFrame) -> Verdict:
    """Print the tables, the effects and the verdict."""
    experiment = job.experiment
    for task, rows in columns.by_task(runs).items():
        text, note = experiment.table(rows), columns.sampled_note(rows)
        title = ", ".join(filter(None, (job.name, f"task {task}", note)))
        fits = experiment.table is not tables.of_arms or len(tables.blocks(text, console.width)) == 1
        tables.show_text(console, text if fits else tables.by_row(rows), title)
        if limit := columns.limit_note(rows):
            console.print(limit, markup=False, highlight=False)
    verdict = judge(experiment, runs)
    tables.show_effects(console, verdict.effects)
    for line in doubts(job):
        console.print(line, style="yellow", markup=False, highlight=False)
    if experiment.decides:
        console.print(_conclusion(job, verdict), highlight=False)
    if columns.sampled_note(runs):
        console.print("Where a task says sampled, its numbers of failing prompts are no counts of the space.")
    return verdict


def _conclusion(job: Job, verdict: Verdict) -> str:
    """The verdict; of a part of the question, which no rule can decide, what it shows and how to ask the whole."""
    experiment = job.experiment
    part = set(job.tasks) < set(experiment.presets[experiment.quickest].tasks)
    if part and verdict.outcome in ("undecided", "not tested"):
        told = f"{plural(len(job.seeds), 'seed')}; {_brief(verdict) or ', '.join(job.tasks) + ': no declared effect'}"
        return escape(f"{told}. The rule reads more tasks: --experiment={job.name} asks the whole question.")
    lacks = f": the rule asks for {verdict.lacks}" if verdict.lacks else ""
    details = verdict.details and f"\n{verdict.details}"
    return f"[bold]{verdict.told}[/bold] ({verdict.standing.told}){escape(lacks + details)}"


def exploratory(job: Job) -> str:
    """What the other runs of a registered question's folder say, in a line; nothing if there are none."""
    others = beside(job)
    if others is None:
        return ""
    verdict = judge(others.experiment, frame_of(others))
    asked = f"preset {others.preset}; {', '.join(others.tasks)}; {plural(len(others.seeds), 'seed')}"
    return f"Exploratory runs beside it: {verdict.outcome} ({asked})."


def announce(console: Console, job: Job, missing: int) -> None:
    """Say what will be done, about how long it takes, and which searches have hardly a step within their budget."""
    runs, seeds = plural(len(job.runs), "run"), plural(len(job.seeds), "seed")
    minutes = plural(round(job.minutes(missing)), "minute")
    console.print(
        f"{job.name}, preset {job.preset}, {', '.join(job.tasks)}: {runs} ({seeds}), "
        f"{missing} to do, about {minutes} on two cores; records go to {job.folder}",
        markup=False, highlight=False,
    )  # fmt: skip
    for told in (*made_otherwise(job), *uncomparable(job)):
        console.print(told, style="yellow", markup=False, highlight=False)
    short = {run._replace(seed=0, together=()): said for run in job.runs if (said := _short_search(run))}
    for said, number in Counter(short.values()).items():
        console.print(f"{said} ({number} of the arms)", style="yellow", markup=False, highlight=False)


def _short_search(run) -> str:
    """What must be said of a run that trains against an attack without room for two steps; else nothing."""
    arm = run.config
    if not isinstance(arm, experiments.Arm) or not arm.rounds or not arm.steps:
        return ""
    task = task_named(arm.plain.task)
    attack = attack_of(arm)
    if isinstance(attack, Source):
        return ""
    complaint = short_of_steps(attack, Objective(task, None, greedy(task)), arm.budget)
    return f"{run.task}: {complaint}" if complaint else ""


def missing_of(job: Job) -> int:
    """Runs of a job that have no record."""
    records, _ = results.read(job.folder)
    return sum(run.id not in records for run in job.runs)


def made_otherwise(job: Job) -> list[str]:
    """Lines about records of a job, if some were made by other code, or in other populations than the job gives."""
    records, _ = results.read(job.folder)
    there = [(run, records[run.id]) for run in job.runs if run.id in records]
    code = provenance.source()
    coded = sum(record["provenance"].get("source") != code for _, record in there)
    peopled = sum(tuple(record.get("population", ())) != run.together for run, record in there)
    told = {
        "of other code: {} there; if a task has changed since, another --out makes all anew": coded,
        "of models of other populations (--population): {} there, whose last bits differ": peopled,
    }
    return [line.format(plural(number, "run")) for line, number in told.items() if number]


class Done(NamedTuple):
    """What came of a job: its verdict, if it has records, its runs, and lines of what failed or was not written.

    `others` is a line of what runs beside a registered question's say.
    """

    verdict: Verdict | None
    runs: pd.DataFrame
    failed: list[str]
    unwritten: Sequence[str] = ()
    others: str = ""


def run_missing(console: Console, job: Job, place: AbstractContextManager | None) -> list[str]:
    """Do what is missing of a job; a line for each run that failed."""
    announce(console, job, missing_of(job))
    failed = sweep(job.runs, perform, job.folder, console, place=place).failed
    if crowded(0.5):  # the next question mostly trains otherwise; what measures is worth remembering
        units.forget()
    return failed


def do(console: Console, job: Job, place: AbstractContextManager | None, formats: Sequence[str] = ("png",)) -> Done:
    """Run what is missing of a job, in its place, then show all of it; without a place, show what there is."""
    for problem in results.read(job.folder)[1]:
        console.print(problem, style="yellow", markup=False, highlight=False)
    if (entry := protocol.newest(job.name)) and (problem := protocol.changed(entry, job.experiment)):
        console.print(problem, style="yellow", markup=False, highlight=False)
    failed = run_missing(console, job, place) if place is not None else []
    for failure in failed:
        console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
    runs = frame_of(job)
    if not len(runs) and not failed:
        raise ValueError(f"{job.folder} holds no record of these runs; leave out --plot_only to make them")
    verdict, unwritten, others = None, [], ""
    if len(runs):
        verdict, others = show(console, job, runs), exploratory(job)
        if others:
            console.print(others, markup=False, highlight=False)
        figures = figures_of(job.experiment, runs)
        unwritten = write_beside(job, runs, verdict, figures, formats=formats)
    for line in unwritten:
        console.print(line, style="red", markup=False, highlight=False)
    console.print(f"{len(runs)} of {len(job.runs)} runs; records, tables and figures: {job.folder.resolve()}")
    if (job.folder / REPORT).exists():
        console.print(f"report: {job.folder.resolve() / REPORT}", markup=False, highlight=False, soft_wrap=True)
    return Done(verdict, runs, failed, unwritten, others)


def page(console: Console, jobs: list[Job], done: list[Done], out: Path) -> list[str]:
    """Print every question with its verdict and figures, and write the results page into `out`.

    Returns a line if the page could not be written.
    """
    table = Table(title="What was found", title_justify="left", box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column("verdict", no_wrap=True)
    table.add_column("question", overflow="fold")
    for job, verdict in zip(jobs, (one.verdict for one in done), strict=True):
        lines = [
            f"[bold]{job.experiment.question}[/bold]",
            *map(escape, filter(None, [_brief(verdict), _figures(job)])),
        ]
        told = f"{verdict.told}\n[dim]{verdict.standing.told}[/dim]" if verdict else "not run"
        table.add_row(told, "\n".join(lines))
    console.print(table)
    asked = [(job, one.verdict, one.runs) for job, one in zip(jobs, done, strict=True) if one.verdict]
    figures = {job.name: [f"{job.folder.name}/{path.name}" for path in _drawn(job)] for job, *_ in asked}
    begun = {job.name for job, *_ in asked}
    unasked = [one.question for name, one in experiments.EXPERIMENTS.items() if name not in begun]
    others = {
        job.name: " ".join([one.others, *(f"{line}." for line in doubts(job))]).strip()
        for job, one in zip(jobs, done, strict=True)
    }
    text = results_page(asked, figures, PAGE_COMMAND, unasked, others=others)
    linked = index([job for job, *_ in asked], [verdict for _, verdict, _ in asked])
    unwritten: list[str] = []
    pages = ("index.html", "reports", linked, INDEX), ("README.md", "results page", text, BEGINS)
    for name, called, content, mark in pages:
        if not is_ours(out / name, mark):
            console.print(f"{out / name} is not of this testbed and stays as it is; give another --out", style="yellow")
            continue
        with or_told(unwritten, out / name) as path:
            results.write_atomically(path, content.encode())
            console.print(f"{called}: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
    for line in unwritten:
        console.print(line, style="red", markup=False, highlight=False)
    return unwritten


def _brief(verdict: Verdict | None) -> str:
    """The declared effects at threshold 0, a line each."""
    if verdict is None:
        return ""
    text = tables.effects_text(verdict.effects[verdict.effects["declared"]])
    return "\n".join(f"{tables.contrast_text(row)}: {row['threshold 0']}" for _, row in text.iterrows())


def _figures(job: Job) -> str:
    """Where a job's figures are, as a shell would spell it; nothing if there are none."""
    drawn = [path.name for path in _drawn(job)]
    names = drawn[0] if len(drawn) == 1 else "{" + ",".join(drawn) + "}"
    return f"{job.folder}/{names}" if drawn else ""


def _drawn(job: Job) -> list[Path]:
    """A job's figures, one a task: the newest of those that a page can show."""
    of_tasks = ([job.folder / f"{file_name(task)}.{form}" for form in SHOWN] for task in job.tasks)
    age = lambda path: path.stat().st_mtime
    return [max(there, key=age) for paths in of_tasks if (there := [path for path in paths if path.exists()])]


def pack_folders(console: Console, folders: list[Path]) -> int:
    """Fold the finished records of folders into one file each; returns 0 if no record was left alone.

    Raises:
      ValueError: a packed file has a damaged line, or another process is packing.
    """
    left = 0
    for folder in folders:
        folded, problems = pack(folder)
        console.print(f"{folder}: {folded} records folded into {results.PACKED}", markup=False, highlight=False)
        for problem in problems:
            console.print(f"left alone: {problem}", style="yellow", markup=False, highlight=False)
        left += len(problems)
    return 1 if left else 0


def show_status(console: Console, job: Job) -> int:
    """Print what a job's folder holds; returns 0 if every run is done."""
    runs, states = job.runs, status(job.runs, job.folder)
    console.print(f"{job.name}, preset {job.preset}: {job.folder}", markup=False, highlight=False)
    for kind, lines in states.items():
        console.print(f"[bold]{len(lines):4} {kind}[/bold]", highlight=False)
        for line in lines if kind != "done" else []:
            console.print(f"       {line}", markup=False, highlight=False)
    return 0 if len(states["done"]) == len({run.id for run in runs}) else 1
