"""The report of a saved model: what is found is never more than there is, and a mistake is one line."""

import functools

import jax
import numpy as np
import pytest
from command_line import command
from machines import by_hand, random_machine

from experiments.evaluate import Evaluation, evaluation_of, sections, what_changed
from tasks import TASKS, task_named
from tasks.injury import injury
from testbed.evaluation import report
from testbed.evaluation.rare import ESTIMATORS
from testbed.model import Transformer, model_config
from testbed.policy import conservative, greedy
from testbed.runs.models import notes, save


@pytest.fixture
def saved(tmp_path, monkeypatch, lively):
    monkeypatch.setitem(TASKS, "injury", functools.cache(functools.partial(injury, length=4)))
    model = lively(TASKS["injury"]())
    save(tmp_path / "mine", model, task="injury", seed=3)
    return tmp_path / "mine"


MISTAKES = {
    "no model": (["{0}/absent"], ["absent is not a saved model"]),
    "another task": (["{0}/mine", "--task=cipher_vault"], ["does not fit task cipher_vault"]),
    "no such task": (["{0}/mine", "--task=no_such"], ["unknown task 'no_such'"]),
    "no notes": (["{0}/bare"], ["says task None; give --task, one of injury"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_any_work(name, saved, tmp_path, lively, monkeypatch):
    save(tmp_path / "bare", lively(TASKS["injury"]()))
    (path, *flags), words = MISTAKES[name]
    status, _, err = command(f"--evaluate={path.format(tmp_path)}", *flags, f"--out={tmp_path / 'out'}")
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


def test_notes_are_what_was_saved(saved):
    assert notes(saved) == {"task": "injury", "seed": 3}


def test_attackers_of_no_number_are_refused(lively):
    task = injury(length=4)
    with pytest.raises(ValueError, match="attackers must be at least 1, not 0"):
        report.evaluate(jax.random.key(0), lively(task), task, attackers=0)
    with pytest.raises(ValueError, match="does not fit task injury"):
        report.evaluate(jax.random.key(0), lively(injury(length=3)), task)


def test_models_of_the_same_tensors_and_other_sizes_are_two(tmp_path):
    """The number of heads shows in no tensor."""
    told = []
    for heads in (1, 4):
        save(tmp_path / "m", Transformer(model_config(injury(), heads=heads), jax.random.key(0)), task="injury")
        told.append(evaluation_of(str(tmp_path / "m"), None).weights)
    assert told[0] != told[1]


@pytest.fixture(scope="module")
def measured(lively):
    task = injury(length=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            report,
            "SIZES",
            {name: dict(samples=512) for name in ("naive", "qld", "gld", "gumbel")}
            | {"splitting": dict(particles=32, moves=2), "itgis": dict(samples=256), "mhis": dict(base=64, chains=8)},
        )
        patch.setattr(report, "matched_policy", lambda key, model, task, share: conservative(task, 0.5))
        model = lively(task, layers=2)
        return task, report.evaluate(jax.random.key(0), model, task, attackers=8, budget=40, samples=4096)


@pytest.mark.slow
def test_the_report_is_whole_and_found_is_never_more_than_exact(measured):
    _, found = measured
    for row in found.sandwich.values():
        assert 0 < row.found <= row.exact and row.bound is None
    assert found.estimated.keys() == ESTIMATORS.keys()
    assert found.shape.failures == found.sandwich["greedy"].exact
    assert found.exact["sampled"].worst_probability > 0.5
    assert all(len(first) == 8 for first in found.timed.values())
    assert found.told_apart.verdict == "not robust"
    plain = report.as_numbers(found)
    assert plain["told_apart"]["by_looks"].keys() == {"value", "low", "high"}
    assert "ids" not in plain["exact"]["greedy"]


def test_the_page_of_a_machine_says_whether_prompts_of_any_length_fail():
    task = task_named("injury:length=16:vocab=16")
    right, hasty = by_hand(task), by_hand(task, without_negation=True)
    policies = {"greedy": greedy(task), "matched": conservative(task, 1.0)}
    empty = {"exact": {}, "clean": {}, "estimated": {}, "timed": {}, "told_apart": None, "budget": 1}

    def page(machine):
        known = report.as_numbers(report.closures(machine, task, policies))
        return next(rows for rows in sections(empty | {"at_any_length": known}) if rows[0][0] == "AT ANY LENGTH")

    kinds = {row[0]: row[1:] for row in page(right)}
    assert kinds["shortest failing prompt"] == ("none", "2 tokens: 4 8") and set(
        kinds["shortest safe prompt refused"]
    ) == {"none"}
    assert dict(row[:2] for row in page(hasty))["shortest safe prompt refused"] == "3 tokens: 12 4 8"
    fixed = random_machine(task, positional=True)
    assert report.closures(fixed, task, policies) == {} and len(sections(empty)) == 4


def test_two_machines_are_compared_prompt_by_prompt(tmp_path):
    task = task_named("injury:length=16:vocab=16")
    configs = []
    for name, machine in (("right", by_hand(task)), ("wrong", by_hand(task, target=[4] + [8] * 15))):
        save(tmp_path / name, machine, task="injury:length=16:vocab=16")
        configs.append(Evaluation(str(tmp_path / name), "injury:length=16:vocab=16", name))
    assert (
        what_changed(*configs) == "0 mended, 0 kept, 1 new"
        and what_changed(*configs[::-1]) == "1 mended, 0 kept, 0 new"
    )


@pytest.mark.slow
def test_the_command_prints_the_page_and_keeps_the_record(measured, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.evaluate.evaluate", lambda *_, **__: measured[1])
    flags = [f"--evaluate={saved},{saved}", f"--out={tmp_path / 'out'}"]
    status, out, _ = command(*flags)
    assert status == 0
    exact = measured[1].sandwich["greedy"]
    line = next(line for line in out.splitlines() if "0.00 (0)" in line)
    assert [cell.strip() for cell in line.split("│")[2:5]] == [f"{exact.found:,}", f"{exact.exact:,}", "-"]
    for heading in ("EXACT", "ESTIMATED", "TIMED", "TOLD APART"):
        assert heading in out
    assert len(list((tmp_path / "out" / "evaluate").glob("*.json"))) == 1
    monkeypatch.setattr("experiments.evaluate.evaluate", None)
    assert command(*flags)[1] == out, "what is recorded is not measured again"
    monkeypatch.setattr("experiments.evaluate.source", lambda: "other")
    assert "2 models measured by other code, some time ago" in command(*flags)[1]


@pytest.mark.slow
def test_a_machine_of_too_many_states_is_measured_in_every_other_way(monkeypatch):
    task = task_named("injury:length=16:vocab=16")
    monkeypatch.setattr(report.paths, "MOST_NODES", 2)
    monkeypatch.setattr(report, "HELD_OUT", ("uniform",))
    monkeypatch.setattr(report.rare, "ESTIMATORS", {"naive": ESTIMATORS["naive"]})
    found = report.evaluate(jax.random.key(0), random_machine(task), task, attackers=8, budget=8, samples=256)
    assert found.exact == {} and found.shape is None and found.at_any_length == {}
    assert found.sandwich["greedy"].exact is None and found.sandwich["greedy"].statistical > 0


@pytest.mark.slow
def test_a_space_too_large_to_count_is_measured_in_every_other_way(lively, monkeypatch):
    task = injury(length=4)
    model = lively(task, layers=2)
    truth = report.exact.count(model, task, {"it": greedy(task)})["it"].failures
    monkeypatch.setattr(report.exact, "countable", lambda *_, **__: False)
    monkeypatch.setattr(report, "HELD_OUT", ("uniform",))
    monkeypatch.setattr(report.rare, "ESTIMATORS", {"naive": ESTIMATORS["naive"]})
    found = report.evaluate(jax.random.key(0), model, task, attackers=8, budget=40, samples=4096)
    assert truth <= found.sandwich["greedy"].statistical <= 2 * truth and found.sandwich["greedy"].bound is None
    assert found.sandwich["greedy"].exact is None and found.exact == {} and found.shape is None
    assert np.isfinite(found.estimated["naive"].value)
    assert jax.tree.leaves(report.as_numbers(found))
