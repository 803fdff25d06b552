"""What changed between two machines, by paths, against a walk over every prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import by_hand, random_machine, talkative

from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.evaluation import changed as changes
from testbed.evaluation import exact
from testbed.evaluation.changed import changed, clean_change
from testbed.evaluation.paths import TooManyNodesError
from testbed.evaluation.telltale import telltale
from testbed.objective import Objective
from testbed.policy import conservative, greedy


def failing(model, task, prompts, tau=0.0):
    """bool `[n]`, from the margin of each prompt."""
    return np.asarray(jax.vmap(Objective(task, model, conservative(task, tau)).margin)(jnp.asarray(prompts)) <= 0)


@pytest.mark.parametrize("name", ["injury:length=5", "ledger:length=4:vocab=12"])
def test_it_is_that_of_a_walk_over_every_prompt(name, all_prompts):
    task = task_named(name)
    prompts = all_prompts(task)
    before, after = talkative(task, 5, bits=5), talkative(task, 3)
    chance = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(prompts), np.float64))
    for tau in (0.0, 0.5):
        found = changed(before, after, task, tau=tau)
        then, now = (failing(model, task, prompts, tau) for model in (before, after))
        kinds = then & ~now, then & now, ~then & now
        assert list(found) == [kind.sum() for kind in kinds] and min(found.mended, found.new) > 0
        np.testing.assert_allclose(
            clean_change(before, after, task, tau=tau), [chance[kind].sum() for kind in kinds], rtol=1e-4
        )


def test_at_two_to_the_64_its_parts_are_the_counts_of_either_model():
    task = task_named("injury:length=16:vocab=16")
    before, after = by_hand(task, without_negation=True), random_machine(task, 4, bits=5, hidden=8)
    counts = [exact.count(model, task, {"it": greedy(task)})["it"] for model in (before, after)]
    found, clean = changed(before, after, task), clean_change(before, after, task)
    assert (found.mended + found.kept, found.kept + found.new) == tuple(count.failures for count in counts)
    assert clean.mended + clean.kept == pytest.approx(counts[0].clean_failure)
    assert clean.kept + clean.new == pytest.approx(counts[1].clean_failure)
    assert changed(after, after, task) == (0, counts[1].failures, 0)
    assert clean_change(after, after, task) == pytest.approx((0, counts[1].clean_failure, 0))


def test_what_telltale_calls_mended_needs_no_ranks_of_a_machine(all_prompts):
    task = task_named("injury:length=5")
    before, after = talkative(task, 5), talkative(task, 3)
    few = dict(attackers=4, budget=20, samples=256)
    attacks = {"uniform": ATTACKS["uniform"]()}
    found = telltale(jax.random.key(0), after, task, attacks, before=(before, None), **few)
    prompts = all_prompts(task)
    chance = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(prompts), np.float64)) * failing(before, task, prompts)
    share = chance[~failing(after, task, prompts)].sum() / chance.sum()
    assert found.fixed_natural == pytest.approx(share, rel=1e-4) and 0 < share < 1


def test_too_many_pairs_are_refused_in_one_line(monkeypatch):
    task = task_named("injury:length=5")
    monkeypatch.setattr(changes, "MOST_PAIRS", 3)
    with pytest.raises(TooManyNodesError, match=r"^\d+ pairs of states after \d tokens are more than the 3 that can"):
        changed(talkative(task, 5), talkative(task, 3), task)


def test_without_clean_chains_it_says_so():
    task = dataclasses.replace(task_named("injury:length=5"), clean_chains=())
    with pytest.raises(ValueError, match=r"^task injury .* has no clean chains"):
        clean_change(talkative(task, 5), talkative(task, 3), task)
