"""The axes of a user's grid: words as `rounds=1,4,16`, read as fields of an arm and their values."""

import contextlib
import dataclasses
import inspect
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from experiments.arm import FRESH, Arm, Plain, Recipe
from testbed.kinds import KINDS
from testbed.outside import nearest
from testbed.training.defence import LOSSES
from testbed.training.oracle import finder_named
from testbed.training.selection import ORDERS, REPLAYS
from testbed.training.soft_prompts import OVERSEERS

BASE = Arm(rounds=16)  # what the fields that are not named hold: sixteen rounds of gcg on 512 finds
PARTS: dict[str, type] = {"": Arm, "recipe": Recipe, "plain": Plain}
HIDDEN = {"plain", "recipe", "options", "label", "task", "evaluation", "largest_space"}  # set by other words, or flags
CHOICES = {"order": ORDERS, "replay": REPLAYS, "loss": LOSSES, "model": KINDS, "fresh": FRESH, "overseer": OVERSEERS}


class Axis(NamedTuple):
    """A field that is varied, by its full name (`rounds`, `recipe.order`, `attack.candidates`), and its values."""

    name: str
    values: tuple[Any, ...]


def fields(attacks: Sequence[str]) -> dict[str, Any]:
    """Every field that can be named, in full -> its default, given which attacks are trained against."""
    known = {}
    for part, kind in PARTS.items():
        for field in dataclasses.fields(kind):
            if field.name not in HIDDEN:
                known[f"{part}.{field.name}" if part else field.name] = field.default
    known["rounds"] = BASE.rounds
    for attack in attacks:
        for parameter in inspect.signature(finder_named(attack)).parameters.values():
            # One that is None until it is given is known by its annotation.
            optional = parameter.default is None and int in get_args(parameter.annotation)
            if optional or isinstance(parameter.default, int | float | str):
                known[f"attack.{parameter.name}"] = parameter.default
    return known


def full_name(name: str, known: Mapping[str, Any]) -> str:
    """A field's full name.

    Raises:
      ValueError: there is no such field; names the nearest.
    """
    for part in ("", "recipe.", "attack.", "plain."):
        if part + name in known:
            return part + name
    short = {full.rpartition(".")[2] for full in known}
    close = nearest(name, [*known, *short])
    raise ValueError(f"unknown field {name!r}{close or '; choose from ' * bool(known) + ', '.join(known)}")


def value_of(name: str, text: str, default: Any) -> Any:
    """The value of a field as text, of its default's type; one without a default is a whole number.

    Raises:
      ValueError: it is none of that type.
    """
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number"}
    kind = int if default is None else type(default)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if kind is float:
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(text)):
                return number
    if kind is str:
        choices = CHOICES.get(name.rpartition(".")[2])
        if choices and text not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {text!r}{nearest(text, choices)}")
        if name == "attack":
            finder_named(text)
        return text
    raise ValueError(f"{name} must be {kinds.get(kind, 'text')}, not {text!r}")


def axes_of(words: Sequence[str] | Mapping[str, Any]) -> tuple[Axis, ...]:
    """What words as `rounds=1,4,16`, or a mapping of names to a value or several, vary.

    Raises:
      ValueError: a word has no values, names no field or one twice, or a value is of another type.
    """
    given = dict(words) if isinstance(words, Mapping) else dict(map(_split, words))
    if not isinstance(words, Mapping) and len(given) < len(words):
        raise ValueError("a field is given twice; write its values once, with commas between them")
    texts = {name: _texts(name, values) for name, values in given.items()}
    attacks = next((values for name, values in texts.items() if name == "attack"), (BASE.attack,))
    known = fields(attacks)
    axes = []
    for name, values in texts.items():
        full = full_name(name, known)
        parsed = tuple(value_of(full, text, known[full]) for text in values)
        if len(set(parsed)) < len(parsed):
            raise ValueError(f"{name}={','.join(values)} has a value twice")
        axes.append(Axis(full, parsed))
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ValueError("a field is given twice, by its short name and in full")
    for axis in axes:
        _refuse_unknown_option(axis, attacks)
    return tuple(axes)


def _split(word: str) -> tuple[str, str]:
    name, equals, values = word.partition("=")
    if not (name and equals and values):
        raise ValueError(f"unknown argument {word!r}; an ablation takes name=value,value (see --help)")
    return name, values


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str):
        values = values.split(",")
    several = values if isinstance(values, Iterable) else (values,)
    if isinstance(several, set | frozenset):
        raise ValueError(f"{name} is a set, which has no order; give a list of its values")
    texts = tuple(str(value) for value in several)
    if not texts or not all(texts):
        raise ValueError(f"{name} has an empty value; write name=value,value")
    return texts


def _refuse_unknown_option(axis: Axis, attacks: Sequence[str]) -> None:
    part, _, option = axis.name.rpartition(".")
    without = [a for a in attacks if option not in inspect.signature(finder_named(a)).parameters]
    if part == "attack" and without:
        raise ValueError(f"attack {without[0]} has no parameter {option!r}, so it cannot be varied together with it")


def called(values: Mapping[str, Any]) -> str:
    """What a point of the grid, or one side of a contrast, is called."""
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """A value as it is written: a float in as many digits as tell it from all others, so that it can be read back."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def points(axes: Sequence[Axis]) -> dict[str, dict[str, Any]]:
    """Every point of the grid: its name, by the fields that have several values -> all values."""
    made = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        varied = {axis.name: point[axis.name] for axis in axes if len(axis.values) > 1}
        made[called(varied) or "as asked"] = point
    return made
