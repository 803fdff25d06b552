"""Capacity: which sizes of a model fit the finds that they are trained on."""

import dataclasses

import numpy as np
import pandas as pd

from experiments.arm import Arm
from experiments.columns import by_task, clean_accuracy, column_of, failures, setting, typical
from experiments.effects import Contrast, mean_of, rows_of, table
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of
from experiments.grids import ARENA, COVERAGE, LARGER, arm_on, covered, finds_on, twins_kept, unattacked
from experiments.protocol import REGISTERED
from tasks import spelled
from testbed import plots
from testbed.text import plural

LAYERS = 2  # of all but those that say otherwise
STEPS_OF_MACHINES = (8, 16, 32, 64)  # hidden widths of their step
SIZES = {  # width and layers
    "quick": tuple((width, LAYERS) for width in (4, 8, 32)),
    REGISTERED: tuple((width, LAYERS) for width in (4, 8, 16, 32)),
    "full": (*((width, LAYERS) for width in (4, 8, 16, 32, 64)), (32, 1), (32, 4)),
}
FINDS = (512, 2048)
FIT, RIGHT, GAIN = "finds fitted", "clean accuracy", "failing prompts"
FAILED = "finds fitted of those that failed when found, at least"
ACCURATE, FITTED, UNFITTED, LITTLE = 0.99, 0.95, 0.8, 0.5


def named(width: int, layers: int, taught: int | str) -> str:
    """What an arm of one size is called, by its number of finds or by its labels without a search."""
    depth = f", {plural(layers, 'layer')}" if layers != LAYERS else ""
    return f"width {width}{depth}, {taught}" + " finds" * isinstance(taught, int)


def sized(task: str, width: int, layers: int, finds: int) -> Arm:
    """An arm of one size. The width of a machine is that of its step."""
    arm = twins_kept(arm_on(task, rounds=16, finds=finds_on(task, finds)))
    size = {"hidden": width} if arm.plain.model == "machine" else {"width": width, "layers": layers}
    return dataclasses.replace(arm, plain=dataclasses.replace(arm.plain, **size))


def arms(preset: str, task: str) -> dict[str, Arm]:
    """Each size with each number of finds. Registered are as many labels without a search, at the largest size."""
    sizes = [(width, LAYERS) for width in STEPS_OF_MACHINES] if spelled(task) in LARGER else SIZES[preset]
    made = {named(*size, finds): sized(task, *size, finds) for size in sizes for finds in FINDS}
    if preset == REGISTERED:
        largest = sizes[-1]
        made |= {named(*largest, fresh): arm for fresh, arm in covered(made[named(*largest, FINDS[-1])]).items()}
    return made if preset == "full" else {name: unattacked(arm) for name, arm in made.items()}


def fit_of_failures(runs: pd.DataFrame) -> pd.Series:
    """Of the finds that failed when found, the least share that a run's model can have fitted.

    Records say how many finds failed, and how many of all are not fitted. At worst all of these
    failed when found. NaN if none did.
    """
    failed = runs["found"].map(np.mean).astype(float)
    return (1 - (1 - runs["fit"].astype(float)) / failed.where(failed > 0)).clip(lower=0)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """By task and size: what more finds gain; fit and clean accuracy with many of them.

    Exploratory: the least fit there can be; and how labels without a search compare.
    """
    rows = []
    for task, part in by_task(runs).items():
        for size in SIZES["full"]:
            few, many = (named(*size, finds) for finds in FINDS)
            gain, of_many = rows_of(part, [Contrast(few, many)]), part[part["arm"] == many]
            if not gain:
                continue
            measured = {FIT: of_many["fit"].astype(float), RIGHT: clean_accuracy(of_many)}
            rows += gain
            rows += [mean_of(task, many, of, shares, unit="share", declared=True) for of, shares in measured.items()]
            least = fit_of_failures(of_many).dropna()
            if len(least):
                rows.append(mean_of(task, many, FAILED, least, unit="share"))
            rows += rows_of(part, [Contrast(named(*size, fresh), many) for fresh in COVERAGE], declared=False)
    return table(rows)


def rule(effects: pd.DataFrame) -> str:
    """An accurate size that does not fit its finds, and gains little from more. Without one nothing is tested."""
    sizes = effects[effects["declared"]].pivot(index=["task", "after"], columns="of", values="effect")
    able = sizes[sizes[RIGHT] >= ACCURATE]
    if ((able[FIT] < UNFITTED) & (able[GAIN] < LITTLE)).any():
        return "supported"
    if able.empty:
        return "not tested"
    everywhere = set(able.index.unique("task")) == set(sizes.index.unique("task"))
    return "refuted" if everywhere and (able[FIT] >= FITTED).all() else "undecided"


def widths_of(runs: pd.DataFrame) -> pd.Series:
    """The width of each run's model, of a machine that of its step."""
    if "config.plain.model" not in runs:
        return setting(runs, "plain.width")
    is_machine = setting(runs, "plain.model") == "machine"
    return setting(runs, "plain.hidden").where(is_machine, setting(runs, "plain.width"))


def figure(runs: pd.DataFrame) -> plots.Figure:
    """What is not fitted, what fails and what is not right on clean prompts, by width: one task.

    Lines are of two layers. Other depths stand beside their width, fewer layers to the left. Dashed are as many labels
    without a search, of the largest size.
    """
    beside = {fresh: runs[runs["arm"].str.endswith(fresh)] for fresh in COVERAGE}
    runs = runs.drop(index=[run for part in beside.values() for run in part.index])
    titles = ["Finds not fitted, in 10,000", "Failing prompts, counted exactly", "Clean answers not right, in 10,000"]
    widths, layers, task = widths_of(runs), setting(runs, "plain.layers"), runs["task"].iloc[0]
    depths = "triangles: fewer layers than two (down), more (up); " if (layers != LAYERS).any() else ""
    drawn, axes = plots.panels(titles, caption_of(runs, f"16 rounds of gcg; {depths}thick: means; log above 1."))
    # What is missing, not what remains: 96 and 99.9 % look alike on an axis that shows both.
    shown = runs.assign(
        unfitted=1e4 * (1 - runs["fit"]),
        wrong=1e4 * (1 - clean_accuracy(runs)),
        place=widths * (layers / LAYERS) ** 0.25,
        side=np.sign(layers - LAYERS),
    )
    left = column_of("failures")
    for ax, value in zip(axes, ("unfitted", left, "wrong"), strict=True):
        for finds, color in zip(FINDS, ("C0", "C3"), strict=True):
            for side, marker in {0: "o", -1: "v", 1: "^"}.items():
                rows = shown[(setting(shown, "finds") == finds_on(task, finds)) & (shown["side"] == side)]
                label = "" if side else f"{finds_on(task, finds):,} finds"
                plots.seeds_along(ax, rows, "place", value, label=label, color=color, marker=marker)
        if value == left:
            for fresh, part in beside.items():
                plots.reference_line(ax, typical(failures(part)), fresh)
        ax.set_xlabel("width")
        plots.name_lines(ax)
    return drawn


CAPACITY = Experiment(
    question="Is the model too small for the adversarial examples?",
    hypothesis="Below some width a model no longer fits the finds that it is trained on. Its "
    "robustness saturates, while its clean accuracy does not show it.",
    design=f"""
    "Our classifier fails to fit our adversarial examples." (Redwood Research 2022)

    Plain models of several widths are each trained against 16 rounds of gcg. They have few finds
    ({FINDS[0]}) or many ({FINDS[1]:,}). The full preset adds other depths.

    Training fit is the share of the finds on which the trained model no longer fails. Finds that
    never failed are easily fitted. So the least that this share can be among those that failed when
    found stands beside it. Held-out fit is the exact count of failing prompts. Safe twins that
    are kept among the finds count for neither. The preset `{REGISTERED}` has as many labels without a
    search beside the largest size. It also asks
    {ARENA};
    their width is that of a step.
    """,
    decides="Fit and clean accuracy are those with many finds, means over seeds. Supported if on "
    f"any task, at some size, the training fit is below {UNFITTED} at a clean accuracy of at "
    f"least {ACCURATE:.0%}, and four times the finds improve the count there by less than "
    f"{LITTLE} decades. Refuted if on every task the fit is at least {FITTED} at every size whose "
    f"clean accuracy is at least {ACCURATE:.0%}.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=5),
        "full": Preset(("injury", "modular"), seeds=10, minutes=100),
        REGISTERED: Preset(("injury", "password", *LARGER), seeds=10, minutes=75, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"a fit below {UNFITTED} at some accurate size, or of {FITTED} at all of them",
    effects=effects,
    figure=figure,
    note="Every size that is right on clean prompts fits its finds. Sizes that don't are wrong on clean prompts, too, "
    "so clean accuracy does show it. In the small spaces four times the finds help every accurate size, and as many "
    "labels without a search leave far more. At 2^64 neither can be told from zero.",
)
