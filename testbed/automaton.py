"""Rules and distributions of a finite state, as tables: what lets prompts be counted by paths."""

from typing import NamedTuple

import numpy as np


class Chain(NamedTuple):
    """A sampler of prompts, token by token, from a finite state.

    Attributes:
      probability: float64 `[T, states, V]`, the next token's distribution at each position and state; rows that cannot
        be reached are zero.
      follow: int `[states, V]`, the state after a token.
      start: the state before the first token.
    """

    probability: np.ndarray
    follow: np.ndarray
    start: int


class Checker(NamedTuple):
    """A task's rule as an automaton that reads a prompt token by token, from state 0.

    Attributes:
      follow: int `[states, V]`, the state after a token. A rule that depends on positions counts them in its states.
      level: float `[states]`, how egregious the one catastrophic answer is to a prompt that ends in a state; 0 where
        there is none.
      answer: int `[states, N]`, that answer: for a classifier 0, which lets a prompt pass.
      any_length: whether the rule is the same for prompts of any length, so that the automaton judges them too.
    """

    follow: np.ndarray
    level: np.ndarray
    answer: np.ndarray
    any_length: bool = False


def merged(chain: Chain) -> Chain:
    """The same sampler with the fewest states: those are one that give every continuation the same probability.

    Reference: Moore 1956, Gedanken-experiments on sequential machines.
    """
    possible = (chain.probability > 0).any(axis=0)
    rows, parts = chain.probability.swapaxes(0, 1).reshape(len(possible), -1), 0
    alike = _which_of(rows)
    while parts < (parts := int(alike.max()) + 1):
        after = np.where(possible, alike[chain.follow], -1)
        alike = _which_of(np.column_stack([alike, after]))
    first = np.unique(alike, return_index=True)[1]
    return Chain(chain.probability[:, first], alike[chain.follow[first]], int(alike[chain.start]))


def _which_of(rows: np.ndarray) -> np.ndarray:
    """Which of the distinct `rows` `[n, k]` each is, `[n]`; numpy 2.0 gives it another shape."""
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def chance_of(chains: tuple[tuple[float, Chain], ...], prompts: np.ndarray) -> np.ndarray:
    """The probabilities `[n]` of prompts `[n, T]` under a mixture of chains `(share, chain)`, float64."""
    total = np.zeros(len(prompts))
    for share, chain in chains:
        states, chance = np.full(len(prompts), chain.start), np.full(len(prompts), float(share))
        for probability, tokens in zip(chain.probability, np.asarray(prompts).T, strict=True):
            chance *= probability[states, tokens]
            states = chain.follow[states, tokens]
        total += chance
    return total


def states_after(checker: Checker, prompts: np.ndarray) -> np.ndarray:
    """The states `[n]` in which prompts `[n, T]` end."""
    states = np.zeros(len(prompts), np.int64)
    for tokens in np.asarray(prompts).T:
        states = checker.follow[states, tokens]
    return states


def level_of(checker: Checker, prompts: np.ndarray) -> np.ndarray:
    """The level `[n]` of the states in which prompts `[n, T]` end."""
    return checker.level[states_after(checker, prompts)]
