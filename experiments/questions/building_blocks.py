"""Building blocks: what each part of a recipe that works is worth."""

import dataclasses
import functools

import pandas as pd

from experiments.arm import Arm, Recipe
from experiments.effects import Contrast, holding
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_arms
from experiments.grids import ARENA, COVERAGE, LARGER, arm_on, covered, finds_on, twins_kept, unattacked, with_finds
from experiments.protocol import REGISTERED

FINDS, FEW = 128, 32
WHOLE, TWINS, NO_ATTACKS = "whole recipe", "with safe twins", "without attacks"
WITHOUT = {
    "frequent updates": dict(rounds=1),
    "gradients": dict(attack="uniform"),
    "search": dict(attack="uniform", budget=10),
    "clean half": dict(recipe=Recipe(share=0.9)),
    "replay": dict(recipe=Recipe(replay="newest")),
    "finds that did not fail": dict(recipe=Recipe(failures_only=True)),
    "attacks": dict(rounds=0),
}
NO_TWINS = "without safe twins"
LEAST = 0.5


def named(arm: str, finds: int) -> str:
    """What an arm is called; the one without attacks has no finds."""
    return arm if arm == NO_ATTACKS else with_finds(arm, finds, FINDS)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """The recipe, without each block, and with safe twins; in full also with fewer finds.

    Registered are labels without a search beside them, and machines in large spaces. There the recipe has safe twins,
    and they are one more block.
    """

    def blocks(finds):
        whole = arm_on(task, rounds=16, finds=finds_on(task, finds))
        changes = {WHOLE: {}} | {f"without {block}": less for block, less in WITHOUT.items()}
        changes |= {TWINS: dict(recipe=Recipe(twins=True))}
        return {named(arm, finds): dataclasses.replace(whole, **change) for arm, change in changes.items()}

    if preset != "full":
        made = {name: unattacked(arm) for name, arm in blocks(FINDS).items()}
        if preset == REGISTERED:
            made |= covered(made[NO_ATTACKS])
        if task not in LARGER:
            return made
        twinned = {name: twins_kept(arm) for name, arm in made.items() if name != TWINS}
        return twinned | {NO_TWINS: made[WHOLE]}
    return blocks(FINDS) | {arm: config for arm, config in blocks(FEW).items() if config.rounds}


def rule(effects: pd.DataFrame) -> str:
    """Some block is worth half a decade on every task; it is refuted if surely none is on any."""
    declared = effects[effects["declared"]]
    tasks_of = holding(declared, LEAST).groupby("before")["task"].nunique()
    if (tasks_of == declared["task"].nunique()).any():
        return "supported"
    return "refuted" if (declared["high"] < LEAST).all() else "undecided"


BUILDING_BLOCKS = Experiment(
    question="Which building blocks of adversarial training matter most?",
    hypothesis="The blocks differ in what they are worth.",
    design=f"""
    "Ablations to get a clear sense of which building blocks were most important." (Redwood Research
    2022)

    The recipe works: 16 rounds of gcg. It has few finds, so that there is room to lose. One block
    at a time is taken away: frequent updates, the search, the clean half of the batch, the replay
    of earlier rounds, finds that did not fail, attacks as a whole. The search is replaced by
    uniform search, or by the best of ten random prompts. One block is added: safe twins.

    Only the full preset has `cipher_vault`, which a single round of anything solves. Because
    effects saturate, it also does everything once more with a quarter of the finds. The preset
    `{REGISTERED}` has tasks on which one round leaves failures, and labels without a search. It also asks
    {ARENA}.
    The twins are one more block to take away.
    """,
    decides="The recipe against each arm without a block, in decades of failing prompts, counted "
    f"exactly at threshold 0. Supported if some block is worth at least {LEAST} decades, with its "
    "interval above zero, on every task. Refuted if the interval of every block lies below "
    f"{LEAST} on every task. P-values are Holm's.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=4),
        "full": Preset(("injury", "cipher_vault"), seeds=10, minutes=70),
        REGISTERED: Preset(("injury", "password", *LARGER), seeds=10, minutes=30, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"a block that is worth {LEAST} decades on every task",
    note="The block that decides is attacks as a whole. Of their parts, frequent updates and the search count on both "
    "small spaces, gradients on `password` alone. At 2^64 no part is told from zero, but replay on `injury_two`. "
    "Without safe twins far more safe prompts are refused there, and on `injury_two` fewer fail.",
    contrasts=tuple(Contrast(f"without {block}", WHOLE) for block in WITHOUT),
    exploratory=(
        *(Contrast(named(f"without {block}", FEW), named(WHOLE, FEW)) for block in WITHOUT),
        *(Contrast(named(WHOLE, finds), named(TWINS, finds)) for finds in (FINDS, FEW)),
        *(Contrast(name, WHOLE) for name in (*COVERAGE, NO_TWINS)),
        Contrast(NO_TWINS, WHOLE, "false_alarms"),
    ),
    figure=functools.partial(
        draw_arms,
        caption="one block taken away at a time; same steps, and the same finds unless an arm names others.",
    ),
)
