"""The default held-out attack: fixed, without parameters, and made of searches that fail for different reasons."""

import functools

from testbed.attacks.combine import ensemble
from testbed.attacks.coordinate import coordinate
from testbed.attacks.gcg import gcg
from testbed.attacks.genetic import genetic
from testbed.attacks.metropolis import mcmc
from testbed.attacks.search import Attack


@functools.cache
def auto() -> Attack:
    """Run Metropolis chains, GCG, coordinate search and a genetic algorithm side by side, with about equal calls.

    Two-token swaps everywhere, since single ones can't cross some hazards; one member with gradients and three
    without, so that a model which hides its gradients is found out. Nothing is to be set: use it to evaluate what was
    trained against another attack. In the spirit of AutoAttack.

    It is no proof of absence: 64 attackers of 1,500 calls find a failure on every model of `tests/test_attacks_auto.py`
    that has one (four planted, and random ones of all tasks at small sizes), but 32 of 1,000 calls on only 24 of the
    25 such models of the shipped comparison, where as few as 4 in half a million prompts fail.
    Reference: Croce and Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks.
    """
    members = mcmc(), gcg(), coordinate(swaps=2, tokens=16), genetic()
    return ensemble(*members)._replace(name="auto")
