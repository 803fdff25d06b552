"""Attacks: searches of the input space for a prompt on which the model's own answer is catastrophic.

`ATTACKS` is the table: name -> factory with defaults. One file a family; `search` runs any of them under a budget.
"""

from collections.abc import Callable
from typing import Any

from testbed.attacks.arca import arca
from testbed.attacks.auto import auto
from testbed.attacks.beam import beam
from testbed.attacks.continuous import embedding_pgd, gbda, pez
from testbed.attacks.coordinate import coordinate
from testbed.attacks.exhaustive import exhaustive
from testbed.attacks.gcg import gcg
from testbed.attacks.genetic import genetic
from testbed.attacks.hotflip import hotflip
from testbed.attacks.learned import learned
from testbed.attacks.metropolis import annealing, mcmc
from testbed.attacks.saliency import infill, saliency
from testbed.attacks.sampling import clean_edits, clean_rejection, uniform
from testbed.attacks.search import Attack, attack_model
from testbed.outside import called, made

ATTACKS = {
    "uniform": uniform,
    "coordinate": coordinate,
    "gcg": gcg,
    "clean_rejection": clean_rejection,
    "clean_edits": clean_edits,
    "mcmc": mcmc,
    "annealing": annealing,
    "genetic": genetic,
    "hotflip": hotflip,
    "arca": arca,
    "saliency": saliency,
    "infill": infill,
    "gbda": gbda,
    "pez": pez,
    "embedding_pgd": embedding_pgd,
    "beam": beam,
    "learned": learned,
    "exhaustive": exhaustive,
    "auto": auto,
}


def attack_named(name: str) -> Callable[..., Attack]:
    """The factory of a name: of the table, of an installed package, or `module:name` in the user's own folder.

    Raises:
      ValueError: there is none.
    """
    return called("attack", name, ATTACKS)


def attack_made(name: str, **options: Any) -> Attack:
    """The attack of a name, with some of its parameters: one object for each set of them.

    Raises:
      ValueError: there is none, it does not take these parameters, or its factory makes no Attack.
    """
    return made("attack", name, attack_named(name), options, Attack)


__all__ = ["ATTACKS", "attack_made", "attack_model", "attack_named"]
