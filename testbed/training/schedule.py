"""Schedules: how gradient steps, finds and attack calls are spread over a run, as an order of equal units.

The work of a run is cut into equal units: attack units, which find prompts and add them to the pool, and train units.
A schedule only *orders* them: with 16 units of each, one round is AAAA...TTTT..., sixteen rounds are ATATAT...
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Search(NamedTuple):
    """What an attack unit reads of a schedule."""

    finds: int
    budget: int
    units: int


class Descent(NamedTuple):
    """What a train unit reads of a schedule, and a program of its own is compiled for."""

    steps: int
    finds: int
    batch: int
    units: int
    b2: float
    clip: float
    warm_up: int


class Rates(NamedTuple):
    """What a train unit reads of a schedule besides: numbers that one program takes as they come."""

    learning_rate: float
    weight_decay: float
    adam_eps: float


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How gradient steps, finds and attack calls are spread over a run.

    Attributes:
      steps: gradient steps in all.
      rounds: model updates, each one round of attack and training; 0 trains without attacks.
      finds: prompts added to the pool in all. Every attacker contributes its best prompt, failing or not.
      budget: margins that a find may cost, that is: prompts scored.
      batch: prompts a step.
      learning_rate: the peak of one cosine over the whole run, which ends at zero: otherwise the last iterate's noise
        is what gets measured.
      units: how many equal units the run is cut into; rounds divide them, and they divide steps and finds.
      weight_decay: of AdamW, times the learning rate.
      b2: of AdamW, how long it remembers squared gradients.
      adam_eps: of AdamW, added to the root of their mean: gradients far below it hardly move a weight.
      clip: the largest norm of a gradient, over all weights; a longer one is shortened.
      warm_up: steps of a linear rise to the peak of the learning rate; at most half of all steps.
      best: whether the model is kept that stood after the unit of least mean loss, and not the last one. Only without
        rounds: what finds add to a loss makes units unlike.

    Raises:
      ValueError: a number is out of its range or not finite, or does not divide as stated.
    """

    steps: int = 1536
    rounds: int = 0
    finds: int = 0
    budget: int = 0
    batch: int = 256
    learning_rate: float = 2e-3
    units: int = 16
    weight_decay: float = 1e-2
    b2: float = 0.999
    adam_eps: float = 1e-8
    clip: float = 1.0
    warm_up: int = 50
    best: bool = False

    def __post_init__(self):
        for name in ("steps", "batch", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule {name} must be at least 1, not {getattr(self, name)}")
        for name in ("rounds", "finds", "budget", "warm_up"):
            if getattr(self, name) < 0:
                raise ValueError(f"schedule {name} must not be negative, not {getattr(self, name)}")
        above = dict.fromkeys(("learning_rate", "adam_eps", "clip"), "above 0")
        for name, least in (above | {"weight_decay": "at least 0"}).items():
            value = getattr(self, name)
            if not (0 <= value < float("inf")) or (least == "above 0" and not value):
                raise ValueError(f"schedule {name} must be {least} and finite, not {value}")
        if not 0 <= self.b2 < 1:
            raise ValueError(f"schedule b2 must be at least 0 and below 1, not {self.b2}")
        if self.rounds and self.best:
            raise ValueError(
                f"schedule best keeps a model by its clean loss, so it cannot be had with {self.rounds} rounds"
            )
        if self.rounds and not (self.finds and self.budget):
            raise ValueError(f"{self.rounds} rounds need finds and a budget, not {self.finds} and {self.budget}")
        if self.rounds and self.units % self.rounds:
            raise ValueError(f"{self.rounds} rounds must divide the schedule's {self.units} units")
        for name in ("steps", "finds"):
            if getattr(self, name) % self.units:
                raise ValueError(f"schedule {name} {getattr(self, name)} must be a multiple of its {self.units} units")

    @property
    def search(self) -> Search:
        """What its attack units read: schedules that are alike in it share their program."""
        return Search(self.finds, self.budget, self.units)

    @property
    def descent(self) -> Descent:
        """What its train units read: schedules that are alike in it share their program."""
        return Descent(*(getattr(self, name) for name in Descent._fields))

    @property
    def rates(self) -> Rates:
        """The numbers of its optimiser that change no program."""
        return Rates(*(float(getattr(self, name)) for name in Rates._fields))


class Unit(NamedTuple):
    """One unit of work (arrays when there are many).

    Attributes:
      attacks: whether it attacks or trains.
      number: its number among its kind.
      first: the number of its round's first unit.
    """

    attacks: np.ndarray
    number: np.ndarray
    first: np.ndarray


def units(schedule: Schedule) -> Unit:
    """The order of a run's units, as arrays."""
    numbers = np.arange(schedule.units)
    if not schedule.rounds:
        return Unit(np.zeros(schedule.units, bool), numbers, np.zeros_like(numbers))
    rounds = numbers.reshape(schedule.rounds, -1)
    kinds = np.concatenate([np.ones_like(rounds, bool), np.zeros_like(rounds, bool)], axis=1)
    both = np.concatenate([rounds, rounds], axis=1)
    return Unit(kinds.ravel(), both.ravel(), np.broadcast_to(both[:, :1], both.shape).ravel())
