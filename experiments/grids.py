"""What the arms of several questions share: names by finds, and evaluation without attacks where all is counted."""

import dataclasses
from typing import Any

from experiments.arm import USUAL, Arm, Plain, Recipe, is_counted, usual_plain
from experiments.experiment import Experiment, Preset
from experiments.protocol import REGISTERED
from tasks import spelled

LARGE = "injury:length=16:vocab=16"  # 2^64 prompts, counted for machines
LARGE_TWO = "injury_two:length=16:vocab=16"
LARGER = (LARGE, LARGE_TWO)
TIMES = 16  # as many finds as a transformer's arm has
ARENA = f"finite-state machines in spaces of 2^64 prompts, with {TIMES} times the finds, half of them safe twins"
EQUAL_LABELS = 2048  # of defences that are compared at equal labels
SEARCHED = Recipe(kept_twins=True)  # of theirs that search, or a model that refuses nearly all would seem to be safe
COVERAGE = {"fresh labels": "uniform", "fresh hazards": "hazards"}  # arm -> which prompts it has labelled


def counted_kind(task: str) -> str:
    """The kind of model whose failures on a task are counted: a transformer in a small space, else a machine."""
    return "transformer" if is_counted(Plain(task)) else "machine"


def arm_on(task: str, **fields: Any) -> Arm:
    """An arm with the given fields: of a transformer, or on the tasks `LARGER` of a machine.

    A machine's arm is as usually trained, whatever steps and rates are given. It is not attacked in the evaluation.
    """
    if spelled(task) not in LARGER:
        return Arm(Plain(task), **fields)
    return Arm(usual_plain(task, "machine"), **fields | {"attackers": 0} | USUAL["machine"].arm)


def in_large_spaces(name: str, experiment: Experiment, minutes: float) -> Experiment:
    """A question asked of machines in large spaces alone, with a protocol and a verdict of its own.

    `name` is that of the question; `minutes` its registered runs take.
    """
    presets = {
        "quick": Preset((LARGE,), seeds=3, minutes=minutes / 6),
        "full": Preset(LARGER, seeds=10, minutes=2 * minutes),
        REGISTERED: Preset(LARGER, seeds=10, minutes=minutes, first_seed=10),
    }
    asks = f"""
    The question `{name}`, asked of
    {ARENA}.
    What is said below of presets, and of what their tasks leave, is that question's.
    """
    question = f"{experiment.question.rstrip('?')}, among 2^64 prompts?"
    return experiment._replace(question=question, design=asks + experiment.design, presets=presets)


def finds_on(task: str, finds: int) -> int:
    """So many finds, or on one of the tasks `LARGER` `TIMES` as many: a few teach little there."""
    return finds * (TIMES if spelled(task) in LARGER else 1)


def twins_kept(arm: Arm) -> Arm:
    """The arm; if it trains a machine on finds, every other one is a safe twin of the one before it.

    Without them a machine soon refuses much of what is safe.
    """
    if arm.plain.model != "machine" or not arm.rounds:
        return arm
    return dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, kept_twins=True))


def counted_arm(task: str, **fields: Any) -> Arm:
    """An arm of that kind as it is usually trained, but for the given fields. It is not attacked in the evaluation."""
    kind = counted_kind(task)
    return Arm(usual_plain(task, kind), attackers=0, **USUAL[kind].arm | fields)


def unattacked(arm: Arm) -> Arm:
    """The arm, evaluated without attacks where every prompt is judged: no attack finds more, and it takes minutes."""
    return dataclasses.replace(arm, attackers=0) if is_counted(arm.plain) else arm


def covered(arm: Arm) -> dict[str, Arm]:
    """The arms of `COVERAGE`: the same steps, and as many labels as the arm has finds, without a search."""
    recipes = {name: Recipe(fresh=draw, fresh_labels=arm.finds) for name, draw in COVERAGE.items()}
    return {name: dataclasses.replace(arm, rounds=0, recipe=recipe) for name, recipe in recipes.items()}


def with_finds(arm: str, finds: int, usual: int) -> str:
    """What an arm is called whose number of finds is not the usual one."""
    return arm if finds == usual else f"{arm}, {finds} finds"
