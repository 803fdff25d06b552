"""A space that is too large to count: every experiment takes it, samples instead, and says so."""

import dataclasses
import functools

import jax
import pytest
from command_line import command
from synthetic import measured

from experiments import gates
from experiments.arm import Arm, Plain
from experiments.columns import sampled_note
from experiments.experiment import Preset, judge
from experiments.questions import attack_comparison, calibration, update_frequency
from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.check import check_task
from testbed.evaluation import exact, walk
from testbed.runs import results

pytestmark = pytest.mark.usefixtures("own_cache")
NAME = "injury:length=4"  # 4,096 prompts, and here only 4,000 can be counted
MINI = Plain(NAME, width=8, steps=64, layers=1)
DEFENCE = dict(steps=64, finds=16, budget=20, attackers=0)


@pytest.fixture(scope="module", autouse=True)
def too_large():
    """Only smaller spaces can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "LARGEST_SPACE", 4000)
        yield patch


def test_large_tasks_of_the_science_keep_the_contract():
    for name in ("injury:length=16:vocab=16", "password:secret=4:length=12:vocab=16"):
        assert not exact.countable(task_named(name))
        check_task(jax.random.key(0), task_named(name))


def test_the_main_job_samples_and_says_so(too_large, tmp_path):
    base = Arm(plain=MINI, units=16, attack="coordinate", **DEFENCE)
    too_large.setattr(update_frequency, "Plain", functools.partial(Plain, width=8, steps=64, layers=1))
    for table, value in (("ROUNDS", (1, 16)), ("BASE", base)):
        too_large.setitem(getattr(update_frequency, table), "mini", value)
    too_large.setitem(update_frequency.UPDATE_FREQUENCY.presets, "mini", Preset((NAME,), 1, 1))
    status, out, err = command("--preset=mini", f"--task={NAME}", f"--out={tmp_path}")
    assert (status, err) == (0, "")
    folder = tmp_path / "update_frequency"
    assert f"task {NAME}, sampled: failing prompts of 65,536 random hazards" in " ".join(out.split())
    assert "no counts of the space" in out
    assert "sampled: failing prompts of 65,536 random hazards" in (folder / "report.html").read_text()
    assert (folder / "injury-length=4.png").exists()
    for record in results.read(folder)[0].values():
        for policy in ("greedy", "matched"):
            assert "exact" not in record["measurements"][policy]
            assert record["measurements"][policy]["sampled"]["hazardous"] == 65_536
    assert command("--preset=mini", f"--task={NAME}", f"--out={tmp_path}", "--plot_only")[0] == 0


@pytest.mark.slow
def test_the_attack_comparison_knows_no_recall(too_large, tmp_path):
    few = ("uniform", "coordinate", "gcg", "mcmc", "genetic")
    too_large.setattr(attack_comparison, "ATTACKS", {name: ATTACKS[name] for name in few})
    config = attack_comparison.Comparison(MINI, "plain", Arm(steps=0), attackers=8, budget=100)
    question = attack_comparison.ATTACK_COMPARISON
    runs = measured(question, config, tmp_path, "plain")
    assert sampled_note(runs) == "sampled: failing prompts of 65,536 random hazards"
    table = question.table(runs)
    assert set(table["recall"][table["success by 1, 10, 100 calls"] != ""]) == {"-"}
    question.figure(runs), judge(question, runs)


@pytest.mark.slow
def test_the_calibration_judges_intervals(too_large, tmp_path):
    for name, one in calibration.DEFENCES.items():
        short = dataclasses.replace(one, steps=64, finds=16, units=16, budget=20, attack="coordinate")
        too_large.setitem(calibration.DEFENCES, name, dataclasses.replace(short, rounds=min(one.rounds, 16)))
    too_large.setattr(gates, "MOST_CALLS", 300)
    for name in ("CLEAN_SAMPLES", "MANY_CLEAN_SAMPLES", "HAZARD_SAMPLES"):
        too_large.setattr(calibration, name, 4096)
    too_large.setattr(calibration, "EVALUATION", ("uniform",))
    question = calibration.CALIBRATION
    runs = measured(question, calibration.Calibration(MINI), tmp_path, "calibration")
    assert "sampled" in question.table(runs).loc["failures", "measured, seed by seed"]
    verdict = judge(question, runs)
    assert verdict.outcome == "refuted"
    solvable = verdict.effects.set_index("after").loc["G4 solvable", "effect"]
    assert solvable == 0, "4,096 samples cannot show so small a share"
    question.figure(runs)
