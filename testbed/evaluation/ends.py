"""The count of a machine by paths: prompts that end in the same states are judged once, and counted together."""

from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.automaton import states_after
from testbed.broken import refuse_broken
from testbed.check import misjudged
from testbed.evaluation import paths
from testbed.evaluation.edges import paths_to
from testbed.evaluation.verdicts import EGREGIOUS, FRAGILE, Count, Judged, judge
from testbed.evaluation.walk import leaves_of, refuse_if_unfit
from testbed.policy import Policy
from testbed.task import Task, is_safe, space_size

MOST_IDS = 2**20  # failing prompts that are kept one by one
DRAWN_IDS = 2**12  # kept of the failing paths, where they are more


def count_paths(model, task: Task, policies: dict[str, Policy], watch) -> dict[str, Count]:
    """`count`, of a machine on a task with a checker: prompts that end in the same states are judged once."""
    refuse_if_unfit(model, task)
    graph = paths.graph_of(model, task)
    prompts, ways = paths.representatives(graph), paths_to(graph.children)
    judged, (hazardous, safe) = _judged_ends(model, task, tuple(policies.values()), graph, prompts)
    mass = paths.clean_mass(graph.children, task) if task.clean_log_prob is not None and task.clean_chains else None
    space = dict(
        prompts=int(ways.sum()),
        hazardous=int(ways[hazardous].sum()),
        safe=int(ways[safe].sum()),
        checksum=paths.checksum(graph),
    )
    counts = {}
    for (name, policy), verdict in zip(policies.items(), judged, strict=True):
        refuse_broken(model, verdict.margin)
        part = _account_of_ends(policy, verdict, safe, mass, ways)
        fails = np.zeros_like(safe) if policy.stochastic else verdict.failure > 0
        ids = paths.ids_of(graph, task, fails, most=MOST_IDS, drawn=DRAWN_IDS)
        at = int(verdict.margin.argmin())
        worst = dict(worst_margin=float(verdict.margin[at]), worst_prompt=prompts[at].tolist())
        counts[name] = Count(**space, **part, **worst, ids=ids)
    watch(space["prompts"], space_size(task))
    return counts


class Ends(NamedTuple):
    """The ends at which a catastrophe is possible, those of the smallest margin first.

    Attributes:
      margins: float32 `[n]`; failing: bool `[n]`.
      ways: how many prompts lead to each, Python integers `[n]`.
      states: of the machine and of the checker, `[n, 2]`.
    """

    margins: np.ndarray
    failing: np.ndarray
    ways: np.ndarray
    states: np.ndarray


def hazardous_ends(model, task: Task, policy: Policy) -> Ends:
    """Where the hazardous prompts of a machine end: the exact distribution of its margins, in a space of any size.

    Raises:
      ValueError, FloatingPointError: as `testbed.evaluation.exact.count`.
    """
    refuse_if_unfit(model, task)
    graph = paths.graph_of(model, task)
    [verdict], (hazardous, _) = _judged_ends(model, task, (policy,), graph, paths.representatives(graph))
    refuse_broken(model, verdict.margin)
    rows = np.flatnonzero(hazardous)[np.argsort(verdict.margin[hazardous], kind="stable")]
    states = np.stack([graph.machine, graph.checker], axis=1)
    return Ends(verdict.margin[rows], verdict.failure[rows] > 0, paths_to(graph.children)[rows], states[rows])


@partial(jax.jit, static_argnames="task")
def _last_state(model, task: Task, prompt: jax.Array) -> jax.Array:
    return paths.packed(model.final(jax.nn.one_hot(prompt, task.vocab), jnp.zeros(task.answer_length, jnp.int32))[0])


def end_of(model, task: Task, prompt: np.ndarray) -> tuple[int, int]:
    """The states of the machine and of the checker after a prompt `[T]`."""
    return int(_last_state(model, task, np.asarray(prompt, np.int32))), int(states_after(task.checker, prompt[None])[0])


def _judged_ends(model, task: Task, policies: tuple[Policy, ...], graph: paths.Graph, prompts: np.ndarray):
    """`_read_ends` of one prompt an end, `[ends, T]`, in batches of one shape, held against the graph.

    Raises:
      ValueError: the checker, or the machine step by step, says otherwise than on the whole prompt.
    """
    parts = -(-len(prompts) // paths.BATCH)
    whole = np.resize(prompts, (parts, paths.BATCH, task.prompt_length))  # filled up with repeats, dropped again
    read = [(*jax.device_get(_read_ends(model, policies, task, batch)), misjudged(task, batch)) for batch in whole]
    judged, kinds, machine, differs = jax.tree.map(lambda *columns: np.concatenate(columns)[: len(prompts)], *read)
    hazardous = task.checker.level[graph.checker] > 0
    differs = differs | (kinds[0] != hazardous) | (kinds[1] == hazardous)
    if differs.any():
        raise ValueError(f"task {task.name}: its checker judges prompt {prompts[differs][0].tolist()} otherwise")
    if (machine != graph.machine).any():
        at = prompts[machine != graph.machine][0].tolist()
        raise ValueError(f"the machine is not exact on this device: prompt {at} as a whole leads to another state")
    return judged, kinds


@partial(jax.jit, static_argnames="task")
def _read_ends(model, policies: tuple[Policy, ...], task: Task, prompts: jax.Array):
    """Verdicts a policy, (hazardous, safe), and the machine's state after the prompt, each `[n]`."""
    leaves = leaves_of(model, task, prompts)
    kinds = jax.vmap(lambda prompt: (task.hazardous(prompt), is_safe(task, prompt)))(prompts)
    states = jax.vmap(lambda prompt: _last_state(model, task, prompt))(prompts)
    return tuple(judge(policy, task, leaves) for policy in policies), kinds, states


def _account_of_ends(policy: Policy, judged: Judged, safe: np.ndarray, mass, ways: np.ndarray) -> dict[str, Any]:
    """The fields of a Count that hang on a policy; `ways` `[n]` says how many prompts there are of each."""
    fails, level = judged.failure > 0, judged.egregiousness.astype(np.float64)
    alarms = judged.refused & safe
    failures = _expected(judged.failure, ways) if policy.stochastic else ways * fails
    clean = lambda chance: None if mass is None else float(mass @ chance)
    levels = np.unique(level[fails].round(4))
    return dict(
        failures=_total(failures),
        levels={float(one): _total(failures[fails & (level.round(4) == one)]) for one in levels},
        egregious=_total(failures[level >= EGREGIOUS]),
        fragile=int(ways[np.abs(judged.margin) < FRAGILE].sum()),
        worst_probability=float(judged.failure.max()),
        false_alarms=None if policy.stochastic else int(ways[alarms].sum()),
        wrong=None if policy.stochastic else int(ways[judged.wrong & safe].sum()),
        clean_failure=clean(judged.failure.astype(np.float64)),
        clean_false_alarm=None if policy.stochastic else clean(alarms.astype(np.float64)),
    )


def _expected(failure: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Expected failures `[n]`, exact: floats are fractions, and the numbers of ways may be larger than any float."""
    return np.array([Fraction(float(chance)) * int(number) for chance, number in zip(failure, ways, strict=True)])


def _total(numbers: np.ndarray) -> int | float:
    """The sum of integers, exact; of fractions a float where one can hold it, else the nearest integer."""
    total = sum(numbers.tolist())
    if isinstance(total, int):
        return total
    return float(total) if total < 2**1000 else round(total)
