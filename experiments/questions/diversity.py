"""Diversity: finds unlike those at hand, instead of more rounds."""

import functools

import pandas as pd

from experiments.arm import Arm, Recipe
from experiments.effects import Contrast
from experiments.experiment import Experiment, Preset
from experiments.figures import draw_arms
from experiments.grids import ARENA, COVERAGE, LARGER, arm_on, covered, finds_on, twins_kept, unattacked, with_finds
from experiments.protocol import REGISTERED

ROUNDS = {"quick": (1, 2, 16), REGISTERED: (1, 2, 16), "full": (1, 2, 4, 8, 16)}
ORDERS = {"unselected": "anyone", "diverse": "diverse", "clustered": "clustered"}
FINDS, FEW, SOME = 128, 32, (1, 2, 16)
MARGIN = 0.3


def named(order: str, rounds: int, finds: int = FINDS) -> str:
    """What an arm is called."""
    return with_finds(f"{order}, {rounds}", finds, FINDS)


def arms(preset: str, task: str) -> dict[str, Arm]:
    """The control, and each selection in each number of rounds; in full also with fewer finds.

    Registered are labels without a search beside them, and machines in large spaces.
    """

    def selected(orders, some, finds=FINDS):
        return {
            named(order, rounds, finds): arm_on(
                task, rounds=rounds, finds=finds_on(task, finds), recipe=Recipe(order=ORDERS[order], candidates=4)
            )
            for order in orders
            for rounds in some
        }

    made = {"control": arm_on(task, finds=finds_on(task, FINDS))} | selected(ORDERS, ROUNDS[preset])
    if preset == REGISTERED:
        made |= covered(made["control"])
    if preset != "full":
        return {name: twins_kept(unattacked(arm)) for name, arm in made.items()}
    return made | selected(("unselected", "diverse"), SOME, FEW)


def rule(effects: pd.DataFrame) -> str:
    """Two rounds of diverse finds leave at most so little more, everywhere."""
    more = effects[effects["declared"]]
    if (more["low"] > MARGIN).any():
        return "refuted"
    return "supported" if (more["high"] <= MARGIN).all() else "undecided"


DIVERSITY = Experiment(
    question="Can fewer, but more diverse, batches of finds replace frequent updates?",
    hypothesis="Diverse finds in two rounds do what sixteen rounds of unselected ones do.",
    design=f"""
    Frequent updates force attackers to new tactics, and so might a rule that keeps only finds unlike those at hand.
    Every attack unit brings home four times the finds that the pool has room for. Kept are unselected ones, those
    farthest in tokens from all that is kept (k-centre), or a cluster around one of them. All arms have the same
    candidates, finds and steps. The full preset adds a quarter of the finds, because effects saturate, and
    `cipher_vault`, which a single round of anything solves. The preset `{REGISTERED}` has tasks on which one round
    leaves failures, and labels without a search. It also asks
    {ARENA}.
    """,
    decides=f"Supported if 16 rounds of unselected finds leave at most {MARGIN} decades less than 2 rounds of diverse "
    f"ones, interval and all, on every task. Refuted if the interval lies above {MARGIN} on any.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=4),
        "full": Preset(("injury", "cipher_vault"), seeds=10, minutes=80),
        REGISTERED: Preset(("injury", "password", *LARGER), seeds=10, minutes=30, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"at most {MARGIN} decades on every task, interval and all",
    note="On the small spaces finds that lie apart help one round a little, and don't make up for fourteen more. "
    "With sixteen rounds they help no more, and on `password` they harm. At 2^64 the declared contrast can't be "
    "told from zero: machines of one arm differ by decades.",
    contrasts=(Contrast("diverse, 2", "unselected, 16"),),
    exploratory=(
        *(
            Contrast(named("unselected", rounds, finds), named("diverse", rounds, finds))
            for finds in (FINDS, FEW)
            for rounds in SOME
        ),
        *(Contrast(name, "diverse, 2") for name in COVERAGE),
    ),
    figure=functools.partial(
        draw_arms,
        caption="selection and rounds; same steps, four candidates a find;\nthe same finds unless an arm names others.",
    ),
)
