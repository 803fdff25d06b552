"""A whole miniature job: its table, records and figures, and the same again from its records."""

import dataclasses
import errno
import functools
import json
import os
import re
from pathlib import Path

import jax
import pandas as pd
import pytest
from command_line import command, fail
from conftest import slow

from experiments import EXPERIMENTS, bench, protocol
from experiments.arm import Arm, Plain
from experiments.bench import defended_name, plain_name
from experiments.columns import tidy
from experiments.experiment import Preset
from experiments.questions import update_frequency
from experiments.rerun import leaves
from experiments.tables import by_arm
from tasks import TASKS
from tasks.injury import injury
from testbed import plots
from testbed.evaluation import walk
from testbed.runs import results
from testbed.runs.models import load

pytestmark = pytest.mark.usefixtures("own_cache")


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
