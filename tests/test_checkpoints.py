"""A state on disk is taken up by the computation that it belongs to, and by no other."""

import dataclasses
import errno
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import TASK, linear

from testbed.attacks import ATTACKS
from testbed.runs import checkpoints
from testbed.training import rounds as training
from testbed.training.defence import Defence, Lesson, Selection
from testbed.training.schedule import Schedule, units


class Tree(NamedTuple):
    step: int
    key: Any
    values: dict


def tree(seed: int) -> Tree:
    values = {"a": jnp.arange(6.0).reshape(2, 3) + seed, "b": np.array([seed, 2**62]), "nan": np.float32("nan")}
    return Tree(seed, jax.random.key(seed), values)


def bits(anything) -> list:
    leaves = [jax.random.key_data(x) if checkpoints._is_key(x) else x for x in jax.tree.leaves(anything)]
    return [(np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()) for x in leaves]


def test_what_is_saved_comes_back_bit_for_bit_as_what_it_was(tmp_path):
    checkpoints.save(tmp_path / "a.npz", "me", tree(1))
    back = checkpoints.load(tmp_path / "a.npz", "me", tree(0))
    assert bits(back) == bits(tree(1))
    assert type(back.step) is int
    assert jax.random.bits(back.key) == jax.random.bits(jax.random.key(1))
    assert isinstance(back.values["a"], jax.Array) and isinstance(back.values["b"], np.ndarray)


def resumed(path, state):
    return checkpoints.keeper(path, lambda: "me").resume(state)


def test_another_s_or_a_missing_file_is_none_and_a_damaged_one_is_told_and_not_taken_up(tmp_path):
    path = tmp_path / "a.npz"
    assert checkpoints.load(path, "me", tree(0)) is None
    checkpoints.save(path, "me", tree(1))
    whole = path.read_bytes()
    assert checkpoints.load(path, "you", tree(0)) is None
    assert checkpoints.load(path, "me", tree(0)._replace(step=jnp.zeros(2))) is None, "other shapes"
    assert checkpoints.load(path, "me", [tree(0), 1]) is None, "more leaves"
    for damaged in (whole[: len(whole) // 2], b"", b"not a zip file", whole[:200] + b"\0\0\0\0" + whole[204:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} is no checkpoint; delete it or choose another path"):
            checkpoints.load(path, "me", tree(0))
        assert bits(resumed(path, tree(0))) == bits(tree(0)), "a loop begins anew"
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    assert bits(resumed(path, tree(0))) == bits(tree(1))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="is no checkpoint"):
        checkpoints.load(path, "me", tree(0))


def test_bytes_come_back_whatever_their_length(tmp_path):
    for text in (b"", b"abc", b"a\0", bytes(range(256)) * 99):
        checkpoints.save(tmp_path / "a.npz", "me", (7, text))
        assert checkpoints.load(tmp_path / "a.npz", "me", (0, b"other")) == (7, text)
    assert checkpoints.load(tmp_path / "a.npz", "me", (0, 1)) is None


def test_a_save_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "a.npz", "me", tree(1))

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path / "a.npz", "me", tree(2))
    assert bits(checkpoints.load(tmp_path / "a.npz", "me", tree(0))) == bits(tree(1))


def test_the_identity_tells_processors_and_threads_apart(monkeypatch):
    """All CPUs are of one kind to JAX, and yet round otherwise."""
    names = [checkpoints.identity([])]
    monkeypatch.setattr(checkpoints.provenance, "processor", lambda: "another")
    names.append(checkpoints.identity([]))
    monkeypatch.setenv("NPROC", "77")
    assert len({*names, checkpoints.identity([])}) == 3


def test_the_identity_tells_programs_and_inputs_apart():
    def name(function, *inputs):
        return checkpoints.identity([jax.jit(function).lower(jnp.zeros(3))], *inputs)

    one, key = lambda x: x + 1, jax.random.key
    assert name(one, key(0), tree(1)) == name(lambda y: y + 1, key(0), tree(1))
    others = [
        name(lambda x: x + 2, key(0), tree(1)), name(one, key(1), tree(1)), name(one, key(0), tree(2)),
        name(one, key(0), tree(1)._replace(step=1.0)),
    ]  # fmt: skip
    assert len({name(one, key(0), tree(1)), *others}) == 5
    first, second = (jax.jit(function).lower(jnp.zeros(3)) for function in (one, lambda x: x + 2))
    assert len({checkpoints.identity(programs) for programs in ([first], [second], [first, second])}) == 3


SCHEDULE = Schedule(steps=8, rounds=2, finds=16, budget=20, batch=16, units=4)


def run(seed=0, schedule=SCHEDULE, attack="coordinate", **options):
    """The bits of an adversarial training in miniature (of a transformer: `test_kills`)."""
    return bits(training.train(jax.random.key(seed), linear(), TASK, schedule, attack=ATTACKS[attack](), **options))


class Stop(Exception):
    """What ends a training in the middle."""


def stopping(after: int, seen: list):
    def watch(done, total):
        seen.append(done)
        if done == after:
            raise Stop

    return watch


BEST = dataclasses.replace(SCHEDULE, rounds=0, best=True)


@pytest.mark.parametrize("schedule", [SCHEDULE, BEST])
def test_a_training_that_is_stopped_anywhere_goes_on_with_the_same_result(schedule, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    trained = functools.partial(run, schedule=schedule)
    undisturbed = trained()
    total = len(units(schedule).number)
    for after in range(2, total + 1, 2):
        state, first, second = tmp_path / f"{after}.npz", [], []
        with pytest.raises(Stop):
            trained(watch=stopping(after, first), checkpoint=state)
        assert trained(watch=stopping(-1, second), checkpoint=state) == undisturbed
        assert second[0] == after, "it goes on from where it was"
        assert first + second[1:] == [*range(total + 1)], "and repeats nothing"


def test_another_training_does_not_take_the_state_over(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    state = tmp_path / "a.npz"
    run(checkpoint=state)
    whole = state.read_bytes()
    for other in (
        dict(seed=1),
        dict(schedule=dataclasses.replace(SCHEDULE, rounds=4)),
        dict(schedule=dataclasses.replace(SCHEDULE, budget=30)),
        dict(schedule=dataclasses.replace(SCHEDULE, learning_rate=1e-3)),
        dict(attack="uniform"),
        dict(defence=Defence(lesson=Lesson(share=0.25))),
        dict(defence=Defence(Selection(failures_only=True))),
    ):
        state.write_bytes(whole)
        seen = []
        assert run(**other, watch=stopping(-1, seen), checkpoint=state) == run(**other)
        assert seen[0] == 0


def test_a_short_training_writes_nothing(tmp_path):
    run(checkpoint=tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
