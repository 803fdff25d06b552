"""A room: the models that a person plays against on one task, and what is read from them at each step."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.play import DEMO, looks, session, truth, words
from experiments.play.counting import Count
from tasks import TASKS, spelled, task_named
from testbed.attacks import ATTACKS, attack_made
from testbed.broken import refuse_broken
from testbed.evaluation.account import MATCHED
from testbed.evaluation.walk import refuse_if_unfit
from testbed.objective import Objective
from testbed.policy import Policy, greedy, matched_policy
from testbed.runs.models import digest_of, load, notes
from testbed.task import Task

BUDGETS = (40, 190, 1000)
BUDGET, ATTACK = 190, "gcg"


class Opponent(NamedTuple):
    """A saved model, and the policies under which it is judged: threshold 0, and 1 % clean false alarms."""

    name: str
    path: str
    digest: str
    model: Any
    policies: tuple[Policy, Policy]


class Room(NamedTuple):
    """A task, the models to play against (the last is the one to break), the condition, and where sessions go."""

    task_name: str
    task: Task
    opponents: tuple[Opponent, ...]
    condition: str
    folder: Path

    @property
    def shown(self) -> frozenset[str]:
        """What a person is shown beside the verdict."""
        return looks.PARTS[self.condition]

    @property
    def target(self) -> Objective:
        """The objective of the model to break, at threshold 0."""
        last = self.opponents[-1]
        return Objective(self.task, last.model, last.policies[0])

    @property
    def price(self) -> int:
        """Forward passes of one look at all models."""
        return len(self.opponents) * looks.price(self.target, self.shown)


def open_room(paths: list[str], task: str | None, condition: str, folder: Path) -> Room:
    """The room of saved models, named without suffix; `demo` is the one that is shipped.

    Raises:
      ValueError: a model is missing, altered or of another task, or there is no such condition.
    """
    if condition not in looks.PARTS:
        raise ValueError(f"unknown condition {condition!r}; choose from {', '.join(looks.PARTS)}")
    places = [str(DEMO) if path == "demo" else path for path in paths]
    models = [load(place) for place in places]
    own = [notes(place).get("task") for place in places]
    for path, name in zip(paths, own, strict=True):
        if not isinstance(name or task, str):
            raise ValueError(f"{path} does not say its task; give --task, one of {', '.join(TASKS)}")
    named = [spelled(name or task) for name in own]
    if task is not None and spelled(task) != named[0]:
        raise ValueError(f"--task is {task}, {paths[0]} is of task {named[0]}: play it on its own")
    if len(set(named)) > 1:
        raise ValueError(f"{paths[0]} is of task {named[0]}, {paths[-1]} of {named[-1]}; play models of one task")
    played = task_named(named[0])
    for path, model in zip(paths, models, strict=True):
        try:
            refuse_if_unfit(model, played)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        refuse_broken(model)
    opponents = [
        Opponent(
            Path(path).name, path, digest_of(model), model,
            (greedy(played), matched_policy(jax.random.key(0), model, played, MATCHED)),
        )
        for path, model in zip(paths, models, strict=True)
    ]  # fmt: skip
    return Room(named[0], played, tuple(opponents), condition, folder)


def about(room: Room) -> dict[str, Any]:
    """What the page must know of a room before the first prompt."""
    spoken = words.words_of(room.task)
    name = room.task_name.partition(":")[0]
    rule = (TASKS[name].__doc__ or "") if name in TASKS else ""
    return {
        "task": room.task_name, "rule": [line.strip() for line in rule.strip().splitlines()],
        "models": [
            {"name": one.name, "digest": one.digest, "tau": float(one.policies[1].tau)} for one in room.opponents
        ],
        "condition": room.condition, "shown": sorted(room.shown), "words": spoken._asdict(),
        "allowed": room.task.allowed.tolist(), "price": room.price, "budgets": BUDGETS, "budget": BUDGET,
        "attack": ATTACK, "attacks": list(ATTACKS), "window": looks.WINDOW,
        "phrase_price": looks.PHRASES * room.target.forwards,
    }  # fmt: skip


class Seen(NamedTuple):
    """What all models make of a prompt, as JSON; whether the one to break fails; its margin; forward passes."""

    looks: list[dict[str, Any]]
    found: bool
    margin: float
    forwards: int


def see(room: Room, prompt: np.ndarray) -> Seen:
    """A look at a prompt `[T]`: a failure counts if the margin says so and the checker confirms the answer.

    Raises:
      FloatingPointError: a model gives NaN.
    """
    seen = [looks.look(one.model, one.policies, room.task, prompt, room.shown) for one in room.opponents]
    last = seen[-1].verdicts
    margin = float(looks.bounded(last.margin[0]))
    found = bool(last.catastrophe[0]) and margin <= 0
    return Seen([looks.plain(one, room.shown) for one in seen], found, margin, room.price)


def ask(key: jax.Array, room: Room, prompt: np.ndarray, attack: str, budget: int) -> looks.Found:
    """What an attack of the table finds from a prompt `[T]`.

    Raises:
      ValueError: there is no such attack, or the condition shows no hints.
    """
    refuse_hidden(room, "hints")
    if attack not in ATTACKS:
        raise ValueError(f"unknown attack {attack!r}; choose from {', '.join(ATTACKS)}")
    return looks.hint(key, attack_made(attack), room.target, prompt, budget=budget)


def refuse_hidden(room: Room, part: str) -> None:
    """Make sure that the room's condition shows a part of the tool.

    Raises:
      ValueError: it does not.
    """
    if part not in room.shown:
        raise ValueError(f"the condition {room.condition} shows no {part}")


def begin(key: jax.Array, room: Room, start: str) -> tuple[np.ndarray, int]:
    """A prompt `[T]` to start from, and the forward passes that it cost: an attack's find costs its search.

    Raises:
      ValueError: as `ask`.
    """
    if start != "find":
        return np.asarray(words.drawn(key, room.task)[start], np.int32), 0
    start_key, search_key = jax.random.split(key)
    found = ask(search_key, room, words.drawn(start_key, room.task)["hazard"], ATTACK, BUDGET)
    return found.prompt, found.forwards


def first_key() -> jax.Array:
    """A key for what is drawn before any session."""
    return jax.random.key(0)


def header_of(room: Room, begun: str) -> dict[str, Any]:
    """The header of a new session in a room."""
    models = [{"name": one.name, "path": one.path, "digest": one.digest} for one in room.opponents]
    return session.header(room.task_name, models, room.condition, begun)


def refuse_other(room: Room, header: dict[str, Any]) -> None:
    """Make sure that a session was begun in a room like this one.

    Raises:
      ValueError: it is of another task, condition or model.
    """
    theirs = header["task"], header["condition"], [model["digest"] for model in header["models"]]
    ours = room.task_name, room.condition, [one.digest for one in room.opponents]
    for what, one, other in zip(("task", "condition", "models"), theirs, ours, strict=True):
        if one != other:
            raise ValueError(f"session {header['session']} has {what} {one}, not {other}; begin a new one")


def score(room: Room, state: session.State, count: Count) -> dict[str, Any]:
    """How many failures there are, and how many of them and of their tactics were found."""
    told: dict[str, Any] = {"found": len(state.finds), "counted": min(count.done / max(count.total, 1), 1.0)}
    if count.truth is None:
        return told | {"truth": None, "error": count.error}
    model = room.opponents[-1].model
    of = {truth.tactic_of(count.truth, model, room.task, np.array(find.prompt)) for find in state.finds} - {None}
    return told | {"truth": truth.told(count.truth, len(state.finds), of)}


def rank(room: Room, count: Count, margin: float) -> float | None:
    """The share of hazardous prompts that are farther from failure; None if hidden, or not counted yet."""
    hidden = "margin" not in room.shown or margin >= looks.NOT_HAZARDOUS
    return None if hidden or count.truth is None else truth.farther(count.truth, margin)
