"""Train small models, attack them, train them against the attacks, and count every failure that is left.

With no arguments it runs the main job: on the injury task, adversarial training in 1, 4 and 16 rounds at equal compute,
three seeds, a few minutes. Runs that are already recorded are skipped, so a stopped command goes on where it was.

  python -m experiments.run                                   the main job
  python -m experiments.run --list                            what there is to run
  python -m experiments.run --task=cipher_vault --seeds=5     another task, more seeds
  python -m experiments.run --plot_only                       table and figure again, from the records alone
  python -m experiments.run --status                          what the folder holds: done, running, failed, missing
  python -m experiments.run --rerun=RECORD.json               one run anew, compared number by number
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments import EXPERIMENTS
from experiments.rerun import rerun
from tasks import TASKS
from testbed import plots, results
from testbed.attacks import ATTACKS
from testbed.check import check_task
from testbed.evaluation.exact import refuse_if_too_large
from testbed.launchers import LAUNCHERS, best_here
from testbed.sweep import Run, status, sweep

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", "update_frequency", "Which question to ask (see --list).")
flags.DEFINE_list(
    "task", None, "Which tasks to ask it on, separated by commas (see --list). Default: the experiment's."
)
flags.DEFINE_string("preset", "quick", "How much: quick (minutes) or full (hours).")
flags.DEFINE_integer("seeds", None, "How many paired seeds, 0 to seeds - 1. Default: the preset's.")
flags.DEFINE_string("out", "results", "Folder for records, models, tables and figures; made if it is not there.")
flags.DEFINE_bool("plot_only", False, "Train nothing: rebuild table, figure and verdict from the records in --out.")
flags.DEFINE_bool("status", False, "Say what --out holds of these runs (done, running, failed, missing), and stop.")
flags.DEFINE_string("rerun", None, "Do the run of this record again, compare its numbers, and stop.")
flags.DEFINE_string(
    "launcher",
    None,
    "Where runs are done: threads, processes, ray, slurm. Default: threads; processes on many cores.",
)
flags.DEFINE_integer("workers", None, "Runs at a time. Default: one a core; with slurm, 64 jobs.")
flags.DEFINE_integer("cores", None, "Cores of each run (not with threads, which share them). Default: an equal part.")
flags.DEFINE_list("slurm", [], "More for submitit, NAME=VALUE: timeout_min=60,mem_gb=8,slurm_partition=long")
flags.DEFINE_bool("list", False, "List tasks, attacks and experiments, and stop.")


def one_of(kind: str, name: str, table) -> str:
    """`name`, if the table has it.

    Raises:
      ValueError: it does not; says what there is.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(table)}")
    return name


def writable(folder: Path) -> None:
    """Make sure that files can be written into a folder, before hours are spent.

    Raises:
      ValueError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write into --out {folder}: {error.strerror}; choose another folder") from error


def show_list(console: Console) -> None:
    """Tasks, attacks and experiments with a line each."""
    for title, table in (("tasks", TASKS), ("attacks", ATTACKS), ("experiments", EXPERIMENTS)):
        grid = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2))
        for name, entry in table.items():
            grid.add_row(name, entry.__doc__.strip().splitlines()[0])
        console.print(grid)


def show(console: Console, experiment, frame, folder: Path) -> None:
    """Print the table of each task and the verdict, and write tables and figures beside the records."""
    for task, rows in frame.groupby("config.plain.task", sort=False):
        text = experiment.summary(rows)
        table = Table(title=f"{folder.name}, task {task}", title_justify="left", title_style="bold")
        table.add_column("measure", no_wrap=True)
        for arm in text:
            table.add_column(arm, justify="right")
        for measure, cells in text.iterrows():
            table.add_row(measure, *cells, style="bold" if measure[:2].isupper() else None)
        console.print(table)
        results.write_atomically(folder / f"{task}.csv", text.to_csv().encode())
        plots.save(experiment.plot(rows), folder / f"{task}.png")
    verdict = experiment.claim(frame)
    console.print(f"[bold]{verdict.outcome}[/bold]: {verdict.why}", highlight=False)


def place_of(folder: Path):
    """Where the flags say that runs are done.

    Raises:
      ValueError: a flag is wrong.
    """
    launcher = LAUNCHERS[one_of("launcher", FLAGS.launcher or best_here(), LAUNCHERS)]
    for name in ("workers", "cores"):
        if (value := FLAGS[name].value) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    if FLAGS.slurm and FLAGS.launcher != "slurm":
        raise ValueError(f"--slurm={','.join(FLAGS.slurm)} needs --launcher=slurm")
    more = {}
    for setting in FLAGS.slurm:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--slurm={setting} must be NAME=VALUE")
        more[name] = int(value) if value.isdigit() else value
    return launcher(FLAGS.workers, FLAGS.cores, folder / "slurm", **more)


def show_status(console: Console, runs: list[Run], folder: Path) -> int:
    """Print what the folder holds; returns 0 if every run is done."""
    held = status(runs, folder)
    for kind, lines in held.items():
        console.print(f"[bold]{len(lines):4} {kind}[/bold]", highlight=False)
        for line in lines if kind != "done" else []:
            console.print(f"       {line}", markup=False, highlight=False)
    return 0 if len(held["done"]) == len({run.id for run in runs}) else 1


def job(console: Console) -> int:
    """Do what the flags say; returns the exit status."""
    if FLAGS.list:
        show_list(console)
        return 0
    if FLAGS.rerun:
        return rerun(Path(FLAGS.rerun), console)
    name = one_of("experiment", FLAGS.experiment, EXPERIMENTS)
    experiment = EXPERIMENTS[name]
    preset = one_of("preset", FLAGS.preset, experiment.SEEDS)
    seeds = experiment.SEEDS[preset] if FLAGS.seeds is None else FLAGS.seeds
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {seeds}")
    tasks = [one_of("task", task, TASKS) for task in dict.fromkeys(FLAGS.task or [experiment.TASK])]
    folder = Path(FLAGS.out) / name
    place = place_of(folder)
    runs = [
        Run(name, config, seed)
        for task in tasks for config in experiment.grid(preset, task) for seed in range(seeds)
    ]  # fmt: skip
    if (FLAGS.plot_only or FLAGS.status) and not folder.is_dir():
        raise ValueError(f"{folder} does not exist; give the --out of a sweep, or leave out --plot_only and --status")
    if FLAGS.status:
        return show_status(console, runs, folder)
    writable(folder)
    records, problems = results.read(folder)
    for problem in problems:
        console.print(problem, style="yellow", markup=False, highlight=False)
    failed = []
    if not FLAGS.plot_only:
        missing = sum(run.id not in records for run in runs)
        minutes = experiment.MINUTES[preset] * missing / (len(runs) / len(tasks) / seeds * experiment.SEEDS[preset])
        console.print(
            f"{name}, preset {preset}, {', '.join(tasks)}: {len(runs)} runs ({seeds} seeds), {missing} to do, about "
            f"{minutes:.0f} minutes on two cores; records go to {folder}",
            markup=False, highlight=False,
        )  # fmt: skip
        for task in tasks:
            refuse_if_too_large(TASKS[task]())
            check_task(TASKS[task](), jax.random.key(0))
        failed = sweep(runs, experiment.measure, folder, console, place).failed
        records, _ = results.read(folder)
    there = [run.id for run in runs if run.id in records]
    if not there and not failed:
        raise ValueError(f"{folder} holds no record of these runs; leave out --plot_only to make them")
    if there:
        frame = results.load(folder, name).set_index("run", drop=False).loc[there].reset_index(drop=True)
        show(console, experiment, frame, folder)
    console.print(f"{len(there)} of {len(runs)} runs; records, models, tables and figures: {folder.resolve()}")
    for failure in failed:
        console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
    return 1 if failed else 0


def main(argv: list[str]) -> None:
    """Run the job; a user's mistake becomes one line and exit status 2."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    logging.getLogger("jax").setLevel(logging.WARNING)  # JAX tells of every accelerator that is not there
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worst-case-testbed"
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        if argv[1:]:
            raise ValueError(f"unknown argument {argv[1]!r}; flags begin with two dashes (see --help)")
        status = job(console)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; what was finished is recorded, and the same command goes on from there", file=sys.stderr)
        status = 130
    sys.exit(status)


def parse(argv):
    """absl's own flag parsing, with exit status 2 for a flag that is wrong."""
    try:
        return FLAGS(argv, known_only=False)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: app.parse_flags_with_usage(argv) if "--help" in argv else parse(argv))
