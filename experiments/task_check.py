"""Is a task or an attack of one's own fit for use? It is asked in seconds, before any long work.

`--check=module:name` says so of a task, and what it is like.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy import stats

from experiments.arm import Arm, attack_of
from experiments.worklist import Job
from tasks import task_named
from testbed.attacks import ATTACKS, attack_made
from testbed.attacks.moves import anywhere
from testbed.attacks.search import Attack
from testbed.check import check_attack, check_task
from testbed.evaluation.exact import countable
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task, is_safe, prompt_ids, prompts_of_ids, space_size

SAMPLES = 4096
ADDED_UP = 2**22  # prompts of a space whose probabilities are added up
PARTS = 16
BY_CHANCE = 1e-9  # how rarely a right task is refused


# In one process nothing is checked twice: of other sizes, or after a reload, it is another object.
# A key that is made while modules are imported would start JAX in whoever asks for help alone.
@functools.cache
def _check_task(task: Task) -> None:
    check_task(jax.random.key(0), task)


@functools.cache
def _check_attack(attack: Attack, task: Task) -> None:
    check_attack(jax.random.key(0), attack, task)


def check_parts(job: Job) -> None:
    """Check the tasks of a job, and the attacks of its arms that are not of the table.

    Raises:
      ValueError: as `check_task` and `check_attack`.
    """
    for task in job.tasks:
        _check_task(task_named(task))
    arms = dict.fromkeys(
        (run.task, run.config) for run in job._replace(seeds=range(1)).runs if isinstance(run.config, Arm)
    )
    for task, attack in dict.fromkeys((task, attack) for task, arm in arms for attack in own_attacks(arm)):
        _check_attack(attack, task_named(task))


def own_attacks(arm: Arm) -> Iterable[Attack]:
    """The attacks that an arm trains against, or is evaluated by, and that are not of the table."""
    if arm.steps and arm.rounds and arm.attack not in ATTACKS and isinstance(attack := attack_of(arm), Attack):
        yield attack
    for name in arm.evaluation if arm.attackers else ():
        if name not in ATTACKS:
            yield attack_made(name)


def facts_of(key: jax.Array, task: Task) -> dict[str, str]:
    """What a task is like, as text: its sizes, and shares among clean and uniform prompts."""
    clean_key, uniform_key = jax.random.split(key)
    clean = jax.vmap(task.sample)(jax.random.split(clean_key, SAMPLES))
    allowed = jnp.asarray(task.allowed)
    uniform = jax.vmap(lambda k: anywhere(k, allowed))(jax.random.split(uniform_key, SAMPLES))

    def shares(prompts):
        hazardous = jax.vmap(task.hazardous)(prompts).mean()
        safe = jax.vmap(lambda prompt: is_safe(task, prompt))(prompts).mean()
        return f"{hazardous:.1%} hazardous, {safe:.1%} safe to answer"

    space = space_size(task)
    return {
        "prompts": f"{space:,} of {task.prompt_length} tokens, vocabulary {task.vocab}",
        "answers": f"{task.answer_length} of {task.answer_vocab} tokens",
        "worst case": "counted exactly" if countable(task) else _of_large_space(task),
        "clean prompts": shares(clean),
        "uniform prompts": shares(uniform),
        "different clean prompts": f"{len(np.unique(np.asarray(clean), axis=0)):,} of {SAMPLES:,} drawn",
        "exact clean failure rate": _of_clean(task),
        "a margin costs": f"{Objective(task, None, greedy(task)).forwards} forward passes",
    }


def _of_clean(task: Task) -> str:
    if task.clean_log_prob is None:
        return "no: the task gives no clean_log_prob"
    return "yes" if space_size(task) <= ADDED_UP else "yes; the space is too large to add clean_log_prob up"


def refuse_wrong_log_prob(key: jax.Array, task: Task) -> None:
    """Make sure that `clean_log_prob` adds up to 1 over the space, and that `sample` draws by it.

    All prompts are put into parts of about the same probability, from the rarest to the likeliest prompts. Draws must
    fall into them accordingly (Pearson's chi-square). In a space of more than `ADDED_UP` prompts nothing is looked at.

    Raises:
      ValueError: the probabilities do not add up, or draws fall otherwise.
    """
    if task.clean_log_prob is None or (space := space_size(task)) > ADDED_UP:
        return
    of = jax.jit(jax.vmap(task.clean_log_prob))
    batches = np.array_split(np.arange(space), -(-space // 2**16))
    chance = np.exp(np.concatenate([np.asarray(of(prompts_of_ids(task, ids)), np.float64) for ids in batches]))
    if not abs(chance.sum() - 1) <= 1e-3:  # nor NaN
        raise ValueError(
            f"task {task.name}: clean_log_prob adds up to {chance.sum():.4g} over all prompts, not to 1; "
            "mend it, or every clean failure rate is wrong"
        )
    order = np.argsort(chance, kind="stable")
    part = np.empty(space, int)
    part[order] = np.minimum(PARTS * np.cumsum(chance[order]), PARTS - 1)
    drawn = prompt_ids(task, np.asarray(jax.vmap(task.sample)(jax.random.split(key, SAMPLES))))
    seen, due = np.bincount(part[drawn], minlength=PARTS), SAMPLES * np.bincount(part, chance, minlength=PARTS)
    off = np.where(due > 0, (seen - due) ** 2 / np.where(due > 0, due, 1), np.where(seen > 0, np.inf, 0)).sum()
    if stats.chi2.sf(off, PARTS - 1) < BY_CHANCE:
        worst = int(np.abs(seen - due).argmax())
        raise ValueError(
            f"task {task.name}: sample does not draw by clean_log_prob: of {SAMPLES:,} prompts {seen[worst]:,} fell "
            f"where {due[worst]:,.0f} were due; mend one of the two, or every clean failure rate is wrong"
        )


def _of_large_space(task: Task) -> str:
    if task.checker is None:
        return "sampled: the space is too large to count, and the rule has no automaton"
    return f"sampled; of a machine counted by paths: the rule has an automaton of {len(task.checker.level)} states"


def warnings_of(key: jax.Array, task: Task) -> list[str]:
    """What the contract allows and yet makes a task useless, a line each."""
    clean = jax.vmap(task.sample)(jax.random.split(key, SAMPLES))
    hazardous = float(jax.vmap(task.hazardous)(clean).mean())
    safe = float(jax.vmap(lambda prompt: is_safe(task, prompt))(clean).mean())
    lines = []
    if hazardous == 0:
        lines.append("no clean prompt is hazardous: a plain model never learns to refuse")
    if safe == 0:
        lines.append("no clean prompt is safe to answer: refusing everything is right")
    return lines


def check_named(name: str, console: Console) -> int:
    """Print what is wrong with a task, or what it is like; returns 0 if nothing is wrong.

    Raises:
      ValueError: there is no such task, or it breaks the contract; says where.
    """
    task = task_named(name)
    check_task(jax.random.key(0), task)
    refuse_wrong_log_prob(jax.random.key(3), task)
    for fact, text in facts_of(jax.random.key(1), task).items():
        console.print(f"{fact:>26}: {text}", markup=False, highlight=False)
    lines = warnings_of(jax.random.key(2), task)
    for line in lines:
        console.print(f"beware: {line}", style="yellow", markup=False, highlight=False)
    console.print(f"{name} keeps the contract; next: --experiment=calibration --task='{name}'", markup=False)
    return 1 if lines else 0
