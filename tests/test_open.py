"""A space that is too large to count: every experiment takes it, samples instead, and says so."""

import dataclasses
import functools

import jax
import pandas as pd
import pytest
from test_run import command, own_cache  # noqa: F401 (a fixture that keeps the user's cache folder clean)

from experiments import arm
from experiments.arm import Arm, Plain
from experiments.preset import Preset
from experiments.questions import attack_comparison, calibration, update_frequency
from experiments.summary import as_counted, sampled
from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.check import check_task
from testbed.evaluation import exact, walk
from testbed.runs import results
from testbed.watch import silent

NAME = "injury:length=4"  # 4,096 prompts, and here only 4,000 can be counted
MINI = Plain(NAME, width=8, steps=64, layers=1)
DEFENCE = dict(steps=64, finds=16, budget=20, attackers=8)


@pytest.fixture(scope="module", autouse=True)
def too_large():
    """Only smaller spaces can be counted; training, attacks and samples are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "LARGEST_SPACE", 4000)
        patch.setattr(arm, "EVALUATION", ("coordinate",))
        yield patch


def test_large_tasks_of_the_science_keep_the_contract():
    for name in ("injury:length=16:vocab=16", "password:secret=4:length=12:vocab=16"):
        assert not exact.countable(task_named(name))
        check_task(task_named(name), jax.random.key(0))


def test_the_main_job_samples_and_says_so(too_large, tmp_path):
    base = Arm(plain=MINI, units=16, attack="coordinate", **DEFENCE)
    too_large.setattr(update_frequency, "Plain", functools.partial(Plain, width=8, steps=64, layers=1))
    for table, value in (("PRESETS", Preset(NAME, 1, 1)), ("ROUNDS", (1, 16)), ("BASE", base)):
        too_large.setitem(getattr(update_frequency, table), "mini", value)
    status, out, err = command("--preset=mini", f"--task={NAME}", f"--out={tmp_path}")
    assert (status, err) == (0, "")
    folder = tmp_path / "update_frequency"
    assert f"task {NAME}, sampled: failing prompts of 65,536 random hazards" in " ".join(out.split())
    for line in ("FAILING PROMPTS (sampled), median", "no counts of the space"):
        assert line in out
    assert (folder / "injury-length=4.csv").exists() and (folder / "injury-length=4.png").exists()
    for record in results.read(folder)[0].values():
        for policy in ("greedy", "matched"):
            assert "exact" not in record["measurements"][policy]
            assert record["measurements"][policy]["sampled"]["hazardous"] == 65_536
    assert command("--preset=mini", f"--task={NAME}", f"--out={tmp_path}", "--plot_only")[0] == 0


def frame_of(experiment, config, folder) -> pd.DataFrame:
    measured = experiment.measure(config, 0, folder, silent)
    record = {"experiment": "open", "config": dataclasses.asdict(config), "seed": 0, "seconds": 1.0}
    results.write(folder, "open", record | {"measurements": measured})
    return results.load(folder)


def test_the_attack_comparison_knows_no_recall(too_large, tmp_path):
    few = ("uniform", "coordinate", "gcg", "mcmc", "genetic")
    too_large.setattr(attack_comparison, "ATTACKS", {name: ATTACKS[name] for name in few})
    config = attack_comparison.Comparison(MINI, "plain", Arm(steps=0), attackers=8, budget=100)
    frame = as_counted(frame_of(attack_comparison, config, tmp_path))
    assert sampled(frame) == "sampled: failing prompts of 65,536 random hazards"
    table = attack_comparison.summary(frame)
    assert set(table["recall"][table["success by 1, 10, 100 calls"] != ""]) == {"-"}
    attack_comparison.plot(frame), attack_comparison.claim(frame)


@pytest.mark.slow
def test_the_calibration_judges_intervals(too_large, tmp_path):
    short = calibration.Schedule(steps=64, finds=16, budget=20, learning_rate=1e-3)
    for name, value in (("DEFENCE", short), ("BEST_DEFENCE", short), ("STRONGEST", "coordinate"), ("MOST_CALLS", 300)):
        too_large.setattr(calibration, name, value)
    for name in ("CLEAN_SAMPLES", "MANY_CLEAN_SAMPLES", "HAZARD_SAMPLES"):
        too_large.setattr(calibration, name, 4096)
    too_large.setattr(calibration, "EVALUATION", ("uniform",))
    frame = frame_of(calibration, calibration.Calibration(MINI), tmp_path)
    assert "sampled" in calibration.summary(frame).loc["failures", "measured, seed by seed"]
    verdict = calibration.claim(frame)
    assert verdict.outcome == "unfit" and "G4 solvable" in verdict.why, "4,096 samples cannot show so small a share"
    calibration.plot(frame)
