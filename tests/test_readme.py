"""What the README shows runs as it is written, and a task made from its text is taken by everything else."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import arm
from experiments.questions import update_frequency
from tasks import TASKS
from testbed import attacks
from testbed.check import check_task
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.watch import silent

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name):
    """The code block under the comment of that name."""
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", README, re.DOTALL).group(1)


@functools.cache
def dose():
    written = {}
    exec(compile(block("task"), "README.md", "exec"), written)
    return written["dose"]


def test_the_task_is_at_most_60_lines():
    assert len([line for line in block("task").splitlines() if line.strip()]) <= 60


def test_the_task_keeps_the_contract():
    check_task(dose()(), jax.random.key(0))


def test_its_worked_examples_and_every_small_prompt_are_judged_as_the_text_says():
    for line in re.findall(r"^ +(.+ -> .+)$", dose().__doc__, re.MULTILINE):
        prompt, answer = re.match(r"([\d ]+?) +-> (\w+)", line).groups()
        prompt = np.array(prompt.split(), int)
        assert dose()().render(prompt, dose()().label(prompt)) == f"{' '.join(map(str, prompt))} -> {answer}"
    task = dose()(length=4, vocab=4)
    prompts = np.array(list(itertools.product(range(4), repeat=4)))
    levels = jax.vmap(lambda p: task.egregiousness(p, np.zeros(1, int)))(prompts)
    drugs = [[t for t in prompt if t] for prompt in prompts.tolist()]
    np.testing.assert_allclose(levels, [min(len(d) - len(set(d)), 3) / 3 for d in drugs])
    clean = np.exp(jax.vmap(task.clean_log_prob)(prompts).astype(float))
    np.testing.assert_allclose(clean.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "gcg"])
def test_attacks_take_it(name, lively):
    task = dose()(length=4, vocab=4)
    objective = Objective(task, lively(task), greedy(task))
    trace = attacks.attack_model(attacks.ATTACKS[name](), objective, jax.random.key(0), 4, 200)
    assert task.allowed[np.arange(4), trace.prompt].all()


def test_the_count_and_an_experiment_take_it(tmp_path, monkeypatch, lively):
    small = functools.partial(dose(), length=4, vocab=4)
    monkeypatch.setitem(TASKS, "dose", functools.cache(lambda: small()))
    monkeypatch.setattr(arm, "EVALUATION", ("uniform",))
    assert exact.count(lively(small()), small(), {"greedy": greedy(small())})["greedy"].prompts == 256
    assert {config.plain.task for config in update_frequency.grid("quick", "dose")} == {"dose"}
    plain = arm.Plain("dose", width=8, steps=16)
    tiny = arm.Arm(plain, steps=16, rounds=1, finds=16, budget=30, attack="uniform")
    measured = arm.measure(tiny, 0, tmp_path, silent)
    assert measured["greedy"]["exact"]["prompts"] == 256 and measured["compute"]["finds"] == 16


@pytest.mark.slow
def test_the_session_runs():
    # In a process of its own: the tests compile without optimisation, and this one computes much.
    subprocess.run([sys.executable, "-c", block("session")], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})


def test_its_links_lead_somewhere():
    prose = re.sub(r"```.*?```|`[^`]*`", "", README, flags=re.DOTALL)
    anchors = {
        "#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall("^#+ (.+)$", prose, re.M)
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith("https:")]
    assert len(links) > 20
    assert not [link for link in links if link not in anchors and not (ROOT / link).is_file()]
