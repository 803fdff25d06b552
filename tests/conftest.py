"""What the tests share: every task at a small size, models whose answers vary, and strict settings."""

import contextlib
import gc
import itertools
import os
import signal
from typing import NamedTuple

# Tests compile much and compute little. XLA reads this once, when jax starts, and refuses flags that it does not know:
# those of the pinned version.
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import TASKS
from tasks import TEST_SIZES as SMALL
from testbed import compilation
from testbed.model import Transformer, model_config

pytest.register_assert_rewrite("attack_contract", "attack_ladder")
jax.config.update("jax_legacy_prng_key", "error")  # keys are made by jax.random.key
jax.config.update("jax_disable_most_optimizations", True)
compilation.SOONER["xla_backend_optimization_level"] = 0  # a search has a level of its own, whatever the setting above
# Tracing makes many objects and little garbage: looking for it took a tenth. What is imported is never garbage.
gc.set_threshold(300_000, 20, 20)
gc.freeze()
# A shell's background jobs are deaf to Ctrl-C, and so would be their children: here it is a stop that is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def slow(*case):
    """A case of a parametrised test that repeats others with nearly the same code."""
    return pytest.param(*case, marks=pytest.mark.slow)


def mostly_slow(cases, *quick):
    """The cases of a parameter, of which those named stay quick: the others repeat them with nearly the same code."""
    assert set(quick) <= set(cases), "what is named must be one of them"
    return [case if case in quick else slow(case) for case in cases]


@pytest.fixture(scope="session")
def small():
    """`name -> Task` of a size that can be enumerated in Python; a task not in SMALL at its default size."""
    return lambda name: TASKS[name](**SMALL.get(name, {}))


@pytest.fixture(scope="session")
def all_prompts():
    """`task -> prompts [B, T]` of the whole input space in lexicographic order, by itertools alone."""

    def enumerate_space(task):
        tokens = [[token for token in range(task.vocab) if row[token]] for row in task.allowed]
        return np.array(list(itertools.product(*tokens)), np.int32)

    return enumerate_space


def lively_of(config, seed=0):
    """A Transformer with every parameter random and large. Numpy draws them: nothing is compiled."""
    rng = np.random.default_rng(seed)
    blank = jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))

    def fill(path, leaf):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(centre + 0.5 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, blank)


@pytest.fixture(scope="session")
def lively():
    """`(task, seed, sizes) -> Transformer` with every parameter random and large, so that its answers vary."""

    def make(task, seed=0, width=8, heads=2, layers=1):
        return lively_of(model_config(task, width=width, heads=heads, layers=layers), seed)

    return make


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """The command keeps what it compiles in the user's cache folder; a test must not."""
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    jax.config.update("jax_compilation_cache_dir", before)


class Table(NamedTuple):
    """A model whose logits are looked up: `logits[t]` is `[V ** T, A ** t, A]`, by prompt and by the answer so far."""

    logits: tuple

    def __call__(self, soft_prompt, answer, latent=None):
        row = sum(soft_prompt.argmax(axis=1) * soft_prompt.shape[1] ** np.arange(len(soft_prompt))[::-1])
        said, rows = 0, []
        for logits, token in zip(self.logits, answer, strict=True):
            rows.append(jnp.asarray(logits)[row, said])
            said = said * logits.shape[-1] + token
        return jnp.stack(rows)

    def spoken(self, row, answer):
        """The logits `[N, A]` along an answer, as numpy in float64."""
        said, rows = 0, []
        for logits, token in zip(self.logits, answer, strict=True):
            rows.append(np.asarray(logits[row, said], np.float64))
            said = said * logits.shape[-1] + token
        return np.stack(rows)


@pytest.fixture(scope="session")
def table():
    """`(task, favoured [B, N], seed) -> Table` of random logits that lean towards one answer to each prompt."""

    def make(task, favoured, seed=0):
        rng, prompts, answers = np.random.default_rng(seed), task.vocab**task.prompt_length, task.answer_vocab
        logits = []
        for step in range(task.answer_length):
            random = 2 * rng.standard_normal((prompts, answers**step, answers))
            random[np.arange(prompts), :, favoured[:, step]] += 2
            logits.append(random.astype(np.float32))
        return Table(tuple(logits))

    return make


@contextlib.contextmanager
def compilations():
    """The names of what is compiled meanwhile, whether or not a cache on disk has it."""
    names, listening = [], True

    def listen(event, seconds, **about):
        if listening and event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(about.get("fun_name", "something"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    listening = False


HEAVY = (
    "test_sweep_stops.py",
    "test_experiments.py",
    "test_job.py",
    "test_run.py",
    "test_launchers.py",
    "test_training.py",
    "test_bench.py",
)


def pytest_collection_modifyitems(items):
    """The files that take longest first: whole files go to a process, and a long one at the end runs alone."""
    order = {name: place for place, name in enumerate(HEAVY)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
