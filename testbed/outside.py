"""Names: an entry of a table, an installed entry point, or `module:name` in the user's own folder."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'injury'?`, if a known name is near; else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def lookup(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """What a name stands for.

    Args:
      kind: task, attack or experiment. Other packages add to a table by entry points of the group
        `testbed.tasks`, `testbed.attacks` or `testbed.experiments`.
      name: a key of the table, the name of an entry point, or `module:name`. Modules are also
        looked for in the working directory.

    Raises:
      ValueError: there is nothing of that name; says what there is.
    """
    if name in table:
        return table[name]
    points = metadata.entry_points(group=f"testbed.{kind}s")
    if name in points.names:
        return points[name].load()
    if ":" not in name:
        choices = [*table, *sorted(points.names)]
        raise ValueError(
            f"unknown {kind} {name!r}; choose from {', '.join(choices)}, or name one of your own as "
            f"module:{kind}{nearest(name, choices)}"
        )
    return imported(kind, name)


def imported(kind: str, name: str) -> Any:
    """The attribute that `module:attribute` names.

    Raises:
      ValueError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{kind} {name!r}: module {module_name!r} cannot be imported ({reason})") from error
    if not hasattr(module, attribute):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise ValueError(f"{kind} {name!r}: {module.__file__} has no {attribute!r}{nearest(attribute, public)}")
    return getattr(module, attribute)


def called(kind: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """As `lookup`, for what is to be called.

    Raises:
      ValueError: there is nothing of that name, or it cannot be called.
    """
    found = lookup(kind, name, table)
    if not callable(found):
        raise ValueError(f"{kind} {name!r} is a {type(found).__name__}, not a function that makes a {kind}")
    return found
