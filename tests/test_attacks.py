"""The driver of all attacks, and the planted models that each of them is held to in the files beside this one."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from attack_contract import COMBINED, margins_of, planted_objective
from planted import FAILING, HAZARDOUS, PLANTED
from reference import F0, H, K, N, P
from scipy import stats

from tasks import TASKS
from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, Attack, Cost, attack_model, score, search, short_of_steps, steps_within
from testbed.evaluation import exact
from testbed.model import Transformer, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.pytree import register
from testbed.task import prompt_ids


def test_every_attack_is_held_to_the_contract_in_one_file():
    held = []
    for path in Path(__file__).parent.glob("test_attacks_*.py"):
        held += __import__(path.stem).NAMES
    assert sorted(held) == sorted([*ATTACKS, *COMBINED])


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_knows_its_name(name):
    assert ATTACKS[name]().name == name


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


def scripted(rows, gradients):
    """An attack that scores the given prompts `[steps, C, T]`, whatever the key."""
    rows = jnp.asarray(rows)

    def step(key, objective, number):
        return number + 1, score(objective, rows[number])

    return Attack("scripted", lambda *_: 0, step, gradients, lambda objective: rows.shape[1])


def test_first_success_and_best_of_a_script():
    far, near, hit = (K, H, P, P), (K, P, F0, F0), planted.NEEDLE  # at Hamming distances 3, 1 and 0
    script = scripted([[far, near, far], [near, hit, hit], [hit, far, far]], gradients=2)
    trace = search(
        jax.random.key(0), script, planted_objective("needle"), jnp.asarray([far, hit]), budget=1 + 3 * 9 + 8
    )
    np.testing.assert_array_equal(trace.first, [1 + 9 + 6 + 2, 1])  # start, a step, two gradients, second candidate
    np.testing.assert_allclose(trace.curve[:, 0], [2.5, 0.5, -0.5, -0.5])
    np.testing.assert_array_equal(trace.prompt, [hit, hit])
    np.testing.assert_array_equal(trace.spent, [1, 10, 19, 28])
    assert Cost(*map(int, trace.cost)) == Cost(model=10, gradient=6, checker=16)


def small_objective(name, **sizes):
    task = TASKS[name](**sizes)
    model = jax.eval_shape(lambda: Transformer(model_config(task, width=8, layers=1), jax.random.key(0)))
    return Objective(task, model, greedy(task))


def test_a_budget_buys_as_many_steps_where_a_margin_takes_ten_forward_passes():
    classifier, agent = small_objective("injury"), small_objective("agent")
    assert (classifier.forwards, agent.forwards) == (1, 10)
    gcg = ATTACKS["gcg"]()

    def searched(objective):
        run = lambda goal: attack_model(jax.random.key(0), gcg, goal, attackers=2, budget=200)
        return jax.eval_shape(run, objective).curve.shape

    assert searched(classifier) == searched(agent) == (1 + 10, 2), "the start, then ten steps"
    for budget in (1, 20, 190, 1000):
        steps = (budget - 1) // (16 + 3)  # candidates, and a gradient that counts as three
        assert steps_within(gcg, classifier, budget) == steps_within(gcg, agent, budget) == steps


@pytest.mark.parametrize("task", ["injury", "agent"])
def test_an_attack_of_fewer_than_two_steps_is_told_in_a_line(task):
    objective = small_objective(task)
    price = 8 * min(8, objective.allowed.shape[1])  # beams times continuations
    costs = rf"\(a step costs {price}\): give it more budget"
    for budget, made in ((1, "0 steps within 1 margin"), (price, f"0 steps within {price} margins")):
        assert re.fullmatch(f"beam makes {made} {costs}", short_of_steps(ATTACKS["beam"](), objective, budget))
    for budget in (1 + price, 2 * price):
        said = short_of_steps(ATTACKS["beam"](), objective, budget)
        assert re.fullmatch(f"beam makes 1 step within {budget} margins {costs}", said)
    assert short_of_steps(ATTACKS["beam"](), objective, 1 + 2 * price) == ""
    with pytest.raises(ValueError, match="budget 0 is too small"):
        short_of_steps(ATTACKS["beam"](), objective, 0)


@register
@dataclasses.dataclass(frozen=True)
class Sick:
    """A model whose logits are NaN where the last token is N."""

    inner: object

    def __call__(self, soft_prompt, answer, latent=None):
        return jnp.where(soft_prompt[3, N] > 0, jnp.nan, self.inner(soft_prompt, answer))


def test_an_attack_that_scores_more_than_it_is_paid_for_is_refused():
    objective = small_objective("injury", length=3)
    prompts = jnp.zeros((4, 3), jnp.int32)
    cheap = ATTACKS["gcg"]()
    assert cheap.candidates(objective) > 1
    with pytest.raises(ValueError, match=r"a step of attack gcg scores \d+ prompts, not 1; mend its candidates"):
        search(jax.random.key(0), cheap._replace(candidates=lambda objective: 1), objective, prompts, budget=40)
    with pytest.raises(ValueError, match=r"a step of attack gcg scores 0 prompts; at least 1"):
        steps_within(cheap._replace(candidates=lambda objective: 0), objective, 40)


def test_a_margin_that_is_nan_hides_no_success():
    sick, far, hit = (K, P, F0, N), (K, H, P, P), planted.NEEDLE
    objective = Objective(planted.TASK, Sick(PLANTED["needle"]), greedy(planted.TASK))
    starts, key = jnp.asarray([sick, far]), jax.random.key(0)
    trace = search(key, scripted([[sick, hit, sick]], gradients=0), objective, starts, budget=4)
    np.testing.assert_array_equal(trace.first, [3, 3])
    np.testing.assert_array_equal(trace.prompt, [hit, hit])
    np.testing.assert_allclose(trace.margin, [-0.5, -0.5])


def test_first_hits_of_uniform_search_are_geometric():
    task, attackers, budget = planted.TASK, 4096, 97
    counted = exact.count(PLANTED["pair"], task, {"greedy": greedy(task)}, walk=exact.plain_forward)["greedy"]
    rate = counted.failures / counted.hazardous
    trace = attack_model(
        jax.random.key(0), ATTACKS["uniform"](), planted_objective("pair"), attackers=attackers, budget=budget
    )
    # Bins of one call each while they are well filled, then of eight, then those that never hit.
    edges = [*range(16), *range(16, budget, 8), budget, NEVER]
    observed = np.histogram(trace.first, bins=np.array(edges) + 0.5)[0]
    expected = np.diff(np.append(stats.geom(rate).cdf(edges[:-1]), 1.0)) * attackers
    assert observed.sum() == attackers
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 0.01
