"""A space that is too large to count: questions take it, sample instead, and say so (the main job: `test_job`)."""

import dataclasses

import jax
import pytest
from conftest import slow
from synthetic import measured

from experiments import gates
from experiments.arm import Arm, Plain
from experiments.columns import sampled_note
from experiments.questions import attack_comparison, calibration
from experiments.verdict import judge
from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.check import check_task
from testbed.evaluation import exact, walk

pytestmark = pytest.mark.usefixtures("own_cache")
NAME = "injury:length=4"  # 4,096 prompts, and here only 4,000 can be counted
MINI = Plain(NAME, width=8, steps=64, layers=1)


@pytest.fixture(scope="module", autouse=True)
def too_large():
    """Only smaller spaces can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "LARGEST_SPACE", 4000)
        yield patch


@pytest.mark.parametrize("name", ["injury:length=16:vocab=16", slow("password:secret=4:length=12:vocab=16")])
def test_large_tasks_of_the_science_keep_the_contract(name):
    assert not exact.countable(task_named(name))
    check_task(jax.random.key(0), task_named(name))


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
