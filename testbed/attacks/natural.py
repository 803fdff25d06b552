"""Attacks that must look natural: only what clean prompts could well be counts."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.placement import view
from testbed.attacks.search import Attack
from testbed.objective import NOT_HAZARDOUS


@functools.cache
def natural(attack: Attack, floor: float) -> Attack:
    """`attack` where only prompts whose clean log-probability is at least `floor` count, starting from such hazards.

    Of 64 clean prompts the first that is hazardous and looks clean begins; if none is, the first of them does.
    """

    def seen(objective):
        log_prob = objective.task.clean_log_prob
        inside = lambda prompt: log_prob(prompt) >= floor

        def start(key):
            prompts = jax.vmap(objective.clean)(jax.random.split(key, 64))
            fit = jax.vmap(lambda prompt: objective.task.hazardous(prompt) & inside(prompt))(prompts)
            return prompts[fit.argmax()]

        return view(
            objective,
            margin=lambda prompt: jnp.where(inside(prompt), objective.margin(prompt), NOT_HAZARDOUS),
            start=start,
        )

    def init(key, objective, prompt, margin):
        return attack.init(key, seen(objective), prompt, margin)

    def step(key, objective, state):
        return attack.step(key, seen(objective), state)

    return attack._replace(
        name=f"natural({attack.name})", init=init, step=step, start=lambda key, objective: seen(objective).start(key)
    )
