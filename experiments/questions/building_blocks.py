"""Building blocks: what each part of a recipe that works is worth."""

import dataclasses
import functools

import pandas as pd

from experiments.arm import Arm, Plain, Recipe
from experiments.effects import Contrast, holding
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_arms
from experiments.grids import unattacked, with_finds

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
LEAST = 0.5


def named(arm: str, finds: int) -> str:
    """What an arm is called; the one without attacks has no finds."""
    return arm if arm == NO_ATTACKS else with_finds(arm, finds, FINDS)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """The recipe, without each block, and with safe twins; in full also with fewer finds."""

    def blocks(finds):
        whole = Arm(Plain(task), rounds=16, finds=finds)
        changes = {WHOLE: {}} | {f"without {block}": less for block, less in WITHOUT.items()}
        changes |= {TWINS: dict(recipe=Recipe(twins=True))}
        return {named(arm, finds): dataclasses.replace(whole, **change) for arm, change in changes.items()}

    if preset == "quick":
        return {name: unattacked(arm) for name, arm in blocks(FINDS).items()}
    return blocks(FINDS) | {arm: config for arm, config in blocks(FEW).items() if config.rounds}


def rule(effects: pd.DataFrame) -> str:
    """Some block is worth half a decade on every task; no block on any refutes it."""
    worth = holding(effects[effects["declared"]], LEAST)
    tasks_of = worth.groupby("before")["task"].nunique()
    if worth.empty:
        return "refuted"
    everywhere = tasks_of == effects.loc[effects["declared"], "task"].nunique()
    return "supported" if everywhere.any() else "undecided"


BUILDING_BLOCKS = Experiment(
    question="Which building blocks of adversarial training matter most?",
    hypothesis="The blocks differ in what they are worth.",
    design="""
    "Ablations to get a clear sense of which building blocks were most important." (Redwood Research
    2022)

    The recipe works: 16 rounds of gcg. It has few finds, so that there is room to lose. One block
    at a time is taken away: frequent updates, the search, the clean half of the batch, the replay
    of earlier rounds, finds that did not fail, attacks as a whole. The search is replaced by
    uniform search, or by the best of ten random prompts. One block is added: safe twins.

    Only the full preset has `cipher_vault`, which a single round of anything solves. Because
    effects saturate, it also does everything once more with a quarter of the finds.
    """,
    decides="The recipe against each arm without a block, in decades of failing prompts, counted "
    f"exactly at threshold 0. Supported if some block is worth at least {LEAST} decades, with its "
    "interval above zero, on every task. Refuted if no block is worth so much on any task. Noise "
    "alone can refute, so read the intervals. P-values are Holm's.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=4),
        "full": Preset(("injury", "cipher_vault"), seeds=10, minutes=70),
    },
    arms=arms,
    rule=rule,
    lacks=f"a block that is worth {LEAST} decades on every task",
    contrasts=tuple(Contrast(f"without {block}", WHOLE) for block in WITHOUT),
    exploratory=(
        *(Contrast(named(f"without {block}", FEW), named(WHOLE, FEW)) for block in WITHOUT),
        *(Contrast(named(WHOLE, finds), named(TWINS, finds)) for finds in (FINDS, FEW)),
    ),
    figure=functools.partial(
        draw_arms,
        caption=f"one block taken away at a time; same steps, and {FINDS} finds unless said otherwise.",
    ),
)
