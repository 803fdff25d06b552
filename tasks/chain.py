"""Sequential sampling from a table: what Markov chains and uniform draws from a regular language have in common."""

from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from testbed.automaton import Chain, Checker

MOST_STATES = 2**14


def independent(weights: np.ndarray) -> Chain:
    """Tokens drawn independently of each other, with probability in proportion to `weights` `[T, V]`."""
    probability = weights / weights.sum(axis=1, keepdims=True)
    return Chain(probability[:, None], np.zeros((1, weights.shape[1]), int), start=0)


def automaton(
    step: Callable[[Hashable, int], Hashable], start: Hashable, vocab: int, most: int | None = None
) -> tuple[list, np.ndarray] | None:
    """All states that `step(state, token)` reaches from `start`, which comes first, and `follow` `[states, V]`.

    None if they are more than `most`.
    """
    states, rows = [start], []
    number = {start: 0}
    for state in states:  # grows while it is read
        if most is not None and len(states) > most:
            return None
        row = [step(state, token) for token in range(vocab)]
        for after in row:
            if after not in number:
                number[after] = len(states)
                states.append(after)
        rows.append([number[after] for after in row])
    return states, np.array(rows)


def checker(
    step: Callable[[Hashable, int], Hashable],
    start: Hashable,
    vocab: int,
    level: Callable[[Hashable], float],
    *,
    answer: Callable[[Hashable], Sequence[int]] = lambda state: (0,),
    any_length: bool = False,
) -> Checker | None:
    """The rule whose `step(state, token)` begins at `start`; a prompt that ends in a state is of its `level`.

    Args:
      answer: of each state, the one answer that is a catastrophe if its level is positive.

    None if the rule takes more than `MOST_STATES` states.
    """
    found = automaton(step, start, vocab, MOST_STATES)
    if found is None:
        return None
    states, follow = found
    levels, answers = [level(state) for state in states], [answer(state) for state in states]
    return Checker(follow, np.array(levels, float), np.array(answers, np.int32), any_length)


def uniform_over(length: int, follow: np.ndarray, start: int, accepted: np.ndarray) -> Chain:
    """The uniform distribution over the strings of `length` tokens that end in an `accepted` state (bool `[states]`).

    Each token is drawn in proportion to the number of ways to finish, counted backwards, so nothing is rejected.

    Raises:
      ValueError: no string is accepted, or more than a float64 can count.
    """
    ways = accepted.astype(np.float64)
    rows = []
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        for _ in range(length):
            finish = ways[follow]
            ways = finish.sum(axis=1)
            rows.append(np.divide(finish, ways[:, None], out=np.zeros_like(finish), where=ways[:, None] > 0))
    if not np.isfinite(ways[start]):
        raise ValueError(f"the strings of length {length} are too many to count; make it shorter")
    if not ways[start]:
        raise ValueError(f"no string of length {length} is accepted")
    return Chain(np.stack(rows[::-1]), follow, start)


def sample(key: jax.Array, chain: Chain) -> jax.Array:
    """A prompt `[T]`."""
    cumulative = chain.probability.cumsum(axis=2)
    # Rounding must not leave room above the last possible token for one of probability zero.
    cumulative[cumulative > 1 - 1e-9] = 1.0
    uniforms = jax.random.uniform(key, (len(cumulative),))
    follow, state, tokens = jnp.asarray(chain.follow), chain.start, []
    for table, u in zip(jnp.asarray(cumulative, jnp.float32), uniforms, strict=True):
        token = (u >= table[state]).sum()
        tokens.append(token)
        state = follow[state, token]
    return jnp.stack(tokens).astype(jnp.int32)


def log_prob(chain: Chain, prompt: jax.Array) -> jax.Array:
    """Log-probability of a prompt `[T]`, in nats; minus infinity where it cannot be drawn."""
    with np.errstate(divide="ignore"):
        tables = jnp.asarray(np.log(chain.probability), jnp.float32)
    follow, state, total = jnp.asarray(chain.follow), chain.start, 0.0
    for table, token in zip(tables, prompt, strict=True):
        total += table[state, token]
        state = follow[state, token]
    return total
