"""Is the model too small for the adversarial examples?

"Our classifier fails to fit our adversarial examples." (Redwood Research 2022)

Hypothesis: below some width a model no longer fits the finds that it is trained on, and its robustness saturates while
its clean accuracy does not show it. Plain models of several widths (in `full` also of other depths), each trained
against 16 rounds of gcg with few and with many finds. Training fit: the share of the finds on which the trained model
no longer fails, and, since finds that never failed are easily fitted, the least that this share can be among those that
failed when found. Held-out fit: the exact count.

Supported if on any task, at some size, the training fit, mean over seeds, is below .8 at a clean accuracy of at least
99 %, and four times the finds improve the count there by less than half a decade; refuted if on every task the fit is
at least .95 at every size whose clean accuracy is at least 99 %. Fit and clean accuracy are those with many finds.
"""

import numpy as np
import pandas as pd

from experiments.ablation import BY_TASK, Contrast, brief, caption_of, findings, unattacked
from experiments.arm import Arm, Plain, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed import plots
from testbed.statistics import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

PRESETS = {
    "quick": Preset("injury", seeds=3, minutes=5),
    "full": Preset("injury,modular", seeds=10, minutes=100),
}
LAYERS = 2  # of all but those that say otherwise
SIZES = {  # width and layers
    "quick": tuple((width, LAYERS) for width in (4, 8, 32)),
    "full": (*((width, LAYERS) for width in (4, 8, 16, 32, 64)), (32, 1), (32, 4)),
}
FINDS = (512, 2048)


def sized(width: int, layers: int) -> str:
    """What a size is called."""
    return f"width {width}" + (f", {layers} layer{'s' * (layers > 1)}" if layers != LAYERS else "")


def named(width: int, layers: int, finds: int) -> str:
    """What the arm is called."""
    return f"{sized(width, layers)}, {finds} finds"


def grid(preset: str, task: str) -> list[Arm]:
    """Each size with each number of finds."""
    arms = [
        Arm(Plain(task, width=width, layers=layers), rounds=16, finds=finds, label=named(width, layers, finds))
        for width, layers in SIZES[preset]
        for finds in FINDS
    ]
    return unattacked(arms) if preset == "quick" else arms


def plot(frame: pd.DataFrame) -> plots.Figure:
    """What is not fitted, what fails and what is not right on clean prompts, by width, from one task.

    Lines are of two layers; other depths stand beside their width, fewer layers to the left, more to the right.
    """
    titles = ["Finds not fitted, in 10,000", "Failing prompts, counted exactly", "Clean answers not right, in 10,000"]
    widths, layers = frame["config.plain.width"], frame["config.plain.layers"]
    depths = "triangles: fewer layers than two (down), more (up); " if (layers != LAYERS).any() else ""
    figure, axes = plots.panels(titles, caption_of(frame, f"16 rounds of gcg; {depths}thick: means; log above 1."))
    # What is missing, not what is there: 96 and 99.9 % look alike on an axis that shows both.
    table = frame.assign(
        unfitted=1e4 * (1 - frame["fit"]),
        wrong=1e4 * (1 - accuracy(frame)),
        place=widths * (layers / LAYERS) ** 0.25,
        side=np.sign(layers - LAYERS),
    )
    for ax, value in zip(axes, ("unfitted", "greedy.exact.failures", "wrong"), strict=True):
        for finds, color in zip(FINDS, ("C0", "C3"), strict=True):
            for side, marker in {0: "o", -1: "v", 1: "^"}.items():
                rows = table[(table["config.finds"] == finds) & (table["side"] == side)]
                label = "" if side else f"{finds} finds"
                plots.seeds_along(ax, rows, "place", value, label, color, marker)
        ax.set_xlabel("width")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def accuracy(runs: pd.DataFrame) -> pd.Series:
    """The share of right answers to clean prompts, run by run."""
    return runs["greedy.clean.correct"] / runs["greedy.clean.samples"]


def fit_of_failures(runs: pd.DataFrame) -> pd.Series:
    """Of the finds that failed when found, the least share that a run's model can have fitted; NaN if none failed.

    Records say how many finds failed, and how many of all are not fitted: at worst all of these failed when found.
    """
    failed = runs["found"].map(np.mean).astype(float)
    return (1 - (1 - runs["fit"].astype(float)) / failed.where(failed > 0)).clip(lower=0)


def claim(frame: pd.DataFrame) -> Verdict:
    """Fit and count by size on each task, and the verdict."""
    sizes = SIZES["full"]
    gains = findings(frame, {sized(*size): Contrast(*(named(*size, finds) for finds in FINDS)) for size in sizes})
    lines, short, small, fits = [], [], False, True
    for task, rows in frame.groupby(BY_TASK, sort=False):
        there, able = {size: by_task[task] for size, by_task in gains.items() if task in by_task}, []
        for size, gain in there.items():
            runs = rows[rows["arm"] == gain.contrast.after]
            right, fit, least = accuracy(runs).mean(), runs["fit"].astype(float), fit_of_failures(runs)
            small |= right >= 0.99 and fit.mean() < 0.8 and gain.effect.mean < 0.5
            fits &= right < 0.99 or fit.mean() >= 0.95
            able += [f"{size} {fit.mean():.1%}"] if right >= 0.99 else []
            failed = f"at least {least.mean():.1%} of those that failed when found ({_range(least)})"
            lines.append(
                f"{task}, {size}: clean accuracy {right:.2%}, fits {fit.mean():.1%} of {FINDS[-1]} finds "
                f"({_range(fit)} over seeds), {failed if least.notna().any() else 'none of which failed when found'}, "
                f"{gain.text}"
            )
        short.append(
            f"{task}, of {FINDS[-1]} finds fitted at 99 % clean accuracy or more: {', '.join(able) or 'no model'}"
        )
    if not lines:
        return Verdict("undecided", "no size has records of both numbers of finds")
    outcome = "supported" if small else "refuted" if fits else "undecided"
    return Verdict(outcome, "; ".join(lines), "\n".join([*short, brief(gains)]))


def _range(shares: pd.Series) -> str:
    return f"{shares.min():.1%} to {shares.max():.1%}"
