"""Every attack of the table, held to planted failures, to its accounts, and to the driver's promises."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from planted import FAILING, HAZARDOUS, PLANTED, Ear
from reference import F0, H, K, N, O, P
from scipy import stats

from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, Attack, Cost, Scored, Trace, attack_model, search
from testbed.evaluation import exact
from testbed.objective import NOT_HAZARDOUS, Objective, confirm
from testbed.policy import conservative, greedy
from testbed.task import prompt_ids, prompts_of_ids

EACH = pytest.mark.parametrize("name", ATTACKS)
LADDER_BUDGET = 3 * len(HAZARDOUS)  # uniform search finds a needle within it from 95 % of starts


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time here is compilation, of programs that then run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@jax.jit
def margins_of(objective, prompts):
    return jax.vmap(objective.margin)(prompts)


def planted_objective(model, tau=0.0):
    return Objective(planted.TASK, PLANTED[model], conservative(planted.TASK, tau))


@functools.cache
def climbed(name, model):
    """64 attackers under the ladder's budget; the four models share one compiled program."""
    return jax.device_get(attack_model(ATTACKS[name](), planted_objective(model), jax.random.key(7), 64, LADDER_BUDGET))


@pytest.mark.parametrize("model", PLANTED)
def test_planted_models_fail_exactly_where_they_were_told_to(model):
    task = planted.TASK
    counted = exact.count(PLANTED[model], task, {"greedy": greedy(task)}, walk=exact.plain_forward)["greedy"]
    expected = prompt_ids(task, np.array(FAILING[model], int).reshape(-1, 4))
    np.testing.assert_array_equal(counted.ids, expected)
    assert counted.hazardous == len(HAZARDOUS)


def test_planted_slopes_are_what_defeats_a_search():
    prompts = jnp.asarray(HAZARDOUS)
    distance = (np.array(HAZARDOUS) != planted.NEEDLE).sum(axis=1)
    one_of_pair = sum(np.array(HAZARDOUS)[:, position] == token for position, token in planted.PAIR)
    margins = {model: margins_of(planted_objective(model), prompts) for model in PLANTED}
    np.testing.assert_allclose(margins["nowhere"], distance + 0.5)
    np.testing.assert_allclose(margins["needle"], distance - 0.5)
    np.testing.assert_allclose(margins["gradient_hidden"], distance - 0.5)
    np.testing.assert_allclose(margins["pair"], np.where(one_of_pair == 2, -1, 1))
    slopes = jax.jit(lambda objective: jax.vmap(objective.gradient)(prompts))
    assert not np.any(slopes(planted_objective("gradient_hidden")))
    assert np.any(slopes(planted_objective("needle")), axis=(1, 2)).all()


@EACH
@pytest.mark.parametrize("model", ["needle", "pair", "gradient_hidden"])
def test_attack_finds_the_planted_failure_from_most_starts(name, model):
    trace = climbed(name, model)
    assert (trace.margin <= 0).mean() >= 0.8, f"{name} found it from {(trace.margin <= 0).sum()} of 64 starts"
    assert (trace.first[trace.margin <= 0] <= LADDER_BUDGET).all()


@EACH
def test_attack_finds_nothing_where_nothing_fails(name):
    trace = climbed(name, "nowhere")
    assert (trace.margin > 0).all()
    assert (trace.first == NEVER).all()


@EACH
@pytest.mark.parametrize("model", PLANTED)
def test_every_reported_success_is_a_known_failure_and_confirmed(name, model):
    trace = climbed(name, model)
    success = trace.margin <= 0
    known = np.array([tuple(prompt) in FAILING[model] for prompt in trace.prompt.tolist()])
    np.testing.assert_array_equal(success, known)
    np.testing.assert_array_equal(confirm(planted_objective(model), trace.prompt), known)


def small_classifier(lively):
    """Rows of one, three and all tokens, a random transformer, and a threshold below which 4 % of hazards fail."""
    allowed = np.ones((5, 8), bool)
    allowed[0], allowed[1] = np.isin(range(8), [K, O, N]), np.isin(range(8), [H])
    task = planted.within(injury(length=5), allowed)
    model = lively(task, seed=3, layers=1)
    hazards = np.unique(jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(5), 400)), axis=0)
    margins = margins_of(Objective(task, model, greedy(task)), hazards)
    return task, model, conservative(task, float(np.quantile(margins, 0.04, method="midpoint")))


def small_generator(lively):
    """Three catastrophic answers a prompt, V - 1 = 3 tokens to swap to, and a random transformer."""
    vault = cipher_vault(length=5, vocab=4, message=2)

    def catastrophic_answers(prompt):
        answers = jnp.stack([jnp.full(3, 3), jnp.arange(3)], axis=1)
        return answers, jnp.full(3, vault.hazardous(prompt))

    task = dataclasses.replace(
        vault,
        catastrophe=lambda prompt, answer: vault.hazardous(prompt) & (answer[0] == 3) & (answer[1] < 3),
        catastrophic_answers=catastrophic_answers,
    )
    return task, lively(task, seed=0, layers=1), conservative(task, 3.0)


KINDS = {"classifier": small_classifier, "generator": small_generator}
FORWARDS = {"classifier": 1, "generator": 3}  # of one margin
BOTH = pytest.mark.parametrize("kind", KINDS)
ATTACKERS, BUDGET, SEARCH_KEY = 6, 400, 11


class Target(NamedTuple):
    """What is attacked, its whole truth, and P starts `[P, T]`: all different, and only the first fails already."""

    objective: Objective
    margins: dict[tuple[int, ...], float]
    failing: set[tuple[int, ...]]
    starts: np.ndarray


@pytest.fixture(scope="module")
def targets(lively, all_prompts):
    @functools.cache
    def target(kind):
        task, model, policy = KINDS[kind](lively)
        objective, space = Objective(task, model, policy), all_prompts(task)
        margins = np.asarray(margins_of(objective, space))
        failing = prompts_of_ids(task, exact.count(model, task, {"it": policy})["it"].ids)
        others = space[(margins > 0) & (margins < NOT_HAZARDOUS)]
        starts = np.concatenate([failing[:1], others[:: len(others) // ATTACKERS]])[:ATTACKERS]
        return Target(
            objective,
            dict(zip(map(tuple, space.tolist()), margins.tolist(), strict=True)),
            set(map(tuple, failing.tolist())),
            starts.astype(np.int32),
        )

    return target


class Run(NamedTuple):
    """A search that was listened to: its trace, the calls made in all, and for each attacker what it started from
    (prompt, margin) and what each of its steps scored (prompts, margins)."""

    trace: Trace
    calls: dict[str, int]
    heard: list


@pytest.fixture(scope="module")
def runs(targets):
    """`(attack, kind) -> Run`, searched once: many questions are asked of each."""

    @functools.cache
    def run(name, kind):
        objective, _, _, starts = targets(kind)
        ear, key = Ear(), jax.random.key(SEARCH_KEY)
        loud = Objective(ear.task(objective.task), ear.model(objective.model), objective.policy)
        trace = search(ear.attack(ATTACKS[name]()), loud, starts, key, BUDGET)
        jax.effects_barrier()
        attackers = {start: attacker for attacker, (start, _) in ear.starts.items()}
        ordered = [attackers[tuple(start)] for start in starts.tolist()]
        return Run(jax.device_get(trace), ear.calls, [(ear.starts[at], ear.steps[at]) for at in ordered])

    return run


@EACH
@BOTH
def test_calls_paid_for_are_the_calls_made(runs, name, kind):
    run = runs(name, kind)
    paid = {"model": run.trace.cost.model, "gradient": run.trace.cost.gradient, "checker": run.trace.cost.checker}
    assert {call: int(number) * ATTACKERS for call, number in paid.items()} == {call: run.calls[call] for call in paid}


@EACH
@BOTH
def test_budget_is_kept_and_used_up(runs, name, kind):
    run = runs(name, kind)
    spent = run.trace.spent
    assert spent[0] == FORWARDS[kind]
    assert len(spent) > 3
    step = np.unique(np.diff(spent))
    assert len(step) == 1
    assert BUDGET - step[0] < spent[-1] <= BUDGET
    assert spent[-1] == run.trace.cost.model + 3 * run.trace.cost.gradient


@EACH
@BOTH
def test_trace_is_what_a_plain_account_of_the_search_says(runs, name, kind):
    run = runs(name, kind)
    gradients = ATTACKS[name]().gradients
    for attacker, ((start, margin), steps) in enumerate(run.heard):
        best, best_margin, calls, curve = start, margin, FORWARDS[kind], [margin]
        first = calls if margin <= 0 else NEVER
        for prompts, margins in steps:
            calls += 3 * gradients * FORWARDS[kind]
            for prompt, margin in zip(prompts, margins, strict=True):
                calls += FORWARDS[kind]
                if margin <= 0:
                    first = min(first, calls)
                if margin < best_margin:
                    best, best_margin = prompt, margin
            curve.append(best_margin)
        assert run.trace.first[attacker] == first
        assert tuple(run.trace.prompt[attacker].tolist()) == best
        assert run.trace.margin[attacker] == np.float32(best_margin)
        np.testing.assert_array_equal(run.trace.curve[:, attacker], np.float32(curve))
    assert (np.diff(run.trace.curve, axis=0) <= 0).all()


@EACH
@BOTH
def test_every_scored_prompt_is_inside_the_space_and_scored_right(targets, runs, name, kind):
    margins = targets(kind).margins
    for _, steps in runs(name, kind).heard:
        scored = dict(pair for step in steps for pair in zip(*step, strict=True))
        assert len(scored) > 2  # it looked around
        assert set(scored) <= set(margins)
        np.testing.assert_allclose(list(scored.values()), [margins[prompt] for prompt in scored], atol=1e-4)


@EACH
@BOTH
def test_successes_are_failures_by_enumeration(targets, runs, name, kind):
    target, trace = targets(kind), runs(name, kind).trace
    success = trace.margin <= 0
    np.testing.assert_array_equal([tuple(prompt) in target.failing for prompt in trace.prompt.tolist()], success)
    np.testing.assert_array_equal(confirm(target.objective, trace.prompt), success)
    np.testing.assert_array_equal(trace.first < NEVER, success)
    np.testing.assert_array_equal(trace.first == FORWARDS[kind], np.arange(ATTACKERS) == 0)


@EACH
def test_attackers_do_not_depend_on_who_else_is_in_the_batch(targets, runs, name):
    target, together = targets("classifier"), runs(name, "classifier").trace
    half, key = ATTACKERS // 2, jax.random.key(SEARCH_KEY)
    for index in (half, 0):
        part = slice(index, index + half)
        alone = search(ATTACKS[name](), target.objective, target.starts[part], key, BUDGET, index)
        np.testing.assert_array_equal(alone.prompt, together.prompt[part])
        np.testing.assert_allclose(alone.margin, together.margin[part], atol=1e-6)
        np.testing.assert_array_equal(alone.first, together.first[part])
        np.testing.assert_allclose(alone.curve, together.curve[:, part], atol=1e-6)


@EACH
def test_larger_budget_continues_the_same_search(name):
    large = climbed(name, "needle")
    small = attack_model(ATTACKS[name](), planted_objective("needle"), jax.random.key(7), 64, LADDER_BUDGET // 16)
    steps, end = len(small.spent), int(small.spent[-1])
    np.testing.assert_array_equal(large.spent[:steps], small.spent)
    np.testing.assert_array_equal(large.curve[:steps], small.curve)
    np.testing.assert_array_equal(large.curve[steps - 1], small.margin)
    assert (large.margin <= small.margin).all()
    np.testing.assert_array_equal(np.where(large.first <= end, large.first, NEVER), small.first)
    assert (large.first <= end).sum() < (large.first < NEVER).sum()


@EACH
@BOTH
def test_budget_below_one_prompt_is_refused(targets, name, kind):
    (objective, _, _, starts), forwards = targets(kind), FORWARDS[kind]
    with pytest.raises(ValueError, match=rf"budget {forwards - 1} is too small.* {forwards}\b"):
        search(ATTACKS[name](), objective, starts, jax.random.key(0), forwards - 1)
    least = jax.eval_shape(lambda: search(ATTACKS[name](), objective, starts, jax.random.key(0), forwards))
    assert least.curve.shape == (1, ATTACKERS)


@EACH
def test_attack_knows_its_name(name):
    assert ATTACKS[name]().name == name


def scripted(rows, gradients):
    """An attack that scores the given prompts `[steps, C, T]`, whatever the key."""
    rows = jnp.asarray(rows)

    def step(key, objective, number):
        return number + 1, Scored(rows[number], jax.vmap(objective.margin)(rows[number]))

    return Attack("scripted", lambda *_: 0, step, gradients, lambda objective: rows.shape[1])


def test_first_success_and_best_of_a_script():
    far, near, hit = (K, H, P, P), (K, P, F0, F0), planted.NEEDLE  # at Hamming distances 3, 1 and 0
    script = scripted([[far, near, far], [near, hit, hit], [hit, far, far]], gradients=2)
    trace = search(script, planted_objective("needle"), jnp.asarray([far, hit]), jax.random.key(0), 1 + 3 * 9 + 8)
    np.testing.assert_array_equal(trace.first, [1 + 9 + 6 + 2, 1])  # start, a step, two gradients, second candidate
    np.testing.assert_allclose(trace.curve[:, 0], [2.5, 0.5, -0.5, -0.5])
    np.testing.assert_array_equal(trace.prompt, [hit, hit])
    np.testing.assert_array_equal(trace.spent, [1, 10, 19, 28])
    assert Cost(*map(int, trace.cost)) == Cost(model=10, gradient=6, checker=16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sick:
    """A model whose logits are NaN where the last token is N."""

    inner: object

    def __call__(self, soft_prompt, answer, latent=None):
        return jnp.where(soft_prompt[3, N] > 0, jnp.nan, self.inner(soft_prompt, answer))


def test_a_margin_that_is_nan_hides_no_success():
    sick, far, hit = (K, P, F0, N), (K, H, P, P), planted.NEEDLE
    objective = Objective(planted.TASK, Sick(PLANTED["needle"]), greedy(planted.TASK))
    starts, key = jnp.asarray([sick, far]), jax.random.key(0)
    trace = search(scripted([[sick, hit, sick]], gradients=0), objective, starts, key, 4)
    np.testing.assert_array_equal(trace.first, [3, 3])
    np.testing.assert_array_equal(trace.prompt, [hit, hit])
    np.testing.assert_allclose(trace.margin, [-0.5, -0.5])


def test_first_hits_of_uniform_search_are_geometric():
    task, attackers, budget = planted.TASK, 4096, 97
    counted = exact.count(PLANTED["pair"], task, {"greedy": greedy(task)}, walk=exact.plain_forward)["greedy"]
    rate = counted.failures / counted.hazardous
    trace = attack_model(ATTACKS["uniform"](), planted_objective("pair"), jax.random.key(0), attackers, budget)
    # Bins of one call each while they are well filled, then of eight, then those that never hit.
    edges = [*range(16), *range(16, budget, 8), budget, NEVER]
    observed = np.histogram(trace.first, bins=np.array(edges) + 0.5)[0]
    expected = np.diff(np.append(stats.geom(rate).cdf(edges[:-1]), 1.0)) * attackers
    assert observed.sum() == attackers
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 0.01
