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

import itertools
import logging
import os
import sys
from importlib import metadata
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console

from experiments import asked, export
from experiments.asked import largest_space, one_of, place_of, saved, writable
from experiments.counting import COUNT, count_saved
from experiments.evaluate import certify_saved, evaluate_saved
from experiments.jobs import do, missing_of, pack_folders, page, show_status
from experiments.listing import show_list
from experiments.options import FLAGS, FORMATS, PURPOSES, refuse_contradictions
from experiments.play.command import play
from experiments.play.session import SESSIONS
from experiments.register import register
from experiments.rerun import rerun
from experiments.task_check import check_named, check_parts
from experiments.usage import usage
from testbed.runs.programs import mend_cache


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
        return pack_folders(console, asked.folders_to_pack())
    if FLAGS.evaluate:
        folder = Path(FLAGS.out) / "evaluate"
        return evaluate_saved(
            list(map(saved, FLAGS.evaluate)), asked.task(), folder, console, writable, largest=largest_space()
        )
    if FLAGS.count:
        folder = Path(FLAGS.out) / COUNT
        return count_saved(
            list(map(saved, FLAGS.count)), asked.task(), folder, console, writable, largest=largest_space(),
            place=lambda: place_of(folder),
        )  # fmt: skip
    if FLAGS.certify:
        return certify_saved(saved(FLAGS.certify), asked.task(), console)
    if FLAGS.play:
        folder = Path(FLAGS.out) / SESSIONS
        return play(
            list(map(saved, FLAGS.play)), asked.task(), FLAGS.play_condition, folder=folder, port=FLAGS.play_port,
            browser=FLAGS.play_browser, console=console, prepare=writable,
        )  # fmt: skip
    for form in FLAGS.format or [""]:
        export.refuse_missing(one_of("format", form, FORMATS))
    jobs, left_out = asked.wanted(words)
    for line in left_out:
        console.print(line, style="yellow", markup=False, highlight=False)
    if FLAGS.status:
        return max(show_status(console, job) for job in jobs)
    places = [None if FLAGS.plot_only else place_of(job.folder) for job in jobs]
    if not FLAGS.plot_only:
        for job in jobs:
            writable(job.folder)
        if len(jobs) > 1:
            minutes = sum(job.minutes(missing_of(job)) for job in jobs)
            console.print(f"{len(jobs)} experiments, about {minutes:.0f} minutes on two cores in all")
        for job in jobs:
            check_parts(job)
    pairs = zip(jobs, places, strict=True)
    done = [do(console, job, place, FLAGS.format) for job, place in pairs]
    unwritten = page(console, jobs, done, Path(FLAGS.out)) if len(jobs) > 1 else []
    return 1 if unwritten or any(one.failed or one.unwritten for one in done) else 0


def main(argv: list[str]) -> None:
    """Run the job; a user's mistake becomes one line and exit status 2."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    # JAX tells of every accelerator that is not there, and optax, by absl's, of every schedule without a rise.
    for library in ("jax", "absl"):
        logging.getLogger(library).setLevel(logging.WARNING)
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
