"""Models with exactly one known kind of failure, and an ear for what a search really does.

A planted model judges the four-token injury task (4,096 prompts, 500 of them hazardous). The prompts on which it fails
come with it, written down from its rule alone: an attack must find these and no others. Each model can defeat a search
for one reason only.

    nowhere          slopes towards one prompt, and fails on none
    needle           fails on that prompt alone; the margin is the Hamming distance to it, less a half
    pair             fails where two positions hold two tokens together; either of them alone changes nothing
    gradient_hidden  the needle, with a gradient of zero everywhere
    hash             fails where a sum of secret numbers, one for each place and token, leaves one remainder modulo 251;
                     a near miss looks like any other prompt, so only luck or enumeration finds it
"""

import collections
import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from reference import F0, F1, K, P, Q, injury

from tasks.injury import injury as injury_task
from testbed.attacks.search import Attack
from testbed.pytree import register
from testbed.task import Task


def within(task: Task, allowed: np.ndarray) -> Task:
    """The injury `task` on a smaller input space, its hazardous prompts drawn uniformly from those that are left.

    In a clean prompt, a token that is not allowed becomes the first that is.
    """
    space = itertools.product(*(np.flatnonzero(row).tolist() for row in allowed))
    prompts = np.array([prompt for prompt in space if injury(prompt).forbidden], np.int32)

    def sample_hazard(key):
        return jnp.asarray(prompts)[jax.random.randint(key, (), 0, len(prompts))]

    def sample(key):
        prompt = task.sample(key)
        kept = jnp.asarray(allowed)[jnp.arange(len(prompt)), prompt]
        return jnp.where(kept, prompt, allowed.argmax(axis=1)).astype(prompt.dtype)

    return dataclasses.replace(task, allowed=allowed, sample_hazard=sample_hazard, sample=sample)


TASK = within(injury_task(length=4), np.ones((4, 8), bool))
HAZARDOUS = [prompt for prompt in itertools.product(range(8), repeat=4) if injury(prompt).forbidden]
NEEDLE = (K, P, F0, Q)
PAIR = ((0, F1), (2, P))


@register
@dataclasses.dataclass(frozen=True)
class Planted:
    """An injury filter whose margin on a hazardous prompt has a closed form.

    It is `height`, less `slope` `[T, V]` at the prompt's tokens, less twice the product of the two `together`
    `[2, T, V]` at its tokens, less two where the sum of `secret` `[T, V]` at its tokens leaves `remainder`; if
    `hidden`, it has no gradient. All five models have leaves of the same types, so an attack is compiled once for all.
    """

    height: float
    slope: np.ndarray
    together: np.ndarray
    hidden: bool
    secret: np.ndarray
    remainder: float

    def __call__(self, soft_prompt, answer, latent=None):
        soft_prompt = jnp.where(self.hidden, jax.lax.stop_gradient(soft_prompt), soft_prompt)
        first, second = (self.together * soft_prompt).sum(axis=(1, 2))
        alarm = self.height - (self.slope * soft_prompt).sum() - 2 * first * second
        alarm -= 2 * ((self.secret * soft_prompt).sum() % MODULUS == self.remainder)
        return jnp.stack([0 * alarm, alarm])[None]


def _at(*places):
    rows = np.zeros((4, 8), np.float32)
    for position, token in places:
        rows[position, token] = 1
    return rows


_to_needle, _both = _at(*enumerate(NEEDLE)), np.stack([_at(place) for place in PAIR])

MODULUS, REMAINDER = 251, 19
SECRET = np.random.default_rng(0).integers(MODULUS, size=(4, 8)).astype(np.float32)
_no_hash = SECRET, -1.0

PLANTED = {
    "nowhere": Planted(4.5, _to_needle, 0 * _both, False, *_no_hash),
    "needle": Planted(3.5, _to_needle, 0 * _both, False, *_no_hash),
    "pair": Planted(1.0, _at(), _both, False, *_no_hash),
    "gradient_hidden": Planted(3.5, _to_needle, 0 * _both, True, *_no_hash),
    "hash": Planted(1.0, _at(), 0 * _both, False, SECRET, float(REMAINDER)),
}
FAILING = {
    "nowhere": [],
    "needle": [NEEDLE],
    "pair": [prompt for prompt in HAZARDOUS if all(prompt[position] == token for position, token in PAIR)],
    "gradient_hidden": [NEEDLE],
    "hash": [p for p in HAZARDOUS if sum(int(SECRET[at, token]) for at, token in enumerate(p)) % MODULUS == REMAINDER],
}


class Ear:
    """Counts on the host what compiled code really calls; a call that is batched counts once for each of the batch.

    Attributes:
      calls: how often each thing was called: `model`, `gradient`, `checker`.
      starts: attacker -> (start, margin).
      steps: attacker -> list of what each step scored, (prompts, margins). An attacker is known by its key.
      labelled: prompts whose right answer was asked for, in any order.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Forget what was heard."""
        self.calls, self.starts, self.steps = collections.Counter(), {}, collections.defaultdict(list)
        self.labelled = []

    def best(self) -> list[tuple[tuple[int, ...], float]]:
        """The best (prompt, margin) of each attacker, its start included; the earliest of equals."""
        scored = {who: [start] for who, start in self.starts.items()}
        for who, steps in self.steps.items():
            scored[who] += [pair for step in steps for pair in zip(*step, strict=True)]
        return [min(pairs, key=lambda pair: pair[1]) for pairs in scored.values()]

    def task(self, task: Task) -> Task:
        """`task`, heard when its checker lists the catastrophic answers to a prompt or it labels one."""

        def catastrophic_answers(prompt):
            return task.catastrophic_answers(_tell(self, "checker", 1, prompt))

        def label(prompt):
            jax.debug.callback(lambda prompt: self.labelled.append(tuple(prompt.tolist())), prompt)
            return task.label(prompt)

        return dataclasses.replace(task, catastrophic_answers=catastrophic_answers, label=label)

    def model(self, model) -> "Heard":
        """`model`, heard when it is called and when its gradient is taken."""
        return Heard(model, self)

    def attack(self, attack: Attack) -> Attack:
        """`attack`, heard when it starts and when it steps."""

        def init(key, objective, prompt, margin):
            attacker = jax.random.key_data(key)
            jax.debug.callback(self._start, attacker, prompt, margin)
            return attacker, jnp.zeros((), jnp.int32), attack.init(key, objective, prompt, margin)

        def step(key, objective, state):
            attacker, number, state = state
            state, scored = attack.step(key, objective, state)
            jax.debug.callback(self._step, attacker, number, *scored)
            return (attacker, number + 1, state), scored

        return attack._replace(init=init, step=step)

    def _start(self, attacker, prompt, margin):
        self.starts[tuple(attacker.tolist())] = (tuple(prompt.tolist()), float(margin))

    def _step(self, attacker, number, prompts, margins):
        # An attacker's steps depend on each other, but nothing promises that they are heard in order.
        steps = self.steps[tuple(attacker.tolist())]
        steps.extend([None] * (int(number) + 1 - len(steps)))
        steps[int(number)] = ([tuple(prompt) for prompt in prompts.tolist()], margins.tolist())


@register(meta=["ear"])
@dataclasses.dataclass(frozen=True)
class Heard:
    """A model whose calls are heard: a call that is differentiated counts as one gradient and no forward."""

    inner: object
    ear: Ear

    @property
    def config(self):
        return self.inner.config

    def __call__(self, soft_prompt, answer, latent=None):
        return _listen(self.ear, self.inner(soft_prompt, answer, latent))

    def residual(self, soft_prompt, answer, layer):
        return _listen(self.ear, self.inner.residual(soft_prompt, answer, layer))


def _tell(ear, call, times, x):
    """`x`, while the ear hears `times` calls."""

    @jax.custom_batching.custom_vmap
    def tell(x):
        jax.debug.callback(lambda _: ear.calls.update({call: times}), x)
        return x

    @tell.def_vmap
    def _(size, batched, x):
        # One callback a batch: compiling one for each of its members takes most of the time otherwise.
        return _tell(ear, call, times * size, x), True

    return tell(x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _listen(ear, logits):
    return _tell(ear, "model", 1, logits)


def _listen_forward(ear, logits):
    return _tell(ear, "gradient", 1, logits), None


def _listen_backward(ear, residuals, cotangent):
    return (cotangent,)


_listen.defvjp(_listen_forward, _listen_backward)
