"""Can fewer, but more diverse, batches of finds replace frequent updates?

"How important is updating the model frequently?" (Redwood Research 2022): frequent updates force attackers to new
tactics, and so might a rule that keeps only finds unlike those at hand.

Hypothesis: diverse finds in two rounds do what sixteen rounds of unselected ones do. Every attack unit brings home four
times the finds that the pool has room for; kept are unselected ones, those farthest in tokens from all that is kept
(k-centre), or a cluster around one of them. Same candidates, finds and steps in all arms; in `full` also a quarter of
the finds, because effects saturate, and `cipher_vault`, which a single round of anything solves.

Pre-declared contrast: 2 rounds of diverse finds against 16 rounds of unselected ones, in decades of log10(failing
prompts + 1), counted exactly at threshold 0. Supported if the 16 rounds leave at most 0.3 decades less, 95 % interval
and all, on every task; refuted if the interval lies above 0.3 on any.
"""

import functools

from experiments.ablation import Contrast, draw_arms, findings, unattacked, verdict, with_finds
from experiments.arm import Arm, Plain, Recipe, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed.statistics import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

PRESETS = {
    "quick": Preset("injury", seeds=3, minutes=4),
    "full": Preset("injury,cipher_vault", seeds=10, minutes=80),
}
ROUNDS = {"quick": (1, 2, 16), "full": (1, 2, 4, 8, 16)}
ORDERS = {"unselected": "anyone", "diverse": "diverse", "clustered": "clustered"}
CONTRASTS = {"enough": Contrast("diverse, 2", "unselected, 16")}
FINDS, FEW, SOME = 128, 32, (1, 2, 16)
MARGIN = 0.3

plot = functools.partial(
    draw_arms,
    caption=f"selection and rounds; {FINDS} finds unless said otherwise.\nSame steps, four candidates a find.",
)


def named(order: str, rounds: int, finds: int = FINDS) -> str:
    """What an arm is called."""
    return with_finds(f"{order}, {rounds}", finds, FINDS)


BESIDE = {
    f"{rounds} rounds, {finds} finds": Contrast(named("unselected", rounds, finds), named("diverse", rounds, finds))
    for finds in (FINDS, FEW)
    for rounds in SOME
}


def grid(preset: str, task: str) -> list[Arm]:
    """The control, and each selection in each number of rounds; in full also with fewer finds."""

    def arm(order, rounds, finds=FINDS):
        recipe = Recipe(order=ORDERS[order], candidates=4)
        return Arm(Plain(task), rounds=rounds, finds=finds, recipe=recipe, label=named(order, rounds, finds))

    arms = [Arm(Plain(task), finds=FINDS), *(arm(order, rounds) for order in ORDERS for rounds in ROUNDS[preset])]
    if preset == "quick":
        return unattacked(arms)
    return arms + [arm(order, rounds, FEW) for order in ("unselected", "diverse") for rounds in SOME]


def claim(frame) -> Verdict:
    """The pre-declared contrast on each task, and the verdict."""
    found = findings(frame, CONTRASTS)
    effects = [finding.effect for finding in found["enough"].values()]
    return verdict(
        found,
        supported=all(effect.high <= MARGIN for effect in effects),
        refuted=any(effect.low > MARGIN for effect in effects),
        why_not=f"the rule asks for at most {MARGIN} decades on every task",
        beside=findings(frame, BESIDE),
    )
