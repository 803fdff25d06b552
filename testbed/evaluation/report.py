"""One account a model: clean behaviour, attacks at several budgets, and the exact worst case, as plain numbers."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, attack_model
from testbed.evaluation import exact, failures, paths, rare
from testbed.evaluation.account import MATCHED
from testbed.evaluation.closure import Closure, closure, has_other_lengths
from testbed.evaluation.samples import Behaviour, clean_behaviour, failing_at_most, hits
from testbed.evaluation.telltale import Telltale, telltale
from testbed.evaluation.walk import refuse_if_unfit
from testbed.objective import Objective, confirm
from testbed.policy import Policy, greedy, matched_policy, stochastic
from testbed.task import Task
from testbed.watch import Watch, silent


class Sandwich(NamedTuple):
    """What is known of the number of failing prompts: at least those found, exactly, and at most a proven bound.

    `exact` is None where the space is too large to count; nothing proves a `bound` yet. Where nothing is exact,
    `statistical` is an upper bound, but for a small risk (`testbed.evaluation.samples.failing_at_most`).
    """

    tau: float
    found: int
    exact: int | None
    bound: int | None = None
    statistical: int | None = None


class Report(NamedTuple):
    """All that can be said of a model's worst case.

    Attributes:
      sandwich: at threshold 0 (`greedy`), and with 1 % of safe clean prompts refused (`matched`).
      exact: the Count of both policies and of the stochastic one (`sampled`); empty where the space is too large.
      shape: of the greedy policy's failures; None where the space is too large to be visited.
      clean: clean behaviour of both policies, sampled.
      estimated: what each estimator that can read the model says of the greedy policy's clean failure probability.
      timed: calls to the first failure of each attacker, greedy policy, in forward-pass equivalents (`survival`).
      budget: where they are censored, in the same unit.
      at_any_length: of both policies, whether prompts of any length fail; empty where other lengths mean nothing, or
        where there are too many states to follow.
      told_apart: robust, or a detector of attacks; None without a clean density.
    """

    sandwich: dict[str, Sandwich]
    exact: dict[str, exact.Count]
    shape: failures.Shape | None
    clean: dict[str, Behaviour]
    estimated: dict[str, rare.Estimate]
    budget: int
    timed: dict[str, np.ndarray]
    told_apart: Telltale | None
    at_any_length: dict[str, Closure]


HELD_OUT = ("auto", "coordinate", "uniform")
BOUND_SAMPLES = 2**20
SUSPECTS = ("gcg", "coordinate")
SIZES = {"splitting": {"particles": 512}}


def evaluate(
    key: jax.Array,
    model,
    task: Task,
    *,
    attackers: int = 64,
    budget: int = 1000,
    samples: int = 65_536,
    largest: int | None = None,
    watch: Watch = silent,
    checkpoint: Path | None = None,
) -> Report:
    """Measure a model's worst case in every way there is; where it cannot be counted, in every other way.

    Args:
      attackers, budget: of each attack; the budget counts margins.
      samples: clean prompts to sample.
      largest: steps that a count may take (`testbed.evaluation.walk.countable`).
      watch: called with (phase, done, total).
      checkpoint: a file that lets a long count be stopped and taken up again (`exact.count`).

    Raises:
      ValueError: the model does not fit the task, or a number is too small.
    """
    refuse_if_unfit(model, task)
    rare.refuse_few("attackers", attackers, 1)
    clean_key, threshold_key, attack_key, rare_key, tell_key, bound_key = jax.random.split(key, 6)
    policies = {"greedy": greedy(task), "matched": matched_policy(threshold_key, model, task, MATCHED)}
    counts, most = {}, {}
    if exact.countable(task, model, largest=largest):
        asked = policies | {"sampled": stochastic(task)}
        show = partial(watch, "counting")
        with contextlib.suppress(paths.TooManyNodesError):  # of a machine, in a space that is too large otherwise
            counts = exact.count(model, task, asked, watch=show, checkpoint=checkpoint, largest=largest)
    if not counts:
        watch("sampling", 0, 1)
        most = failing_at_most(bound_key, model, task, policies, samples=BOUND_SAMPLES)
    goals = {name: Objective(task, model, policy) for name, policy in policies.items()}
    found, timed = {}, {}
    for name, goal in goals.items():
        found[name], first = _found(attack_key, goal, attackers, budget, partial(watch, f"attacking, {name}"))
        timed = timed or first
    told = None
    if task.clean_log_prob is not None:
        watch("telling apart", 0, 1)
        told = telltale(tell_key, model, task, {name: ATTACKS[name]() for name in SUSPECTS}, attackers=attackers)
    return Report(
        {
            name: _sandwich(policy, found[name], counts.get(name))._replace(statistical=most.get(name))
            for name, policy in policies.items()
        },
        counts,
        failures.shape(task, counts["greedy"].ids) if counts and exact.countable(task) else None,
        clean_behaviour(clean_key, model, task, policies, samples=samples),
        _estimated(rare_key, goals["greedy"], watch),
        budget * goals["greedy"].forwards,
        timed,
        told,
        closures(model, task, policies),
    )


def closures(model, task: Task, policies: dict[str, Policy]) -> dict[str, Closure]:
    """Whether prompts of any length fail, by each policy; empty where nobody can say."""
    if not has_other_lengths(model, task):
        return {}
    try:
        return {name: closure(model, task, float(policy.tau)) for name, policy in policies.items()}
    except paths.TooManyNodesError:
        return {}


def _found(key, objective: Objective, attackers: int, budget: int, watch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The different failing prompts `[n, T]` that attacks end at, confirmed, and each attacker's calls to its first."""
    prompts, first = [], {}
    for number, name in enumerate(HELD_OUT):
        watch(number, len(HELD_OUT))
        trace = attack_model(key, ATTACKS[name](), objective, attackers=attackers, budget=budget)
        prompts.append(np.asarray(trace.prompt)[np.asarray(confirm(objective, trace.prompt))])
        first[name] = np.where(hits(objective, trace), trace.first, NEVER)
    return np.unique(np.concatenate(prompts), axis=0), first


def _sandwich(policy: Policy, found: np.ndarray, counted: exact.Count | None) -> Sandwich:
    return Sandwich(float(policy.tau), len(found), None if counted is None else int(counted.failures))


def _estimated(key, objective: Objective, watch: Watch) -> dict[str, rare.Estimate]:
    """Every estimator that can read the model, with a stream of its own."""
    said = {}
    for number, (name, make) in enumerate(rare.ESTIMATORS.items()):
        watch(f"estimating, {name}", number, len(rare.ESTIMATORS))
        if rare.reads(name, objective):
            said[name] = make(**SIZES.get(name, {}))(jax.random.fold_in(key, number), objective)
    return said


def as_numbers(value: Any) -> Any:
    """A report, or a part of one, as plain numbers for a record: names are kept, a Count's list of prompts is not.

    Integers beyond 2**53 are text.
    """
    match value:
        case exact.Count():
            return exact.summary(value)
        case tuple() if hasattr(value, "_asdict"):
            return as_numbers(value._asdict())
        case dict():
            return {str(name): as_numbers(part) for name, part in value.items()}
        case np.ndarray():
            return value.tolist()
    return exact.lossless(value)
