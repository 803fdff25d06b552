"""Worst failures: which quarter of the candidates a defence should keep."""

import dataclasses
import functools

import pandas as pd

from experiments.arm import Arm, Plain, Recipe
from experiments.columns import by_task, column_of
from experiments.effects import Contrast, holding, of_contrast, rows_of, share, table
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_arms
from experiments.grids import with_finds
from testbed.statistics import clopper_pearson

BASE = Arm(finds=128, attack="uniform")
SIZES = {"quick": [(1, 128)], "full": [(1, 128), (4, 128), (16, 128), (1, 32)]}  # rounds, finds
QUICK = ("anyone", "worst", "borderline", "egregious")
KEPT = {"quick": QUICK, "full": (*QUICK, "mixed")}
SAME = [column_of(of) for of in ("failures", "egregious", "false_alarms")] + [column_of("failures", "matched")]
NO_CHOICE = "seeds in which it left what 'anyone' left, by all counts"
CHOSEN = "egregious failures, of seeds in which there was a choice"


def named(order: str, rounds: int, finds: int) -> str:
    """What an arm is called."""
    return with_finds(order if rounds == 1 else f"{order}, {rounds} rounds", finds, BASE.finds)


def worst(*size: int) -> Contrast:
    """The most egregious finds against the borderline ones, of so many rounds and finds."""
    return Contrast(named("borderline", *size), named("egregious", *size), of="egregious")


SIZES_BESIDE = tuple(worst(*size) for size in SIZES["full"][1:])
WORST, BESIDE = worst(*SIZES["full"][0]), (Contrast("worst", "borderline"), *SIZES_BESIDE)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Plain, control, and each way to choose a quarter of the candidates.

    In full these are done for several numbers of rounds and of finds.
    """
    base = dataclasses.replace(BASE, plain=Plain(task))
    made = {"plain": dataclasses.replace(base, steps=0), "control": base}
    for rounds, finds in SIZES[preset]:
        for order in KEPT[preset]:
            recipe = Recipe(order=order, candidates=4)
            made[named(order, rounds, finds)] = dataclasses.replace(base, rounds=rounds, finds=finds, recipe=recipe)
    return made


def seeds_without_choice(runs: pd.DataFrame) -> pd.Series:
    """bool by seed: egregious finds left what anyone's left, by all counts; of one task."""
    anyone, egregious = (runs[runs["arm"] == arm].set_index("seed")[SAME] for arm in ("anyone", "egregious"))
    seeds = anyone.index.intersection(egregious.index)
    return (anyone.loc[seeds] == egregious.loc[seeds]).all(axis=1)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The contrasts; seeds in which no candidate was more egregious, and the effect in the others."""
    rows = rows_of(runs, [WORST]) + rows_of(runs, BESIDE, declared=False)
    for task, part in by_task(runs).items():
        alike = seeds_without_choice(part)
        if alike.any():
            known = clopper_pearson(int(alike.sum()), len(alike))
            rows.append(share(task, WORST.after, NO_CHOICE, known, len(alike), declared=False))
            chosen = part[~part["seed"].isin(alike.index[alike])]
            rows += [found | {"of": CHOSEN} for found in rows_of(chosen, [WORST], declared=False)]
    return table(rows)


def rule(effects: pd.DataFrame) -> str:
    """Ten times the egregious failures on two tasks; fewer on any refutes it."""
    worse = of_contrast(effects, WORST)
    if (worse["high"] < 0).any():
        return "refuted"
    return "supported" if len(holding(worse, 1)) >= 2 else "undecided"


WORST_FAILURES = Experiment(
    question="Is it correct that we need to be training on the worst failures?",
    hypothesis="A model trained on what barely fails goes on failing egregiously.",
    design="""
    "Is it correct that we need to be training on the worst failures?" (Redwood Research 2022)

    Every attack unit brings home four times the finds that the pool has room for. The arms differ
    only in which quarter is kept: anyone, the lowest margins (`worst`), the borderline ones, the
    most egregious, or in full a mixture of these three. Borderline are the failures whose margin is
    smallest in size. The search is uniform, so that the candidates differ. Finds are few, so that
    egregious failures are left to be counted.

    On `injury` the severe contains the mild and hardly ever fails. In `injury_two` they are two
    mechanisms. In `password` severe means farther from a match. Where no candidate is more
    egregious than another, the egregious finds are anyone's. The effects say in how many seeds that
    was so, and what the others show. It is so in all on `injury`, which only the full preset has.

    The full preset also has more rounds, a quarter of the finds, and `injury_two` at three sigmas.
    A sigma is the chance that a clean mild event is also written in passive order.
    """,
    decides="Trained on the most egregious against trained on the borderline, in decades of "
    "egregious failures, counted exactly at threshold 0. Supported if borderline training leaves "
    "more than ten times as many, with the interval of the ratio above one, on at least two "
    "tasks. Refuted if the interval shows fewer on any task.",
    presets={
        "quick": Preset(("injury_two", "password"), seeds=3, minutes=6),
        "full": Preset(
            ("injury", "injury_two", "injury_two:sigma=0.1", "injury_two:sigma=1.0", "password"),
            seeds=10,
            minutes=150,
        ),
    },
    arms=arms,
    rule=rule,
    lacks="a factor of ten on two tasks",
    effects=effects,
    figure=functools.partial(
        draw_arms,
        of=("egregious",),
        caption="same candidates, finds and steps; arms differ in which finds are kept.",
    ),
)
