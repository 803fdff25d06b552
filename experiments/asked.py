"""What the command's flags ask for: jobs, with their tasks, seeds, folders and place."""

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

import experiments
from experiments.ablate import ablation, beside_people
from experiments.axes import axes_of
from experiments.experiment import Preset
from experiments.jobs import missing_of
from experiments.options import FLAGS
from experiments.play.finds import finds_of
from experiments.protocol import REGISTERED, refuse_unregistered
from experiments.reading import recorded
from experiments.worklist import ABLATION, Job, experiment_in, experiment_named, runs_of
from tasks import TASKS, spelled, task_named
from testbed.evaluation.walk import MOST_COUNTABLE
from testbed.outside import nearest
from testbed.runs import results
from testbed.runs.launchers import LAUNCHERS, best_here

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


def task() -> str | None:
    """The one task of a saved model; None if the model's notes say it.

    Raises:
      ValueError: several are named.
    """
    named = tasks_named(FLAGS.task)
    if len(named) > 1:
        raise ValueError(f"--task={FLAGS.task} names {len(named)} tasks, and a saved model is asked about one")
    return named[0] if named else None


def saved(path: str) -> str:
    """The path of a saved model without suffix, given as that, or as one of its files."""
    return path.removesuffix(".safetensors").removesuffix(".json")


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
    """How many seeds of an arm are trained together at most: one on a CPU, which does them best one by one.

    Of machines elsewhere nobody here knows what they are, so there it is one, too.
    """
    elsewhere = FLAGS.launcher in ("ray", "slurm")
    return FLAGS.population or (1 if elsewhere or jax.default_backend() == "cpu" else MOST_MEMBERS)


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
    for word in tasks_named(FLAGS.task):
        if word != "all":
            task_named(word)
    if FLAGS.ablate:
        return [ablation_job(words)], []
    looks = FLAGS.plot_only or FLAGS.status
    if FLAGS.experiment == ABLATION or (FLAGS.experiment is None and looks and only_ablation(Path(FLAGS.out))):
        raise ValueError("an ablation is asked for again with --ablate and the fields that its report's command names")
    asked = MAIN_JOB if FLAGS.experiment is None else FLAGS.experiment
    if asked != "all":
        experiment_named(asked)
    names, out = list(experiments.EXPERIMENTS) if asked == "all" else [asked], Path(FLAGS.out)
    existing = [name for name in names if folder_of(name).is_dir()]
    if looks and not existing:
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


def only_ablation(out: Path) -> bool:
    """Whether a folder holds an ablation's records and none of the main job."""
    return (out / ABLATION).is_dir() and not (out / MAIN_JOB).is_dir()


def seeds_of(usual: Preset) -> range:
    """The seeds that the flags ask for: those of a preset, as far as they leave that open."""
    first = usual.first_seed if FLAGS.first_seed is None else FLAGS.first_seed
    return range(first, first + (FLAGS.seeds or usual.seeds))


def admitted(named: list[str], usual: int = 0) -> Callable[[str, int], bool]:
    """Which tasks and seeds of records the flags ask for: all, as far as they leave that open.

    Args:
      named: the tasks that they name; usual: the first seed, if they name none.
    """
    first = usual if FLAGS.first_seed is None else FLAGS.first_seed
    last = float("inf") if FLAGS.seeds is None else first + FLAGS.seeds
    return lambda task, seed: (not named or task in named) and first <= seed < last


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
    named = [t for word in tasks_named(FLAGS.task) for t in (TASKS if word == "all" else [word])]
    tasks, seeds = named or usual.tasks, seeds_of(usual)
    for task in tasks:
        task_named(task)
        runs_of(ABLATION, experiment, "grid", task, 0)
    drawn = [f"--{flag}={FLAGS[flag].value}" for flag in ("x", "hue", "panel") if FLAGS[flag].value]
    drawn += [f"--finds={','.join(FLAGS.finds)}"] if FLAGS.finds else []
    said = (*drawn, *(f"--contrast={contrast}" for contrast in FLAGS.contrast), *words)
    folder = folder_of(ABLATION)
    if FLAGS.plot_only:
        job = recorded(ABLATION, folder, "grid", admitted(named), largest=largest_space(), experiment=experiment)
        return job._replace(words=said)
    job = Job(ABLATION, experiment, "grid", tuple(dict.fromkeys(tasks)), seeds, folder, said)
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
        first = seeds_of(experiment.presets[preset]).start if preset else 0
        return recorded(name, folder, preset, admitted(named, first), largest=largest_space()), []
    preset = preset or (experiment.quickest if FLAGS.experiment else MAIN_PRESET)
    usual = experiment.presets[preset]
    tasks = named or map(spelled, (usual if FLAGS.experiment else experiment.presets[MAIN_PRESET]).tasks)
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
