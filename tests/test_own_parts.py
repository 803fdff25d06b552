"""What a user brings - a task, an attack, a question - is held to its contract before any long work."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import command

import experiments
from experiments import task_check
from experiments.ablate import ablation, arms
from experiments.arm import Arm, attack_of
from experiments.axes import axes_of
from experiments.worklist import Job
from tasks import injury, spelled, task_named
from testbed import outside
from testbed.attacks import ATTACKS, attack_made, attack_model
from testbed.attacks.placement import warm_start
from testbed.attacks.search import fresh_starts
from testbed.check import check_attack
from testbed.objective import Objective
from testbed.policy import greedy

MINE = '''
"""Mine."""
import jax
from experiments.experiment import Experiment, Preset
from experiments.arm import Arm, Plain
from tasks.injury import injury
from testbed.attacks.search import Attack, score

def story(length: int = 3, strict: bool = True):
    return injury(length=length if strict else length + 1)

def broken(length: int = 3):
    raise RuntimeError("no such story")

def uniform(candidates: int = 1, beyond: int = 0):
    """Uniform prompts, of `beyond` tokens more than there are."""
    def step(key, objective, state):
        shape = (candidates, objective.allowed.shape[0])
        return state, score(objective, jax.random.randint(key, shape, 0, objective.allowed.shape[1] + beyond))
    return Attack("mine", lambda key, objective, prompt, margin: (), step, 0, lambda objective: candidates)

def forgets(candidates: int = 1):
    uniform(candidates)

def counts_wrong():
    return uniform()._replace(candidates=1)

QUESTION = Experiment(
    question="Mine?", hypothesis="", design="Mine.", decides="It does not.", rule=lambda effects: "not tested",
    presets={"mine": Preset(("my_parts:story(length=3)",), 1, 1)},
    arms=lambda preset, task: {"plain": Arm(Plain(task, steps=16), steps=0, attackers=0)},
)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    outside._DIGESTS.clear()
    outside._IMPORTED.clear()
    sys.modules.pop("my_parts", None)


def test_a_size_that_is_true_or_false(folder):
    assert task_named("my_parts:story(strict=false)").prompt_length == 4
    assert task_named("my_parts:story:strict=True") is task_named("my_parts:story")
    assert spelled("my_parts:story(strict=false)") == "my_parts:story:strict=False"
    with pytest.raises(ValueError, match="strict must be true or false, not 'no'"):
        task_named("my_parts:story:strict=no")


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        ("forgets", r"it gives an object of type NoneType, not a testbed.attacks.search.Attack"),
        ("uniform:beyond", r"has no 'uniform:beyond'"),
    ],
)
def test_a_factory_that_makes_no_attack_is_told(folder, attack, complaint):
    with pytest.raises(ValueError, match=complaint):
        attack_of(Arm(attack=f"my_parts:{attack}"))


def test_a_factory_that_fails_is_told_in_a_line(folder):
    told = r"^task 'my_parts:broken': RuntimeError: no such story; its arguments: length: int = 3$"
    with pytest.raises(ValueError, match=told):
        task_named("my_parts:broken")


def test_an_attack_of_ones_own_is_one_object_so_arms_that_do_the_same_are_one(folder):
    assert attack_made("my_parts:uniform", candidates=1) is attack_made("my_parts:uniform")
    words = ["rounds=4", "candidates=1,4", "order=anyone,diverse", "attack=my_parts:uniform"]
    assert len(arms(axes_of(words), "injury")) == 1 + 3, "with one candidate there is nothing to put in order"
    with pytest.raises(ValueError, match="order=diverse changes nothing"):
        arms(axes_of(["order=diverse", "attack=my_parts:uniform"]), "injury")


def test_an_attack_that_leaves_the_input_space_is_refused(folder, lively):
    task = injury(length=3)
    check_attack(jax.random.key(0), attack_made("my_parts:uniform"), task)
    beyond = attack_made("my_parts:uniform", beyond=3)
    with pytest.raises(ValueError, match=r"attack mine left the input space, with \[.*\]: score allowed tokens only"):
        check_attack(jax.random.key(0), beyond, task)
    with pytest.raises(ValueError, match="left the input space"):
        attack_model(jax.random.key(0), beyond, Objective(task, lively(task), greedy(task)), attackers=64, budget=8)


def test_an_attack_that_fails_is_told_before_any_work(folder):
    job = Job(
        "ablation", ablation(axes_of(["rounds=1", "attack=my_parts:counts_wrong"])), "grid", ("injury:length=3",),
        range(1), folder,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"mine: candidates must be a function of the objective, not 1; write lambda"):
        task_check.check_parts(job)
    with pytest.raises(ValueError, match=r"left the input space"):
        experiments.ablate("injury:length=3", {"attack.beyond": 3}, attack="my_parts:uniform", rounds=1, seeds=1)
    assert not (folder / "results").exists()


def test_a_question_of_ones_own_may_have_other_presets(folder):
    status, out, err = command("--experiment=my_parts:QUESTION", f"--out={folder / 'out'}")
    assert (status, err) == (0, ""), out
    assert "preset mine, my_parts:story:length=3: 1 run" in " ".join(out.split())
    assert (folder / "out" / "my_parts.QUESTION" / "report.html").exists()


def test_nothing_of_jax_is_started_by_the_import_of_the_command():
    """Else each process of a launcher computes on all cores, and asking for help takes an accelerator's memory."""
    code = "import experiments.run, jax; print(jax._src.xla_bridge._backends)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "{}\n"


def test_a_task_named_twice_is_one(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("experiments.jobs.run_missing", lambda console, job, place: asked.append(job) or ["stopped"])
    with pytest.raises(RuntimeError, match="stopped"):
        experiments.ablate(["injury:length=3", "injury(length=3)"], rounds=1, seeds=1)
    assert asked[0].tasks == ("injury:length=3",)


def test_a_warm_start_begins_in_its_pool(lively):
    task = injury(length=3)
    pool = np.array([[0, 1, 2], [3, 3, 3]])
    objective = Objective(task, lively(task), greedy(task))
    starts = fresh_starts(jax.random.key(0), warm_start(ATTACKS["uniform"](), pool), objective, 32)
    assert {tuple(row) for row in np.asarray(starts).tolist()} == {tuple(row) for row in pool.tolist()}
    assert jnp.asarray(starts).shape == (32, 3)
