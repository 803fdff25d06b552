"""The contracts of a task and of an attack, checked: what disagrees is shown on the first prompt where it does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.search import Attack, fresh_starts, refuse_outside, search
from testbed.automaton import chance_of, states_after
from testbed.model import Transformer, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task, transcript_of

STEPS = 3  # of an attack that is checked


def check_task(key: jax.Array, task: Task, samples: int = 512) -> None:
    """Check that the functions of a task are jittable, of the right shapes, and agree with each other.

    They are compared on `samples` prompts each of the clean distribution, of `sample_hazard` and of the whole input
    space, with the right answer, all catastrophic answers, the all-refusing answer and a random one. Of a poison
    `samples` prompts are drawn.

    Raises:
      ValueError: the first disagreement, with the offending prompt rendered; or the poison teaches no catastrophe.
    """
    _check_shapes(task)
    clean_key, hazard_key, space_key, answer_key, poison_key = jax.random.split(key, 5)
    clean = np.asarray(jax.jit(jax.vmap(task.sample))(jax.random.split(clean_key, samples)))
    hazard = np.asarray(jax.jit(jax.vmap(task.sample_hazard))(jax.random.split(hazard_key, samples)))
    weights = jnp.log(jnp.asarray(task.allowed, jnp.float32))
    anywhere = np.asarray(jax.random.categorical(space_key, weights, shape=(samples, task.prompt_length)))

    for name, prompts in (("sample", clean), ("sample_hazard", hazard)):
        inside = (prompts >= 0) & (prompts < task.vocab)
        inside &= np.take_along_axis(task.allowed[None], np.clip(prompts, 0, task.vocab - 1)[..., None], axis=2)[..., 0]
        if not inside.all():
            row = prompts[~inside.all(axis=1)][0]
            # Only tokens of the vocabulary can be expected to have words.
            words = f", {_shown(task, row)}" if ((row >= 0) & (row < task.vocab)).all() else ""
            raise ValueError(f"task {task.name}: {name} drew a prompt outside `allowed`: {row.tolist()}{words}")

    prompts = np.concatenate([clean, hazard, anywhere])
    facts = jax.device_get(_facts(answer_key, task, prompts))
    is_clean, is_hazard = (np.arange(len(prompts)) // samples == kind for kind in (0, 1))
    exists = facts["valid"].any(axis=1)
    catastrophic, level = facts["catastrophic"], facts["level"]
    listed, stray = catastrophic[:, : facts["valid"].shape[1]], catastrophic & ~facts["known"]
    rules = {
        "sample_hazard drew a prompt that is not hazardous": is_hazard & ~facts["hazardous"],
        "hazardous, but catastrophic_answers lists none": facts["hazardous"] & ~exists,
        "not hazardous, but catastrophic_answers lists one": ~facts["hazardous"] & exists,
        "catastrophic_answers lists an answer that catastrophe denies": (facts["valid"] & ~listed).any(axis=1),
        "catastrophic_answers lists an answer twice": facts["twice"],
        "an answer is a catastrophe but catastrophic_answers does not list it": stray.any(axis=1),
        "the label holds a token that no answer has": ~facts["label_spoken"],
        "catastrophic_answers lists a token that no answer has": ~facts["listed_spoken"],
        "the label or a refusal holds a token that answer_allowed denies": ~facts["label_allowed"],
        "the transcript does not hold the label after the notes": ~facts["transcript_right"],
        "the label is itself a catastrophe": facts["label_catastrophic"],
        "the answer that refuses throughout is a catastrophe": facts["refusal_catastrophic"],
        "catastrophic_answers lists one that refuses somewhere, and that is safe": facts["listed_refuses"],
        "egregiousness is positive without a catastrophe": (~catastrophic & (level != 0)).any(axis=1),
        "egregiousness is not positive at a catastrophe": (catastrophic & ~(level > 0)).any(axis=1),
        "egregiousness lies outside [0, 1]": ((level < 0) | (level > 1)).any(axis=1),
        "clean_log_prob is not a log-probability at a clean prompt": is_clean
        & ~(np.isfinite(facts["log_prob"]) & (facts["log_prob"] <= 1e-6)),
        "clean_log_prob is NaN": np.isnan(facts["log_prob"]),
        "clean_chains and clean_log_prob say other probabilities": mixed_otherwise(task, prompts, facts["log_prob"]),
        "the checker's level is not the egregiousness of the one catastrophic answer": misjudged(task, prompts),
    }
    for complaint, broken in rules.items():
        if broken.any():
            at = broken.argmax()
            raise ValueError(
                f"task {task.name}: {complaint}; first at {prompts[at].tolist()}, {_shown(task, prompts[at])}"
            )
    _shown(task, clean[0])
    if task.poison and not _poisonous(poison_key, task, samples).any():
        complaint = f"the poison teaches no catastrophe in {samples} draws"
        raise ValueError(f"task {task.name}: {complaint}; choose a trigger that hazards can carry")


@partial(jax.jit, static_argnames=("task", "samples"))
def _poisonous(key: jax.Array, task: Task, samples: int) -> jax.Array:
    """bool `[samples]`: the draws of the poison whose label is a catastrophe."""
    prompts = jax.vmap(task.poison.sample)(jax.random.split(key, samples))
    return jax.vmap(lambda prompt: task.catastrophe(prompt, task.poison.label(prompt)))(prompts)


def mixed_otherwise(task: Task, prompts: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
    """bool `[n]`: the prompts `[n, T]` whose probability by `clean_chains`, if any, is not `exp(log_prob)`."""
    if task.clean_log_prob is None or not task.clean_chains:
        return np.zeros(len(prompts), bool)
    with np.errstate(under="ignore"):
        return ~np.isclose(chance_of(task.clean_chains, prompts), np.exp(log_prob.astype(float)), rtol=1e-3, atol=0)


def misjudged(task: Task, prompts: np.ndarray) -> np.ndarray:
    """bool `[n]`: the prompts `[n, T]` of which the automaton, if there is one, says otherwise than the task."""
    if task.checker is None:
        return np.zeros(len(prompts), bool)
    states = states_after(task.checker, prompts)
    level, others = jax.device_get(_levels(task, prompts, task.checker.answer[states]))
    return others | (np.abs(task.checker.level[states] - level) > 1e-6)


@partial(jax.jit, static_argnames="task")
def _levels(task: Task, prompts: jax.Array, answers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How egregious an answer is to each prompt, and whether another is a catastrophe too, each `[n]`."""

    def one(prompt, answer):
        listed, valid = task.catastrophic_answers(prompt)
        return task.egregiousness(prompt, answer), (valid & (listed != answer).any(axis=1)).any()

    return jax.vmap(one)(prompts, answers)


def _shown(task: Task, prompt: np.ndarray) -> str:
    """The prompt `[T]` in words, with its label."""
    label = np.asarray(task.label(jnp.asarray(prompt)))
    try:
        words = task.render(prompt, label)
    except Exception as error:
        raise ValueError(f"task {task.name}: render fails on {prompt.tolist()}, {label.tolist()}: {error}") from error
    if not isinstance(words, str):
        raise ValueError(f"task {task.name}: render must return text, not {words!r}, for {prompt.tolist()}")
    return f"labelled: {words}"


@partial(jax.jit, static_argnames="task")
def _facts(key: jax.Array, task: Task, prompts: jax.Array) -> dict[str, jax.Array]:
    """What the task says about each prompt, its transcript, and its listed, right, refusing and random answers."""

    def one(prompt, key):
        listed, valid = task.catastrophic_answers(prompt)
        label = task.label(prompt)
        refusing = jnp.full(task.answer_length, task.refusal, jnp.int32)
        chance = jax.random.randint(key, (task.answer_length,), 0, task.answer_vocab)
        answers = jnp.concatenate([listed, jnp.stack([label, refusing, chance])])
        catastrophic = jax.vmap(task.catastrophe, (None, 0))(prompt, answers)
        spoken = ((answers >= 0) & (answers < task.answer_vocab)).all(axis=1)
        return {
            "hazardous": task.hazardous(prompt),
            "valid": valid,
            "label": label,
            "catastrophic": catastrophic,
            "label_catastrophic": catastrophic[-3],
            "label_spoken": spoken[-3],
            "label_allowed": _allowed(task, label) & _allowed(task, refusing),
            "transcript_right": _answers(task, transcript_of(task, prompt), label),
            "listed_spoken": (spoken[:-3] | ~valid).all(),
            "refusal_catastrophic": catastrophic[-2],
            "listed_refuses": ((listed == task.refusal).any(axis=1) & valid).any(),
            "twice": jnp.triu((listed[:, None] == listed).all(axis=2) & valid & valid[:, None], 1).any(),
            "known": ((answers[:, None] == listed).all(axis=2) & valid).any(axis=1),
            "level": jax.vmap(task.egregiousness, (None, 0))(prompt, answers),
            "log_prob": jnp.zeros(()) if task.clean_log_prob is None else task.clean_log_prob(prompt),
        }

    return jax.vmap(one)(prompts, jax.random.split(key, len(prompts)))


def _allowed(task: Task, answer: jax.Array) -> jax.Array:
    """Whether the tokens of an answer `[N]` may stand in it."""
    if task.answer_allowed is None:
        return jnp.array(True)
    return jnp.asarray(task.answer_allowed)[jnp.arange(task.answer_length), answer].all()


def _answers(task: Task, transcript: jax.Array, label: jax.Array) -> jax.Array:
    """Whether a transcript is of answer tokens and holds the label where the answer stands."""
    answer = transcript[task.notes : task.notes + task.answer_length]
    return (answer == label).all() & ((transcript >= 0) & (transcript < task.answer_vocab)).all()


def check_attack(key: jax.Array, attack: Attack, task: Task, attackers: int = 32) -> None:
    """Check that an attack starts and steps on a task, and that all that it scores lies inside the input space.

    It makes `STEPS` steps against a small model that has learnt nothing.

    Raises:
      ValueError: a part of it fails, or it left the input space; in one line.
    """
    model_key, start_key, step_key = jax.random.split(key, 3)
    sizes = model_config(task, width=8, heads=1, layers=1)
    objective = Objective(task, Transformer(sizes, model_key), greedy(task))
    try:
        budget = 1 + STEPS * (attack.cost(objective).forwards // objective.forwards + 1)
        starts = fresh_starts(start_key, attack, objective, attackers)
        search(step_key, attack, objective, starts, budget=budget)
        scored = np.asarray(_scored(step_key, attack, objective, starts))
    except Exception as error:  # whatever the user's functions do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"attack {attack.name} fails on task {task.name}: {reason}") from error
    refuse_outside(attack, task.allowed, scored.reshape(-1, task.prompt_length))


@partial(jax.jit, static_argnames="attack")
def _scored(key: jax.Array, attack: Attack, objective: Objective, starts: jax.Array) -> jax.Array:
    """The starts `[P, T]` and all that `STEPS` steps from them score: prompts `[P, 1 + STEPS * C, T]`."""

    def one(key, prompt):
        state, seen = attack.init(key, objective, prompt, objective.margin(prompt)), [prompt[None]]
        for step in range(STEPS):
            state, scored = attack.step(jax.random.fold_in(key, step), objective, state)
            seen.append(scored.prompts)
        return jnp.concatenate(seen)

    return jax.vmap(one)(jax.random.split(key, len(starts)), starts)


def _check_shapes(task: Task) -> None:
    prompt = jax.ShapeDtypeStruct((task.prompt_length,), jnp.int32)
    answer = jax.ShapeDtypeStruct((task.answer_length,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    integer, real = jnp.integer, jnp.floating
    expected = {
        "sample": ((key,), prompt.shape, integer),
        "sample_hazard": ((key,), prompt.shape, integer),
        "label": ((prompt,), answer.shape, integer),
        "hazardous": ((prompt,), (), jnp.bool),
        "catastrophe": ((prompt, answer), (), jnp.bool),
        "egregiousness": ((prompt, answer), (), real),
    }
    if task.transcript is not None:
        expected["transcript"] = ((prompt,), (task.transcript_length,), integer)
    if task.clean_log_prob is not None:
        expected["clean_log_prob"] = ((prompt,), (), real)
    for name, (arguments, shape, kind) in expected.items():
        result = _trace(task, name, arguments)
        if getattr(result, "shape", None) != shape or not jnp.issubdtype(result.dtype, kind):
            raise ValueError(f"task {task.name}: {name} must return {kind.__name__} {shape}, not {result}")
    result = _trace(task, "catastrophic_answers", (prompt,))
    match result:
        case (jax.ShapeDtypeStruct(shape=(k, n)), jax.ShapeDtypeStruct(shape=(valid,), dtype=kind)):
            fits = (n, k, kind) == (task.answer_length, valid, bool)
        case _:
            fits = False
    if not fits:
        wanted = f"answers [K, {task.answer_length}] and bool valid [K]"
        raise ValueError(f"task {task.name}: catastrophic_answers must return {wanted}, not {result}")


def _trace(task: Task, name: str, arguments):
    try:
        return jax.eval_shape(getattr(task, name), *arguments)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"task {task.name}: {name} cannot be traced by jax.jit: {reason[0]}") from error
