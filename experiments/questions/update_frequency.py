"""Update frequency: the same finds, steps and calls in more and more rounds."""

import dataclasses
import functools

import pandas as pd

from experiments.arm import Arm, Recipe, rounds_named
from experiments.columns import column_of, failures, setting, typical
from experiments.effects import MARGIN, Contrast, holding, of_contrast, outcome_of
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of, prompts_of
from experiments.grids import COVERAGE, arm_on, covered, finds_on, in_large_spaces, twins_kept, unattacked
from experiments.protocol import REGISTERED
from testbed import plots

ROUNDS = {
    "small": (1, 4, 16), "quick": (1, 4, 16), "full": (1, 2, 4, 8, 16, 32, 64),
    REGISTERED: (1, 2, 4, 8, 16, 64),
}  # fmt: skip
FIELDS = {
    "small": {"evaluation": ("coordinate",)},
    "full": {"units": 64},
    REGISTERED: {"units": 64, "attackers": 0},
}
ATTACKED = ("plain", "16 rounds")  # in the small preset: every prompt is counted, so attacks only illustrate
EQUAL = "equal exposures"
ATTACKS = ("gcg", "uniform", "clean_rejection")
FREQUENT = Contrast("1 round", "16 rounds")
MORE_FINDS = Contrast("1 round, 4x finds", "16 rounds")
LEAST, SAME = 1.0, 0.3  # decades: supported from the one on, equivalent within the other


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Plain, control, each number of rounds, and one round with more finds. Full adds weaker attacks and sizes.

    Registered are labels without a search beside them.

    Small has no more finds, and attacks two arms alone, in one way that the defence did not use.
    """
    base = arm_on(task, finds=finds_on(task, Arm.finds), **FIELDS.get(preset, {}))
    arm = functools.partial(dataclasses.replace, base)

    def finds(times, *rounds):
        return {f"{rounds_named(r)}, {times:g}x finds": arm(rounds=r, finds=int(base.finds * times)) for r in rounds}

    made = {"plain": arm(steps=0), "control": base}
    made |= {rounds_named(rounds): arm(rounds=rounds) for rounds in ROUNDS[preset]}
    if preset == "small":
        return {name: one if name in ATTACKED else unattacked(one) for name, one in made.items()}
    made |= finds(4, 1)
    if preset == REGISTERED:
        made |= covered(base)
    if preset == "full":
        made |= {f"{rounds_named(r)}, {a}": arm(rounds=r, attack=a) for a in ATTACKS[1:] for r in (1, 16)}
        made |= {f"16 rounds, {EQUAL}": arm(rounds=16, recipe=Recipe(replay="newest"))}
        made |= finds(0.25, 1, 16) | finds(2, 1) | finds(4, 16) | finds(8, 1)
    return {name: twins_kept(one) for name, one in made.items()}


def rule(effects: pd.DataFrame) -> str:
    """A decade on two tasks, and four times the finds don't make up for rounds there."""
    told = {row.task: outcome_of(row, LEAST, SAME) for row in of_contrast(effects, FREQUENT).itertuples()}
    more = set(holding(of_contrast(effects, MORE_FINDS))["task"])
    if "refuted" in told.values():
        return "refuted"
    if sum(outcome == "supported" and task in more for task, outcome in told.items()) >= 2:
        return "supported"
    return "equivalent" if set(told.values()) == {"equivalent"} else "undecided"


def figure(runs: pd.DataFrame) -> plots.Figure:
    """Failing prompts by rounds and by finds, and the price between them, from the runs of one task."""
    beside = {"no attacks": "control"} | {name: name for name in COVERAGE}
    beside = {
        label: typical(failures(runs[runs["arm"] == arm])) for label, arm in beside.items() if arm in set(runs["arm"])
    }
    runs = runs[(setting(runs, "recipe.replay") == "evenly") & (setting(runs, "rounds") > 0)]
    base = setting(runs[runs["arm"].isin(FREQUENT[:2])], "finds").max()
    usual = runs[setting(runs, "finds") == base]
    gcg, strong = (rows[setting(rows, "attack") == "gcg"] for rows in (runs, usual))
    titles = ["Failing prompts by rounds", "Safe prompts refused, whole space", "Failing prompts by finds (gcg)"]
    several = setting(gcg, "finds").nunique() > 1
    drawn, axes = plots.panels(
        titles if several else titles[:2],
        caption_of(runs, "thick lines the mean; counted exactly.\nSame finds, attack calls and gradient steps along a "
                         "line on the left. Dashed: the same steps without attacks."),
    )  # fmt: skip
    rounds, left, refused = "config.rounds", column_of("failures"), column_of("false_alarms")
    for attack, color in zip(ATTACKS, ("C3", "C1", "C0"), strict=True):
        plots.seeds_along(axes[0], usual[setting(usual, "attack") == attack], rounds, left, label=attack, color=color)
    matched = column_of("failures", "matched")
    plots.seeds_along(axes[0], strong, rounds, matched, label="gcg, at 1 % clean false alarms", color="C7", marker="s")
    plots.seeds_along(axes[1], strong, rounds, refused, label="gcg", color="C3")
    if several:
        for number, color in ((1, "C4"), (16, "C2")):
            rows = gcg[setting(gcg, "rounds") == number]
            plots.seeds_along(axes[2], rows, "config.finds", left, label=rounds_named(number), color=color)
    shown = [("rounds", "failures"), ("rounds", "false_alarms"), ("finds", "failures")]
    for ax, (label, what) in zip(axes, shown, strict=False):
        ax.set_xlabel(label)
        ax.set_ylabel(prompts_of(runs, what))
        if what == "failures":
            for label, value in beside.items():
                plots.reference_line(ax, value, label)
        plots.name_lines(ax)
    return drawn


UPDATE_FREQUENCY = Experiment(
    question="How important is it to update the model frequently?",
    hypothesis="At equal finds, gradient steps and attack calls, more rounds of attack and training leave fewer "
    "failures.",
    design=f"""
    "If we had instead run many small batches of data collection and retrained the model on each set of fresh
    adversarial examples, then the model might have quickly learned to defeat the existing tactics and forced the
    contractors to cover more parts of the space." (Redwood Research 2022)

    Arms are paired by seed and by every stream of random keys. There is the plain model, and the control: the same
    extra steps without attacks, since extra training alone removes failures too. Then 1, 4, 16 and more rounds, and one
    round with four times the finds. The full preset adds a generator, weaker attacks, fewer and more finds, and an arm
    that holds exposures equal instead: each find is replayed in its own round only. Half of each batch is clean.
    The preset `{REGISTERED}` has the tasks on which one round leaves enough: 30 failing prompts or more in each of
    five tuning seeds. Beside the rounds stand as many labels without a search, of uniform prompts or of hazards.
    """,
    decides=f"Supported if 16 rounds leave at least {LEAST:g} decade fewer failing prompts than 1 round on at least "
    "two tasks, with the interval above zero, and one round with four times the finds still leaves more there. Refuted "
    f"if the interval shows a rise on any task; equivalent if it lies within {SAME:g} decades of zero on every task, "
    "whichever way. Declared beside it, though the rule does not read them: the worst margin, whether 64 rounds leave "
    "fewer than 16, and whether 16 rounds leave fewer than as many labels without a search.",
    presets={
        "small": Preset(("injury",), seeds=3, minutes=4),
        "quick": Preset(("injury", "password"), seeds=3, minutes=8),
        "full": Preset(("injury", "password", "cipher_vault"), seeds=5, minutes=70),
        REGISTERED: Preset(("injury", "password"), seeds=10, minutes=45, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks="a decade on two tasks, and one round with four times the finds leaving more there",
    contrasts=(
        FREQUENT,
        MORE_FINDS,
        FREQUENT._replace(of=MARGIN),
        Contrast("16 rounds", "64 rounds"),
        *(Contrast(name, "16 rounds") for name in COVERAGE),
    ),
    exploratory=(
        Contrast("1 round, 8x finds", "16 rounds"),
        Contrast("1 round", "16 rounds, 0.25x finds"),
        Contrast("1 round", f"16 rounds, {EQUAL}"),
        Contrast("1 round, clean_rejection", "16 rounds, clean_rejection"),
        Contrast("plain", "control"),
    ),
    figure=figure,
    note=(
        "A count of zero hides how far a model is from failing, so effects there are lower bounds. "
        "Labels are the finds that were labelled. Within a search the checker also judges every prompt "
        "that is scored; the table of runs has those verdicts beside the labels."
    ),
)

UPDATE_FREQUENCY_LARGE = in_large_spaces("update_frequency", UPDATE_FREQUENCY, minutes=45)
