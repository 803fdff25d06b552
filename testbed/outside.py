"""Names: an entry of a table, an installed entry point, or `module:name` in the user's own folder."""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ("testbed", "tasks", "experiments")
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages that are nobody's own


def extra_package(package: str, extra: str) -> ModuleType:
    """A package that only an extra of this project brings.

    Raises:
      ValueError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{package} is not installed; python -m pip install -e '.[{extra}]' brings it") from error


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
    try:
        module = _module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{kind} {name!r}: module {module_name!r} cannot be imported ({reason})") from error
    if not hasattr(module, attribute):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise ValueError(f"{kind} {name!r}: {module.__file__} has no {attribute!r}{nearest(attribute, public)}")
    return getattr(module, attribute)


def _module(name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def sources(data: Any) -> dict[str, str]:
    """The modules from outside that plain data names, each with a digest of its file.

    With them go the modules of the same folder or package that they import. A record holds all of them and its id is
    made from them, so that an edited task is another task. Other packages don't count.

    Args:
      data: a config as JSON would hold it. Any text in it may be `module:name(...)` or the name
        of an installed entry point.
    """
    texts = set(_texts(data))
    modules = {_module_of(text) for text in texts} - {None}
    found: dict[str, str] = {}
    for module in modules:
        found |= _digests(module)
    return dict(sorted(found.items()))


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list | tuple):
        for entry in data.values() if isinstance(data, dict) else data:
            yield from _texts(entry)


def _module_of(text: str) -> str | None:
    named = re.fullmatch(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*([(:].*)?", text)  # `injury:length=8` names none
    return named[1] if named else _installed().get(re.split("[(:]", text)[0])


@functools.cache
def _installed() -> dict[str, str]:
    """The installed entry points: name -> the module that it lies in."""
    groups = (metadata.entry_points(group=f"testbed.{kind}s") for kind in ("task", "attack", "experiment"))
    return {point.name: point.module for group in groups for point in group}


@functools.cache
def _digests(module: str) -> dict[str, str]:
    """A digest of a module's file, and of each that it imports from its own folder; cached, as code is in a process.

    There is none of what is no module: then the text is no name, and whoever needs it will say so.
    """
    try:
        file = Path(_module(module).__file__)
    except Exception:
        return {}
    # The folder of the outermost package, which need not have a file itself; of a lone module its own.
    top = file.parents[max(0, module.count(".") - (file.name != "__init__.py"))]
    found: dict[str, str] = {}
    names = [module]
    while names:
        name = names.pop()
        path = _file_of(name)
        if name in found or path is None or (name != module and not _is_beside(name, path, top)):
            continue
        content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
        if path.suffix == ".py":
            names += _imports(name, ast.parse(content), package=path.name == "__init__.py")
    return found


def _is_beside(module: str, path: Path, top: Path) -> bool:
    """Whether a module is a user's own, as that which imports it: of the same folder `top`, not installed there."""
    if module.partition(".")[0] in OURS or top not in path.parents:
        return False
    return not INSTALLED & {top.name, *path.relative_to(top).parts}


def _file_of(module: str) -> Path | None:
    """A module's file; None where there is none, as of an attribute or of what is built in."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _imports(module: str, tree: ast.Module, package: bool) -> Iterator[str]:
    """The modules that a module's code may import, wherever it does: names after `from` may be attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def called(kind: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """As `lookup`, for what is to be called.

    Raises:
      ValueError: there is nothing of that name, or it cannot be called.
    """
    found = lookup(kind, name, table)
    if not callable(found):
        raise ValueError(f"{kind} {name!r} is a {type(found).__name__}, not a function that makes a {kind}")
    return found
