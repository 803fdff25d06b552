"""A bench: named streams, models that name all that made them, and labels."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import bench as benches
from experiments.arm import Arm, Plain, Recipe
from experiments.bench import STREAMS, bench, defended_name, labels_of, make_once, measure_arm, plain_model, plain_name
from tasks import TASKS, task_named
from testbed.attacks import ATTACKS
from testbed.training import rounds, units

PLAIN = Plain("injury", width=8, steps=16, layers=1)
ARM = Arm(PLAIN, steps=16, rounds=1, finds=16, budget=20, attack="uniform", attackers=0)


def test_streams_are_apart_and_those_of_the_first_round_are_where_they_were():
    at = bench(3, None)
    seed = jax.random.key(3)
    assert at.key("evaluation") == jax.random.split(jax.random.fold_in(seed, 1))[1]
    assert at.key("strength") == jax.random.fold_in(seed, 4)
    numbers = lambda names: {str(jax.random.key_data(at.key(name))) for name in names}
    own = numbers(["mine", "yours", "my stream"])
    assert len(own) == 3 and not own & numbers(STREAMS), "a stream of another name is nobody else's"
    pairs = ["plain init", "plain training", "defence", "evaluation"]
    assert len(numbers(pairs)) == 4
    assert at.key("mine") == bench(3, None).key("mine") != bench(4, None).key("mine")


def test_a_saved_model_names_its_config_its_seed_and_the_programs_that_made_it(monkeypatch):
    """Which changes of code make other programs is in the next test, and in `test_training`."""
    programs = {"init": "a", "training": "b"}
    monkeypatch.setattr(benches, "_init_program", lambda config: programs["init"])
    monkeypatch.setattr(benches, "program_digest", lambda *_, **__: programs["training"])
    usual, defended = plain_name(PLAIN, 0), defended_name(ARM, 0)
    assert usual == plain_name(PLAIN, 0) != plain_name(PLAIN, 1)
    for field, value in dict(heads=2, learning_rate=1e-3).items():  # any field changes a run's id (test_results)
        assert plain_name(dataclasses.replace(PLAIN, **{field: value}), 0) != usual, field
    for field, value in dict(budget=40, recipe=Recipe(order="worst")).items():
        assert defended_name(dataclasses.replace(ARM, **{field: value}), 0) != defended, field
    assert defended_name(dataclasses.replace(ARM, attackers=9, label="x"), 0) == defended != defended_name(ARM, 1)
    for kind in programs:
        with monkeypatch.context() as patch:
            patch.setitem(programs, kind, "c")
            assert plain_name(PLAIN, 0) != usual and defended_name(ARM, 0) != defended, kind


def test_a_change_of_code_makes_another_model(monkeypatch):
    """A learning rate that was a module constant once let a second run load the first one's model."""
    usual, defended = plain_name(PLAIN, 0), defended_name(ARM, 0)
    optimizer = units.optimizer

    def slower(*arguments, **options):
        made = optimizer(*arguments, **options)
        return made._replace(update=lambda g, s, p=None: made.update(jax.tree.map(lambda x: 0.5 * x, g), s, p))

    monkeypatch.setattr(units, "optimizer", slower)
    for program in (units.train_unit, units.attack_unit):
        program.clear_cache()
    rounds._text_digest.cache_clear()
    assert plain_name(PLAIN, 0) != usual, "an edit of the optimiser is another model"
    assert defended_name(ARM, 0) != defended
    monkeypatch.undo()
    for program in (units.train_unit, units.attack_unit):
        program.clear_cache()
    rounds._text_digest.cache_clear()


def test_safe_twins_that_are_kept_are_no_finds_that_could_be_fitted(monkeypatch, tmp_path):
    task = task_named("injury:length=4")
    monkeypatch.setattr(benches, "confirm", lambda objective, prompts: jax.vmap(task.hazardous)(prompts))
    monkeypatch.setattr(benches, "defended_name", lambda *_: "unfitted")
    plain = dataclasses.replace(PLAIN, task="injury:length=4")
    arm = dataclasses.replace(ARM, plain=plain, finds=32, recipe=Recipe(kept_twins=True))
    made = benches.defended_model(bench(0, tmp_path), arm)
    assert made.fit == 0, "all that is hazardous among the finds still fails"


def test_an_attack_of_the_evaluation_that_is_not_there_is_told_before_the_training():
    with pytest.raises(ValueError, match=r"unknown attack 'gcgg'.*did you mean 'gcg'"):
        dataclasses.replace(ARM, evaluation=("uniform", "gcgg"))


@pytest.mark.slow
def test_another_attack_under_the_same_name_makes_another_model(monkeypatch):
    defended = defended_name(ARM, 0)
    monkeypatch.setitem(ATTACKS, "uniform", ATTACKS["coordinate"])
    assert defended_name(ARM, 0) != defended


@pytest.fixture
def small(monkeypatch):
    task = TASKS["injury"](length=4)
    monkeypatch.setitem(TASKS, "injury", lambda **sizes: task)


def test_a_run_loads_no_model_twice_and_its_record_names_their_digests(small, tmp_path, monkeypatch):
    at, loads = bench(0, tmp_path / "e"), []
    load_or_make = benches.load_or_make
    monkeypatch.setattr(
        benches, "load_or_make", lambda path, *rest: loads.append(path.name) or load_or_make(path, *rest)
    )
    monkeypatch.setattr(benches, "report", lambda *_, **__: {})
    measured = measure_arm(ARM, at)
    plain_model(at, PLAIN)
    assert len(loads) == len(set(loads)) == 2
    assert set(at.digests) == set(loads)
    assert measured["compute"]["labels"] <= measured["compute"]["finds"] == 16
    again = bench(0, tmp_path / "e")
    measure_arm(ARM, again)
    assert again.digests == at.digests, "loaded, not made anew"


def test_labels_are_the_different_prompts_that_were_labelled():
    pool = np.array([[0, 1], [0, 1], [2, 3]])
    assert labels_of(ARM, pool) == 2
    assert labels_of(dataclasses.replace(ARM, rounds=0), pool[:0]) == 0
    twins = dataclasses.replace(ARM, recipe=Recipe(twins=True))
    assert labels_of(twins, pool) == 2 + 16 * 128 // 2


@pytest.mark.slow
@pytest.mark.parametrize("lone", [(), (0, 1)], ids=["together", "and alone"])
def test_a_population_makes_the_models_of_all_its_seeds_once_and_none_is_taken_for_a_lone_one(lone, small, tmp_path):
    """Of a record's numbers none but the last bits tell how its models were made; its name and notes do."""
    arm = dataclasses.replace(ARM, plain=dataclasses.replace(PLAIN, best=True))
    benches_of = [bench(seed, tmp_path / "e", together=(0, 1, 2)) for seed in (1, 0, 2)]
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(benches, "train", None)
        trains = benches.train_population
        patch.setattr(benches, "train_population", lambda *a, **k: made.append(len(a[1])) or trains(*a, **k))
        models = {at.seed: benches.defended_model(at, arm) for at in benches_of}
    assert made == [3, 3], "the plain models, then the arm's"
    names = {path.stem for path in (tmp_path / "models").glob("*.json")}
    assert len(names) == 6 and all(name.endswith("-of3") for name in names)
    assert set(benches_of[0].digests) == {plain_name(arm.plain, 1, 3), defended_name(arm, 1, members=3)}
    assert not names & {plain_name(arm.plain, 1), defended_name(arm, 1)}
    for seed in lone:
        at = bench(seed, tmp_path / "e")
        alone = benches.defended_model(at, arm)
        assert not set(at.digests) & names
        assert alone.compute == models[seed].compute and alone.found == models[seed].found
        for a, b in zip(*map(jax.tree.leaves, (alone.model, models[seed].model)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_what_is_made_is_kept_on_the_bench(tmp_path, lively):
    model, at = lively(TASKS["injury"](length=4)), bench(0, tmp_path / "e")
    made = make_once(at, "mine", lambda: (model, {"n": 1}))
    assert make_once(at, "mine", lambda: pytest.fail("made twice")) is made
    assert at.digests == {"mine": made.digest}
