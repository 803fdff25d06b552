"""A testbed for worst-case robustness of language models, on tasks small enough to count every failure.

Nothing here knows a particular task or a particular experiment: `experiments -> tasks -> testbed`.

Where to start:

    task = tasks.task_named("injury")                      what must never happen (`Task`)
    model = Transformer(model_config(task), key)           a small causal transformer; or a finite-state `Machine`
    model, history = train(key, model, task, Schedule())   supervised, or with rounds against an attack
    objective = Objective(task, model, greedy(task))       the margin of a prompt: at most zero is a failure
    trace = attack_model(key, ATTACKS["gcg"](), objective, attackers=64, budget=190)
    counted = count(model, task, {"greedy": greedy(task)}) every failure of the whole input space

`testbed/README.md` has the contracts and the map; grids of such steps are `experiments.ablate`.

Shapes are written with one legend everywhere:

    B batch                 T prompt length          V prompt vocabulary
    N answer length         A answer vocabulary      K catastrophic answers of a prompt
    L layers                D width                  H heads
    P attackers             C candidates a step      S seeds

Prompts are integers `[T]`, answers integers `[N]`, a soft prompt is a float array `[T, V]` (one-hot or relaxed).
Functions take one prompt; callers `vmap`. Whatever is random takes a `key` made by `jax.random.key`.
"""

import os

# XLA cuts sums into as many parts as it finds cores, and so rounds them differently on one, two and eight. A record is
# to be the same wherever a run is done, so the number is fixed, for every process that imports this before JAX starts.
os.environ.setdefault("NPROC", "2")

from testbed.attacks import ATTACKS, attack_model, attack_named
from testbed.evaluation.exact import Count, count
from testbed.evaluation.report import evaluate
from testbed.machine import Machine, machine_config
from testbed.model import Transformer, model_config
from testbed.objective import Objective
from testbed.policy import conservative, greedy, matched_policy
from testbed.task import Task, classifier, guarded_generator
from testbed.training.defence import Defence
from testbed.training.rounds import train
from testbed.training.schedule import Schedule

__all__ = [
    "ATTACKS",
    "Count",
    "Defence",
    "Machine",
    "Objective",
    "Schedule",
    "Task",
    "Transformer",
    "attack_model",
    "attack_named",
    "classifier",
    "conservative",
    "count",
    "evaluate",
    "greedy",
    "guarded_generator",
    "machine_config",
    "matched_policy",
    "model_config",
    "train",
]
