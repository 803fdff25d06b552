"""The one driver of all attacks: it spends a budget, keeps the best prompt and the first success, and counts calls."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.broken import refuse_broken, refuse_counted
from testbed.compilation import compiled_sooner
from testbed.devices import over_devices
from testbed.objective import Objective
from testbed.text import plural

NEVER = np.iinfo(np.int32).max
NO_TARGETS = np.zeros(0, np.int32)
GRADIENT_FORWARDS = 3


class Cost(NamedTuple):
    """Exact calls: model forwards, gradients with respect to a prompt, and checker calls."""

    model: int
    gradient: int
    checker: int

    @property
    def forwards(self) -> int:
        """Forward-pass equivalents: a gradient counts as three (one forward, a backward of twice its work)."""
        return self.model + GRADIENT_FORWARDS * self.gradient


class Scored(NamedTuple):
    """Everything that a step looked at, in order: prompts `[C, T]` and their margins `[C]`."""

    prompts: jax.Array
    margins: jax.Array


def hazardous(key: jax.Array, objective: Objective) -> jax.Array:
    """A fresh hazardous prompt `[T]`."""
    return objective.start(key)


class Attack(NamedTuple):
    """A search as two pure functions of one attacker, and their price.

    Attributes:
      name: the attack's key in the table of attacks.
      init: `(key, objective, prompt [T], margin) -> state`; it makes no calls. The driver has scored the start; one
        that nobody has scored (a combinator's) comes with the margin `NOT_HAZARDOUS`, which every hazard beats.
      step: `(key, objective, state) -> (state, Scored)`. Every prompt it scores is returned and lies inside the input
        space; what is best, first and paid for is the driver's business, so an attack cannot lose a success.
      gradients: gradients that a step takes.
      candidates: `objective -> C`, prompts that a step scores.
      start: `(key, objective) -> prompt [T]`, where an attacker begins: a fresh hazardous prompt, by default.
    """

    name: str
    init: Callable[[jax.Array, Objective, jax.Array, jax.Array], Any]
    step: Callable[[jax.Array, Objective, Any], tuple[Any, Scored]]
    gradients: int
    candidates: Callable[[Objective], int]
    start: Callable[[jax.Array, Objective], jax.Array] = hazardous

    def cost(self, objective: Objective) -> Cost:
        """Calls of one step.

        Raises:
          ValueError: `candidates` is no function.
        """
        if not callable(self.candidates):
            told = f"candidates must be a function of the objective, not {self.candidates!r}"
            raise ValueError(f"attack {self.name}: {told}; write lambda objective: {self.candidates!r}")
        c = self.candidates(objective)
        return Cost(c * objective.forwards, self.gradients * objective.forwards, c + self.gradients)


def score(objective: Objective, prompts: jax.Array) -> Scored:
    """Score prompts `[C, T]`: C calls."""
    return Scored(prompts, jax.vmap(objective.margin)(prompts))


def comparable(margins: jax.Array) -> jax.Array:
    """Margins in which a NaN counts as the worst: it must not hide a success beside it, nor stay the best."""
    return jnp.where(jnp.isnan(margins), jnp.inf, margins)


class Trace(NamedTuple):
    """What P attackers found.

    Attributes:
      prompt `[P, T]`, margin `[P]`: the best prompt of each attacker, and its margin.
      first `[P]`: forward-pass equivalents spent when the first failure was scored; `NEVER` if none was.
      curve `[steps + 1, P]`: best margin so far, after the start and after each step.
      spent `[steps + 1]`: forward-pass equivalents an attacker had spent by then.
      cost: calls an attacker made in all (`Cost` of integer arrays).
      reached `[F]`: which of the known failures, if any were given, some attacker scored.
      broken `[P]`: how many of the margins that an attacker scored were NaN; 0 for a sound model.
    """

    prompt: jax.Array
    margin: jax.Array
    first: jax.Array
    curve: jax.Array
    spent: jax.Array
    cost: Cost
    reached: jax.Array = NO_TARGETS
    broken: jax.Array | int = 0


def steps_within(attack: Attack, objective: Objective, budget: int) -> int:
    """Steps that fit into a budget of margins, after scoring the start.

    Budgets count margins, that is: prompts scored. A margin may take several forward passes
    (`Objective.forwards`), and a gradient costs as much as three margins. So a budget buys an attack as
    many steps on one task as on another.

    Raises:
      ValueError: the budget does not cover the start, or a step scores nothing.
    """
    if budget < 1:
        raise ValueError(
            f"attack budget {budget} is too small: scoring the start alone takes a margin; give at least 1"
        )
    calls, step = budget * objective.forwards, attack.cost(objective)
    if step.model < 1:
        raise ValueError(f"a step of attack {attack.name} scores {attack.candidates(objective)} prompts; at least 1")
    return (calls - objective.forwards) // step.forwards


def short_of_steps(attack: Attack, objective: Objective, budget: int) -> str:
    """A complaint in one line if fewer than two steps fit into a budget of margins; else nothing.

    An attack of no steps scores its start alone, and one of a single step cannot build on what it scored.

    Raises:
      ValueError: the budget does not cover the start.
    """
    steps = steps_within(attack, objective, budget)
    if steps >= 2:
        return ""
    price = attack.cost(objective).forwards // objective.forwards
    made, margins = plural(steps, "step"), plural(budget, "margin")
    return f"{attack.name} makes {made} within {margins} (a step costs {price}): give it more budget"


@compiled_sooner("attack", "budget")
def search(
    key: jax.Array,
    attack: Attack,
    objective: Objective,
    prompts: jax.Array,
    *,
    budget: int,
    index: jax.Array | int = 0,
    targets: jax.Array = NO_TARGETS,
) -> Trace:
    """Run P attackers from `prompts` `[P, T]`, each spending at most `budget` margins.

    Attacker i draws from `fold_in(key, index + i)`, so a result does not depend on who else is in the batch. Step keys
    do not depend on the budget, so a larger budget continues the same search and never finds less. Nothing stops
    early: a search that has succeeded goes on lowering its margin.

    `targets` `[F]`: the known failures' ranks (`testbed.task.prompt_ids`), ascending, so that recall can be measured.

    Raises:
      ValueError: the budget does not cover the start, or a step scores more prompts than the attack says.
    """
    steps = steps_within(attack, objective, budget)
    start = Cost(objective.forwards, 0, 1)
    price = attack.cost(objective)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index + jnp.arange(len(prompts)))
    before = start.forwards + price.forwards - price.model  # a step's gradients are paid before its candidates

    def mark(reached, prompts):
        if not len(targets):
            return reached
        ranks = jax.vmap(objective.rank)(prompts)
        place = jnp.searchsorted(targets, ranks)
        # What is no target marks nothing: its place is put beyond the end, where updates are dropped.
        return reached.at[jnp.where(targets.at[place].get(mode="clip") == ranks, place, len(targets))].set(True)

    def one_step(carry, step):
        state, best, margin, first, reached, broken = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        state, scored = jax.vmap(attack.step, (0, None, 0))(step_keys, objective, state)
        if (number := scored.margins.shape[1]) > (said := attack.candidates(objective)):
            raise ValueError(f"a step of attack {attack.name} scores {number} prompts, not {said}; mend its candidates")
        margins = comparable(scored.margins)
        hit = margins <= 0
        calls = before + step * price.forwards + (hit.argmax(axis=1) + 1) * objective.forwards
        first = jnp.minimum(first, jnp.where(hit.any(axis=1), calls, NEVER))
        pick = margins.argmin(axis=1)[:, None]
        found = jnp.take_along_axis(margins, pick, axis=1)[:, 0]
        better = ~(found >= margin)
        candidate = jnp.take_along_axis(scored.prompts, pick[..., None], axis=1)[:, 0]
        best = jnp.where(better[:, None], candidate, best)
        margin = jnp.where(better, found, margin)
        reached = mark(reached, scored.prompts.reshape(-1, prompts.shape[1]))
        broken += jnp.isnan(scored.margins).sum(axis=1)
        return (state, best, margin, first, reached, broken), margin

    margin = jax.vmap(objective.margin)(prompts)
    init_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, NEVER)
    state = jax.vmap(attack.init, (0, None, 0, 0))(init_keys, objective, prompts, margin)
    first = jnp.where(margin <= 0, start.forwards, NEVER)
    targets = jnp.asarray(targets)
    reached = mark(jnp.zeros(len(targets), bool), prompts)
    begun = (state, prompts, margin, first, reached, jnp.isnan(margin).astype(jnp.int32))
    carry, curve = jax.lax.scan(one_step, begun, jnp.arange(steps))
    _, best, best_margin, first, reached, broken = carry
    return Trace(
        prompt=best,
        margin=best_margin,
        first=first,
        curve=jnp.concatenate([margin[None], curve]),
        spent=start.forwards + price.forwards * jnp.arange(steps + 1),
        cost=Cost(*(jnp.asarray(s + steps * p) for s, p in zip(start, price, strict=True))),
        reached=reached,
        broken=broken,
    )


def attack_model(key: jax.Array, attack: Attack, objective: Objective, *, attackers: int, budget: int) -> Trace:
    """`search` from `attackers` fresh starts of the attack's own.

    Raises:
      FloatingPointError: the model's weights are NaN, or any margin that was scored.
      ValueError: what was found best lies outside the input space, so it is no prompt.
    """
    refuse_broken(objective.model)
    start_key, search_key = jax.random.split(key)
    starts = fresh_starts(start_key, attack, objective, attackers)
    trace = search(search_key, attack, objective, starts, budget=budget)
    refuse_broken_trace(objective, trace)
    refuse_outside(attack, objective.allowed, trace.prompt)
    return trace


def refuse_outside(attack: Attack, allowed: Any, prompts: Any) -> None:
    """Refuse what an attack scored outside the input space: a catastrophe there is none.

    Args:
      allowed: bool `[T, V]`; prompts: `[n, T]`. While these are traced nothing can be known of them.

    Raises:
      ValueError: there is such a prompt; shows the first.
    """
    if any(isinstance(array, jax.core.Tracer) for array in (allowed, prompts)):
        return
    allowed, prompts = np.asarray(allowed), np.asarray(prompts)
    of_vocab = (prompts >= 0) & (prompts < allowed.shape[1])
    inside = of_vocab & allowed[np.arange(len(allowed)), np.where(of_vocab, prompts, 0)]
    if not inside.all():
        row = prompts[~inside.all(axis=1)][0]
        raise ValueError(f"attack {attack.name} left the input space, with {row.tolist()}: score allowed tokens only")


def refuse_broken_trace(objective: Objective, trace: Trace) -> None:
    """Refuse a model that said NaN anywhere in a search, however finite the best margin is.

    Raises:
      FloatingPointError: it did; says how often.
    """
    margins = trace.cost.model // objective.forwards * len(trace.prompt)
    refuse_counted(objective.model, trace.broken, margins)


def fresh_starts(key: jax.Array, attack: Attack, objective: Objective, attackers: int) -> jax.Array:
    """Where `attackers` of an attack begin: prompts `[P, T]`, laid over the devices, so that a search uses them all."""
    return over_devices(_starts(jax.random.split(key, attackers), attack, objective))


@partial(jax.jit, static_argnames="attack")
def _starts(keys, attack, objective):
    return jax.vmap(attack.start, (0, None))(keys, objective)
