"""A session: who was where when, as a file of events that is only ever appended to, and what follows from them.

The first line of `ID.jsonl` is the header: task, models with their digests, condition. Each other line is an event.
State is what the events add up to, so a session goes on after a kill from its file alone.
"""

import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.play.looks import PARTS
from testbed.runs.results import read_regular
from testbed.task import Task

VERSION = 1
SESSIONS = "play"  # the folder of sessions, beside the folders of records
ID = re.compile(r"[0-9a-f]{16}")
LARGEST_FILE = 2**26  # bytes
MOST_PAST = 500  # prompts that undo remembers

STARTS = ("hazard", "clean", "blank", "find")
EDITS = ("token", "insert", "delete", "swap", "phrase", "undo", "redo", "hint")
TOOLS = (*EDITS, *STARTS)
"""How a prompt came to be. `phrases` and `ask` are events too: what was looked at and not yet taken."""


class Find(NamedTuple):
    """A failing prompt that a person reached, confirmed by the checker, and what had been spent by then."""

    prompt: tuple[int, ...]
    tool: str
    forwards: int
    seconds: float


class State(NamedTuple):
    """What the events of a session add up to.

    Attributes:
      prompt: where the person is; None before the first event.
      past, future: what undo and redo lead to, the nearest last.
      forwards: forward passes spent, as an attack would be charged.
      seconds: time spent, pauses left out.
      paused: whether the clock stands.
      number: events so far; each draws from its own key.
      finds: the different failures, in the order in which they were found.
    """

    prompt: tuple[int, ...] | None = None
    past: tuple[tuple[int, ...], ...] = ()
    future: tuple[tuple[int, ...], ...] = ()
    forwards: int = 0
    seconds: float = 0.0
    paused: bool = False
    number: int = 0
    finds: tuple[Find, ...] = ()


def header(task: str, models: list[dict[str, Any]], condition: str, begun: str) -> dict[str, Any]:
    """The first line of a new session. The last of the models is the one to break."""
    return {
        "play": VERSION, "session": secrets.token_hex(8), "task": task, "models": models,
        "condition": condition, "begun": begun,
    }  # fmt: skip


def event(tool: str, prompt: Iterable[int], *, forwards: int, seconds: float, **more: Any) -> dict[str, Any]:
    """One event: what it cost, and the session's clock at its end. `more`: `found`, margins, whose hint it was."""
    return {
        "tool": tool, "prompt": [int(token) for token in prompt], "forwards": int(forwards),
        "seconds": round(seconds, 3),
    } | more  # fmt: skip


def advance(state: State, happened: dict[str, Any]) -> State:
    """The state after an event."""
    tool, prompt = happened["tool"], tuple(happened["prompt"])
    spent = state._replace(
        forwards=state.forwards + happened["forwards"],
        seconds=max(state.seconds, happened["seconds"]),
        number=state.number + 1,
    )
    if tool in ("pause", "resume"):
        return spent._replace(paused=tool == "pause")
    if tool in TOOLS:
        spent = _moved(spent, tool, prompt)
    if happened.get("found") and all(find.prompt != prompt for find in state.finds):
        spent = spent._replace(finds=(*state.finds, Find(prompt, tool, spent.forwards, spent.seconds)))
    return spent


def _moved(state: State, tool: str, prompt: tuple[int, ...]) -> State:
    """The state at another prompt: undo and redo go along what was, anything else begins a new future."""
    here, past, future = state.prompt, state.past, state.future
    if here == prompt or here is None:
        return state._replace(prompt=prompt)
    if tool == "undo" and past and past[-1] == prompt:
        return state._replace(prompt=prompt, past=past[:-1], future=(*future, here))
    if tool == "redo" and future and future[-1] == prompt:
        return state._replace(prompt=prompt, past=(*past, here), future=future[:-1])
    return state._replace(prompt=prompt, past=(*past, here)[-MOST_PAST:], future=())


def append(path: Path, line: dict[str, Any]) -> None:
    """Append a line to a session's file, whole or not at all as far as a reader can tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        torn = file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n"
        file.write(b"\n" * bool(torn) + json.dumps(line, separators=(",", ":")).encode() + b"\n")
        file.flush()


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the events of a session's file. A line that a kill cut short is left out.

    Raises:
      ValueError: it is no session, names no such condition or prompt, or a line in it is damaged.
    """
    try:
        lines = read_regular(path, LARGEST_FILE).decode().split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no session: {error}") from error
    parsed = [_parsed(line) for line in lines]
    whole = [line for line in parsed if line is not None]
    first = whole[0] if whole else {}
    if not _is_header(first):
        raise ValueError(f"{path} is no session of this version: its first line is no header; play anew")
    for happened in whole[1:]:
        if not _is_event(happened):
            raise ValueError(f"{path} is damaged: {str(happened)[:80]} is no event; restore it or leave it out")
    return first, whole[1:]


def _parsed(line: str) -> dict[str, Any] | None:
    """A line as JSON, None if it is empty or was cut short; the header's and events' are objects."""
    try:
        found = json.loads(line) if line else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_header(first: dict[str, Any]) -> bool:
    models = first.get("models")
    return (
        first.get("play") == VERSION
        and isinstance(first.get("task"), str)
        and first.get("condition") in PARTS
        and ID.fullmatch(str(first.get("session"))) is not None
        and isinstance(models, list)
        and bool(models)
        and all(isinstance(model, dict) and {"name", "digest"} <= set(model) for model in models)
    )


def _is_event(happened: dict[str, Any]) -> bool:
    numbers = happened.get("forwards"), happened.get("seconds")
    tokens = happened.get("prompt")
    return (
        isinstance(happened.get("tool"), str)
        and all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 2**53 for n in numbers)
        and isinstance(tokens, list)
        and all(isinstance(token, int) and not isinstance(token, bool) for token in tokens)
    )


def replay(events: Iterable[dict[str, Any]]) -> State:
    """The state that events lead to, from the beginning."""
    state = State()
    for happened in events:
        state = advance(state, happened)
    return state


def inside(task: Task, prompt: Iterable[int]) -> np.ndarray:
    """A prompt as an array `[T]`.

    Raises:
      ValueError: it lies outside the input space of the task; says where.
    """
    tokens = list(prompt)
    if len(tokens) != task.prompt_length:
        raise ValueError(f"a prompt of task {task.name} has {task.prompt_length} tokens, not {len(tokens)}")
    for position, token in enumerate(tokens):
        if not 0 <= token < task.vocab or not task.allowed[position, token]:
            raise ValueError(f"token {token} may not stand at position {position} of task {task.name}")
    return np.array(tokens, np.int32)
