"""Fields that nothing reads: points of a grid that differ in these alone are one arm.

Otherwise arms would differ in name alone, and a mean over them would hold zeros. A field that no arm reads is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.arm import Arm, attack_of, defence_of, schedule_of
from experiments.axes import BASE, Axis, called, fields, points, shown
from testbed.training.defence import USUAL
from testbed.training.source import Source


def does(arm: Arm) -> tuple:
    """All that an arm's numbers hang on beside its seed: arms that are equal in it are one, whatever they are called.

    Raises:
      ValueError: as its parts.
    """
    measured = arm.attackers, arm.evaluation if arm.attackers else (), arm.largest_space
    if not arm.steps:
        return arm.plain, measured
    schedule, (selection, lesson) = schedule_of(arm), defence_of(arm.recipe)
    if not arm.rounds:
        unread = {name: getattr(USUAL.lesson, name) for name in ("replay", "twins", "share")}
        return arm.plain, measured, dataclasses.replace(schedule, finds=0, budget=0), lesson._replace(**unread)
    if selection.candidates == 1:  # there is nothing to put in order
        selection = selection._replace(order=USUAL.selection.order)
    attack = attack_of(arm)
    if isinstance(attack, Source):  # which is asked, and pays no calls
        schedule = dataclasses.replace(schedule, budget=1)
    return arm.plain, measured, schedule, selection, lesson, attack


def refuse_idle(axes: Sequence[Axis], arm_of: Callable[[Mapping[str, Any]], Arm]) -> None:
    """Make sure that each field which is given does something, for some of the others' values.

    `arm_of`: the arm of a point of the grid. A field of one value is held against its default.

    Raises:
      ValueError: nothing reads a field; says which, and its values.
    """
    attacks = next((axis.values for axis in axes if axis.name == "attack"), (BASE.attack,))
    for axis in axes:
        default = (fields(attacks)[axis.name],) if len(axis.values) == 1 else ()
        values = dict.fromkeys((*axis.values, *default))
        others = points([other for other in axes if other is not axis]).values()
        if len(values) > 1 and all(_alike([at | {axis.name: value} for value in values], arm_of) for at in others):
            given = f"{axis.name}={','.join(map(shown, axis.values))}"
            raise ValueError(
                f"{given} changes nothing: nothing reads it with the other fields as they are; leave it out"
            )


def _alike(given: list[Mapping[str, Any]], arm_of: Callable[[Mapping[str, Any]], Arm]) -> bool:
    """Whether the arms of some points all do the same; one that does not fit does otherwise."""
    try:
        first, *others = [does(arm_of(point)) for point in given]
    except ValueError:
        return False
    return all(other == first for other in others)


def merged(axes: Sequence[Axis], arm_of: Callable[[Mapping[str, Any]], Arm]) -> dict[str, list[dict[str, Any]]]:
    """The arms of a grid by name, each with all the points that it stands for; `arm_of` as in `refuse_idle`.

    With `rounds=0,4 budget=10,20` they are `rounds=0`, which has no budget, and two of four rounds.
    """
    groups: dict[Any, dict[str, dict[str, Any]]] = {}
    for name, point in points(axes).items():
        try:
            same = does(arm_of(point))
        except ValueError:  # it does not fit, and is refused where it is made
            same = name
        groups.setdefault(same, {})[name] = point
    made: dict[str, list[dict[str, Any]]] = {}
    for group in groups.values():
        first, *others = group.values()
        common = {name: value for name, value in first.items() if all(other[name] == value for other in others)}
        varied = {axis.name: common[axis.name] for axis in axes if len(axis.values) > 1 and axis.name in common}
        name = called(varied) or next(iter(group))
        made[name if name not in made else next(iter(group))] = list(group.values())
    return made
