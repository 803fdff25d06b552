"""Where searches stand: always on a hazard, and Metropolis chains by their temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from attack_contract import planted_objective, slow_siblings, target, walk
from planted import HAZARDOUS
from scipy import stats

from testbed.attacks import ATTACKS
from testbed.objective import NOT_HAZARDOUS

STANDS = dict.fromkeys(("coordinate", "gcg", "hotflip", "arca", "saliency", "infill"), "prompt")
STANDS |= {"mcmc": "prompts", "annealing": "prompts", "genetic": "prompts", "gbda": "anchor", "pez": "anchor"}


@pytest.mark.parametrize("name", slow_siblings(STANDS))
def test_a_search_never_leaves_the_hazard(name):
    objective, margins, _, starts = target("classifier")
    states, scored = walk(ATTACKS[name](), objective, starts[1], jax.random.key(1), 25)
    assert (scored.margins >= NOT_HAZARDOUS).any()  # it was tempted
    for prompt in np.asarray(getattr(states, STANDS[name])).reshape(-1, 5).tolist():
        assert margins[tuple(prompt)] < NOT_HAZARDOUS


def test_metropolis_chains_sample_by_their_margins():
    """After many steps, hazards are visited with probability proportional to exp(-margin): here, of the distance."""
    objective, starts = planted_objective("needle"), jnp.asarray(HAZARDOUS[:128])
    states, _ = jax.vmap(lambda s, k: walk(ATTACKS["mcmc"](), objective, s, k, 120))(
        starts, jax.random.split(jax.random.key(3), len(starts))
    )

    def by_distance(prompts, weigh=None):
        return np.bincount((np.asarray(prompts) != planted.NEEDLE).sum(axis=-1).ravel(), weigh, minlength=5)

    distance = (np.array(HAZARDOUS) != planted.NEEDLE).sum(axis=1)
    expected = by_distance(HAZARDOUS, np.exp(-distance))
    observed = by_distance(states.prompts[:, -1])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01
