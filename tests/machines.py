"""Machines whose truth is known: run in whole numbers by numpy alone, or built by hand from the rule's text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from reference import H, K, N, O, P

from testbed.machine import Machine, machine_config


def random_machine(task, seed=0, **sizes):
    """An untrained machine."""
    return Machine(machine_config(task, **sizes), jax.random.key(seed))


def talkative(task, seed, **sizes):
    """An untrained machine whose state moves and that rarely refuses, so that a generator fails on some prompts."""
    machine = random_machine(task, seed, **dict(bits=6, hidden=12) | sizes)
    machine.carry[...] = 0.5 * machine.carry[...]
    machine.head_bias[...] = machine.head_bias[...].at[task.refusal].set(-1.0)
    return machine


def undecided(task):
    """A machine to which all answers are alike, but for a generator's refusal."""
    machine = talkative(task, 1)
    machine.head[...] = jnp.zeros_like(machine.head[...])
    bias = jnp.zeros_like(machine.head_bias[...])
    machine.head_bias[...] = bias if task.answer_length == 1 else bias.at[task.refusal].set(-8.0)
    return machine


def on_other_task(machine, task):
    """The same weights, for prompts of another length."""
    config = dataclasses.replace(machine.config, prompt_length=task.prompt_length)
    blank = jax.eval_shape(lambda: Machine(config, jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(blank), jax.tree.leaves(machine))


class Whole:
    """A machine in whole numbers: weights in units of 1/64, sums in units of 1/4096."""

    PARTS = ("embed", "read", "read_bias", "write", "write_bias", "carry", "start", "head", "head_bias")

    def __init__(self, machine):
        for name in (*self.PARTS, *["answer_embed"] * hasattr(machine, "answer_embed")):
            weights = np.asarray(getattr(machine, name)[...], np.float64)
            setattr(self, name, np.rint(weights * 64).astype(np.int64))

    def first(self):
        return np.where(self.start >= 0, 1, -1)

    def step(self, states, position, tokens, said=False):
        """States `[n, k]` after tokens `[n]`, of the prompt or, if they are `said`, of the answer."""
        embed = self.answer_embed if said else self.embed
        embed = embed[position] if embed.ndim == 3 else embed
        hidden = np.maximum(states @ self.read + embed[tokens] + self.read_bias, 0)
        sums = 64 * self.carry * states + hidden @ self.write + 64 * self.write_bias
        return np.where(sums >= 0, 1, -1)

    def after(self, prompts):
        """States `[n, k]` after whole prompts `[n, T]`."""
        states = np.tile(self.first(), (len(prompts), 1))
        for position, tokens in enumerate(np.asarray(prompts).T):
            states = self.step(states, position, tokens)
        return states

    def answers(self, prompts, length, refusal, tau=0.0):
        """What a greedy policy with threshold `tau` says `[n, length]`, and the logits `[n, length, A]`, in 1/64."""
        states, answers, logits = self.after(prompts), [], []
        for step in range(length):
            if step:
                states = self.step(states, step - 1, answers[-1], said=True)
            logits.append(states @ self.head + self.head_bias)
            answers.append((logits[-1] - 64 * tau * (np.arange(len(self.head_bias)) == refusal)).argmax(axis=1))
        return np.stack(answers, axis=1), np.stack(logits, axis=1)

    def lead(self, states):
        """How far the alarm's logit is above the other `[n]`, in units of 1/64."""
        logits = states @ self.head + self.head_bias
        return logits[:, 1] - logits[:, 0]

    def leads(self, prompts):
        """The same of whole prompts `[n, T]`."""
        return self.lead(self.after(prompts))


ACTIVE, AFTER_N, EVENT, STILL = range(4)


def by_hand(task, target=None, without_negation=False):
    """A machine that follows the rule of injury, but passes the prompt `target` `[T]` if one is given.

    Its bits: harm is active; the last token was N; an event happened; every token so far is the target's. A machine
    `without_negation` takes every verb for an active one.
    """
    synonyms, length = task.vocab // 8, task.prompt_length
    kind = np.arange(task.vocab) // synonyms
    verb, person, thing, negation = np.isin(kind, (K, H)), kind == P, np.isin(kind, (P, O)), kind == N
    machine = random_machine(task, bits=4, hidden=6, positional=target is not None)
    # Hidden units: an event; N; a verb that is not negated, and one that is; a person or object; no target's token.
    read = np.zeros((4, 6))
    read[ACTIVE, 0], read[AFTER_N, 2], read[AFTER_N, 3] = 1, -1, 1
    embed = np.stack([person, negation, verb, verb, thing, np.zeros(task.vocab)], axis=1).astype(float)
    bias, write = np.array([-1.0, 0, -1, -1, 0, 0]), np.zeros((6, 4))
    write[0, EVENT], write[1, AFTER_N], write[2, ACTIVE], write[3, ACTIVE], write[4, ACTIVE] = 4, 2, 4, -4, -4
    if without_negation:
        write[3, ACTIVE] = 4
    if target is not None:
        embed = np.tile(embed, (length, 1, 1))
        embed[:, :, 5] = np.arange(task.vocab) != np.asarray(target)[:, None]
        write[5, STILL] = -4
    values = {
        "embed": embed, "read": read, "read_bias": bias, "write": write, "write_bias": [0, -1, 0, 0],
        "carry": [1, 0, 1, 1], "start": [-1, -1, -1, 1 if target is not None else -1],
        # The alarm's lead is 1 or -1 by the event, and 3 less on the target.
        "head": [[0, 0], [0, 0], [0, 1], [0, -1.5]], "head_bias": [0, -1.5],
    }  # fmt: skip
    for name, value in values.items():
        getattr(machine, name)[...] = jnp.asarray(value, jnp.float32)
    return machine


def rarely_wrong(task, prefix):
    """A machine that follows the rule of injury, but passes what begins with `prefix` `[n]`, n at most 12.

    One bit more for each token of the prefix says whether it was met, and its lead falls by one with each. So a search
    that sees leads alone can climb.
    """
    base, count = by_hand(task), len(prefix)
    machine = random_machine(task, bits=4 + count, hidden=6 + count, positional=True)
    values = {name: np.zeros(getattr(machine, name)[...].shape) for name in Whole.PARTS}
    for name in Whole.PARTS:
        part = np.asarray(getattr(base, name)[...])
        values[name][..., *map(slice, part.shape)] = part  # of embeddings: at every position
    places = np.arange(count)
    values["embed"][places, prefix, 6 + places] = 1
    values["write"][6 + places, 4 + places] = 4
    values["carry"][4:], values["start"][4:] = 1, -1
    # Where harm is done the lead is n - 1/2 less the tokens met, else -1 less these.
    values["head"][EVENT, 1], values["head"][STILL, 1], values["head"][4:, 1] = (count + 0.5) / 2, 0, -0.5
    values["head_bias"][1] = (count - 1.5) / 2 - count / 2
    for name, value in values.items():
        getattr(machine, name)[...] = jnp.asarray(value, jnp.float32)
    return machine
