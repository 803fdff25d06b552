"""Speed, as ratios of two things measured side by side in one run.

  python -m experiments.benchmark                   a table
  python -m experiments.benchmark --only=attacks    a part of it (about two minutes on two cores)
  python -m experiments.benchmark --json            one JSON object a line, with the fields of `Row`

Each pair is timed in turn, A B A B ..., and the ratio is the median of those of neighbours, so that a machine whose
speed drifts changes it little. Compilation is left out. The ratio is value over baseline: above 1 means quicker than
the baseline. An attack is to keep 80 % of the speed of bare forward passes, 60 % if it takes gradients, each of which
counts three. Of the speed of plain products of matrices a gradient is to reach 30 %, a count 25 %. A step is to be
three times as quick as one of PyTorch, if that is installed (the extra `torch`).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments import pytorch
from tasks import TASKS
from testbed.attacks import ATTACKS, search
from testbed.evaluation import exact
from testbed.model import PRECISION, ModelConfig, Transformer, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task, prompts_of_ids, space_size, tokens_by_position
from testbed.training import population
from testbed.training.losses import cross_entropy, prompt_loss
from testbed.training.schedule import Schedule, Unit, units
from testbed.training.units import begin, programs

PARTS = ("enumeration", "attacks", "floor", "population", "torch")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object a line.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repeats of each pair.")
ONLY = flags.DEFINE_multi_enum("only", [], PARTS, "Measure this part only.")
FORWARD_BATCH = 1024  # where the plain forward pass is quickest on a CPU
BLACK_BOX, WITH_GRADIENTS = 0.8, 0.6


class Row(NamedTuple):
    """One measured ratio, and what it is to reach, if anything."""

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float
    target: float | None = None


def paired(
    name: str,
    unit: str,
    quick: tuple[Callable, float],
    baseline: tuple[str, Callable, float],
    target: float | None = None,
) -> Row:
    """Time two functions in turn; each comes with the amount of work that one call does."""
    (run, work), (baseline_name, baseline_run, baseline_work) = quick, baseline
    rates, baseline_rates = [], []
    for repeat in range(REPEATS.value + 1):
        for function, amount, into in ((run, work, rates), (baseline_run, baseline_work, baseline_rates)):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:  # the first call compiles
                into.append(amount / (time.perf_counter() - start))
    ratio = np.median(np.divide(rates, baseline_rates))
    base = f"{baseline_name} ({np.median(baseline_rates):,.0f})"
    return Row(name, float(np.median(rates)), unit, base, float(ratio), target)


def every_position(model: Transformer, soft_prompt: jax.Array) -> jax.Array:
    """The textbook forward pass of a classifier: each block computes every position, though only the last is read."""
    x = model.prompt_embedding(soft_prompt) + model.position
    for block in model.blocks:
        x = block(x, x.shape[0])
    return model.readout(x)


def forward_all(forward: Callable, task: Task, prompts: np.ndarray) -> Callable:
    """A function of a model that runs `forward` on all `prompts` `[n, T]`, in batches."""
    batches = jnp.asarray(prompts).reshape(-1, FORWARD_BATCH, task.prompt_length)

    @jax.jit
    def run(model):
        one = lambda prompt: forward(model, jax.nn.one_hot(prompt, task.vocab))
        return jax.lax.map(jax.vmap(one), batches)

    return run


def enumeration(task: Task, layers: int) -> Iterator[Row]:
    """Counting the whole space, verdicts and all, against forward passes over the same kind of prompts."""
    model = Transformer(model_config(task, layers=layers), jax.random.key(0))
    some = prompts_of_ids(task, np.arange(2**16) * (space_size(task) // 2**16))
    ours = lambda model, soft: model(soft, jnp.zeros(1, jnp.int32))
    for name, forward in (("plain forward, all positions", every_position), ("our forward, last position", ours)):
        run = forward_all(forward, task, some)
        yield paired(
            f"exact count, T={task.prompt_length} V={task.vocab} D=32 L={layers}",
            "prompts/s",
            (lambda: exact.count(model, task, {"greedy": greedy(task)})["greedy"].failures, space_size(task)),
            (name, lambda run=run: run(model), len(some)),
        )


@partial(jax.jit, static_argnames=("task", "passes"))
def raw(model: Transformer, task: Task, prompts: jax.Array, passes: int) -> jax.Array:
    """Nothing but `passes` batched forward passes of a classifier, each over other prompts `[n, T]`."""

    def once(total, shift):
        soft = jax.nn.one_hot((prompts + shift) % task.vocab, task.vocab)
        return total + jax.vmap(model, (0, None))(soft, jnp.zeros(1, jnp.int32)).sum(), None

    return jax.lax.scan(once, 0.0, jnp.arange(passes))[0]


def attacks(task: Task, attackers: int = 128, budget: int = 400) -> Iterator[Row]:
    """Forward-pass equivalents a second under the driver, against raw forward passes in batches of the same size."""
    model = Transformer(model_config(task), jax.random.key(0))
    objective = Objective(task, model, greedy(task))
    starts = jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(1), attackers))
    for name, make in ATTACKS.items():
        attack = make()
        passes = search.steps_within(attack, objective, budget)
        prompts = jnp.tile(starts, (attack.candidates(objective), 1))
        spent = objective.forwards + passes * attack.cost(objective).forwards
        yield paired(
            f"attack {name}, {attackers} attackers",
            "forwards/s",
            (
                lambda attack=attack: search.search(jax.random.key(2), attack, objective, starts, budget=budget),
                attackers * spent,
            ),
            (
                "raw batched forward",
                lambda prompts=prompts, passes=passes: raw(model, task, prompts, passes),
                len(prompts) * passes,
            ),
            WITH_GRADIENTS if attack.gradients else BLACK_BOX,
        )


def flops(config: ModelConfig) -> int:
    """Floating point operations of a forward pass, in products of matrices alone, attention included.

    Causal attention looks at half of all pairs. A gradient takes three times as many.
    """
    width, products = config.width, config.prompt_length * config.vocab * config.width
    for layer in range(config.layers):
        read = config.answer_length if layer == config.layers - 1 else config.positions
        pairs = sum(range(config.positions - read + 1, config.positions + 1))
        products += 2 * width**2 * config.positions + 10 * width**2 * read + 2 * width * pairs
    return 2 * (products + width * config.answer_vocab * config.answer_length)


def walk_flops(task: Task, config: ModelConfig) -> int:
    """The same of a count of a classifier's whole space, which computes each node of the tree of prompts once.

    What the first block projects hangs on token and position alone, so it is computed once for all nodes of a level.
    """
    nodes, total, width = 1, 0, config.width
    for depth, tokens in enumerate(tokens_by_position(task), 1):
        nodes *= len(tokens)
        read = depth == config.prompt_length
        blocks = config.layers if read else config.layers - 1
        total += nodes * 2 * width**2 * (config.layers - 1)
        total += nodes * ((10 * width**2 + 2 * width * depth) * blocks - width**2 * min(blocks, 1))
    return 2 * (total + nodes * width * config.answer_vocab)


def product(size: int = 1024) -> tuple[Callable, float]:
    """A product of two square matrices, as quick as this machine gets, and its FLOPs."""
    one = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISION))
    return lambda: multiply(one), 2 * size**3


@partial(jax.jit, static_argnames=("task", "loss", "steps"))
def gradients(model, task: Task, prompts: jax.Array, loss: Callable, steps: int):
    """`steps` gradients of a loss on one batch, each applied, so that none is left out."""

    def step(model, _):
        return jax.tree.map(lambda w, g: w - 1e-3 * g, model, jax.grad(loss)(model, task, prompts)), None

    return jax.lax.scan(step, model, length=steps)[0]


def by_prompt(model, task: Task, prompts: jax.Array) -> jax.Array:
    """Cross-entropy with each prompt's forward pass by itself, as attacks and counts lay it out."""
    return jax.vmap(lambda prompt: prompt_loss(model, task, prompt))(prompts).mean()


def floor(task: Task, batch: int = 256, steps: int = 48) -> Iterator[Row]:
    """Gradients and a count against products of matrices at this machine's peak, in FLOPs a second.

    Gradients are also measured against those that are laid out prompt by prompt.
    """
    config = model_config(task)
    model = Transformer(config, jax.random.key(0))
    prompts = jax.vmap(task.sample)(jax.random.split(jax.random.key(1), batch))
    peak, of_peak = product()
    spent = 3 * flops(config) * batch * steps
    ours = lambda: gradients(model, task, prompts, cross_entropy, steps)
    usual = lambda: gradients(model, task, prompts, by_prompt, steps)
    name = f"gradient, {task.name}, batch {batch}"
    yield paired(name, "gradients/s", (ours, steps), ("prompt by prompt", usual, steps))
    yield paired(name, "GFLOP/s", (ours, spent / 1e9), ("products of matrices", peak, of_peak / 1e9), 0.3)
    if config.answer_length == 1:
        count = lambda: exact.count(model, task, {"greedy": greedy(task)})["greedy"].failures
        amount = walk_flops(task, config) / 1e9
        name = f"exact count, {task.name}"
        yield paired(name, "GFLOP/s", (count, amount), ("products of matrices", peak, of_peak / 1e9), 0.25)


def together(task: Task) -> Iterator[Row]:
    """Steps a second of all members of a population, against one member after the other."""
    sizes = (1, 8) if jax.default_backend() == "cpu" else (1, 8, 64, 256)
    schedule = Schedule(steps=256)
    unit = Unit(*(column[0] for column in units(schedule)))
    steps, keys = schedule.steps // schedule.units, jax.random.split(jax.random.key(0), max(sizes))
    models = [Transformer(model_config(task), key) for key in keys]
    does = programs(task, schedule, None)[False]
    alone = begin(models[0], task, schedule)
    for members in sizes:
        of_all = population.programs(task, schedule, None)[False]
        states = population.begin(keys[:members], models[:members], task, schedule)
        run = lambda of_all=of_all, states=states, members=members: of_all(keys[:members], states, unit)[1]
        one = lambda: does(keys[0], alone, unit)[1]
        name = f"population of {members}, {task.name}, batch {schedule.batch}"
        yield paired(name, "steps/s", (run, members * steps), ("one member alone", one, steps))


@partial(jax.jit, static_argnames=("task", "schedule"))
def descended(model, task: Task, prompts: jax.Array, schedule: Schedule) -> jax.Array:
    """The losses of a schedule's steps of AdamW on one batch, at the peak rate throughout."""
    adam = optax.adamw(
        schedule.learning_rate, b2=schedule.b2, eps=schedule.adam_eps, weight_decay=schedule.weight_decay
    )  # fmt: skip

    def step(carry, _):
        model, state = carry
        loss, slope = jax.value_and_grad(cross_entropy)(model, task, prompts)
        updates, state = adam.update(slope, state, model)
        return (optax.apply_updates(model, updates), state), loss

    return jax.lax.scan(step, (model, adam.init(model)), length=schedule.steps)[1]


def beside_torch(task: Task) -> Iterator[Row]:
    """A step and a count of a classifier against eager PyTorch of the same sizes (`experiments.pytorch`)."""
    schedule = Schedule(steps=48)
    model = Transformer(model_config(task), jax.random.key(0))
    prompts = jax.vmap(task.sample)(jax.random.split(jax.random.key(1), schedule.batch))
    labels = np.asarray(jax.vmap(task.label)(prompts))[:, 0]
    ours = lambda: descended(model, task, prompts, schedule)
    theirs = pytorch.trainer(model, np.asarray(prompts), labels, schedule)
    name = f"forward, backward, AdamW, {task.name}, batch {schedule.batch}"
    yield paired(name, "steps/s", (ours, schedule.steps), ("PyTorch, eager", theirs, schedule.steps), 3.0)
    some = prompts_of_ids(task, np.arange(2**16) * (space_size(task) // 2**16))
    count = lambda: exact.count(model, task, {"greedy": greedy(task)})["greedy"].failures
    plain = pytorch.forward(model, some, FORWARD_BATCH)
    of_torch = ("PyTorch, eager forward", plain, len(some))
    yield paired(f"exact count, {task.name}", "prompts/s", (count, space_size(task)), of_torch)


def measure() -> Iterator[Row]:
    """The rows asked for, each as soon as it is measured."""
    injury, parts = TASKS["injury"], ONLY.value or PARTS
    if "enumeration" in parts:
        yield from enumeration(injury(), layers=2)
        yield from enumeration(injury(length=8), layers=1)
    if "attacks" in parts:
        yield from attacks(injury())
    if "floor" in parts:
        yield from floor(injury())
        yield from floor(TASKS["cipher_vault"]())
    if "population" in parts:
        yield from together(injury())
    if "torch" in parts:
        try:
            pytorch.pytorch()
        except ValueError as error:
            print(error, file=sys.stderr)
        else:
            yield from beside_torch(injury())


def main(_) -> None:
    """Print each row as it comes."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    columns = "what", "value", "unit", "baseline (same unit)", "ratio", "target"
    table = Table(*columns, title="speed as ratios", title_justify="left")
    for row in measure():
        if JSON.value:
            print(json.dumps(row._asdict()), flush=True)
        else:
            print(".", end="", file=sys.stderr, flush=True)
            missed = bool(row.target) and row.ratio < row.target
            target = f"{row.target:.2f}{' missed' * missed}" if row.target else "-"
            table.add_row(row.name, f"{row.value:,.0f}", row.unit, row.baseline, f"{row.ratio:.2f}", target)
    if not JSON.value:
        print(file=sys.stderr)
        console.print(table)


if __name__ == "__main__":
    app.run(main)
