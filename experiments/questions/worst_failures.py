"""Worst failures: which of the candidates a defence should keep."""

import dataclasses
import functools

import pandas as pd

from experiments.arm import Arm, Recipe
from experiments.bench import Bench, defended_model, measure_arm
from experiments.columns import by_task, wide
from experiments.effects import Contrast, of_contrast, only, outcome_of, outcome_of_tasks, row, rows_of, table
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_arms
from experiments.grids import ARENA, COVERAGE, LARGE_TWO, arm_on, covered, finds_on, twins_kept, unattacked, with_finds
from experiments.protocol import REGISTERED

BASE = Arm(finds=128, attack="uniform")
STOPS = (("stops", True),)  # in full, as in the first round, an attacker brings home the best of its whole search
CANDIDATES, FEW = 16, 4  # a place of the pool; few in full
QUICK = ("anyone", "worst", "borderline", "egregious")
KEPT = {"quick": QUICK, REGISTERED: QUICK, "full": (*QUICK, "mixed")}
ONCE = [(1, BASE.finds)]  # rounds, finds
SIZES = {"quick": ONCE, REGISTERED: ONCE, "full": [*ONCE, (4, 128), (16, 128), (1, 32)]}
POOL, CHECKED = "pool_egregiousness", "mean egregiousness of the finds that were kept"
APART = 0.2  # in CHECKED: the manipulation that a task must show
LEAST, SAME = 1.0, 0.5  # decades: supported from the one on, equivalent within the other


def named(order: str, rounds: int, finds: int) -> str:
    """What an arm is called."""
    return with_finds(order if rounds == 1 else f"{order}, {rounds} rounds", finds, BASE.finds)


def worst(*size: int) -> Contrast:
    """The most egregious finds against the borderline ones, of so many rounds and finds."""
    return Contrast(named("borderline", *size), named("egregious", *size), of="egregious")


WORST = worst(*ONCE[0])
BESIDE = (
    Contrast("anyone", "egregious", of="egregious"),
    Contrast("borderline", "egregious"),
    Contrast("worst", "borderline"),
    *(worst(*size) for size in SIZES["full"][1:]),
    *(Contrast(name, "egregious", of="egregious") for name in COVERAGE),
)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Plain, control, and each way to choose among the candidates.

    In full these are done for several numbers of rounds and of finds. Registered are labels without a search beside.
    """
    options = () if preset == "full" else STOPS
    base = arm_on(task, attack=BASE.attack, finds=finds_on(task, BASE.finds), options=options)
    base = base if preset == "full" else unattacked(base)
    made = {"plain": dataclasses.replace(base, steps=0), "control": base}
    for rounds, finds in SIZES[preset]:
        for order in KEPT[preset]:
            recipe = Recipe(order=order, candidates=FEW if preset == "full" else CANDIDATES)
            one = dataclasses.replace(base, rounds=rounds, finds=finds_on(task, finds), recipe=recipe)
            made[named(order, rounds, finds)] = twins_kept(one)
    return made | (covered(base) if preset == REGISTERED else {})


def measure(arm: Arm, bench: Bench) -> dict:
    """An arm's account, with how egregious a failure on what it kept would be, in the mean."""
    return measure_arm(arm, bench) | {POOL: defended_model(bench, arm).egregiousness}


def check(task: str, runs: pd.DataFrame) -> list[dict]:
    """By how much more egregious the egregious finds are than the borderline ones: the manipulation, on one task."""
    pools = wide(runs, runs.reindex(columns=[POOL])[POOL].astype(float)).reindex(columns=WORST[:2]).dropna()
    borderline, egregious = (pools[arm].to_numpy() for arm in WORST[:2])
    return [row(task, WORST.after, WORST.before, CHECKED, egregious - borderline, unit="level")] if len(pools) else []


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The contrasts, and whether the finds differed at all."""
    checks = [found for task, part in by_task(runs).items() for found in check(task, part)]
    return table(rows_of(runs, [WORST]) + checks + rows_of(runs, BESIDE, declared=False))


def rule(effects: pd.DataFrame) -> str:
    """Ten times the egregious failures on two of the tasks where the finds differ; fewer on any refutes it."""
    apart = only(effects, of=CHECKED, declared=True)
    tested = set(apart.loc[apart["effect"] >= APART, "task"])
    told = [outcome_of(r, LEAST, SAME) for r in of_contrast(effects, WORST).itertuples() if r.task in tested]
    return "not tested" if len(told) < 2 else outcome_of_tasks(told)


WORST_FAILURES = Experiment(
    question="Is it correct that we need to be training on the worst failures?",
    hypothesis="A model trained on what barely fails goes on failing egregiously.",
    design=f"""
    "Is it correct that we need to be training on the worst failures?" (Redwood Research 2022)

    Every attack unit brings home {CANDIDATES} times the finds that the pool has room for. The arms differ
    only in which of them are kept: anyone, the lowest margins (`worst`), the borderline ones, the
    most egregious, or in full a mixture of these three. Borderline are the failures whose margin is
    smallest in size. The search is uniform and stops at the first prompt that fails, so that the
    candidates differ: the best of a whole search would be the surest failures, whichever are kept.
    Finds are few, so that egregious failures are left to be counted.

    On `injury` the severe contains the mild and hardly ever fails. In `injury_two` they are two
    mechanisms. In `modular` severe means more high tokens. In `password` it means farther from a
    match, and search finds hardly other failures, whichever are kept. How egregious failures on the kept
    finds would be is measured. Where the arms hardly differ in that, nothing was tested. The preset
    `{REGISTERED}` also asks, in `injury_two`,
    {ARENA}.

    The full preset is that of the first round: {FEW} candidates a place, each the best of its search.
    It also has more rounds, a quarter of the finds, and `injury_two` at three sigmas.
    A sigma is the chance that a clean mild event is also written in passive order.
    """,
    decides=f"Trained on the most egregious against trained on the borderline, in decades of "
    f"egregious failures, counted exactly at threshold 0. A task counts if the kept finds differ by {APART:g} "
    "or more in their mean egregiousness; with fewer than two such tasks nothing was tested. Supported if "
    f"borderline training leaves at least {LEAST:g} decade more, with the interval above zero, on two of them. "
    "Refuted if the interval shows fewer on any; equivalent if it lies within "
    f"{SAME:g} decades of zero on all, whichever way.",
    presets={
        "quick": Preset(("injury_two", "modular"), seeds=3, minutes=6),
        "full": Preset(
            ("injury", "injury_two", "injury_two:sigma=0.1", "injury_two:sigma=1.0", "password"),
            seeds=10,
            minutes=150,
        ),
        REGISTERED: Preset(("injury_two", "modular", LARGE_TWO), seeds=10, minutes=25, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"{LEAST:g} decade on two tasks, or intervals within {SAME:g} on all",
    measure=measure,
    contrasts=(WORST,),
    exploratory=BESIDE,
    effects=effects,
    figure=functools.partial(
        draw_arms,
        of=("egregious",),
        caption="same candidates, finds and steps; arms differ in which finds are kept.",
    ),
)
