"""What every attack is held to, combined ones too: its accounts, and the driver's promises.

A test file says which attacks it holds to this, `NAMES`, and imports all tests from here: compiling takes time, so the
work is divided among files that each take less than a minute.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from planted import PLANTED, Ear
from reference import H, K, N, O

from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.attacks.combine import chain, restarts
from testbed.attacks.placement import placed, warm_start
from testbed.attacks.search import NEVER, Trace, search
from testbed.evaluation import exact
from testbed.objective import NOT_HAZARDOUS, Objective, confirm
from testbed.policy import conservative, greedy
from testbed.pytree import register
from testbed.task import prompts_of_ids

POOL = np.array([(2, 3, 1, 0, 2), (2, 3, 2, 0, 0)])  # inside the input spaces of both kinds below
COMBINED = {
    "restarts": restarts(ATTACKS["gcg"](), 2),
    "chain": chain(ATTACKS["uniform"](), ATTACKS["hotflip"](), 2),
    "placed": placed(ATTACKS["mcmc"](), edits=2),
    "warm_start": warm_start(ATTACKS["coordinate"](patience=2), POOL),
}

# Attacks that share nearly all their code with one that is always tested: `python -m pytest -m slow` tests them too.
SIBLINGS = {
    "clean_rejection": "uniform",
    "clean_edits": "uniform",
    "infill": "coordinate",
    "hotflip": "gcg",
    "arca": "gcg",
    "saliency": "gcg",
    "annealing": "mcmc",
    "pez": "gbda",
    "embedding_pgd": "gbda",
    "restarts": "chain",
    "warm_start": "placed",
}


def slow_siblings(names):
    """Names of attacks as pytest parameters, those of siblings marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SIBLINGS else name for name in names]


ALWAYS = ("gcg",)  # held to the whole contract by the quick suite too


def pytest_generate_tests(metafunc):
    """Every test that asks for a `name` gets those of its file, and for each the `kind` if it asks for one.

    What repeats another with nearly the same code is slow, since there is much of it: siblings, classifiers, and the
    driver's own promises.
    """
    if "name" not in metafunc.fixturenames:
        return
    kinds, fields = [()], "name"
    if "kind" in metafunc.fixturenames:
        kinds, fields = [(kind,) for kind in KINDS], "name,kind"

    # That attackers are independent is the driver's promise, and asks for searches of its own.
    driver = metafunc.function is test_attackers_depend_neither_on_who_else_is_in_the_batch_nor_on_the_budget

    def slow(name, kind=None):
        return name in SIBLINGS or ((driver or kind == "classifier") and name not in ALWAYS)

    cases = [(name, *kind) for name in metafunc.module.NAMES for kind in kinds]
    marks = [[pytest.mark.slow] if slow(*case) else [] for case in cases]
    metafunc.parametrize(fields, [pytest.param(*c, marks=m) for c, m in zip(cases, marks, strict=True)])


@jax.jit
def margins_of(objective, prompts):
    return jax.vmap(objective.margin)(prompts)


def attack_named(name):
    return ATTACKS[name]() if name in ATTACKS else COMBINED[name]


def planted_objective(model, tau=0.0):
    return Objective(planted.TASK, PLANTED[model], conservative(planted.TASK, tau))


@functools.partial(jax.jit, static_argnames=("attack", "steps"))
def walk(attack, objective, start, key, steps):
    """One attacker's state after each step, and all that it scored: prompts `[steps, C, T]`, margins `[steps, C]`."""
    init_key, step_key = jax.random.split(key)
    state = attack.init(init_key, objective, start, objective.margin(start))
    keys = jax.random.split(step_key, steps)

    def step(state, key):
        state, scored = attack.step(key, objective, state)
        return state, (state, scored)

    return jax.lax.scan(step, state, keys)[1]


@register
@dataclasses.dataclass(frozen=True)
class Tanh:
    """A model of one hidden layer, quick to compile: `read` `[N, A, W]` of tanh(`see` `[W, T, V]`), plus what was said
    before, `said` `[A, A]`."""

    see: jax.Array
    read: jax.Array
    said: jax.Array

    def __call__(self, soft_prompt, answer, latent=None):
        logits = self.read @ jnp.tanh((self.see * soft_prompt).sum(axis=(1, 2)))
        return logits.at[1:].add(self.said[answer[:-1]])


def tanh(task, seed, width=6):
    rng = np.random.default_rng(seed)
    t, v, n, a = task.prompt_length, task.vocab, task.answer_length, task.answer_vocab
    shapes = (width, t, v), (n, a, width), (a, a)
    return Tanh(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes))


def threshold(task, model, share):
    """A policy so cautious that about that share of the hazards fail."""
    hazards = np.unique(jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(5), 400)), axis=0)
    margins = margins_of(Objective(task, model, greedy(task)), hazards)
    return conservative(task, float(np.quantile(margins, share, method="midpoint")))


def small_classifier():
    """Rows of one, three and all tokens, and a threshold below which 4 % of hazards fail."""
    allowed = np.ones((5, 8), bool)
    allowed[0], allowed[1] = np.isin(range(8), [K, O, N]), np.isin(range(8), [H])
    task = planted.within(injury(length=5), allowed)
    model = tanh(task, seed=3)
    return task, model, threshold(task, model, 0.04)


def small_generator():
    """Three catastrophic answers a prompt, rows of one, three and all tokens, and a threshold: 8 % of hazards fail."""
    vault = cipher_vault(length=5, vocab=4, message=2)
    allowed = np.ones((5, 4), bool)
    allowed[3], allowed[4] = np.isin(range(4), [0]), np.isin(range(4), [0, 2, 3])

    def salted(draw):
        """What is drawn, its salt brought into the space: the salt decides nothing."""

        def drawn(key):
            prompt = draw(key)
            return prompt.at[3].set(0).at[4].set(jnp.where(prompt[4] == 1, 0, prompt[4]))

        return drawn

    def catastrophic_answers(prompt):
        answers = jnp.stack([jnp.full(3, 3), jnp.arange(3)], axis=1)
        return answers, jnp.full(3, vault.hazardous(prompt))

    task = dataclasses.replace(
        vault,
        allowed=allowed,
        sample=salted(vault.sample),
        sample_hazard=salted(vault.sample_hazard),
        catastrophe=lambda prompt, answer: vault.hazardous(prompt) & (answer[0] == 3) & (answer[1] < 3),
        catastrophic_answers=catastrophic_answers,
    )
    return task, (model := tanh(task, seed=0)), threshold(task, model, 0.08)


KINDS = {"classifier": small_classifier, "generator": small_generator}
FORWARDS = {"classifier": 1, "generator": 3}  # of one margin
ATTACKERS, SEARCH_KEY = 4, 11


class Target(NamedTuple):
    """What is attacked, its whole truth, and P starts `[P, T]`: all different, and only the first fails already."""

    objective: Objective
    margins: dict[tuple[int, ...], float]
    failing: set[tuple[int, ...]]
    starts: np.ndarray


@functools.cache
def target(kind) -> Target:
    """One of the `KINDS`, enumerated."""
    task, model, policy = KINDS[kind]()
    tokens = [np.flatnonzero(row).tolist() for row in task.allowed]
    objective, space = Objective(task, model, policy), np.array(list(itertools.product(*tokens)), np.int32)
    margins = np.asarray(margins_of(objective, space))
    failing = prompts_of_ids(task, exact.count(model, task, {"it": policy}, walk=exact.plain_forward)["it"].ids)
    others = space[(margins > 0) & (margins < NOT_HAZARDOUS)]
    starts = np.concatenate([failing[:1], others[:: len(others) // ATTACKERS]])[:ATTACKERS]
    return Target(
        objective,
        dict(zip(map(tuple, space.tolist()), margins.tolist(), strict=True)),
        set(map(tuple, failing.tolist())),
        starts.astype(np.int32),
    )


def budget_for(name, kind):
    """Margins for at least four steps, and enough for restarts to happen; not a whole number of steps."""
    attack = attack_named(name)
    price = attack.candidates(target(kind).objective) + 3 * attack.gradients
    return 1 + price * max(4, 84 // price) + price // 2


class Run(NamedTuple):
    """A search that was listened to: its trace, the calls made in all, and for each attacker what it started from
    (prompt, margin) and what each of its steps scored (prompts, margins)."""

    trace: Trace
    calls: dict[str, int]
    heard: list


@functools.cache
def run(name, kind) -> Run:
    """An attack on a target, searched once: many questions are asked of it."""
    objective, _, _, starts = target(kind)
    ear, key = Ear(), jax.random.key(SEARCH_KEY)
    loud = Objective(ear.task(objective.task), ear.model(objective.model), objective.policy)
    trace = search(key, ear.attack(attack_named(name)), loud, starts, budget=budget_for(name, kind))
    jax.effects_barrier()
    attackers = {start: attacker for attacker, (start, _) in ear.starts.items()}
    ordered = [attackers[tuple(start)] for start in starts.tolist()]
    return Run(jax.device_get(trace), ear.calls, [(ear.starts[at], ear.steps[at]) for at in ordered])


class Account(NamedTuple):
    """What a search says that it found, for one attacker: best prompt and margin, first success, and the curve."""

    prompt: tuple[int, ...]
    margin: np.float32
    first: int
    curve: list[np.float32]


def account(heard, gradients: int, forwards: int, steps: int | None = None) -> Account:
    """A plain account of the first steps of an attacker (default all), from what was heard."""
    (best, margin), scored = heard
    calls, curve, first = forwards, [np.float32(margin)], forwards if margin <= 0 else NEVER
    for prompts, margins in scored[:steps]:
        calls += 3 * gradients * forwards
        for prompt, other in zip(prompts, margins, strict=True):
            calls += forwards
            if other <= 0:
                first = min(first, calls)
            if other < margin:
                best, margin = prompt, other
        curve.append(np.float32(margin))
    return Account(best, np.float32(margin), first, curve)


def reported(trace: Trace, attacker: int) -> Account:
    """The same, as the driver reports it."""
    prompt = tuple(trace.prompt[attacker].tolist())
    return Account(prompt, trace.margin[attacker], int(trace.first[attacker]), trace.curve[:, attacker].tolist())


def test_calls_paid_for_are_the_calls_made(name, kind):
    cost, calls = run(name, kind).trace.cost, run(name, kind).calls
    assert {call: int(number) * ATTACKERS for call, number in cost._asdict().items()} == {
        call: calls[call] for call in cost._fields
    }


def test_budget_is_kept_and_used_up(name, kind):
    trace, budget = run(name, kind).trace, budget_for(name, kind) * FORWARDS[kind]
    assert trace.spent[0] == FORWARDS[kind]
    assert len(trace.spent) > 3
    step = np.unique(np.diff(trace.spent))
    assert len(step) == 1
    assert budget - step[0] < trace.spent[-1] <= budget
    assert trace.spent[-1] == trace.cost.model + 3 * trace.cost.gradient


def test_trace_is_what_a_plain_account_of_the_search_says(name, kind):
    trace, _, heard = run(name, kind)
    for attacker in range(ATTACKERS):
        assert reported(trace, attacker) == account(heard[attacker], attack_named(name).gradients, FORWARDS[kind])
    assert (np.diff(trace.curve, axis=0) <= 0).all()


def test_every_scored_prompt_is_inside_the_space_and_scored_right(name, kind):
    margins = target(kind).margins
    for _, steps in run(name, kind).heard:
        scored = dict(pair for step in steps for pair in zip(*step, strict=True))
        assert len(scored) > 2  # it looked around
        assert set(scored) <= set(margins)
        np.testing.assert_allclose(list(scored.values()), [margins[prompt] for prompt in scored], atol=1e-4)


def test_successes_are_failures_by_enumeration(name, kind):
    trace = run(name, kind).trace
    success = trace.margin <= 0
    np.testing.assert_array_equal([tuple(prompt) in target(kind).failing for prompt in trace.prompt.tolist()], success)
    np.testing.assert_array_equal(confirm(target(kind).objective, trace.prompt), success)
    np.testing.assert_array_equal(trace.first < NEVER, success)
    np.testing.assert_array_equal(trace.first == FORWARDS[kind], np.arange(ATTACKERS) == 0)


def test_attackers_depend_neither_on_who_else_is_in_the_batch_nor_on_the_budget(name):
    """A search alone, with half the budget, is the beginning of the one that was heard."""
    attack, (objective, _, _, starts), heard = attack_named(name), target("generator"), run(name, "generator").heard
    half, key = ATTACKERS // 2, jax.random.key(SEARCH_KEY)
    for index in (half, 0):
        alone = search(
            key, attack, objective, starts[index : index + half], budget=budget_for(name, "generator") // 2, index=index
        )
        for number in range(half):
            expected = account(heard[index + number], attack.gradients, FORWARDS["generator"], len(alone.spent) - 1)
            found = reported(jax.device_get(alone), number)
            assert (found.prompt, found.first) == (expected.prompt, expected.first)
            np.testing.assert_allclose(found.curve, expected.curve, atol=1e-6)
            assert found.margin == np.float32(found.curve[-1])


def test_budget_below_one_prompt_is_refused(name, kind):
    objective, _, _, starts = target(kind)
    with pytest.raises(ValueError, match=r"budget 0 is too small.* at least 1\b"):
        search(jax.random.key(0), attack_named(name), objective, starts, budget=0)
    least = jax.eval_shape(lambda: search(jax.random.key(0), attack_named(name), objective, starts, budget=1))
    assert least.curve.shape == (1, ATTACKERS)
