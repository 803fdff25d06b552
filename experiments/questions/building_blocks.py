"""Which building blocks of adversarial training matter most?

"Ablations to get a clear sense of which building blocks were most important." (Redwood Research 2022)

From a recipe that works (16 rounds of gcg on few finds, so that there is room to lose), one block at a time is taken
away: frequent updates, the search (uniform instead of gcg, or the best of ten random prompts), the clean half of the
batch, the replay of earlier rounds, finds that did not fail, attacks as a whole; and one is added: safe twins. Only
`full` asks `cipher_vault`, which a single round of anything solves; and, because effects saturate, all of it once more
with a quarter of the finds.

Hypothesis: the blocks differ. Pre-declared contrasts: the recipe against each arm without a block, in decades of
log10(failing prompts + 1), counted exactly at threshold 0, Holm-corrected. Supported if some block is worth at least
half a decade, with its 95 % interval above zero, on every task; refuted if no block is worth so much on any task, so
that noise alone can refute: read the intervals; undecided otherwise.
"""

import dataclasses
import functools

from experiments.ablation import Contrast, draw_arms, findings, unattacked, verdict, with_finds
from experiments.arm import Arm, Plain, Recipe, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed.statistics import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

PRESETS = {
    "quick": Preset("injury", seeds=3, minutes=4),
    "full": Preset("injury,cipher_vault", seeds=10, minutes=70),
}
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


def named(arm: str, finds: int) -> str:
    """What an arm is called; the one without attacks has no finds."""
    return arm if arm == NO_ATTACKS else with_finds(arm, finds, FINDS)


CONTRASTS = {block: Contrast(f"without {block}", WHOLE) for block in WITHOUT}
BESIDE = {f"{block}, {FEW} finds": Contrast(named(f"without {block}", FEW), named(WHOLE, FEW)) for block in WITHOUT}
BESIDE |= {named(TWINS, finds): Contrast(named(WHOLE, finds), named(TWINS, finds)) for finds in (FINDS, FEW)}

plot = functools.partial(
    draw_arms, caption=f"one block taken away at a time; same steps, and {FINDS} finds unless said otherwise."
)


def grid(preset: str, task: str) -> list[Arm]:
    """The recipe, the recipe without each block, and with safe twins; in full also with fewer finds."""

    def arms(finds):
        whole = Arm(Plain(task), rounds=16, finds=finds)
        blocks = {WHOLE: {}} | {f"without {block}": less for block, less in WITHOUT.items()}
        blocks |= {TWINS: dict(recipe=Recipe(twins=True))}
        return [dataclasses.replace(whole, label=named(name, finds), **changes) for name, changes in blocks.items()]

    if preset == "quick":
        return unattacked(arms(FINDS))
    return arms(FINDS) + [arm for arm in arms(FEW) if arm.rounds]


def claim(frame) -> Verdict:
    """What each block is worth on each task, and the verdict."""
    found = findings(frame, CONTRASTS)
    tasks = {task for by_task in found.values() for task in by_task}
    worth = {task: {block for block, by_task in found.items() if task in by_task and by_task[task].holds(0.5)}
             for task in tasks}  # fmt: skip
    return verdict(
        found,
        supported=bool(worth) and bool(set.intersection(*worth.values())),
        refuted=not any(worth.values()),
        why_not="no block is worth half a decade on every task",
        beside=findings(frame, BESIDE),
    )
