"""A machine computes its formula exactly, is trained and attacked as any model, and comes back from disk."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import Whole, random_machine, talkative

from experiments.arm import Arm, Plain, sizes_of
from tasks import task_named
from testbed.attacks import ATTACKS, attack_model
from testbed.machine import GRID, exactness, machine_config, on_grid, refuse_inexact, sign
from testbed.objective import Objective, confirm
from testbed.policy import greedy, respond
from testbed.runs.models import digest_of, load, save
from testbed.runs.results import run_id
from testbed.training.defence import Defence, Lesson
from testbed.training.latent import latent_failures, one_sided
from testbed.training.rounds import train
from testbed.training.schedule import Schedule

TASK = task_named("injury:length=4")
SIZES = dict(bits=5, hidden=7)


def logits_of(machine, prompts):
    one = lambda prompt: machine(jax.nn.one_hot(prompt, TASK.vocab), jnp.zeros(1, jnp.int32))[0]
    return np.asarray(jax.jit(jax.vmap(one))(prompts))


@pytest.mark.parametrize("positional", [False, True])
def test_the_logits_are_those_of_whole_numbers(positional, all_prompts):
    machine, prompts = random_machine(TASK, 1, positional=positional), all_prompts(TASK)
    logits = logits_of(machine, prompts)
    np.testing.assert_array_equal((logits[:, 1] - logits[:, 0]) * 64, Whole(machine).leads(prompts))
    assert len(np.unique(logits[:, 0])) > 20, "the test must tell states apart"


def test_neither_batch_nor_compilation_changes_a_bit(all_prompts):
    machine, prompts = random_machine(TASK, 2), all_prompts(TASK)[::41]
    whole = logits_of(machine, prompts)
    alone = [np.asarray(machine(jax.nn.one_hot(p, TASK.vocab), jnp.zeros(1, jnp.int32))[0]) for p in prompts[:9]]
    np.testing.assert_array_equal(whole[:9], alone)
    np.testing.assert_array_equal(whole[::-1], logits_of(machine, prompts[::-1]))


def test_gradients_pass_the_rounding_and_take_the_sign_for_tanh():
    values = jnp.array([-2.0, -0.3, 0.0, 0.004, 0.01, 1.7])
    assert set(np.asarray(sign(values))) == {-1.0, 1.0} and sign(jnp.zeros(())) == 1
    np.testing.assert_array_equal(on_grid(values) / GRID, np.rint(np.asarray(values) * 64))
    np.testing.assert_array_equal(jax.grad(lambda v: on_grid(v).sum())(values), 1)
    np.testing.assert_allclose(
        jax.grad(lambda v: sign(v).sum())(values), jax.grad(lambda v: jnp.tanh(v).sum())(values), 1e-5
    )


@pytest.mark.parametrize("positional", [False, True])
def test_the_gradient_reaches_every_token(positional):
    machine = random_machine(TASK, 3, positional=positional)
    slope = Objective(TASK, machine, greedy(TASK)).gradient(jnp.array([2, 0, 4, 0]))
    assert np.isfinite(slope).all() and (np.abs(slope).max(axis=1) > 0).all()


def test_the_latent_is_added_where_the_residual_is_read():
    machine, soft, answer = random_machine(TASK, 4), jax.nn.one_hot(jnp.array([2, 6, 4, 1]), 8), jnp.zeros(1, jnp.int32)
    sums, states = (np.asarray(machine.residual(soft, answer, layer)) for layer in (0, 1))
    np.testing.assert_array_equal(states, np.where(sums >= 0, 1, -1))
    np.testing.assert_array_equal(machine.final(soft, answer), states[-1:])
    # A push just over zero on the last sum turns that bit and no other; one that stays short of it turns none.
    for excess, turns in ((2.0**-12, [5]), (-(2.0**-12), [])):
        push = np.zeros((2, 4, 16), np.float32)
        push[0, 3, 5] = -sums[3, 5] - excess * np.sign(sums[3, 5])
        turned = np.asarray(machine.final(soft, answer, push))[0]
        assert np.flatnonzero(turned != states[-1]).tolist() == turns
    push = np.zeros((2, 4, 16), np.float32)
    push[1, :, 2] = 0.5
    pushed = machine(soft, answer, push) - machine(soft, answer)
    np.testing.assert_allclose(pushed[0], 0.5 * np.rint(np.asarray(machine.head[...])[2] * 64) / 64, atol=1e-6)


def test_exactness_bounds_every_sum_and_refuses_in_one_line(all_prompts):
    machine = random_machine(TASK, 5)
    assert 0 < exactness(machine) < 0.1
    it = Whole(machine)
    hidden = np.abs(it.read).sum(axis=0) + np.abs(it.embed).max(axis=0)
    most = (hidden @ np.abs(it.write) + 64 * np.abs(it.carry)).max()
    assert exactness(machine) == most / 2**24
    refuse_inexact(machine)
    machine.write[...] = machine.write[...] * 2000
    with pytest.raises(ValueError, match=r"^this machine's sums reach [0-9.]+ times what float32 adds exactly.*$"):
        refuse_inexact(machine)
    machine.write[...] = machine.write[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="sums reach nan times"):
        refuse_inexact(machine)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [({"bits": 17}, "at most 16, not 17"), ({"bits": 0}, "at least 1, not 0"), ({"hidden": 1.5}, "whole number")],
)
def test_sizes_that_no_machine_has_are_refused(sizes, complaint):
    with pytest.raises(ValueError, match=complaint):
        machine_config(TASK, **sizes)


@pytest.mark.parametrize("positional", [False, True])
def test_a_generator_reads_what_it_says_as_it_reads_prompts(positional, all_prompts):
    task = task_named("cipher_vault:length=4:vocab=4")
    machine, prompts = talkative(task, 2, positional=positional), all_prompts(task)
    said, logits = Whole(machine).answers(prompts, 3, task.refusal)
    soft = jax.nn.one_hot(prompts, task.vocab)
    np.testing.assert_array_equal(jax.vmap(machine)(soft, said) * 64, logits)
    policy, key = greedy(task), jax.random.key(0)
    np.testing.assert_array_equal(
        jax.vmap(lambda prompt: respond(key, machine, policy, task, prompt=prompt))(prompts), said
    )
    assert len(np.unique(said, axis=0)) > 4, "the test must tell answers apart"
    others = np.roll(said, 1, axis=0)  # what is put into its mouth counts, but for the last token
    forced = np.asarray(jax.vmap(machine)(soft, others))
    assert (forced[:, 0] * 64 == logits[:, 0]).all() and (forced[:, 2] * 64 != logits[:, 2]).any()
    np.testing.assert_array_equal(jax.vmap(machine)(soft, others.copy() * [1, 1, 0]), forced)


def test_the_latent_of_a_generator_reaches_what_it_says():
    task = task_named("ledger:length=4:vocab=12")
    machine, soft, answer = talkative(task, 1), jax.nn.one_hot(jnp.array([2, 6, 4, 1]), 12), jnp.array([1, 0])
    sums, states = (np.asarray(machine.residual(soft, answer, layer)) for layer in (0, 1))
    assert sums.shape == states.shape == (machine.config.positions, 6) == (5, 6)
    np.testing.assert_array_equal(machine.final(soft, answer), states[-2:])
    push = np.zeros((2, 5, 6), np.float32)
    push[0, 4] = -2 * sums[4]
    turned = np.asarray(machine.final(soft, answer, push))
    assert (turned[1] == -states[-1]).all() and (turned[0] == states[-2]).all()


def test_a_machine_comes_back_from_disk_and_says_its_kind(tmp_path):
    machine = random_machine(TASK, 6, **SIZES, positional=True)
    save(tmp_path / "m", machine, task="injury")
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["kind"] == "machine" and document["config"] == dataclasses.asdict(machine.config)
    loaded = load(tmp_path / "m")
    assert loaded.config == machine.config and digest_of(loaded) == digest_of(machine)
    (tmp_path / "m.json").write_text(json.dumps(document | {"kind": "engine"}))
    with pytest.raises(ValueError, match=r"is not a saved model .*unknown kind 'engine'"):
        load(tmp_path / "m")
    del document["kind"]
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is not a saved model"):
        load(tmp_path / "m")


@pytest.mark.slow
def test_training_attack_and_latent_losses_work_as_on_any_model():
    schedule = Schedule(steps=32, rounds=2, finds=8, budget=20, units=2, batch=32, learning_rate=5e-3)
    blank, policy = random_machine(TASK, 7, **SIZES), greedy(TASK)
    gcg = ATTACKS["gcg"]()
    defence = Defence(lesson=Lesson(loss=one_sided(0, 0.1)))
    model, history = train(jax.random.key(0), blank, TASK, schedule, attack=gcg, defence=defence)
    assert history.loss[-1] < history.loss[0] and history.pool.shape == (8, 4)
    for before, after in zip(jax.tree.leaves(blank), jax.tree.leaves(model), strict=True):
        assert (np.asarray(before) != np.asarray(after)).any(), "no weight is left out"
    objective = Objective(TASK, model, policy)
    trace = attack_model(jax.random.key(1), gcg, objective, attackers=4, budget=40)
    hits = np.asarray(trace.margin) <= 0
    np.testing.assert_array_equal(np.asarray(confirm(objective, trace.prompt)), hits)
    pushed = latent_failures(jax.random.key(3), model, TASK, trace.prompt, layer=1, eps=2.0)
    assert pushed.shape == (4,) and np.asarray(pushed).sum() >= hits.sum()


def test_an_arm_asks_for_a_machine_and_older_runs_keep_their_ids():
    assert run_id("x", Arm(), 0) == "x-seed0-c553749cf286"
    machine = sizes_of(Plain("injury", model="machine", bits=8))
    assert (machine.bits, machine.hidden, machine.positional) == (8, 64, False)
    with pytest.raises(ValueError, match="a machine has no width; it has bits, hidden, positional"):
        sizes_of(Plain(model="machine", width=16))
    with pytest.raises(ValueError, match="a transformer has no bits; it has width, layers, heads"):
        sizes_of(Plain(bits=8))
    with pytest.raises(ValueError, match=r"plain.model must be one of transformer, machine, not 'engine'"):
        sizes_of(Plain(model="engine"))
