"""A broken model is refused by whatever reads it: weights that are NaN, and answers that become NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from tasks import TASKS
from testbed.attacks import ATTACKS, attack_model
from testbed.attacks.search import steps_within
from testbed.evaluation import exact, rare
from testbed.evaluation.account import report
from testbed.evaluation.samples import clean_behaviour, sampled_failures
from testbed.evaluation.strength import strength
from testbed.evaluation.telltale import telltale
from testbed.evaluation.walk import over_space
from testbed.model import Transformer
from testbed.objective import Objective, margins_of
from testbed.policy import greedy, matched_policy
from testbed.pytree import register
from testbed.task import prompts_of_ids, space_size

TASK = TASKS["injury"](length=4)
KEY = jax.random.key(0)
POLICIES = {"greedy": greedy(TASK)}
PROMPTS = prompts_of_ids(TASK, np.arange(space_size(TASK)))


def one_row(model):
    """The embedding of one token is NaN."""
    kernel = model.prompt_embedding.kernel[...].at[3].set(jnp.nan)
    return jax.tree.map(lambda leaf: kernel if leaf.shape == kernel.shape else leaf, model)


def every_weight(model):
    return jax.tree.map(lambda leaf: leaf * jnp.nan, model)


@register
@dataclasses.dataclass(frozen=True)
class Sick:
    """Sound weights, and logits that are NaN on prompts that begin with token 0, which are hardly hazardous."""

    inner: Transformer

    def __call__(self, soft_prompt, answer, latent=None):
        return jnp.where(soft_prompt[0, 0] > 0, jnp.nan, self.inner(soft_prompt, answer))


@register(meta=["answer"])
@dataclasses.dataclass(frozen=True)
class RuledOut:
    """A sound model that never gives one of its answers."""

    inner: Transformer
    answer: int

    def __call__(self, soft_prompt, answer, latent=None):
        return self.inner(soft_prompt, answer).at[..., self.answer].set(-jnp.inf)


def estimator(name):
    make = {"qld": {"samples": 512}, "gld": {"samples": 512}, "gumbel": {"samples": 512}, "naive": {"samples": 512}}
    make |= {"mhis": {"base": 64, "chains": 8}, "itgis": {"samples": 256}, "splitting": {"particles": 64, "moves": 2}}
    return lambda model: rare.ESTIMATORS[name](**make.get(name, {}))(KEY, Objective(TASK, model, greedy(TASK)))


# What reads a model: name -> `model -> anything`. Of those in ANSWERS the answers are looked at, too.
ANSWERS = {
    "exact count": lambda model: exact.count(model, TASK, POLICIES, walk=exact.plain_forward),
    "margins of hazards": lambda model: exact.hazardous_margins(model, TASK, greedy(TASK), exact.plain_forward),
    "clean behaviour": lambda model: clean_behaviour(KEY, model, TASK, POLICIES, samples=64),
    "sampled failures": lambda model: sampled_failures(KEY, model, TASK, POLICIES, samples=64),
    "matched policy": lambda model: matched_policy(KEY, model, TASK, 0.01, samples=256),
    "naive": estimator("naive"),
    "gld": estimator("gld"),
    "mhis": estimator("mhis"),
    "itgis": estimator("itgis"),
    "splitting": estimator("splitting"),
    "telltale": lambda model: telltale(KEY, model, TASK, {"uniform": ATTACKS["uniform"]()}),
    "attack driver": lambda model: attack_model(
        KEY, ATTACKS["uniform"](), Objective(TASK, model, greedy(TASK)), attackers=64, budget=9
    ),
    "margins": lambda model: margins_of(Objective(TASK, model, greedy(TASK)), PROMPTS),
}
READERS = (
    ANSWERS
    | {
        "walk": lambda model: over_space(lambda _, task, leaves: leaves.score, model, (), TASK),
        "report": lambda model: report(KEY, model, TASK, {}),
    }
    | {name: estimator(name) for name in rare.ESTIMATORS}
)


@pytest.mark.parametrize("damage", [one_row, every_weight])
@pytest.mark.parametrize("reader", READERS)
def test_weights_that_are_nan_are_refused_in_one_line_before_any_work(reader, damage, lively):
    model = damage(lively(TASK, layers=1))
    broken = sum(int(np.isnan(leaf).sum()) for leaf in jax.tree.leaves(model))
    said = rf"^model Transformer [0-9a-f]{{16}} is broken: {broken:,} of [\d,]+ weights are NaN$"
    with pytest.raises(FloatingPointError, match=said):
        READERS[reader](model)


@pytest.mark.parametrize("reader", ANSWERS)
def test_answers_that_are_nan_are_refused_whatever_the_weights(reader, lively):
    with pytest.raises(FloatingPointError, match=r"^model Sick .* broken: [\d,]+ of [\d,]+ margins .* are NaN$"):
        ANSWERS[reader](Sick(lively(TASK, layers=1)))


def test_a_nan_on_safe_prompts_alone_is_refused_by_the_count(lively):
    hazardous = jax.jit(jax.vmap(TASK.hazardous))

    @register
    @dataclasses.dataclass(frozen=True)
    class OnSafe(Sick):
        def __call__(self, soft_prompt, answer, latent=None):
            safe = ~TASK.hazardous(soft_prompt.argmax(axis=1))
            return jnp.where(safe, jnp.nan, self.inner(soft_prompt, answer))

    with pytest.raises(FloatingPointError, match="are NaN") as raised:
        exact.count(OnSafe(lively(TASK, layers=1)), TASK, POLICIES, walk=exact.plain_forward)
    assert f"{(~hazardous(PROMPTS)).sum():,} of {len(PROMPTS):,} margins" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options"), [("uniform", {}), ("uniform", {"stops": True}), slow("gcg", {}), slow("genetic", {})]
)
def test_a_nan_that_a_search_meets_after_its_starts_is_refused(name, options, lively):
    """The weights are finite and huge on one token, so that logits overflow where it stands."""
    model = lively(TASK, layers=1)
    kernel = model.prompt_embedding.kernel[...].at[5].set(1e30)
    overflowing = jax.tree.map(lambda leaf: kernel if leaf.shape == kernel.shape else leaf, model)
    objective = Objective(TASK, overflowing, greedy(TASK))
    without = ATTACKS[name](**options)._replace(start=lambda key, objective: jnp.array([1, 2, 2, 1]))
    assert np.isfinite(float(objective.margin(without.start(KEY, objective))))
    said = r"^model Transformer [0-9a-f]{16} is broken: [1-9][\d,]* of (\d+) margins or scores read from it are NaN$"
    with pytest.raises(FloatingPointError, match=said) as raised:
        attack_model(KEY, without, objective, attackers=4, budget=60)
    steps = steps_within(without, objective, 60)
    assert f"of {4 * (1 + steps * without.candidates(objective))} margins" in str(raised.value)
    sound = attack_model(KEY, without, Objective(TASK, model, greedy(TASK)), attackers=4, budget=60)
    assert not np.asarray(sound.broken).any()


READ = ("exact count", "matched policy", "attack driver", "margins")


@pytest.mark.parametrize("reader", [name if name in READ else slow(name) for name in ANSWERS])
def test_infinite_margins_are_sound(reader, lively):
    """A model that rules every catastrophe out: its margins are infinite, and its count is zero."""
    model = RuledOut(lively(TASK, layers=1), answer=0)
    found = ANSWERS[reader](model)
    if reader == "exact count":
        assert found["greedy"].failures == 0 and found["greedy"].false_alarms == found["greedy"].safe


@pytest.mark.parametrize("name", ["naive", "mhis", "splitting", "gumbel"])
def test_where_an_alarm_is_ruled_out_estimates_are_numbers(name, lively):
    """Margins of minus infinity: every hazard fails."""
    model = RuledOut(lively(TASK, layers=1), answer=1)
    truth = exact.count(model, TASK, POLICIES, walk=exact.plain_forward)["greedy"].clean_failure
    found = estimator(name)(model)
    assert np.isfinite(found[:3]).all() and 0 < found.value <= 1
    if name != "gumbel":  # whose law is of tails, and here there is none
        assert found.value == pytest.approx(truth, rel=0.3)


def test_the_strength_of_margins_that_are_nan_is_refused():
    with pytest.raises(ValueError, match=r"^1 margins are NaN: the model is broken$"):
        strength(np.array([1.0, np.nan]), np.arange(9.0))


def test_while_an_attack_is_traced_nothing_is_refused(lively):
    """The search inside of training is compiled: there a loss that is NaN tells."""
    jax.eval_shape(READERS["attack driver"], every_weight(lively(TASK, layers=1)))
