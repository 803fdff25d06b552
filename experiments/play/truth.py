"""What only a count can say: how near a prompt is to failure, how many failures there are, and of how many tactics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from testbed.evaluation import ends, exact, tactics
from testbed.evaluation.paths import walkable
from testbed.evaluation.samples import margins_of_hazards
from testbed.objective import Objective
from testbed.task import Task, space_size

SAMPLES = 65_536

BALLS = "a tactic is a ball of a greedy cover: failures within two tokens of its centre"
ENDS = "a tactic is a pair of last states, the machine's and the rule's, at which prompts fail"


class Truth(NamedTuple):
    """What is known of a model's failures at threshold 0.

    Attributes:
      how: `exact`, `by paths` or `sampled`.
      prompts: of the space.
      hazardous, failures: how many there are; if sampled, among `SAMPLES` random hazards.
      margins: of the hazardous prompts, ascending; upto: how many have at most that margin, `[n]` integers.
      tactics: the number of tactics, None if sampled; notion: what a tactic is.
      centres: of the balls, `[m, T]`; ends: the failing pairs of states, `[m, 2]`.
    """

    how: str
    prompts: int
    hazardous: int
    failures: int
    margins: np.ndarray
    upto: np.ndarray
    tactics: int | None
    notion: str
    centres: np.ndarray | None = None
    ends: np.ndarray | None = None


def truth_of(key: jax.Array, objective: Objective, watch: Callable[[int, int], None]) -> Truth:
    """Count a model's failures, by paths or one by one; where neither can be done, sample hazards.

    `watch` is called with (parts done, parts in all).

    Raises:
      ValueError, FloatingPointError: as `testbed.evaluation.exact.count`.
    """
    task, model, policy = objective.task, objective.model, objective.policy
    if walkable(model, task):
        return _by_paths(model, task, policy)
    if not exact.countable(task):
        margins = np.sort(margins_of_hazards(key, objective, samples=SAMPLES))
        upto, failures = np.arange(1, len(margins) + 1), int((margins <= 0).sum())
        return Truth("sampled", space_size(task), len(margins), failures, margins, upto, None, "")
    half = lambda first: lambda done, total: watch(first * total + done, 2 * total)
    counted = exact.count(model, task, {"greedy": policy}, watch=half(0))["greedy"]
    margins = exact.hazardous_margins(model, task, policy, watch=half(1))
    centres, whole = tactics.of_failures(task, counted.ids)
    notion = BALLS if whole else f"{BALLS}; of {tactics.MOST:,} failures spread over all"
    return Truth(
        "exact", counted.prompts, len(margins), int(counted.failures), margins, np.arange(1, len(margins) + 1),
        len(centres), notion, centres=centres,
    )  # fmt: skip


def _by_paths(model, task: Task, policy) -> Truth:
    there = ends.hazardous_ends(model, task, policy)
    upto = np.cumsum(there.ways)
    failing = there.ways[there.failing].sum() if there.failing.any() else 0
    return Truth(
        "by paths", space_size(task), int(upto[-1]) if len(upto) else 0, int(failing), there.margins, upto,
        int(there.failing.sum()), ENDS, ends=there.states[there.failing],
    )  # fmt: skip


def farther(truth: Truth, margin: float) -> float | None:
    """The share of hazardous prompts that are farther from failure: their margin is larger than `margin`."""
    if not truth.hazardous:
        return None
    place = int(np.searchsorted(truth.margins, np.float32(margin), side="right"))
    return 1 - int(truth.upto[place - 1]) / truth.hazardous if place else 1.0


def tactic_of(truth: Truth, model, task: Task, prompt: np.ndarray) -> int | None:
    """Which tactic a failing prompt `[T]` is of; None if it is not known."""
    if truth.ends is not None:
        here = np.array(ends.end_of(model, task, np.asarray(prompt)))
        same = (truth.ends == here).all(axis=1)
        return int(same.argmax()) if same.any() else None
    return None if truth.centres is None else tactics.tactic(np.asarray(prompt), truth.centres)


def told(truth: Truth, found: int, of_tactics: set[int]) -> dict[str, Any]:
    """What the page says of it: numbers beyond 2**53 as text, so that JSON's readers keep them whole."""
    number = lambda value: None if value is None else f"{value:,}"
    return {
        "how": truth.how, "prompts": number(truth.prompts), "hazardous": number(truth.hazardous),
        "failures": number(truth.failures), "share": min(found / truth.failures, 1) if truth.failures else None,
        "tactics": number(truth.tactics), "found_tactics": len(of_tactics), "notion": truth.notion,
    }  # fmt: skip
