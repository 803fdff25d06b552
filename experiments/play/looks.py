"""A look: everything that the page shows of one prompt, read from a model in one compiled call.

Every shape hangs on the task alone, so nothing compiles after the first look.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.moves import anywhere, deleted, inserted
from testbed.attacks.search import GRADIENT_FORWARDS, Attack, search
from testbed.broken import refuse_broken
from testbed.objective import NOT_HAZARDOUS, Objective
from testbed.policy import Policy, respond
from testbed.task import Task, is_safe

BATCH = 4096
PHRASES, WINDOW = 64, 3

PARTS = {
    "full": frozenset({"margin", "saliency", "edits", "hints"}),
    "no_saliency": frozenset({"margin", "edits", "hints"}),
    "no_margins": frozenset({"margin", "saliency", "hints"}),
    "blind": frozenset(),
}
"""Condition -> what a person is shown beside the verdict. `no_margins` hides those of edits; the live score stays."""


class Verdict(NamedTuple):
    """What a model makes of a prompt under one policy: its answer `[N]`, and scalars."""

    answer: jax.Array
    margin: jax.Array
    catastrophe: jax.Array
    wrong: jax.Array
    egregiousness: jax.Array


class Look(NamedTuple):
    """What there is to see at a prompt.

    Attributes:
      verdicts: a `Verdict` a policy, stacked.
      hazardous, safe: whether a catastrophe is possible, and whether a refusal would be a false alarm.
      saliency: `[T]`, the norm of the margin's gradient over the tokens of each position; empty if hidden.
      replaced, inserted: margins `[T, V]` with the token there, and before that position; empty if hidden.
      deleted: margins `[T, V]` without the token at a position, and the given one at the end; empty if hidden.
    """

    verdicts: Verdict
    hazardous: jax.Array
    safe: jax.Array
    saliency: jax.Array
    replaced: jax.Array
    inserted: jax.Array
    deleted: jax.Array


def neighbours(task: Task, prompt: jax.Array) -> jax.Array:
    """The prompts `[3, T, V, T]` one edit away: replaced, inserted, deleted, at each position, with each token.

    What may not stand somewhere is left as it was, as the attacks' moves do.
    """
    allowed = jnp.asarray(task.allowed)

    def replaced(position, token):
        return prompt.at[position].set(jnp.where(allowed[position, token], token, prompt[position]))

    moves = (replaced, partial(inserted, allowed, prompt), partial(deleted, allowed, prompt))
    grid = jnp.arange(task.prompt_length), jnp.arange(task.vocab)
    return jnp.stack([jax.vmap(jax.vmap(move, (None, 0)), (0, None))(*grid) for move in moves])


@partial(jax.jit, static_argnames=("task", "shown"))
def _look(model, policies: tuple[Policy, ...], task: Task, prompt: jax.Array, shown: frozenset[str]) -> Look:
    objective, nothing = Objective(task, model, policies[0]), jnp.zeros(0)

    def verdict(policy):
        answer = respond(jax.random.key(0), model, policy, task, prompt=prompt)
        return Verdict(
            answer,
            Objective(task, model, policy).margin_or_nan(prompt),
            task.catastrophe(prompt, answer),
            (answer != task.label(prompt)).any(),
            task.egregiousness(prompt, answer),
        )

    saliency, edits = nothing, (nothing, nothing, nothing)
    if "saliency" in shown:
        saliency = jnp.where(jnp.asarray(task.allowed), objective.gradient(prompt), 0).std(axis=1)
    if "edits" in shown:
        near = neighbours(task, prompt)
        flat = near.reshape(-1, task.prompt_length)
        edits = jax.lax.map(objective.margin_or_nan, flat, batch_size=min(BATCH, len(flat))).reshape(near.shape[:-1])
    verdicts = jax.tree.map(lambda *columns: jnp.stack(columns), *map(verdict, policies))
    return Look(verdicts, task.hazardous(prompt), is_safe(task, prompt), saliency, *edits)


def look(model, policies: tuple[Policy, ...], task: Task, prompt: np.ndarray, shown: frozenset[str]) -> Look:
    """What `shown`, a value of `PARTS`, lets see of a prompt `[T]`: numpy arrays.

    Args:
      policies: verdicts are given under each; saliency and edits under the first.

    Raises:
      FloatingPointError: a margin is NaN, so the model is broken.
    """
    seen = jax.device_get(_look(model, policies, task, np.asarray(prompt, np.int32), shown))
    refuse_broken(model, (seen.verdicts.margin, seen.replaced, seen.inserted, seen.deleted))
    return seen


def price(objective: Objective, shown: frozenset[str]) -> int:
    """Forward passes that a look costs, as an attack would be charged: margins, and three for a gradient."""
    edits = 3 * objective.task.prompt_length * objective.task.vocab
    margins = 1 + GRADIENT_FORWARDS * ("saliency" in shown) + edits * ("edits" in shown)
    return margins * objective.forwards


class Found(NamedTuple):
    """What a hint leads to: a prompt `[T]`, its margin, and the forward passes it cost."""

    prompt: np.ndarray
    margin: float
    forwards: int


def hint(key: jax.Array, attack: Attack, objective: Objective, prompt: np.ndarray, *, budget: int) -> Found:
    """The best prompt that an attack finds from the given one `[T]` within `budget` margins.

    Raises:
      ValueError: the budget does not cover the start.
    """
    trace = search(key, attack, objective, np.asarray(prompt, np.int32)[None], budget=budget)
    return Found(np.asarray(trace.prompt[0]), float(trace.margin[0]), int(trace.cost.forwards))


@jax.jit
def _phrases(key, objective: Objective, prompt: jax.Array, position: jax.Array):
    clean_key, random_key = jax.random.split(key)
    allowed, half = jnp.asarray(objective.allowed), PHRASES // 2
    clean = jax.vmap(objective.clean)(jax.random.split(clean_key, half))
    random = jax.vmap(anywhere, (0, None))(jax.random.split(random_key, PHRASES - half), allowed)
    place = jnp.arange(len(allowed)) - position
    filled = jnp.where((place >= 0) & (place < WINDOW), jnp.concatenate([clean, random]), prompt)
    margins = jax.vmap(objective.margin_or_nan)(filled)
    order = jnp.argsort(margins)
    return filled[order], margins[order]


def phrases(
    key: jax.Array, objective: Objective, prompt: np.ndarray, position: int, *, most: int = 5
) -> tuple[list[Found], int]:
    """The best of `PHRASES` ways to fill `WINDOW` tokens from a position on, each once, and what they cost in all.

    Half are cut out of clean prompts at the same place, half are uniformly random, as in the attack `infill`.
    """
    filled, margins = jax.device_get(_phrases(key, objective, np.asarray(prompt, np.int32), np.int32(position)))
    _, first = np.unique(filled, axis=0, return_index=True)
    cost = PHRASES * objective.forwards
    best = [Found(filled[row], float(margins[row]), cost) for row in sorted(first)]
    return [one for one in best if one.margin < NOT_HAZARDOUS][:most], cost


def bounded(margins):
    """Margins as JSON can hold them: a model that is sure beyond all bounds has an infinite one."""
    return np.clip(margins, -NOT_HAZARDOUS, NOT_HAZARDOUS)


def plain(seen: Look, shown: frozenset[str]) -> dict[str, Any]:
    """A look as JSON holds it; what the condition hides is not in it, and margins where nothing can happen are None."""

    def numbers(margins):
        return np.where(margins >= NOT_HAZARDOUS, None, bounded(margins).astype(object)).tolist()

    verdicts = [Verdict(*(np.asarray(field).tolist() for field in row)) for row in zip(*seen.verdicts, strict=True)]
    told = {
        "hazardous": bool(seen.hazardous),
        "safe": bool(seen.safe),
        "verdicts": [verdict._asdict() for verdict in verdicts],
    }
    for verdict in told["verdicts"]:
        hidden = "margin" not in shown or verdict["margin"] >= NOT_HAZARDOUS
        verdict["margin"] = None if hidden else float(bounded(verdict["margin"]))
    if "saliency" in shown:
        told["saliency"] = seen.saliency.astype(float).tolist()
    if "edits" in shown:
        told["edits"] = {name: numbers(getattr(seen, name)) for name in ("replaced", "inserted", "deleted")}
    return told
