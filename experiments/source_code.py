"""A function's source code as plain data, which changes only with what the function does.

Comments, layout, docstrings and annotations are left out. So is what only some versions of Python
write into a syntax tree: 3.11 to 3.13 give the same data.
"""

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Fields of a syntax tree that say nothing of what code does, or that some versions lack.
IGNORED = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list"}
DOCUMENTED = (ast.FunctionDef, ast.ClassDef)
ABSENT = object()


def code_of(function: Callable) -> dict[str, Any]:
    """A function, and all of its own module that it names, at any depth: name -> plain data.

    What it names may be functions and classes, told by their code, or values, told as they are.
    Of other modules only values are told, so that a shared verb may be rewritten.

    Raises:
      ValueError: it is no function of a module's top level, or names a value that is no plain data.
    """
    function = inspect.unwrap(function)
    module = sys.modules.get(getattr(function, "__module__", None))
    definitions = _definitions(module) if module else {}
    if getattr(function, "__qualname__", None) not in definitions:
        raise ValueError(f"{function!r} is no function at the top level of a module; write it as one")
    found, names = {}, [function.__qualname__]
    while names:
        name = names.pop()
        if name in found:
            continue
        if name in definitions:
            found[name] = shape(definitions[name])
            names += _names(definitions[name])
        elif not _is_code(value := getattr(module, name, ABSENT)):
            try:
                found[name] = plain(value)
            except TypeError as error:
                raise ValueError(f"{module.__name__}.{name}: {error}") from error
    return dict(sorted(found.items()))


@functools.cache  # a process keeps the code that it began with
def _definitions(module: ModuleType) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of a module's top level, by name."""
    return {node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, DOCUMENTED)}


def _names(definition: ast.AST) -> set[str]:
    """What a definition reads of its module: the names that it neither takes nor sets."""
    nodes = list(ast.walk(definition))
    named = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in named if isinstance(node.ctx, ast.Store)}
    return {node.id for node in named} - own


def _is_code(value: Any) -> bool:
    """Whether a value is told by its name alone: code of elsewhere, or a local name that no module has."""
    return value is ABSENT or callable(value) or isinstance(value, ModuleType)


def shape(node: Any) -> Any:
    """A syntax tree as nested lists, without fields that are empty."""
    if isinstance(node, list):
        return [shape(one) for one in node]
    if not isinstance(node, ast.AST):
        return node if isinstance(node, str | int | float | None) else repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in IGNORED}
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # 3.12 writes empty texts into nested formats
        fields["values"] = [one for one in node.values if getattr(one, "value", None) != ""]
    return [type(node).__name__, {name: shape(value) for name, value in fields.items() if value not in (None, [])}]


def plain(value: Any) -> Any:
    """A value as JSON's own types. Fields of records that hold their defaults are left out.

    So a field that is added to a record later changes nothing.

    Raises:
      TypeError: it is no plain data.
    """
    if isinstance(value, str | int | float | None):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name), field.default) for field in dataclasses.fields(value))
        return {name: plain(held) for name, held, default in pairs if held is not default and held != default}
    if hasattr(value, "_field_defaults"):
        return {
            name: plain(held)
            for name, held in value._asdict().items()
            if name not in value._field_defaults or held != value._field_defaults[name]
        }
    if isinstance(value, dict):
        return [[plain(key), plain(held)] for key, held in value.items()]
    if isinstance(value, list | tuple | range):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    raise TypeError(f"{value!r} is no plain data; write it as numbers, texts, or records and lists of them")
