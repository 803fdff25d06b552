"""A count in shares: each is counted by itself, anywhere, and all together are checked to be the whole count."""

from collections.abc import Callable, Sequence
from functools import reduce

from testbed.evaluation.exact import count_parts, merged, parts_of
from testbed.evaluation.verdicts import Count
from testbed.policy import Policy
from testbed.task import Task, space_size

PARTS_A_SHARE = 64  # so that a share takes half a minute, and is all that a killed process loses


def shares_of(model, task: Task, policies: dict[str, Policy], *, largest: int | None = None) -> list[range]:
    """The ranks of the prompts of each share, in order.

    Raises:
      ValueError: the space is too large, or the model is not of the task's sizes.
      FloatingPointError: some of its weights are NaN.
    """
    prompts = parts_of(model, task, policies, largest=largest).prompts * PARTS_A_SHARE
    size = space_size(task)
    return [range(first, min(first + prompts, size)) for first in range(0, size, prompts)]


def count_share(
    model,
    task: Task,
    policies: dict[str, Policy],
    number: int,
    *,
    largest: int | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Count]:
    """The counts of one share of the space, without failing prompts: thousands of shares would not fit into memory.

    `watch` is called with (prompts done, prompts in all), and errors are as of `exact.count`.
    """
    parts, counts = parts_of(model, task, policies, largest=largest), {}
    ranks = shares_of(model, task, policies, largest=largest)[number]
    numbers = range(ranks.start // parts.prompts, -(-ranks.stop // parts.prompts))
    for part in count_parts(model, task, policies, parts, numbers=numbers):
        counts = merged(counts, {name: of._replace(ids=of.ids[:0]) for name, of in part.items()})
        watch(next(iter(counts.values())).prompts, len(ranks))
    return counts


def squares(stop: int) -> int:
    """The sum of the squares of all whole numbers below `stop`."""
    return (stop - 1) * stop * (2 * stop - 1) // 6


def refuse_unsound(ranks: range, counts: dict[str, Count]) -> None:
    """Make sure that what was visited are the prompts of these ranks, each once.

    Each prompt's rank was computed from its own tokens, on the device. Two sums tell what they
    were: their number, and that of the ranks' squares modulo 2**64, both known in closed form.

    Raises:
      ValueError: they are not.
    """
    known = len(ranks), (squares(ranks.stop) - squares(ranks.start)) % 2**64
    for name, counted in counts.items():
        if (counted.prompts, counted.checksum) != known:
            raise ValueError(
                f"the count ({name}) of ranks {ranks.start:,} to {ranks.stop - 1:,} visited {counted.prompts:,} "
                "prompts: some were left out or counted twice; delete its record and count again"
            )


def whole(task: Task, shares: Sequence[range], counts: Sequence[dict[str, Count]]) -> dict[str, Count]:
    """The count of the whole space from those of its `shares`, in the same order.

    Its numbers are those of `exact.count`, but for the last bits of sums of floats.

    Raises:
      ValueError: a share is missing, is another's, or was not visited whole; or all of them are not the space.
    """
    if len(shares) != len(counts):
        raise ValueError(f"there are {len(counts)} counts of {len(shares)} shares; count those that are missing")
    for ranks, of_share in zip(shares, counts, strict=True):
        refuse_unsound(ranks, of_share)
    together = reduce(merged, counts, {})
    refuse_unsound(range(space_size(task)), together)
    return together
