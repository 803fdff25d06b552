"""The exact worst case: every prompt of the input space is judged, and the failures are counted.

What is kept grows with neither the space nor the failures, and a long count can be stopped and taken up again.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from testbed.broken import refuse_broken
from testbed.evaluation import paths
from testbed.evaluation.ends import DRAWN_IDS, MOST_IDS, count_paths
from testbed.evaluation.verdicts import EGREGIOUS, FRAGILE, Count, Judged, combined, judge, lossless, summary
from testbed.evaluation.walk import (
    Leaves,
    Parts,
    Walk,
    countable,
    over_space,
    plain_forward,
    refuse_if_too_large,
    shared_prefixes,
)
from testbed.objective import answer_margins
from testbed.policy import Policy
from testbed.runs import checkpoints, provenance
from testbed.task import Task, ids_of, is_safe, long_rank, prompts_of_ids, space_size

__all__ = ["DRAWN_IDS", "Count", "count", "countable", "judge", "lossless", "plain_forward"]
__all__ += ["refuse_if_too_large", "shared_prefixes", "summary"]


def _read(policies: tuple[Policy, ...], task: Task, leaves: Leaves):
    """Verdicts a policy, (hazardous, safe), clean log-probability, each `[n]`, and the digits `[n, 2]` of ranks."""
    log_prob = None if task.clean_log_prob is None else jax.vmap(task.clean_log_prob)(leaves.prompts)
    return (
        tuple(judge(policy, task, leaves) for policy in policies),
        (jax.vmap(task.hazardous)(leaves.prompts), jax.vmap(lambda prompt: is_safe(task, prompt))(leaves.prompts)),
        log_prob,
        jax.vmap(lambda prompt: long_rank(task, prompt))(leaves.prompts),
    )


def _account(task: Task, policy: Policy, judged: Judged, kinds, clean, ids) -> Count:
    """The Count of the prompts `ids` `[n]`, in float64; `kinds`: which are hazardous, and which safe."""
    hazardous, safe = kinds
    failure = judged.failure.astype(np.float64)
    fails = failure > 0
    levels, which = np.unique(judged.egregiousness[fails].astype(np.float64).round(4), return_inverse=True)
    by_level = np.bincount(which, failure[fails], len(levels))
    worst = judged.margin.argmin()
    alarms = judged.refused & safe
    return Count(
        prompts=len(ids),
        hazardous=int(hazardous.sum()),
        safe=int(safe.sum()),
        checksum=int((ids.astype(np.uint64) ** 2).sum()),
        failures=float(failure.sum()),
        ids=ids[:0] if policy.stochastic else bounded(ids[fails]),
        levels={float(level): float(n) for level, n in zip(levels, by_level, strict=True)},
        egregious=float(failure[judged.egregiousness >= EGREGIOUS].sum()),
        fragile=int((np.abs(judged.margin) < FRAGILE).sum()),
        worst_margin=float(judged.margin[worst]),
        worst_prompt=prompts_of_ids(task, ids[worst : worst + 1])[0].tolist(),
        worst_probability=float(failure.max()),
        false_alarms=None if policy.stochastic else int(alarms.sum()),
        wrong=None if policy.stochastic else int((judged.wrong & safe).sum()),
        clean_failure=None if clean is None else float(clean @ failure),
        clean_false_alarm=None if clean is None or policy.stochastic else float(clean @ alarms),
    )


def bounded(ids: np.ndarray, most: int | None = None) -> np.ndarray:
    """`ids`, or if they are more than `most` those with the smallest hash: the same sample in whatever parts.

    `most` is `MOST_IDS` by default.
    """
    most = MOST_IDS if most is None else most
    if len(ids) <= most:
        return ids
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.sort(ids[np.argpartition(mixed, most)[:most]])


_SUMS = ("prompts", "hazardous", "safe", "failures", "egregious", "fragile")
_SUMS += ("false_alarms", "wrong", "clean_failure", "clean_false_alarm")  # None in both or in neither


def merge(a: Count, b: Count) -> Count:
    """The Count of two disjoint sets of prompts, `a` before `b`."""
    worst = a if a.worst_margin <= b.worst_margin else b
    return Count(
        **{name: None if getattr(a, name) is None else getattr(a, name) + getattr(b, name) for name in _SUMS},
        checksum=(a.checksum + b.checksum) % 2**64,
        ids=bounded(np.concatenate([a.ids, b.ids])),
        levels={level: a.levels.get(level, 0) + b.levels.get(level, 0) for level in sorted({*a.levels, *b.levels})},
        worst_margin=worst.worst_margin,
        worst_prompt=worst.worst_prompt,
        worst_probability=max(a.worst_probability, b.worst_probability),
    )


def as_json(counts: dict[str, Count]) -> dict[str, dict]:
    """Counts as JSON holds them, and nothing lost."""
    return {
        name: counted._asdict()
        | {"ids": counted.ids.tolist(), "levels": list(counted.levels.items()), "checksum": str(counted.checksum)}
        for name, counted in counts.items()
    }


def from_json(plain: dict[str, dict]) -> dict[str, Count]:
    """The inverse of `as_json`."""
    return {
        name: Count(
            **held
            | {"ids": np.array(held["ids"], np.int64), "levels": dict(map(tuple, held["levels"]))}
            | {"checksum": int(held["checksum"])}
        )
        for name, held in plain.items()
    }


def count_parts(
    model, task: Task, policies: dict[str, Policy], parts: Parts, *, numbers: Sequence[int]
) -> Iterator[dict[str, Count]]:
    """The counts of parts of the space that `parts_of` made, one after the other.

    Raises:
      FloatingPointError: a margin is NaN, so the model is broken.
    """
    read = parts.each(numbers) if len(numbers) else ()
    for judged, kinds, log_prob, digits in read:
        ids = ids_of(task, digits)
        clean = None if log_prob is None else np.exp(log_prob.astype(np.float64))
        for verdict in judged:
            refuse_broken(model, verdict.margin)
        yield {
            name: _account(task, policy, verdict, kinds, clean, ids)
            for (name, policy), verdict in zip(policies.items(), judged, strict=True)
        }


def parts_of(
    model, task: Task, policies: dict[str, Policy], *, walk: Walk = shared_prefixes, largest: int | None = None
) -> Parts:
    """The space in parts that `count_parts` counts; arguments and errors as of `count`."""
    return over_space(_read, model, tuple(policies.values()), task, walk=walk, largest=largest)


def merged(counts: dict[str, Count], more: dict[str, Count]) -> dict[str, Count]:
    """Counts of disjoint sets of prompts together, by policy; there may be none in `counts`."""
    return {name: merge(counts[name], part) if name in counts else part for name, part in more.items()}


def count(
    model,
    task: Task,
    policies: dict[str, Policy],
    *,
    walk: Walk = shared_prefixes,
    watch: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: Path | None = None,
    largest: int | None = None,
) -> dict[str, Count]:
    """Judge every prompt of the input space, once for all `policies`, and count the failures of each.

    A machine on a task with a checker is counted by paths (`testbed.evaluation.paths`), whatever the space's size: in
    Python integers, exact, within seconds. `checkpoint` is then not written.

    Args:
      model: a Transformer or a machine, or with `walk=plain_forward` any callable pytree.
      watch: called with (prompts done, prompts in all) as it goes.
      checkpoint: a file to keep what is counted so far in, written every minute and removed at the end. The same count
        begun again goes on from there, to the same numbers; the file of another count is ignored and replaced.
      largest: steps that the count may take (`countable`).

    Raises:
      ValueError: the space is too large, the model is not of the task's sizes, or `checkpoint` is some other file or
        lacks prompts; a machine is not exact, or has too many states to be counted.
      FloatingPointError: a weight or a margin is NaN, so the model is broken.
    """
    if walk is shared_prefixes and paths.walkable(model, task):
        try:
            return count_paths(model, task, policies, watch)
        except paths.TooManyNodesError:
            if not countable(task, largest=largest):
                raise
    parts, total = parts_of(model, task, policies, walk=walk, largest=largest), space_size(task)
    counts: dict[str, Count] = {}
    numbers, of = range(parts.count), ""
    if checkpoint is not None:
        # What the first part was read as tells the task, what the policies do, and the walk.
        code = provenance.source().encode()
        of = checkpoints.identity([], model, parts.read(0), " ".join(policies).encode(), code)
        done, held = checkpoints.load(checkpoint, of, (0, b"")) or (0, b"{}")
        counts, numbers = from_json(json.loads(held)), range(done, parts.count)
    saved = time.monotonic()
    # There are no numbers, if a kill fell after the last part.
    each = count_parts(model, task, policies, parts, numbers=numbers)
    for number, part in zip(numbers, each, strict=True):
        counts = merged(counts, part)
        watch(next(iter(counts.values())).prompts, total)
        if checkpoint is not None and time.monotonic() - saved > checkpoints.EVERY:
            checkpoints.save(checkpoint, of, (number + 1, json.dumps(as_json(counts)).encode()))
            saved = time.monotonic()
    if checkpoint is not None:
        if any(counted.prompts != total for counted in counts.values()):
            raise ValueError(f"{checkpoint} holds another count; remove it and count anew")
        checkpoint.unlink(missing_ok=True)
    return counts


def _read_margins(policy: Policy, task: Task, leaves: Leaves):
    """Margins `[n]`, and whether a catastrophe is possible at all `[n]`."""
    margins = answer_margins(policy, leaves.forced, leaves.answers, leaves.valid)
    return combined(policy, leaves, margins), jax.vmap(task.hazardous)(leaves.prompts)


def hazardous_margins(
    model,
    task: Task,
    policy: Policy,
    walk: Walk = shared_prefixes,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """The margins of all hazardous prompts, ascending float32: the exact distribution that a search digs in.

    `watch` is called with (parts done, parts in all).

    Raises:
      ValueError, FloatingPointError: as `count`.
    """
    parts, kept = over_space(_read_margins, model, policy, task, walk=walk), []
    for number, (margins, hazardous) in enumerate(parts.each(range(parts.count))):
        refuse_broken(model, margins)
        kept.append(margins[hazardous])
        watch(number + 1, parts.count)
    return np.sort(np.concatenate(kept))
