"""Certificates: a second count, without JAX, of what a machine fails on; whatever is altered is found."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from machines import random_machine, talkative, undecided

from tasks import task_named
from testbed import certificate, count, greedy
from testbed.evaluation.certify import certify
from testbed.runs.models import save

NAMES = ("injury:length=16:vocab=16", "modular:length=5", "ledger:length=5:vocab=12")


@pytest.fixture(scope="module", params=NAMES)
def certified(request, tmp_path_factory):
    """An untrained machine of few states, saved and certified: task, model, both files."""
    task = task_named(request.param)
    sizes = dict(bits=6, hidden=8, positional=task.name == "modular")
    model = (random_machine if task.answer_length == 1 else talkative)(task, 1, **sizes)
    path = tmp_path_factory.mktemp("models") / "machine"
    save(path, model, task=request.param)
    return task, model, certify(path, task, request.param), path.with_name("machine.safetensors")


def test_both_counts_agree_to_the_digit(certified):
    task, model, file, weights = certified
    found = count(model, task, {"greedy": greedy(task)})["greedy"]
    told = json.loads(file.read_text())
    machine = certificate.Machine(certificate.tensors_of(weights.read_bytes()))
    assert certificate.recount(told, machine) == {name: int(getattr(found, name)) for name in certificate.COUNTED}
    assert certificate.complaint(told, weights.read_bytes()) == ""
    assert 0 < found.failures < found.hazardous, "a machine that always or never fails would test little"


@pytest.mark.parametrize("name", ["injury:length=4", "ledger:length=4:vocab=12"])
def test_both_count_a_tie_as_a_failure(name, tmp_path):
    task = task_named(name)
    model = undecided(task)
    save(tmp_path / "machine", model, task=name)
    told = json.loads(certify(tmp_path / "machine", task, name).read_text())
    assert told["failures"] == told["hazardous"] != "0"
    assert certificate.complaint(told, (tmp_path / "machine.safetensors").read_bytes()) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told | {"failures": "0"}, "failures: 0 are certified"),
        (lambda told: told | {"false_alarms": "7"}, "false_alarms: 7 are certified"),
        (lambda told: told | {"tokens": told["tokens"][:-1]}, "prompts: "),
        (lambda told: told | {"tau": 1e6}, "counted"),
        (lambda told: told | {"model": "0" * 64}, "not the model that was certified"),
        (lambda told: told | {"format": "mine"}, "not a certificate"),
        (lambda told: told | {"rule": told["rule"] | {"level": [0.0] * len(told["rule"]["level"])}}, "hazardous: "),
    ],
)
def test_an_altered_certificate_is_refuted(certified, change, said):
    *_, file, weights = certified
    assert said in certificate.complaint(change(json.loads(file.read_text())), weights.read_bytes())


def test_an_altered_model_is_refuted(certified):
    *_, file, weights = certified
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    assert "not the model" in certificate.complaint(json.loads(file.read_text()), bytes(content))


def test_it_runs_as_a_file_of_its_own(certified):
    *_, file, weights = certified
    checker = Path(certificate.__file__)
    run = lambda *words: subprocess.run([sys.executable, "-I", checker, *words], capture_output=True, text=True)
    holds = run(file, weights)
    assert holds.returncode == 0 and holds.stdout.startswith("holds: "), holds
    assert run(weights, weights).stdout.startswith("refuted: ") and run().returncode == 2
    (file.parent / "list.json").write_text("[]")
    listed = run(file.parent / "list.json", weights)
    assert listed.stdout.startswith("refuted: AttributeError: ") and not listed.stderr
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(checker.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"hashlib", "json", "sys", "pathlib", "numpy"}
    assert len(checker.read_text().splitlines()) < 150
