"""The user's own ablation: any fields of an arm over a grid, with every effect as a row.

    rounds=1,4,16 budget=39,190 learning_rate=5e-4,2e-3

Each word names a field and its values. A bare name is a field of the arm, else of its recipe, else
a parameter of its attack, else a field of its plain model; `recipe.`, `attack.` and `plain.` in
front name one of these. Fields that have several values are the axes of the grid.
"""

import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from experiments.arm import USUAL, Arm, Plain, Recipe, attack_of, defence_of, schedule_of, sizes_of, usual_plain
from experiments.axes import BASE, Axis, axes_of, called, full_name, shown, value_of
from experiments.columns import column_of, counts
from experiments.effects import Contrast
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of, prompts_of
from experiments.grids import unattacked
from experiments.idle import merged, refuse_idle
from experiments.play.finds import MARGINS, written
from experiments.play.finds import NAME as PEOPLE
from experiments.tables import by_row
from experiments.verdict import judge
from tasks import spelled, task_named
from testbed import plots
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.training.defence import attack_cost, refuse_unfit

SIDES = "one side of a contrast names values of axes, as in rounds=1:rounds=16"
FOUND = "people's finds"
MINUTES = 0.6  # of one run of the base arm on two cores, about


def arm_with(values: Mapping[str, Any], task: str) -> Arm:
    """The base arm on a task, as its kind of model is usually trained, with fields set by their full names.

    Where failures are counted its evaluation attacks only if that is asked for: no attack finds more.

    Raises:
      ValueError: the fields do not fit each other (rounds into units, heads into width).
    """
    parts: dict[str, dict[str, Any]] = {"": {}, "recipe": {}, "plain": {"task": task}, "attack": {}}
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        parts[part][field] = value
    options = tuple(sorted(parts["attack"].items()))
    kind = parts["plain"].pop("model", "transformer")
    plain, recipe = usual_plain(kind=kind, **parts["plain"]), Recipe(**parts["recipe"])
    arm = dataclasses.replace(BASE, plain=plain, recipe=recipe, options=options, **USUAL[kind].arm | parts[""])
    return arm if "attackers" in values else unattacked(arm)


@functools.cache
def grid_of(axes: tuple[Axis, ...]) -> dict[str, list[dict[str, Any]]]:
    """The arms of a grid by name, each with all points that it stands for. Without steps they are the plain models."""
    made: dict[str, list[dict[str, Any]]] = {}
    for name, points in merged(axes, functools.partial(arm_with, task=Plain.task)).items():
        name = _plain_name(points[0], axes) if points[0].get("steps") == 0 else name
        made.setdefault(name, []).extend(points)  # plain models are one, whatever attacks them afterwards
    return made


def arms(axes: Sequence[Axis], task: str) -> dict[str, Arm]:
    """The plain model of each size that is asked for, and every point of the grid.

    Raises:
      ValueError: fields do not fit each other, or nothing reads one of them.
    """
    refuse_idle(axes, functools.partial(arm_with, task=task))
    grid = {name: arm_with(point, task) for name, [point, *_] in grid_of(tuple(axes)).items()}
    for arm in grid.values():  # each refuses what does not fit, before hours are spent
        attack_of(arm), sizes_of(arm.plain)
        if arm.steps:  # without any it is the plain model
            schedule, defence = schedule_of(arm), defence_of(arm.recipe)
            refuse_unfit(schedule, defence)
            attack_cost(schedule, attack_of(arm), Objective(task_named(task), None, greedy(task_named(task))), defence)
    attackers = next(iter(grid.values())).attackers
    before = {
        _plain_name(at, axes): Arm(grid[name].plain, steps=0, attackers=attackers)
        for name, [at, *_] in grid_of(tuple(axes)).items()
    }
    return before | {name: arm for name, arm in grid.items() if arm.steps}


def _plain_name(at: Mapping[str, Any], axes: Sequence[Axis]) -> str:
    """What the plain model of a point is called."""
    varied = [axis.name for axis in axes if axis.name.startswith("plain.") and len(axis.values) > 1]
    return ", ".join(["plain", *([called({name: at[name] for name in varied})] if varied else [])])


def side_of(text: str, axes: Sequence[Axis]) -> dict[str, Any]:
    """The values that one side of a contrast names.

    Raises:
      ValueError: it names no axis, or a value that is not on it.
    """
    by_name = {axis.name: axis for axis in axes if len(axis.values) > 1}
    values = {}
    for word in re.split(r"[,\s]+", text.strip()):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"contrast {text!r}: {SIDES}")
        full = full_name(name, by_name)
        parsed = value_of(full, value, by_name[full].values[0])
        if parsed not in by_name[full].values:
            raise ValueError(f"contrast {text!r}: {full} is {', '.join(map(shown, by_name[full].values))}, not {value}")
        values[full] = parsed
    return values


def contrast_of(text: str, axes: Sequence[Axis]) -> Contrast:
    """The contrast that `rounds=1:rounds=16` asks for: each side is the mean of the arms that have these values.

    `A:B > C:D` asks whether A to B removes more than C to D.

    Raises:
      ValueError: it is written otherwise, or names what the grid does not have.
    """
    # A value may hold a colon itself: `attack=my_module:mine`.
    pairs = [re.split(r":(?=\s*[\w.]+=)", part) for part in text.split(">")]
    if len(pairs) > 2 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"contrast {text!r}: write BEFORE:AFTER, or A:B > C:D; {SIDES}")
    first, *other = (_pair(*pair, axes) for pair in pairs)
    return first if not other else first._replace(minus=other[0])


def _pair(before: str, after: str, axes: Sequence[Axis]) -> Contrast:
    sides = [side_of(text, axes) for text in (before, after)]
    if set(sides[0]) != set(sides[1]):
        raise ValueError(f"contrast {before}:{after}: both sides must name the same axes; {SIDES}")
    if not all(groups := _groups(sides, axes)):
        raise ValueError(f"contrast {before}:{after}: both sides are the same arms; name values that change something")
    return Contrast(*groups, before_name=called(sides[0]), after_name=called(sides[1]))


def _groups(sides: Sequence[Mapping[str, Any]], axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The arms that have each side's values, but for those that have both: they read no such field."""
    grid = grid_of(tuple(axes)).items()
    on = [{name: None for name, stands in grid if any(side.items() <= at.items() for at in stands)} for side in sides]
    return [tuple(name for name in one if name not in other) for one, other in (on, on[::-1])]


def ends_of(axes: Sequence[Axis]) -> tuple[Contrast, ...]:
    """For each axis its first value against its last, over all else; none where no arm reads either."""
    made = []
    for axis in axes:
        sides = [{axis.name: value} for value in (axis.values[0], axis.values[-1])]
        if len(axis.values) > 1 and all(groups := _groups(sides, axes)):
            made.append(Contrast(*groups, before_name=called(sides[0]), after_name=called(sides[1])))
    return tuple(made)


def ablation(
    axes: Sequence[Axis], contrasts: Sequence[str] = (), *, x: str = "", hue: str = "", panel: str = ""
) -> Experiment:
    """An experiment over a grid: contrasts that are named are declared, those of each axis's ends are exploratory.

    Args:
      x, hue, panel: axes of the figure; by default those with the most values, in this order.

    Raises:
      ValueError: a contrast or an axis of the figure names what the grid does not have.
    """
    declared = tuple(contrast_of(text, axes) for text in contrasts)
    names = [contrast.names for contrast in declared]
    others = tuple(contrast for contrast in ends_of(axes) if contrast.names not in names)
    layout = layout_of(axes, x, hue, panel)
    grid = ", ".join(f"{axis.name} = {' '.join(map(shown, axis.values))}" for axis in axes)
    return Experiment(
        question=f"What do {', '.join(axis.name for axis in axes if len(axis.values) > 1) or 'these fields'} change?",
        hypothesis="",
        design=f"Grid: {grid}. Other fields: {BASE.name} of {BASE.attack}, as `experiments.arm.Arm` has them.",
        decides="",
        presets={"grid": Preset(("injury",), seeds=3, minutes=3 * MINUTES * len(grid_of(tuple(axes))))},
        arms=lambda preset, task: arms(axes, task),
        rule=lambda effects: "not tested",
        contrasts=declared,
        exploratory=others,
        table=by_row,
        figure=lambda runs: draw(runs, axes, layout),
    )


def beside_people(experiment: Experiment, finds: Callable[[str], np.ndarray]) -> Experiment:
    """The same with one more arm, trained on what people found; exploratory, each other arm against it.

    It is the first arm that attacks, with the finds in place of its attack.

    Args:
      finds: `task -> prompts [n, T]`, that people found there.
    """

    def with_people(preset: str, task: str) -> dict[str, Arm]:
        others = experiment.arms(preset, task)
        like = next((arm for arm in others.values() if arm.rounds and arm.steps), None)
        if like is None:
            raise ValueError("--finds needs an arm with rounds beside it: give rounds=1 or more")
        options = (("prompts", written(finds(task))),)
        return others | {FOUND: dataclasses.replace(like, attack=PEOPLE, budget=MARGINS, options=options, label=FOUND)}

    [task, *_] = experiment.presets["grid"].tasks
    pairs = [Contrast(name, FOUND) for name in experiment.arms("grid", task)]
    return experiment._replace(arms=with_people, exploratory=(*experiment.exploratory, *pairs))


class Layout(NamedTuple):
    """Which axis of the grid is which of the figure; empty where there is none."""

    x: str
    hue: str
    panel: str


def layout_of(axes: Sequence[Axis], x: str = "", hue: str = "", panel: str = "") -> Layout:
    """The figure's axes, as named or by the number of values.

    Raises:
      ValueError: one names no axis of the grid.
    """
    varied = {axis.name: axis for axis in axes if len(axis.values) > 1}
    try:
        named = [full_name(name, varied) if name else "" for name in (x, hue, panel)]
    except ValueError as error:
        several = ", ".join(varied) or "none"
        raise ValueError(f"{error}; axes of the figure are fields of several values: {several}") from error
    # Numbers before words, then the longest: a line along x is read best with many steps.
    order = sorted(varied, key=lambda name: (isinstance(varied[name].values[0], str), -len(varied[name].values)))
    free = iter([name for name in order if name not in named])
    return Layout(*(name or next(free, "") for name in named))


def draw(runs: pd.DataFrame, axes: Sequence[Axis], layout: Layout) -> plots.Figure:
    """Failing prompts, and below them safe prompts refused, over the grid, from the runs of one task."""
    by_name = {axis.name: axis for axis in axes}
    stands = pd.DataFrame([{"arm": arm} | point for arm, group in grid_of(tuple(axes)).items() for point in group])
    rows = runs.drop(columns=[*by_name], errors="ignore").merge(stands, on="arm")
    values = {part: by_name[name].values if name else (None,) for part, name in layout._asdict().items()}
    price = "Safe prompts refused"
    measures = {"Failing prompts": "failures", price: "false_alarms"}
    said = ""
    if not counts(rows, measures[price]).any():  # a panel of zeros alone says less than a line
        measures.pop(price)
        said = " No safe prompt is refused."
    titles = [
        title + (f", {layout.panel}={shown(value)}" if layout.panel else "")
        for title in measures
        for value in values["panel"]
    ]
    caption = caption_of(rows, "thick lines: means. Threshold 0, counted over the whole space." + said)
    figure, drawn = plots.panels(titles, caption, columns=max(2, len(values["panel"])))
    colors = [f"C{number}" for number in range(len(values["hue"]))]
    places = itertools.product(measures.values(), values["panel"])
    for ax, (what, value) in zip(drawn, places, strict=True):
        part = rows[rows[layout.panel] == value] if layout.panel else rows
        for color, hue in zip(colors, values["hue"], strict=True):
            line = part[part[layout.hue] == hue] if layout.hue else part
            label = f"{layout.hue}={shown(hue)}" if layout.hue else "the grid"
            if not len(line):  # all its runs have failed
                continue
            plots.seeds_by_value(ax, line, layout.x, values["x"], value=column_of(what), label=label, color=color)
        ax.set_xlabel(layout.x)
        ax.set_ylabel(prompts_of(rows, what))
        if layout.hue:
            plots.name_lines(ax)
    return figure


class Ablation(NamedTuple):
    """What came of an ablation: a row a run, a row an effect, a figure a task; the folder of records and report."""

    runs: pd.DataFrame
    effects: pd.DataFrame
    figures: dict[str, Any]
    folder: Path


def ablate(
    task: str | Sequence[str] = "injury",
    fields: Mapping[str, Any] | None = None,
    *,
    seeds: int = 3,
    first_seed: int = 0,
    contrasts: str | Sequence[str] = (),
    out: str | Path = "results",
    quiet: bool = False,
    place: Any = None,
    **more: Any,
) -> Ablation:
    """Train, attack and defend over a grid of fields, and count what is left of each point.

    Args:
      task: a task's name, or several.
      fields: full names of fields that are no Python names (`{"plain.width": (16, 32)}`).
      seeds, first_seed: paired training seeds.
      contrasts: effects to add, as `rounds=1:rounds=16`.
      out: the folder of records and models; runs that it holds are not done again.
      quiet: whether to print nothing.
      place: where runs are done (`testbed.runs.launchers`); threads of this process by default.
      more: a field and its value or values: `rounds=(1, 4), budget=190`.

    Raises:
      ValueError: a field, a value, a task or a contrast is not there, there are no seeds, or a task or an attack
        breaks its contract.
      RuntimeError: a run failed; the others are recorded.
    """
    from experiments.jobs import run_missing, write_beside
    from experiments.reading import figures_of, frame_of
    from experiments.task_check import check_parts
    from experiments.worklist import ABLATION, Job

    tasks = tuple(dict.fromkeys(map(spelled, (task,) if isinstance(task, str) else task)))
    if seeds < 1 or first_seed < 0:
        raise ValueError(f"seeds must be at least 1 and first_seed at least 0, not {seeds} and {first_seed}")
    contrasts = (contrasts,) if isinstance(contrasts, str) else tuple(contrasts)
    axes = axes_of({**(fields or {}), **more})
    experiment = ablation(axes, contrasts)
    words = [f"--contrast={contrast}" for contrast in contrasts]
    words += [f"{axis.name}={','.join(map(shown, axis.values))}" for axis in axes]
    paired = range(first_seed, first_seed + seeds)
    job = Job(ABLATION, experiment, "grid", tasks, paired, Path(out) / ABLATION, tuple(words))
    check_parts(job)
    failed = run_missing(Console(quiet=quiet), job, place)
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed; the first: {failed[0]}")
    runs = frame_of(job)
    verdict, figures = judge(experiment, runs), figures_of(experiment, runs)
    for line in write_beside(job, runs, verdict, figures):
        warnings.warn(line, stacklevel=2)
    return Ablation(runs, verdict.effects, figures, job.folder)
