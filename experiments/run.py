"""Train small models, attack them, train them against the attacks, and count every failure that is left.

With no arguments it runs the main job: on the injury task, adversarial training in 1, 4 and 16 rounds at equal compute,
three seeds, a few minutes. Runs that are already recorded are skipped, so a stopped command goes on where it was.

  python -m experiments.run                                   the main job
  python -m experiments.run --list                            what there is to run
  python -m experiments.run --experiment=update_frequency     a whole question: its tasks, its arms
  python -m experiments.run --experiment=all                  every question, and a page of verdicts
  python -m experiments.run --task="injury(length=8)" --seeds=5         another size, more seeds
  python -m experiments.run --ablate --task=password rounds=1,4,16 budget=39,190    your own ablation
  python -m experiments.run --check=my_module:my_task         is a task of your own fit for use?
  python -m experiments.run --evaluate=PATH                   everything that can be measured about a saved model
  python -m experiments.run --play                            attack a model yourself, on a page in your browser
  python -m experiments.run --certify=PATH                    a count by paths as a file that a stranger can check
  python -m experiments.run --plot_only                       tables and figures again, from the records alone
  python -m experiments.run --status                          what the folder holds: done, running, failed, missing
  python -m experiments.run --rerun=QUESTION/ID               one run anew, compared number by number
  python -m experiments.run --register=QUESTION               fix what a question declares, before its runs
  python -m experiments.run --pack                            finished records as one file a question

Installed, the same command is called `worst-case`. Tasks, attacks and experiments of your own are
named as module:name; the module may lie in the working directory.
"""

import functools
import itertools
import logging
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console

import experiments
from experiments import export
from experiments.ablate import ablation, beside_people
from experiments.axes import axes_of
from experiments.counting import COUNT, count_saved
from experiments.evaluate import certify_saved, evaluate_saved
from experiments.experiment import Preset
from experiments.jobs import do, missing_of, pack_folders, page, show_status
from experiments.listing import show_list
from experiments.play.command import play
from experiments.play.finds import finds_of
from experiments.protocol import REGISTERED, refuse_unregistered
from experiments.reading import recorded
from experiments.register import register
from experiments.rerun import rerun
from experiments.task_check import check_named
from experiments.usage import usage
from experiments.worklist import ABLATION, Job, experiment_in, experiment_named, runs_of
from tasks import TASKS, spelled, task_named
from testbed import plots
from testbed.check import check_task
from testbed.evaluation.walk import MOST_COUNTABLE
from testbed.outside import nearest
from testbed.runs import results
from testbed.runs.launchers import LAUNCHERS, best_here
from testbed.runs.programs import mend_cache

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "experiment", None, "Which question to ask (see --list), all, or module:name. Default: the main job."
)
flags.DEFINE_string(
    "task",
    None,
    "Which tasks, separated by commas (see --list), with sizes, as in injury:length=8 or injury(length=8); "
    "module:name; or all. Default: the preset's; with --plot_only, those of the records.",
)
flags.DEFINE_string(
    "preset",
    None,
    "How much: quick (minutes), full (hours), or registered, whose runs decide. Default: quick; with --plot_only, what "
    "the records are of.",
)
flags.DEFINE_integer("seeds", None, "How many paired seeds. Default: the preset's; with --plot_only, all there are.")
flags.DEFINE_integer(
    "first_seed",
    None,
    "The first of them. Default: the preset's, mostly 0. What is tuned is tuned on seeds from 100 on.",
)
flags.DEFINE_string("out", "results", "Folder for records, models, tables and figures; made if it is not there.")
FORMATS = (*plots.FORMATS, *export.FORMATS)
flags.DEFINE_list("format", ["png"], f"Formats of figures and tables, of {', '.join(FORMATS)}.")
flags.DEFINE_bool("ablate", False, "Your own ablation: fields as name=value,value after the flags make a grid.")
flags.DEFINE_multi_string("contrast", [], "Of an ablation: an effect to declare, as rounds=1:rounds=16, or A:B > C:D.")
flags.DEFINE_list(
    "finds", [], "Of an ablation: files of sessions, as results/play/*.jsonl. What people found is one more arm."
)
flags.DEFINE_string("x", "", "Of an ablation's figure: the field along x. Default: chosen by the grid.")
flags.DEFINE_string("hue", "", "Of an ablation's figure: the field by colour. Default: chosen by the grid.")
flags.DEFINE_string("panel", "", "Of an ablation's figure: the field by panel. Default: chosen by the grid.")
flags.DEFINE_bool("plot_only", False, "Train nothing: rebuild table, figure and verdict from the records in --out.")
flags.DEFINE_list(
    "evaluate", None, "Measure saved models instead: paths without suffix, separated by commas; --task says on what."
)
flags.DEFINE_list(
    "count", None, "Count the failures of saved models in shares, which other processes on the same --out help to do."
)
flags.DEFINE_string(
    "largest_space", None, "How many prompts may be counted, as 2^32. Default: 2^28; what is larger is sampled."
)
flags.DEFINE_string("check", None, "Say in seconds whether a task keeps the contract, and what it is like, and stop.")
flags.DEFINE_bool("status", False, "Say what --out holds of the runs that the other flags ask for, and stop.")
flags.DEFINE_string(
    "rerun", None, "Do the run of this record (a file, or QUESTION/ID) again, compare its numbers, and stop."
)
flags.DEFINE_string(
    "certify", None, "Count by paths where a saved machine fails, write it as a certificate beside it, and stop."
)
flags.DEFINE_list(
    "play",
    None,
    "Attack saved models by hand, on a page in your browser: paths without suffix, the one to break last. Without a "
    "path: the demo model.",
)
flags.DEFINE_string("play_condition", "full", "What the page shows: full, no_saliency, no_margins or blind.")
flags.DEFINE_integer("play_port", 8765, "Where it listens, on this machine alone; 0: any free port.")
flags.DEFINE_bool("play_browser", True, "Open a browser there.")
flags.DEFINE_string(
    "register", None, "Fix what this question declares, before the runs of its preset `registered`, and stop."
)
flags.DEFINE_string("why", "", "With --register: why the question's protocol before was given up, in a line.")
flags.DEFINE_bool("pack", False, "Fold the finished records of --out into one records.jsonl a question, and stop.")
flags.DEFINE_string(
    "launcher", None, "Where runs are done: threads, processes, ray, slurm. Default: threads; processes on many cores."
)
flags.DEFINE_integer("workers", None, "Runs at a time. Default: one a core; with slurm, 64 jobs.")
flags.DEFINE_integer("cores", None, "Cores of each run (not with threads, which share them). Default: an equal part.")
flags.DEFINE_integer(
    "population",
    None,
    "Seeds of an arm whose models are trained as one program. Default: 1; on an accelerator all, at most 64.",
)
flags.DEFINE_list("slurm", [], "More for submitit, NAME=VALUE: timeout_min=60,mem_gb=8,slurm_partition=long")
flags.DEFINE_bool("list", False, "List tasks, attacks and experiments, and stop.")
flags.DEFINE_bool("version", False, "Print the version, and stop.")

LOOKS = ("list", "status", "plot_only", "rerun", "pack", "evaluate", "count", "certify", "check", "version")
MODES = (*LOOKS, "register", "play")  # one at a time
PURPOSES = {
    "What to run": ("experiment", "task", "preset", "seeds", "first_seed", "out", "format"),
    "Your own ablation": ("ablate", "contrast", "finds", "x", "hue", "panel"),
    "Where and how": ("launcher", "workers", "cores", "slurm", "population", "largest_space"),
    "Look at what there is": LOOKS,
    "Fix a question": ("register", "why"),
    "Attack by hand": ("play", "play_condition", "play_port", "play_browser"),
}
NEVER_EMPTY = (
    "experiment", "task", "preset", "out", "launcher", "rerun", "register", "why", "certify", "check", "play_condition",
    "largest_space",
)  # fmt: skip
LISTS = ("evaluate", "count", "play", "finds")
OF_PLAY = ("play_condition", "play_port", "play_browser")
MAIN_JOB, MAIN_PRESET = "update_frequency", "small"
MOST_SEEDS = 10_000  # a worklist is made as a whole, before its first run
MOST_WORKERS = 4096
MOST_MEMBERS = 64  # of a population, unless more are asked for
LARGEST_SEED = 2**32  # the generator knows no more: a larger seed would be a smaller one again


def one_of(kind: str, name: str, table) -> str:
    """`name`, if the table has it.

    Raises:
      ValueError: it does not; says what there is.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(table)}{nearest(name, table)}")
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


def tasks_named(text: str | None) -> list[str]:
    """The tasks of a flag, `all` among them as it stands: commas inside brackets separate sizes.

    Raises:
      ValueError: a task is not there.
    """
    words = [word.strip() for word in re.split(r",(?![^(]*\))", text or "") if word.strip()]
    return [word if word == "all" else spelled(word) for word in words]


def refuse_outside(name: str, most: int) -> None:
    """Make sure that a number, if it is given, lies from 1 to `most`.

    Raises:
      ValueError: it does not.
    """
    value = FLAGS[name].value
    if value is not None and not 1 <= value <= most:
        bound = "at least 1" if value < 1 else f"at most {most:,}"
        raise ValueError(f"--{name} must be {bound}, not {value}")


def largest_space() -> int | None:
    """How many prompts the flags allow to be counted; None as usual.

    Raises:
      ValueError: that is no power of two, or too large.
    """
    text = FLAGS.largest_space
    if text is None:
        return None
    power = re.fullmatch(r"2\^([0-9]{1,3})", text)
    if not power or 2 ** int(power[1]) > MOST_COUNTABLE:
        most = MOST_COUNTABLE.bit_length() - 1
        raise ValueError(f"--largest_space must be 2^N, N from 0 to {most}, as 2^32; not {text!r}")
    return 2 ** int(power[1])


def population() -> int:
    """How many seeds of an arm are trained together at most: one on a CPU, which does them best one by one."""
    return FLAGS.population or (1 if jax.default_backend() == "cpu" else MOST_MEMBERS)


def wanted(words: list[str]) -> tuple[list[Job], list[str]]:
    """What the flags ask for, and a line for each task that `all` named and a question cannot be asked on.

    Raises:
      ValueError: a flag names what there is not, or a number that makes no sense.
    """
    refuse_outside("seeds", MOST_SEEDS)
    refuse_outside("population", MOST_SEEDS)
    first = FLAGS.first_seed or 0
    if first < 0 or first + (FLAGS.seeds or 1) > LARGEST_SEED:
        raise ValueError(f"--first_seed and all after it must lie from 0 to {LARGEST_SEED - 1}, not {first}")
    if FLAGS.ablate:
        return [ablation_job(words)], []
    asked = MAIN_JOB if FLAGS.experiment is None else FLAGS.experiment
    if asked != "all":
        experiment_named(asked)
    names, out = list(experiments.EXPERIMENTS) if asked == "all" else [asked], Path(FLAGS.out)
    existing = [name for name in names if folder_of(name).is_dir()]
    if (FLAGS.plot_only or FLAGS.status) and not existing:
        what = f"{out} holds no records" if asked == "all" else f"{folder_of(asked)} does not exist"
        mend = "give the --out of a sweep, or leave out --plot_only and --status"
        if out.name in (*names, *experiments.EXPERIMENTS):
            mend = f"--out is the folder above: --out={out.parent}"
        raise ValueError(f"{what}; {mend}")
    found = [job_of(name) for name in (existing if FLAGS.plot_only else names)]
    jobs, left_out = [job for job, _ in found], [line for _, lines in found for line in lines]
    if asked == "all":
        jobs = [job for job in jobs if job.tasks]
        if FLAGS.plot_only:  # of questions that were not asked yet there is nothing to show
            jobs = [job for job in jobs if missing_of(job) < len(job.runs)]
    if not any(job.tasks for job in jobs):
        nothing = f"{out} holds no record of these runs; leave out --plot_only to make them"
        raise ValueError("; ".join(left_out) or nothing)
    return jobs, left_out


def seeds_of(usual: Preset) -> range:
    """The seeds that the flags ask for: those of a preset, as far as they leave that open."""
    first = usual.first_seed if FLAGS.first_seed is None else FLAGS.first_seed
    return range(first, first + (FLAGS.seeds or usual.seeds))


def folder_of(name: str) -> Path:
    """Where an experiment's records lie."""
    return Path(FLAGS.out) / name.replace(":", ".")


def ablation_job(words: list[str]) -> Job:
    """The user's own ablation.

    Raises:
      ValueError: a field, a value, a contrast or a task is not there, or flags contradict each other.
    """
    for flag in ("experiment", "preset"):
        if FLAGS[flag].value is not None:
            raise ValueError(f"--ablate is an experiment of its own; leave out --{flag}")
    if not words:
        raise ValueError("--ablate needs fields to vary, as rounds=1,4,16 budget=39,190 (see --help)")
    axes = axes_of(words)
    experiment = ablation(axes, FLAGS.contrast, x=FLAGS.x, hue=FLAGS.hue, panel=FLAGS.panel)
    usual = experiment.presets["grid"]
    if FLAGS.finds:
        experiment = beside_people(experiment, functools.partial(finds_of, FLAGS.finds))
    tasks = [t for word in tasks_named(FLAGS.task) for t in (TASKS if word == "all" else [word])] or usual.tasks
    for task in tasks:
        task_named(task)
        runs_of(ABLATION, experiment, "grid", task, 0)
    seeds = seeds_of(usual)
    drawn = [f"--{flag}={FLAGS[flag].value}" for flag in ("x", "hue", "panel") if FLAGS[flag].value]
    drawn += [f"--finds={','.join(FLAGS.finds)}"] if FLAGS.finds else []
    said = (*drawn, *(f"--contrast={contrast}" for contrast in FLAGS.contrast), *words)
    job = Job(ABLATION, experiment, "grid", tuple(dict.fromkeys(tasks)), seeds, folder_of(ABLATION), said)
    return job._replace(largest=largest_space(), population=population())


def job_of(name: str) -> tuple[Job, list[str]]:
    """What the flags ask of one experiment, and a line for each task that is left out.

    What is drawn from records alone is all that they hold, as far as the flags leave that open.

    Raises:
      ValueError: there is no such preset or task, or the question cannot be asked on a task that was named.
    """
    experiment, folder, left_out = experiment_in(name, Path(FLAGS.out)), folder_of(name), []
    preset = FLAGS.preset and one_of("preset", FLAGS.preset, experiment.presets)
    words = tasks_named(FLAGS.task)
    named = [task for word in words for task in (TASKS if word == "all" else [word])]
    by_hand = [] if FLAGS.experiment == "all" else [word for word in words if word != "all"]
    for task in named:
        task_named(task)
    if FLAGS.plot_only:
        first = seeds_of(experiment.presets[preset]).start if preset else FLAGS.first_seed or 0
        last = float("inf") if FLAGS.seeds is None else first + FLAGS.seeds
        admits = lambda t, s: (not named or t in named) and first <= s < last
        return recorded(name, folder, preset, admits, largest=largest_space()), []
    preset = preset or ("quick" if FLAGS.experiment else MAIN_PRESET)
    usual = experiment.presets[preset]
    tasks = named or (usual if FLAGS.experiment else experiment.presets[MAIN_PRESET]).tasks
    seeds = seeds_of(usual)
    if preset == REGISTERED and not FLAGS.status:
        refuse_unregistered(name, experiment, seeds, folder)
    job = Job(name, experiment, preset, tuple(dict.fromkeys(tasks)), seeds, folder)
    job = job._replace(largest=largest_space(), population=population())
    for task in job.tasks:
        try:
            experiment.arms(preset, task)
        except ValueError as error:
            if task in by_hand:
                raise
            left_out.append(f"{name} leaves out {task}: {error}")
            job = job._replace(tasks=tuple(other for other in job.tasks if other != task))
    return job, left_out


def folders_to_pack() -> list[Path]:
    """The folders of records that --pack is about: one experiment's, or all that --out has.

    Raises:
      ValueError: there is none.
    """
    asked = ABLATION if FLAGS.ablate else FLAGS.experiment
    out = Path(FLAGS.out)
    named = [folder_of(asked)] if asked not in (None, "all") else sorted(out.glob("*"))
    folders = [folder for folder in named if folder.is_dir() and results.read(folder)[0]]
    if not folders:
        raise ValueError(f"{folder_of(asked) if len(named) == 1 else out} holds no records; give the --out of a sweep")
    return folders


def place_of(folder: Path):
    """Where the flags say that runs are done.

    Raises:
      ValueError: a flag is wrong.
    """
    launcher = LAUNCHERS[one_of("launcher", FLAGS.launcher or best_here(), LAUNCHERS)]
    for name in ("workers", "cores"):
        refuse_outside(name, MOST_WORKERS)
    if FLAGS.slurm and FLAGS.launcher != "slurm":
        raise ValueError(f"--slurm={','.join(FLAGS.slurm)} needs --launcher=slurm")
    more = {}
    for setting in FLAGS.slurm:
        name, equals, value = setting.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--slurm={setting} must be NAME=VALUE")
        more[name] = int(value) if value.isdigit() else value
    return launcher(FLAGS.workers, FLAGS.cores, folder / "slurm", **more)


def refuse_contradictions(words: list[str]) -> None:
    """Make sure that the flags ask for one thing, and none is empty.

    Raises:
      ValueError: they do not; names the flags.
    """
    for name in NEVER_EMPTY:
        if FLAGS[name].present and not str(FLAGS[name].value or "").strip(" ,"):
            raise ValueError(f"--{name}= is empty (an unset variable?); give it a value or leave it out")
    for name in LISTS:
        if FLAGS[name].present and not all(FLAGS[name].value or [""]):
            raise ValueError(f"--{name}= is empty (an unset variable?); give it a value or leave it out")
    modes = [name for name in MODES if FLAGS[name].value]
    if len(modes) > 1:
        raise ValueError(f"--{modes[0]} and --{modes[1]} ask for different things; give one of them")
    if words and not FLAGS.ablate:
        hint = "; fields are varied with --ablate" if "=" in words[0] else "; flags begin with two dashes (see --help)"
        raise ValueError(f"unknown argument {words[0]!r}{hint}")
    for name in ("contrast", "finds", "x", "hue", "panel"):
        if FLAGS[name].value and not FLAGS.ablate:
            raise ValueError(f"--{name} belongs to --ablate")
    if FLAGS["why"].present and not FLAGS.register:
        raise ValueError("--why belongs to --register")
    for name in OF_PLAY:
        if FLAGS[name].present and not FLAGS.play:
            raise ValueError(f"--{name} belongs to --play")


def run_jobs(console: Console, words: list[str]) -> int:
    """Do what the flags say; returns the exit status."""
    refuse_contradictions(words)
    if FLAGS.version:
        print(f"worst-case-testbed {metadata.version('worst-case-testbed')}")
        return 0
    if FLAGS.list:
        show_list(console)
        return 0
    if FLAGS.check:
        return check_named(FLAGS.check, console)
    if FLAGS.register:
        return register(FLAGS.register, FLAGS.why, Path(FLAGS.out), console)
    if FLAGS.rerun:
        return rerun(FLAGS.rerun, Path(FLAGS.out), console)
    if FLAGS.pack:
        return pack_folders(console, folders_to_pack())
    if FLAGS.evaluate:
        [task, *_] = tasks_named(FLAGS.task) or [None]
        folder = Path(FLAGS.out) / "evaluate"
        return evaluate_saved(FLAGS.evaluate, task, folder, console, writable, largest=largest_space())
    if FLAGS.count:
        [task, *_] = tasks_named(FLAGS.task) or [None]
        folder = Path(FLAGS.out) / COUNT
        return count_saved(
            FLAGS.count, task, folder, console, writable, largest=largest_space(), place=lambda: place_of(folder)
        )
    if FLAGS.certify:
        [task, *_] = tasks_named(FLAGS.task) or [None]
        return certify_saved(FLAGS.certify, task, console)
    if FLAGS.play:
        [task, *_] = tasks_named(FLAGS.task) or [None]
        folder = Path(FLAGS.out) / "play"
        return play(
            FLAGS.play, task, FLAGS.play_condition, folder=folder, port=FLAGS.play_port, browser=FLAGS.play_browser,
            console=console, prepare=writable,
        )  # fmt: skip
    for form in FLAGS.format or [""]:
        export.refuse_missing(one_of("format", form, FORMATS))
    jobs, left_out = wanted(words)
    for line in left_out:
        console.print(line, style="yellow", markup=False, highlight=False)
    if FLAGS.status:
        return max(show_status(console, job) for job in jobs)
    places = [place_of(job.folder) for job in jobs]
    if not FLAGS.plot_only:
        for job in jobs:
            writable(job.folder)
        if len(jobs) > 1:
            minutes = sum(job.minutes(missing_of(job)) for job in jobs)
            console.print(f"{len(jobs)} experiments, about {minutes:.0f} minutes on two cores in all")
        for task in dict.fromkeys(task for job in jobs for task in job.tasks):
            check_task(jax.random.key(0), task_named(task))
    pairs = zip(jobs, places, strict=True)
    done = [do(console, job, None if FLAGS.plot_only else place, FLAGS.format) for job, place in pairs]
    unwritten = page(console, jobs, done, Path(FLAGS.out)) if len(jobs) > 1 else []
    return 1 if unwritten or any(one.failed or one.unwritten for one in done) else 0


def main(argv: list[str]) -> None:
    """Run the job; a user's mistake becomes one line and exit status 2."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    logging.getLogger("jax").setLevel(logging.WARNING)  # JAX tells of every accelerator that is not there
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worst-case-testbed"
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # Small programs too: some eighty of them cost each start several seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    mend_cache()
    try:
        status = run_jobs(console, argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:  # a full disk, for one
        print(f"error: {error}; the same command goes on from what is recorded", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped; what was finished is recorded, and the same command goes on from there", file=sys.stderr)
        status = 130
    sys.exit(status)


def _with_demo(argv: list[str]) -> list[str]:
    """The words of a command, a bare `--play` standing for the demo model: absl wants a value."""
    pairs = itertools.zip_longest(argv, argv[1:], fillvalue="-")
    return [f"{word}=demo" if word == "--play" and after.startswith("-") else word for word, after in pairs]


def parse(argv):
    """absl's own flag parsing, with help by purpose, and exit status 2 for a flag that is wrong."""
    if any(word in ("--help", "-h", "-help", "--helpfull") for word in argv[1:]):
        print(usage(__doc__, PURPOSES, FLAGS))
        sys.exit(0)
    try:
        if "--flagfile=" in argv or ("--flagfile", "") in itertools.pairwise(argv):
            raise flags.Error("--flagfile= is empty (an unset variable?); give it a value or leave it out")
        return FLAGS(_with_demo(argv), known_only=False)
    except UnicodeDecodeError as error:
        files = ", ".join(word for word in argv if word.startswith("--flagfile"))
        print(f"error: {files} is no text: {error}", file=sys.stderr)
        sys.exit(2)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def command() -> None:
    """The console command `worst-case`."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    command()
