"""Names: an entry of a table, an installed entry point, or `module:name` in the user's own folder."""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
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
# Each module of a user's own: its spec, of which a reload makes another, and the file's content when that was met.
_IMPORTED: dict[str, tuple[Any, bytes]] = {}
# Of each module that was asked for: the specs of it and of what it imports, and their digests.
_DIGESTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}


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
      ValueError: the module cannot be imported, has no such attribute, or no file: then no record can name its code.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = _module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{kind} {name!r}: module {module_name!r} cannot be imported ({reason})") from error
    if module_name == "__main__" or not getattr(module, "__file__", None):
        why = "what a notebook or a script defines is code that no record can name"
        raise ValueError(f"{kind} {name!r}: {why}; save it in a file of its own, my_module.py: my_module:{attribute}")
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


def _spec(module: str) -> Any:
    return getattr(sys.modules.get(module), "__spec__", None)


def _content(module: str, path: Path) -> bytes:
    """A module's file as it was when it was first met, or met after a reload: what is edited later is not what runs."""
    spec = _spec(module)
    if module not in _IMPORTED or _IMPORTED[module][0] is not spec:
        _IMPORTED[module] = spec, path.read_bytes()
    return _IMPORTED[module][1]


def _digests(module: str) -> dict[str, str]:
    """A digest of a module's file, and of each that it imports from its own folder, as they were when first met.

    There is none of what is no module: then the text is no name, and whoever needs it will say so.
    """
    if module in _DIGESTS and all(_spec(name) is spec for name, spec in _DIGESTS[module][0].items()):
        return _DIGESTS[module][1]
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
        content = _content(name, path)
        found[name] = hashlib.sha256(content).hexdigest()[:16]
        if path.suffix == ".py":
            names += _imports(name, ast.parse(content), package=path.name == "__init__.py")
    _DIGESTS[module] = {name: _spec(name) for name in found}, found
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


@functools.lru_cache(maxsize=1024)
def _made(
    factory: Callable[..., Any], arguments: tuple[tuple[str, Any], ...], code: tuple[tuple[str, str], ...]
) -> Any:
    """`code` are the `sources` of its name: after a reload of a module that it imports it makes another object."""
    return factory(**dict(arguments))


def arguments_of(factory: Callable[..., Any]) -> str:
    """What a factory takes, as text."""
    parameters = inspect.signature(factory).parameters.values()
    return "its arguments: " + ", ".join(str(parameter).replace("'", "") for parameter in parameters)


def made(kind: str, name: str, factory: Callable[..., Any], arguments: Mapping[str, Any], *types: type) -> Any:
    """What a factory makes of its arguments: one object for each set of them, whether or not it sees to that itself.

    Of equal attacks, as of equal tasks, programs are compiled once, and arms that have them are one.

    Args:
      types: what it may be.

    Raises:
      ValueError: the factory fails, or makes something else; in one line that says what it takes.
    """
    known = inspect.signature(factory).parameters
    try:
        given = {a: v for a, v in sorted(arguments.items()) if a not in known or v != known[a].default}
        found = _made(factory, tuple(given.items()), tuple(sources(name).items()))
    except Exception as error:  # whatever the user's function does
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        of = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise ValueError(f"{kind} {name!r}: {of}{first}; {arguments_of(factory)}") from error
    if not isinstance(found, types):
        wanted = " or ".join(f"{one.__module__}.{one.__name__}" for one in types)
        raise ValueError(f"{kind} {name!r}: it gives an object of type {type(found).__name__}, not a {wanted}")
    return found


def called(kind: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """As `lookup`, for what is to be called.

    Raises:
      ValueError: there is nothing of that name, or it cannot be called.
    """
    found = lookup(kind, name, table)
    if not callable(found):
        raise ValueError(f"{kind} {name!r} is a {type(found).__name__}, not a function that makes a {kind}")
    return found
