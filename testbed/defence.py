"""A defence: what training makes of what it finds and sees, as functions that compose, and what that costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from testbed.attacks.search import Attack, Cost, steps_within
from testbed.objective import Objective
from testbed.schedule import Schedule
from testbed.selection import Order, Replay, anyone, evenly
from testbed.task import Task


class Loss(NamedTuple):
    """What a step descends, and its price.

    Attributes:
      value: `(key, model, task, prompts [B, T]) -> loss`, in nats a token.
      gradients: gradients a prompt that a step takes, that of the loss included.
      forwards: further forward passes a prompt.
    """

    value: Callable[[jax.Array, Any, Task, jax.Array], jax.Array]
    gradients: int = 1
    forwards: int = 0


def cross_entropy(model, task: Task, prompts: jax.Array, latents: jax.Array | None = None) -> jax.Array:
    """Mean cross-entropy a token of the right answers to `prompts` `[B, T]`, in nats.

    `latents` `[B, L + 1, T + N - 1, D]` are added to the residual streams.
    """

    def one(prompt, latent):
        answer = task.label(prompt)
        logits = model(jax.nn.one_hot(prompt, task.vocab), answer, latent)
        return optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()

    return jax.vmap(one)(prompts, latents).mean()


PLAIN = Loss(lambda key, model, task, prompts: cross_entropy(model, task, prompts))


class Defence(NamedTuple):
    """What training makes of what it finds and sees: functions that compose freely.

    Attributes:
      order: which candidates enter the pool first.
      candidates: finds to choose from, for each place in the pool.
      failures_only: whether only finds that failed are trained on, instead of all that an attack brings home.
      replay: which finds of the pool are drawn.
      twins: whether every other find drawn from the pool is replaced by its nearest safe edit.
      share: how much of a batch comes from the pool, once it holds any; the rest is clean.
      loss: what the steps descend.
    """

    order: Order = anyone
    candidates: int = 1
    failures_only: bool = False
    replay: Replay = evenly
    twins: bool = False
    share: float = 0.5
    loss: Loss = PLAIN


USUAL = Defence()


def attack_cost(schedule: Schedule, attack: Attack, objective: Objective, defence: Defence = USUAL) -> Cost:
    """Calls that all the attack units of a run make, exactly."""
    if not schedule.rounds:
        return Cost(0, 0, 0)
    steps, step = steps_within(attack, objective, schedule.budget), attack.cost(objective)
    once, attackers = Cost(objective.forwards, 0, 1), schedule.finds * defence.candidates
    return Cost(*(attackers * (start + steps * more) for start, more in zip(once, step, strict=True)))


def training_cost(schedule: Schedule, defence: Defence = USUAL) -> Cost:
    """Calls that all the train units of a run make, exactly: gradients, and forward passes beside them."""
    seen = schedule.steps * schedule.batch
    return Cost(seen * defence.loss.forwards, seen * defence.loss.gradients, 0)
