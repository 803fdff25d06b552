"""Losses on soft prompts: partly clean, and partly what the model makes of where an adversary's climb ends."""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.task import Task
from testbed.training.latent import USUAL_ASCENT, Ascent
from testbed.training.losses import WEIGHT, Loss, Study, cross_entropy, mixed, prompt_loss
from testbed.training.soft_prompts import Overseer, climb, draw, noise


class Supply(NamedTuple):
    """Where the soft prompts of a step come from.

    Attributes:
      every: for so many prompts of a batch there is one.
      kept: how many are kept from step to step, and climbed on; with 0 each step makes its own from noise.
      renewed: the share that begins as noise again, each time that some of the kept ones are taken.
    """

    every: int = 1
    kept: int = 0
    renewed: float = 0.05


USUAL_SUPPLY = Supply()


def refuse_unfit(supply: Supply) -> None:
    """Say in one line that a supply makes no sense.

    Raises:
      ValueError: a number is no whole one in its range, or the share is none.
    """
    for name, least in (("every", 1), ("kept", 0)):
        number = getattr(supply, name)
        if not isinstance(number, int) or number < least:
            raise ValueError(f"soft_{name} must be a whole number of at least {least}, not {number!r}")
    if not 0 <= supply.renewed <= 1:
        raise ValueError(f"soft_renewed must be a share between 0 and 1, not {supply.renewed}")
    if supply.renewed != USUAL_SUPPLY.renewed and not supply.kept:
        raise ValueError(f"soft_renewed={supply.renewed:g} is of soft prompts that are kept; give soft_kept, too")


def _study(overseer: Overseer, kept: int) -> Study | None:
    """What is there before the first step: what the overseer has learnt; with it, if any are `kept`, soft prompts."""
    if not kept:
        return overseer.study

    def learn(key: jax.Array, task: Task):
        judge = overseer.study and overseer.study.learn(key, task)
        return judge, jax.vmap(lambda key: noise(key, task))(jax.random.split(jax.random.fold_in(key, kept), kept))

    return Study(learn, *(overseer.study[1:] if overseer.study else (0, 0)))


def _loss(
    overseer: Overseer, ascent: Ascent, taught: Overseer, supply: Supply, weight: float, *, labels: int = 0
) -> Loss:
    """Partly clean; a share `weight` of it is what `taught` loses where the adversary ends.

    Raises:
      ValueError: as `refuse_unfit`.
    """
    refuse_unfit(supply)
    every, kept, renewed = supply

    def value(key, model, task, prompts, learnt=None):
        if task.transcript_length != task.answer_length:
            raise ValueError(f"task {task.name}: soft prompts are for tasks without notes; use scratch=none")
        frozen, keys = jax.lax.stop_gradient(model), jax.random.split(key, len(prompts) // every)
        starts = jax.vmap(lambda key: noise(jax.random.split(key, 3)[0], task))(keys)
        judge = learnt
        if kept:
            judge, pool = learnt
            row_key, anew_key = jax.random.split(jax.random.fold_in(key, len(prompts)))
            rows = jax.random.choice(row_key, kept, (len(keys),), replace=False)
            anew = jax.random.bernoulli(anew_key, renewed, (len(keys), 1, 1))
            starts = jnp.where(anew, starts, pool[rows])

        def one(key, start):
            _, climbing, key = jax.random.split(key, 3)
            z = climb(climbing, frozen, task, start, overseer=overseer, ascent=ascent, learnt=judge)
            z = jax.lax.stop_gradient(z)
            return z, taught.loss(key, model, task, z, judge)

        z, lost = jax.vmap(one)(keys, starts)
        loss = mixed(cross_entropy(model, task, prompts), lost.mean(), weight)
        return (loss, (judge, pool.at[rows].set(z))) if kept else loss

    return Loss(
        value,
        gradients=lambda task: 1 + Fraction(ascent.steps * overseer.answers(task) + taught.passes(task), every),
        checks=Fraction(ascent.steps * overseer.checks + taught.checks, every),
        labels=Fraction(labels, every),
        every=every,
        kept=kept,
        study=_study(overseer, kept),
        overseen=overseer.study is None,
    )


@functools.cache
def soft(
    overseer: Overseer, ascent: Ascent = USUAL_ASCENT, supply: Supply = USUAL_SUPPLY, weight: float = WEIGHT
) -> Loss:
    """Partly clean, and the loss at the soft prompts themselves, by the overseer: no prompt's label is learnt.

    Soft prompts that are kept need few steps of climbing each time. Reference: Du and Mordatch 2019, Implicit
    Generation and Modeling with Energy-Based Models (its replay buffer).
    """
    return _loss(overseer, ascent, overseer, supply, weight)


def _real(key, model, task, z, learnt):
    return prompt_loss(model, task, draw(key, z, 1)[0])


@functools.cache
def guided(
    overseer: Overseer, ascent: Ascent = USUAL_ASCENT, supply: Supply = USUAL_SUPPLY, weight: float = WEIGHT
) -> Loss:
    """Partly clean, and on a prompt that each soft prompt draws, with its label: a search that climbs distributions."""
    return _loss(overseer, ascent, Overseer(overseer.height, _real), supply, weight, labels=1)
