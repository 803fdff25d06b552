"""What may import what, and other habits that a reader of one file relies on everywhere."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("experiments", "tasks", "testbed")  # each may import itself and those after it
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
LIBRARY = [path for path in FILES if path.relative_to(ROOT).parts[0] != "experiments"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imported(source: str) -> set[str]:
    """Every module that a source imports anywhere, also inside functions, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(source: str) -> set[str]:
    return {name.split(".")[0] for name in imported(source)}


def dotted(node: ast.AST) -> str:
    """`jax.random.split` of the expression that says so; empty for anything that is no chain of names."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def names(source: str) -> set[str]:
    """Every dotted name that a source mentions in code."""
    return {dotted(node) for node in ast.walk(ast.parse(source))} - {""}


def keyless(source: str) -> list[str]:
    """Calls of `jax.random` that draw or split, in a place where no enclosing function was given a key."""
    found = []

    def visit(node, given):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            arguments = node.args
            names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
            given = given or any(name in ("key", "keys") or name.endswith("_key") for name in names)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name.startswith("jax.random.") and name != "jax.random.key" and not given:
                found.append(f"line {node.lineno}: {name}")
        for child in ast.iter_child_nodes(node):
            visit(child, given)

    visit(ast.parse(source), False)
    return found


MOST_POSITIONAL = 4


def crooked(source: str) -> list[str]:
    """Public functions and methods in which `key` is not first, or more than four arguments have no name in a call."""
    found = []

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child)
            if not isinstance(child, ast.FunctionDef) or child.name.startswith("_"):
                continue
            arguments = child.args
            positional = [a.arg for a in arguments.posonlyargs + arguments.args if a.arg not in ("self", "cls")]
            if "key" in [*positional[1:], *(a.arg for a in arguments.kwonlyargs)]:
                found.append(f"line {child.lineno}: key is not the first argument of {child.name}")
            if len(positional) > MOST_POSITIONAL:
                extra = ", ".join(positional[MOST_POSITIONAL:])
                found.append(f"line {child.lineno}: {extra} of {child.name} should be keyword-only")

    visit(ast.parse(source))
    return found


GLOBAL_RANDOM = ("numpy.random.", "np.random.")
OWN_GENERATORS = ("default_rng", "Generator", "SeedSequence")


def global_randomness(source: str) -> set[str]:
    """Uses of random state that belongs to the process: numpy's global one, and Python's `random`."""
    drawn = {
        name
        for name in names(source) | imported(source)
        if name.startswith(GLOBAL_RANDOM) and name.split(".")[2] not in OWN_GENERATORS
    }
    return drawn | {name for name in imported(source) if name.split(".")[0] == "random"}


def test_the_readers_see_what_they_must():
    source = """
import os, tasks.injury
from testbed import plots
import numpy as np
def f(x):
    import random
    np.random.seed(0)
    np.random.default_rng(0)
    return jax.random.normal(x)
def g(key):
    return (lambda x: jax.random.split(key))(1)
def h(start_key):
    return jax.random.fold_in(start_key, 0), jax.random.key(0)
class C:
    y = jax.random.uniform(z)
"""
    assert imported(source) == {"os", "tasks.injury", "testbed.plots", "numpy", "random"}
    assert tops(source) == {"os", "tasks", "testbed", "numpy", "random"}
    assert global_randomness(source) == {"np.random.seed", "random"}
    assert keyless(source) == ["line 9: jax.random.normal", "line 15: jax.random.uniform"]
    assert "nnx.jit" in names("@nnx.jit\ndef f(): pass")


def test_crooked_signatures_are_seen():
    source = """
def fine(key, a, b, c, *, d, e=1): pass
def none(a, b): pass
def late(a, key): pass
def named(a, *, key): pass
def many(key, a, b, c, d, e): pass
def _own(a, key, b, c, d, e): pass
class C:
    def __init__(self, a, key): pass
    def method(self, key, a, b, c): pass
    def wrong(self, a, key): pass
def outer():
    def carried(state, key): pass
"""
    assert crooked(source) == [
        "line 4: key is not the first argument of late",
        "line 5: key is not the first argument of named",
        "line 6: d, e of many should be keyword-only",
        "line 11: key is not the first argument of wrong",
    ]


def test_there_are_files_in_every_layer():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(LAYERS)
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    above = LAYERS[: LAYERS.index(path.relative_to(ROOT).parts[0])]
    assert not tops(path.read_text()) & {*above, "tests", "conftest"}


@pytest.mark.parametrize(
    ("module", "homes"),
    [
        ("matplotlib", {"testbed/plots.py"}),
        ("absl", {f"experiments/{name}.py" for name in ("run", "options", "benchmark", "scaling")}),
        ("chex", set()),
        ("torch", set()),
    ],
)
def test_a_module_is_imported_only_where_it_lives(module, homes):
    assert {name_of(path) for path in FILES if module in tops(path.read_text())} <= homes


def test_no_file_is_named_after_nothing():
    assert not {path.name for path in FILES} & {
        "utils.py",
        "util.py",
        "helpers.py",
        "common.py",
        "base.py",
        "constants.py",
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_models_are_plain_pytrees_without_modes(path):
    source = path.read_text()
    mentioned = names(source) | imported(source)
    for name in mentioned:
        assert name.split(".")[-1] not in ("Dropout", "dropout", "BatchNorm")
        assert not name.endswith(("nnx.jit", "nnx.vmap", "nnx.grad", "nnx.scan"))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_randomness_enters_only_through_a_key(path):
    source = path.read_text()
    assert global_randomness(source) == set()
    assert keyless(source) == []
    assert "jax.random.PRNGKey" not in names(source), "keys are typed: jax.random.key"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_keys_come_first_and_later_arguments_by_name(path):
    assert crooked(path.read_text()) == []


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_time_of_day_decides_no_number(path):
    clocks = {"time.time", "time.time_ns", "datetime.datetime.now", "uuid.uuid4", "os.urandom"}
    used = names(path.read_text()) & clocks
    assert used <= ({"datetime.datetime.now"} if path.name == "provenance.py" else set())
