"""Train small models, attack them, train them against the attacks, and count every failure that is left.

With no arguments it runs the main job: on the injury task, adversarial training in 1, 4 and 16 rounds at equal compute,
three seeds, a few minutes. Runs that are already recorded are skipped, so a stopped command goes on where it was.

  python -m experiments.run                                   the main job
  python -m experiments.run --list                            what there is to run
  python -m experiments.run --task=cipher_vault --seeds=5     another task, more seeds
  python -m experiments.run --task=injury:length=8            a task at another size
  python -m experiments.run --experiment=update_frequency     a whole question: its tasks, its arms
  python -m experiments.run --experiment=all                  every question, one after another, and a page of verdicts
  python -m experiments.run --plot_only                       table and figure again, from the records alone
  python -m experiments.run --evaluate=PATH                   everything that can be measured about a saved model
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
from experiments.evaluate import evaluate_saved
from experiments.jobs import Job, do, missing_of, page, recorded, show_status
from experiments.rerun import rerun
from tasks import TASKS, task_named
from testbed.attacks import ATTACKS
from testbed.check import check_task
from testbed.runs.launchers import LAUNCHERS, best_here

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "Which question to ask (see --list), or all. Default: the main job.")
flags.DEFINE_list(
    "task",
    None,
    "Which tasks to ask it on, separated by commas (see --list), with sizes after colons, as in injury:length=8; or "
    "all. Default: the preset's; with --plot_only, those of the records.",
)
flags.DEFINE_string(
    "preset",
    None,
    "How much: quick (minutes) or full (hours). Default: quick; with --plot_only, what the records are of.",
)
flags.DEFINE_integer("seeds", None, "How many paired seeds. Default: the preset's; with --plot_only, all there are.")
flags.DEFINE_integer("first_seed", 0, "The first of them; what is tuned is tuned on seeds from 100 on.")
flags.DEFINE_string("out", "results", "Folder for records, models, tables and figures; made if it is not there.")
flags.DEFINE_bool("plot_only", False, "Train nothing: rebuild table, figure and verdict from the records in --out.")
flags.DEFINE_list(
    "evaluate", None, "Measure saved models instead: paths without suffix, separated by commas; --task says on what."
)
flags.DEFINE_bool("status", False, "Say what --out holds of the runs that the other flags ask for, and stop.")
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


MAIN_JOB, MAIN_PRESET = "update_frequency", "small"


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


def wanted() -> tuple[list[Job], list[str]]:
    """What the flags ask for, and a line for each task that `all` named and a question cannot be asked on.

    Raises:
      ValueError: a flag names what there is not, or a number that makes no sense.
    """
    if FLAGS.seeds is not None and FLAGS.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {FLAGS.seeds}")
    if FLAGS.first_seed < 0:
        raise ValueError(f"--first_seed must not be negative, not {FLAGS.first_seed}")
    asked = MAIN_JOB if FLAGS.experiment is None else FLAGS.experiment
    one_of("experiment", asked, [*EXPERIMENTS, "all"])
    names, out = list(EXPERIMENTS) if asked == "all" else [asked], Path(FLAGS.out)
    there = [name for name in names if (out / name).is_dir()]
    if (FLAGS.plot_only or FLAGS.status) and not there:
        what = f"{out} holds no records" if asked == "all" else f"{out / asked} does not exist"
        raise ValueError(f"{what}; give the --out of a sweep, or leave out --plot_only and --status")
    found = [job_of(name) for name in (there if FLAGS.plot_only else names)]
    jobs, left_out = [job for job, _ in found], [line for _, lines in found for line in lines]
    if asked == "all":
        jobs = [job for job in jobs if job.tasks]
        if FLAGS.plot_only:  # of questions that were not asked yet there is nothing to show
            jobs = [job for job in jobs if missing_of(job) < len(job.runs)]
    if not any(job.tasks for job in jobs):
        nothing = f"{out} holds no record of these runs; leave out --plot_only to make them"
        raise ValueError("; ".join(left_out) or nothing)
    return jobs, left_out


def job_of(name: str) -> tuple[Job, list[str]]:
    """What the flags ask of one experiment, and a line for each task that is left out.

    What is drawn from records alone is all that they hold, as far as the flags leave that open.

    Raises:
      ValueError: there is no such preset or task, or the question cannot be asked on a task that was named.
    """
    experiment, folder, first, left_out = EXPERIMENTS[name], Path(FLAGS.out) / name, FLAGS.first_seed, []
    preset = FLAGS.preset and one_of("preset", FLAGS.preset, experiment.PRESETS)
    named = [task for word in FLAGS.task or [] for task in (TASKS if word == "all" else [word])]
    by_hand = [] if FLAGS.experiment == "all" else [word for word in FLAGS.task or [] if word != "all"]
    for task in named:
        task_named(task)
    if FLAGS.plot_only:
        last = float("inf") if FLAGS.seeds is None else first + FLAGS.seeds
        return recorded(name, folder, preset, lambda t, s: (not named or t in named) and first <= s < last), []
    preset = preset or ("quick" if FLAGS.experiment else MAIN_PRESET)
    usual = experiment.PRESETS[preset]
    tasks = named or (usual if FLAGS.experiment else experiment.PRESETS[MAIN_PRESET]).tasks.split(",")
    seeds = range(first, first + (FLAGS.seeds or usual.seeds))
    job = Job(name, preset, list(dict.fromkeys(tasks)), seeds, folder)
    for task in job.tasks:
        try:
            experiment.grid(preset, task)
        except ValueError as error:
            if task in by_hand:
                raise
            left_out.append(f"{name} leaves out {task}: {error}")
            job = job._replace(tasks=[other for other in job.tasks if other != task])
    return job, left_out


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


def run_jobs(console: Console) -> int:
    """Do what the flags say; returns the exit status."""
    if FLAGS.list:
        show_list(console)
        return 0
    if FLAGS.rerun:
        return rerun(Path(FLAGS.rerun), console)
    if FLAGS.evaluate:
        task = FLAGS.task[0] if FLAGS.task else None
        writable(Path(FLAGS.out))
        return evaluate_saved(FLAGS.evaluate, task, Path(FLAGS.out) / "evaluate", console)
    jobs, left_out = wanted()
    for line in left_out:
        console.print(line, style="yellow", markup=False, highlight=False)
    if FLAGS.status:
        return max(show_status(console, job) for job in jobs)
    places = [place_of(job.folder) for job in jobs]
    for job in jobs:
        writable(job.folder)
    if not FLAGS.plot_only:
        if len(jobs) > 1:
            minutes = sum(job.minutes(missing_of(job)) for job in jobs)
            console.print(f"{len(jobs)} experiments, about {minutes:.0f} minutes on two cores in all")
        for task in dict.fromkeys(task for job in jobs for task in job.tasks):
            check_task(task_named(task), jax.random.key(0))
    pairs = zip(jobs, places, strict=True)
    done = [do(console, job, None if FLAGS.plot_only else place) for job, place in pairs]
    if len(jobs) > 1:
        page(console, jobs, done)
    return 1 if any(one.failed for one in done) else 0


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
        status = run_jobs(console)
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
