"""Is the model too small for the adversarial examples?

"Our classifier fails to fit our adversarial examples." (Redwood Research 2022)

Hypothesis: below some width a model no longer fits the finds that it is trained on, and its robustness saturates while
its clean accuracy does not show it. Plain models of several widths, each trained against 16 rounds of gcg with few and
with many finds. Training fit: the share of the finds on which the trained model no longer fails. Held-out fit: the
exact count.

Supported if at some width the training fit, mean over seeds, is below .8 at a clean accuracy of at least 99 %, and four
times the finds improve the count there by less than half a decade; refuted if the fit is at least .95 at every width
whose clean accuracy is at least 99 %; on any task.
"""

from experiments.ablation import BY_TASK, Contrast, caption_of, drops
from experiments.arm import Arm, Plain, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed import plots
from testbed.evaluation.estimate import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

TASKS = "injury,modular"
PRESETS = {
    "quick": Preset(TASKS, seeds=3, minutes=8),
    "full": Preset(TASKS, seeds=10, minutes=60),
}
WIDTHS = {"quick": (4, 8, 16, 32), "full": (4, 8, 16, 32, 64)}
FINDS = (512, 2048)


def grid(preset: str, task: str) -> list[Arm]:
    """Each width with each number of finds."""
    return [
        Arm(Plain(task, width=width), rounds=16, finds=finds, label=f"width {width}, {finds} finds")
        for width in WIDTHS[preset]
        for finds in FINDS
    ]


def plot(frame) -> plots.Figure:
    """Training fit, failing prompts and clean accuracy by width, from one task."""
    titles = ["Finds fitted (%)", "Failing prompts, counted exactly", "Clean accuracy (%)"]
    figure, axes = plots.panels(titles, caption_of(frame, "16 rounds of gcg; thick: means."))
    table = frame.assign(
        fitted=100 * frame["fit"],
        accuracy=100 * frame["greedy.clean.correct"] / frame["greedy.clean.samples"],
    )
    for ax, value in zip(axes, ("fitted", "greedy.exact.failures", "accuracy"), strict=True):
        for finds, color in zip(FINDS, ("C0", "C3"), strict=True):
            rows = table[table["config.finds"] == finds]
            plots.seeds_along(ax, rows, "config.plain.width", value, f"{finds} finds", color)
        ax.set_xlabel("width")
    for ax in (axes[0], axes[2]):
        ax.set_yscale("linear")
        ax.set_ylim(None, 101)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def claim(frame) -> Verdict:
    """Fit and count by width on each task, and the verdict."""
    lines, small, fits = [], False, True
    for task, rows in frame.groupby(BY_TASK, sort=False):
        for width, runs in rows.groupby("config.plain.width"):
            accuracy = (runs["greedy.clean.correct"] / runs["greedy.clean.samples"]).mean()
            arms = [f"width {width}, {finds} finds" for finds in FINDS]
            gains = drops(runs, Contrast(*arms))
            if not len(gains):
                continue
            fit, gain = runs[runs["arm"] == arms[-1]]["fit"].mean(), gains.mean()
            small |= accuracy >= 0.99 and fit < 0.8 and gain < 0.5
            fits &= accuracy < 0.99 or fit >= 0.95
            lines.append(f"{task}, width {width}: clean accuracy {accuracy:.2%}, fit {fit:.1%}, "
                         f"four times the finds leave {gain:.2f} decades fewer ({len(gains)} seeds)")  # fmt: skip
    if not lines:
        return Verdict("undecided", "no width has records of both numbers of finds")
    return Verdict("supported" if small else "refuted" if fits else "undecided", "; ".join(lines))
