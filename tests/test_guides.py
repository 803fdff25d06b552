"""What the guides show runs as it is written, and what is made from their text is taken by everything else."""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import slow
from synthetic import table

from experiments import arm
from experiments.bench import bench, measure_arm
from experiments.experiment import Experiment
from experiments.questions.update_frequency import UPDATE_FREQUENCY
from experiments.verdict import judge
from experiments.worklist import runs_of
from tasks import TASKS
from testbed import attacks
from testbed.attacks.search import NEVER
from testbed.check import check_task
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.policy import greedy

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"{room}/README.md" for room in ("experiments", "tasks", "testbed", "tests", "experiments/records")),
    ".github/CONTRIBUTING.md",
    ".github/CHANGELOG.md",
]
MOST_LINES = {
    "README.md": 90, "experiments/README.md": 170, "tasks/README.md": 140, "testbed/README.md": 140,
    "tests/README.md": 40,
}  # fmt: skip
NOTEBOOK = ROOT / "experiments/examples/first_ablation.ipynb"


def block(name, page):
    """The code block under the comment of that name."""
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL).group(1)


def written(name, page):
    """What the code of a block defines."""
    defined = {"__name__": name}
    exec(compile(block(name, page), page, "exec"), defined)
    return defined


@functools.cache
def dose():
    return written("task", "tasks/README.md")["dose"]


def test_the_task_is_at_most_60_lines():
    assert len([line for line in block("task", "tasks/README.md").splitlines() if line.strip()]) <= 60


def test_the_task_keeps_the_contract():
    check_task(jax.random.key(0), dose()())


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


@pytest.mark.parametrize("name", ["uniform", slow("gcg")])
def test_attacks_take_it(name, lively):
    task = dose()(length=4, vocab=4)
    objective = Objective(task, lively(task), greedy(task))
    trace = attacks.attack_model(jax.random.key(0), attacks.ATTACKS[name](), objective, attackers=4, budget=200)
    assert task.allowed[np.arange(4), trace.prompt].all()


@pytest.fixture
def small(monkeypatch):
    """The guide's task at a small size, in the table of tasks."""
    made = functools.partial(dose(), length=4, vocab=4)
    monkeypatch.setitem(TASKS, "dose", functools.cache(lambda: made()))
    return made()


def test_the_count_and_a_worklist_take_it(small, lively):
    assert exact.count(lively(small), small, {"greedy": greedy(small)})["greedy"].prompts == 256
    assert {run.task for run in runs_of("update_frequency", UPDATE_FREQUENCY, "quick", "dose", 0)} == {"dose"}


@pytest.mark.slow
def test_an_experiment_takes_it(small, tmp_path):
    plain = arm.Plain("dose", width=8, steps=16, layers=1)
    tiny = arm.Arm(plain, steps=16, rounds=1, finds=16, budget=30, attack="uniform")
    measured = measure_arm(tiny, bench(0, tmp_path / "e"), attacks=("uniform",))
    assert measured["greedy"]["exact"]["prompts"] == 256 and measured["compute"]["finds"] == 16


def test_the_attack_keeps_to_its_budget_and_lies_inside_the_space(lively):
    pairs = written("attack", "testbed/README.md")["pairs"]
    task = TASKS["injury"](length=4)
    objective = Objective(task, lively(task), greedy(task))
    trace = attacks.attack_model(jax.random.key(0), pairs(), objective, attackers=4, budget=50)
    assert trace.curve.shape == (1 + 49 // 8, 4) and (np.diff(trace.curve, axis=0) <= 0).all()
    assert ((trace.margin <= 0) == (trace.first < NEVER)).all()
    assert task.allowed[np.arange(4), trace.prompt].all()


def test_the_question_is_judged_by_its_rule():
    question = written("question", "experiments/README.md")["BATCH"]
    assert isinstance(question, Experiment) and question.question.endswith("?")
    assert [run.arm for run in runs_of("mine", question, "quick", "injury", 0)] == ["batch 64", "batch 256"]
    fewer = table("injury", {"batch 64": [999, 99, 9999], "batch 256": [9, 0, 99]})
    assert judge(question, fewer).outcome == "supported"
    more = table("injury", {"batch 256": [999, 99, 9999], "batch 64": [9, 0, 99]})
    assert judge(question, more).outcome == "refuted"
    assert judge(question, table("injury", {"batch 64": [9, 99], "batch 256": [99, 9]})).outcome == "undecided"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("session", "testbed/README.md"),
        ("machine", "testbed/README.md"),
        ("example", "README.md"),
    ],
)
def test_a_session_runs(name, page, tmp_path):
    # In a process of its own: the tests compile without optimisation, and this one computes much.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", block(name, page)], check=True, cwd=tmp_path, env=environment)


def test_the_tasks_of_the_guide_are_those_of_the_table():
    text = (ROOT / "tasks/README.md").read_text().partition("## Names")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(TASKS)


def test_the_example_is_at_most_fifteen_lines():
    assert len(block("example", "README.md").strip().splitlines()) <= 15


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("https:"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.is_file(), link
        titles = re.findall("^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, link


@pytest.mark.parametrize("page", MOST_LINES)
def test_a_guide_is_short_and_reads_easily(page):
    text = (ROOT / page).read_text()
    assert len(text.splitlines()) <= MOST_LINES[page]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = re.sub(r"^[|#!<].*$", "", prose, flags=re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "", prose)
    sentences = [len(sentence.split()) for sentence in re.split(r"[.:?]\s", prose) if len(sentence.split()) > 2]
    assert np.median(sentences) <= 18
    assert len(re.findall(r"\b\d[\d.,]*\b", prose)) <= 0.04 * len(prose.split())


def test_the_notebook_was_run_from_top_to_bottom_without_an_error():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs_again(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebook`")
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, 4)
    outputs = lambda: [cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"]
    kinds = [[output["output_type"] for output in of_cell] for of_cell in outputs()]
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [[output["output_type"] for output in of_cell] for of_cell in outputs()] == kinds
