"""Attacks from attacks: with restarts, one after another, side by side, or until the first failure."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.search import GRADIENT_FORWARDS, Attack, Scored, comparable
from testbed.objective import NOT_HAZARDOUS, Objective


def _advance(attack: Attack, key, objective, state, steps: int):
    """`steps` steps of an attack, and all that they scored, in order."""

    def one(state, key):
        return attack.step(key, objective, state)

    state, scored = jax.lax.scan(one, state, jax.random.split(key, steps))
    return state, Scored(*(x.reshape(-1, *x.shape[2:]) for x in scored))


@functools.cache
def restarts(attack: Attack, every: int) -> Attack:
    """Start `attack` anew, from a fresh hazardous prompt, after every `every` steps.

    The fresh prompt is not scored, so a step costs exactly what a step of `attack` costs.
    """

    def init(key, objective, prompt, margin):
        return jnp.zeros((), jnp.int32), attack.init(key, objective, prompt, margin)

    def step(key, objective, state):
        step_key, start_key, init_key = jax.random.split(key, 3)
        age, inner = state
        inner, scored = attack.step(step_key, objective, inner)
        again = attack.init(init_key, objective, objective.start(start_key), jnp.asarray(NOT_HAZARDOUS))
        keep = age + 1 < every
        return (jnp.where(keep, age + 1, 0), jax.tree.map(lambda a, b: jnp.where(keep, a, b), inner, again)), scored

    return attack._replace(name=f"restarts({attack.name})", init=init, step=step)


@functools.cache
def until_failure(attack: Attack) -> Attack:
    """Search with `attack`, and keep the first prompt that fails: nothing that is scored later takes its place.

    So finds are spread as failures are met, and not pushed towards the lowest margin. The account is that of `attack`,
    which goes on without being heard.
    """

    def init(key, objective, prompt, margin):
        return Scored(prompt, margin), attack.init(key, objective, prompt, margin)

    def step(key, objective, state):
        kept, inner = state
        inner, scored = attack.step(key, objective, inner)
        prompts = jnp.concatenate([kept.prompts[None], scored.prompts])
        margins = jnp.concatenate([jnp.atleast_1d(kept.margins), scored.margins])
        failed = margins <= 0
        first = jnp.where(failed.any(), failed.argmax(), comparable(margins).argmin())
        # NaN is always heard: the driver must know of a model that is broken.
        heard = ~failed.any() | (jnp.arange(len(margins)) <= first) | jnp.isnan(margins)
        told = Scored(jnp.where(heard[:, None], prompts, prompts[first]), jnp.where(heard, margins, margins[first]))
        return (Scored(prompts[first], margins[first]), inner), Scored(told.prompts[1:], told.margins[1:])

    return attack._replace(name=f"until_failure({attack.name})", init=init, step=step)


@functools.cache
def chain(first: Attack, second: Attack, steps: int) -> Attack:
    """Run `steps` steps of `first`, then `steps` steps of `second` from the best prompt that they found; and again.

    One step of the chain is both: each is compiled once and run for a fixed number of steps, so no attacker pays for
    steps that another one takes, and the account is exactly `steps` times the sum. `first` continues where it was,
    `second` begins anew each time. As in any step, gradients count as paid before the first candidate, so the calls
    to first success are an upper bound, by at most a step's gradients.
    """

    def step(key, objective, state):
        first_key, init_key, second_key = jax.random.split(key, 3)
        state, found = _advance(first, first_key, objective, state, steps)
        margins = comparable(found.margins)
        best = margins.argmin()
        margin = jnp.minimum(margins[best], NOT_HAZARDOUS)
        begun = second.init(init_key, objective, found.prompts[best], margin)
        _, refined = _advance(second, second_key, objective, begun, steps)
        return state, Scored(*map(jnp.concatenate, zip(found, refined, strict=True)))

    return Attack(
        f"chain({first.name}, {second.name})",
        first.init,
        step,
        gradients=steps * (first.gradients + second.gradients),
        candidates=lambda objective: steps * (first.candidates(objective) + second.candidates(objective)),
    )


@functools.cache
def ensemble(*attacks: Attack) -> Attack:
    """Run all `attacks` side by side from the same start, each with about the same calls.

    One step takes one step of each member with gradients, and as many of each other member as cost about as much as
    the dearest member's (a gradient counted as three calls). The account is exactly their sum; shares are equal up to
    rounding, if the members with gradients cost alike and no other costs more. As in any step, gradients count as paid
    before the first candidate, so the calls to first success are an upper bound, by at most a step's gradients.
    """

    def repeats(objective: Objective) -> list[int]:
        prices = [a.candidates(objective) + GRADIENT_FORWARDS * a.gradients for a in attacks]
        return [
            1 if attack.gradients else round(max(prices) / price) for attack, price in zip(attacks, prices, strict=True)
        ]

    def init(key, objective, prompt, margin):
        keys = jax.random.split(key, len(attacks))
        return tuple(a.init(k, objective, prompt, margin) for a, k in zip(attacks, keys, strict=True))

    def step(key, objective, states):
        keys = jax.random.split(key, len(attacks))
        members = zip(attacks, keys, states, repeats(objective), strict=True)
        states, scored = zip(*(_advance(a, k, objective, s, n) for a, k, s, n in members), strict=True)
        return states, Scored(*map(jnp.concatenate, zip(*scored, strict=True)))

    return Attack(
        f"ensemble({', '.join(a.name for a in attacks)})",
        init,
        step,
        gradients=sum(a.gradients for a in attacks),
        candidates=lambda objective: sum(
            n * a.candidates(objective) for a, n in zip(attacks, repeats(objective), strict=True)
        ),
    )
