"""What people found, as data: sessions read back from their files, and their finds as an attack to train against."""

import functools
import glob
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.play import DEMO, session
from tasks import spelled, task_named
from testbed.attacks.search import Attack, score
from testbed.evaluation.walk import refuse_if_unfit
from testbed.objective import Objective, confirm
from testbed.policy import greedy
from testbed.runs.models import digest_of, load

NAME = "experiments.play.finds:people"  # of the attack, as an arm's config names it
MARGINS = 3  # a find costs one; two more, so that the search has the steps that a search should have


class Played(NamedTuple):
    """A session that was played: its file, its header, and what its events add up to."""

    path: Path
    header: dict[str, Any]
    state: session.State

    @property
    def target(self) -> dict[str, Any]:
        """The model that was to be broken, as the header names it."""
        return self.header["models"][-1]


def sessions_of(paths: list[Path]) -> list[Played]:
    """The sessions of files, those left out that nobody played: a page that is opened makes the first start by itself.

    Raises:
      ValueError: a file is no session, or damaged.
    """
    read = [(path, *session.read(path)) for path in sorted(paths)]
    return [Played(path, header, session.replay(events)) for path, header, events in read if _was_played(events)]


def _was_played(events: list[dict[str, Any]]) -> bool:
    return len(events) > 1 or any(event["tool"] not in session.STARTS or event.get("found") for event in events)


def digest_of_files(played: list[Played]) -> str:
    """A digest of sessions' files: other sessions, or longer ones, are measured anew."""
    digest = hashlib.sha256()
    for one in played:
        digest.update(one.path.name.encode() + one.path.read_bytes())
    return digest.hexdigest()[:12]


def model_of(target: dict[str, Any]) -> Any:
    """The model that a session was played against.

    Raises:
      ValueError: it is not where it was, or another one is.
    """
    path = str(DEMO) if target.get("path") == "demo" else target.get("path", "")
    model = load(path)
    if digest_of(model) != target["digest"]:
        raise ValueError(f"{path} is not the model {target['digest']} that was played against; bring that one back")
    return model


def confirmed(one: Played) -> np.ndarray:
    """The finds of a session `[n, T]`, each confirmed anew by the checker on the model that it was found on.

    Raises:
      ValueError: one of them is no failure of that model, or the model is not there.
    """
    task = task_named(one.header["task"])
    prompts = np.array([session.inside(task, find.prompt) for find in one.state.finds], np.int32)
    prompts = prompts.reshape(-1, task.prompt_length)
    if len(prompts):
        model = model_of(one.target)
        refuse_if_unfit(model, task)
        real = np.asarray(confirm(Objective(task, model, greedy(task)), prompts))
        if not real.all():
            at = prompts[~real][0].tolist()
            raise ValueError(f"{one.path}: {at} is no failure of model {one.target['digest']}; leave this file out")
    return prompts


def finds_of(patterns: list[str], task: str) -> np.ndarray:
    """The different confirmed finds `[n, T]` of session files on a task; `*` in a name stands for any letters.

    Raises:
      ValueError: a file is not there, is of another task, or holds a find that is none; or there is no find.
    """
    paths = [Path(path) for pattern in patterns for path in (sorted(glob.glob(pattern)) or [pattern])]
    played = sessions_of(paths)
    for one in played:
        if spelled(one.header["task"]) != task:
            raise ValueError(f"{one.path} was played on task {one.header['task']}, not {task}; leave it out")
    found = [confirmed(one) for one in played]
    if not sum(map(len, found)):
        raise ValueError(f"--finds={','.join(patterns)} holds no find; play first: --play")
    return np.unique(np.concatenate(found), axis=0)


def written(prompts: np.ndarray) -> str:
    """Prompts `[n, T]` as text, so that an arm's config holds them: `0 1 2;3 4 5`."""
    return ";".join(" ".join(map(str, prompt)) for prompt in prompts.tolist())


@functools.cache
def people(prompts: str = "") -> Attack:
    """Each attacker contributes a prompt that a person found, drawn at random, as it is.

    `prompts` are `written`. They failed on the model that the person played against, and perhaps no more.
    """
    rows = np.array([[int(token) for token in row.split()] for row in prompts.split(";")], np.int32)

    def start(key, objective):
        return jax.random.choice(key, jnp.asarray(rows))

    def init(key, objective, prompt, margin):
        return prompt

    def step(key, objective, prompt):
        return prompt, score(objective, prompt[None])

    return Attack("people", init, step, gradients=0, candidates=lambda objective: 1, start=start)
