"""People: time and forward passes to a first failure, beside attacks on the same model."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.arm import Arm, Plain, added
from experiments.bench import Bench, defended_model
from experiments.columns import by_task
from experiments.effects import share, table
from experiments.experiment import Experiment, Preset
from experiments.play.finds import Played, digest_of_files, model_of, sessions_of
from experiments.play.session import SESSIONS
from tasks import spelled, task_named
from testbed import plots
from testbed.attacks import attack_made
from testbed.attacks.search import NEVER
from testbed.evaluation.account import calls_to_failure
from testbed.evaluation.survival import kaplan_meier, median_of
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs.models import digest_of
from testbed.statistics import clopper_pearson
from testbed.text import plural

BESIDE = ("uniform", "coordinate", "saliency", "gcg")
ATTACKERS, BUDGET = 64, 10_000
WHO = "people"
NONE = "no sessions"
LOST = "no record: their run failed, or they played on"
UNITS = ("forward passes", "seconds")


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Who searches which model for a first failure.

    Attributes:
      task: by name.
      who: an attack's name, or `people`.
      condition: what people were shown.
      models: how many models people played against at once; the last was to be broken.
      model, path: the digest of the model that was played against, and where it lies. Where nobody played, both are
        empty: then attacks search a model of one round.
      sessions: a digest of the people's files.
    """

    task: str
    who: str
    condition: str = ""
    model: str = ""
    path: str = ""
    sessions: str = ""
    models: int = added(1)


def searchers(played: list[Played], task: str) -> dict[str, Searcher]:
    """The people of each model and condition that was played on a task, and attacks on the same models."""
    mine = [one for one in played if one.header["task"] == task]
    targets = {one.target["digest"]: one.target for one in mine} or {"": {"path": ""}}
    arms = {}
    for digest, target in targets.items():
        on = f" on {target['name']} {digest[:6]}" if len(targets) > 1 else ""
        place = {"model": digest, "path": target.get("path", "")}
        here = [one for one in mine if one.target["digest"] == digest]
        for condition, models in dict.fromkeys(map(kind_of, here)):  # a look at two models costs twice as much
            group = [one for one in here if kind_of(one) == (condition, models)]
            beside = f", {plural(models, 'model')}" if models > 1 else ""
            arms[f"{WHO}, {condition}{beside}{on}"] = Searcher(
                task, WHO, condition, sessions=digest_of_files(group), models=models, **place
            )
        arms |= {f"{attack}{on}": Searcher(task, attack, **place) for attack in BESIDE}
    return arms


def kind_of(one: Played) -> tuple[str, int]:
    """Under which condition a session was played, and against how many models."""
    return one.header["condition"], len(one.header["models"])


def arms(preset: str, task: str) -> dict[str, Searcher]:
    """Attacks alone: nobody played."""
    return searchers([], spelled(task))


def within(out: Path) -> Experiment:
    """The question of a folder of results: its sessions are the people."""
    played = sessions_of(list((out / SESSIONS).glob("*.jsonl")))
    tasks = tuple(dict.fromkeys(one.header["task"] for one in played)) or PEOPLE.presets["quick"].tasks
    presets = {name: preset._replace(tasks=tasks) for name, preset in PEOPLE.presets.items()}
    absent = LOST if played else NONE
    return PEOPLE._replace(
        arms=lambda preset, task: searchers(played, spelled(task)), presets=presets,
        table=functools.partial(of_searchers, absent=absent), figure=functools.partial(figure, absent=absent),
    )  # fmt: skip


def measure(config: Searcher, bench: Bench) -> dict[str, Any]:
    """What each searcher spent until its first failure, or in all where it found none."""
    if config.who == WHO:
        return of_people(config, bench.folder.parent / SESSIONS)
    task, target = task_named(config.task), {"path": config.path, "digest": config.model}
    made = defended_model(bench, Arm(Plain(config.task), rounds=1)).model if not config.model else model_of(target)
    objective, key = Objective(task, made, greedy(task)), bench.key("people")
    first = calls_to_failure(key, attack_made(config.who), objective, attackers=ATTACKERS, budget=BUDGET)
    budget = BUDGET * objective.forwards
    return {"searched": digest_of(made), "first": first, "spent": [budget] * len(first), "found_at": [], "clock": []}


def of_people(config: Searcher, folder: Path) -> dict[str, Any]:
    """The sessions of one model and condition: forward passes and seconds.

    Raises:
      ValueError: the files are not those that the run is named after.
    """
    group = [
        one
        for one in sessions_of(list(folder.glob("*.jsonl")))
        if (one.header["task"], one.target["digest"], *kind_of(one))
        == (config.task, config.model, config.condition, config.models)
    ]
    if digest_of_files(group) != config.sessions:
        raise ValueError(
            f"the sessions in {folder} are not those that the run was named after; start the command again"
        )
    finds = [one.state.finds[0] if one.state.finds else None for one in group]
    return {
        "searched": config.model,
        "first": [find and find.forwards for find in finds],
        "spent": [one.state.forwards for one in group],
        "found_at": [find and find.seconds for find in finds],
        "clock": [one.state.seconds for one in group],
    }


def never(values: list[float | None]) -> np.ndarray:
    """First times `[P]`, `NEVER` where there was none."""
    return np.array([NEVER if value is None else value for value in values], float)


def seconds_of(run: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to the first failure `[P]`, and seconds in all `[P]`.

    An attack's are its share of its run's wall time. In that all attackers ran at once, programs were compiled, and
    where nobody has played the model was trained, too.
    """
    if is_people(run["arm"]):
        return never(run["found_at"]), np.array(run["clock"], float)
    all_seconds = np.full(len(run["first"]), float(run["seconds"]))
    first = never(run["first"])
    return np.where(first < NEVER, first / np.array(run["spent"]) * all_seconds, NEVER), all_seconds


def searches(part: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """By each of `UNITS`, what searchers of some runs spent until the first failure `[P]`, and in all `[P]`."""
    passes = [(never(run["first"]), np.array(run["spent"], float)) for _, run in part.iterrows()]
    times = [seconds_of(run) for _, run in part.iterrows()]
    return [tuple(np.concatenate(column) for column in zip(*pairs, strict=True)) for pairs in (passes, times)]


def is_people(arm: str) -> bool:
    """Whether an arm is of people."""
    return arm.startswith(WHO)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The share of sessions with a find: it is told, and decides nothing."""
    rows = []
    for task, part in by_task(runs).items():
        for _, run in part[part["arm"].map(is_people)].drop_duplicates("arm").iterrows():
            found = sum(first is not None for first in run["first"])
            interval = clopper_pearson(found, len(run["first"]))
            rows.append(share(task, run["arm"], "sessions with a failure", interval, len(run["first"]), declared=False))
    return table(rows)


def rule(effects: pd.DataFrame) -> str:
    """Nothing is decided: who plays, and how often, is not under this command's control."""
    return "not tested"


def of_searchers(runs: pd.DataFrame, absent: str = NONE) -> pd.DataFrame:
    """Searchers, finds, and medians, a row an arm; where there are no people, a row that says `absent`."""
    rows = {} if runs["arm"].map(is_people).any() else {WHO: [absent, "", "", ""]}
    for arm, part in runs.groupby("arm", sort=False):
        if is_people(arm):  # each seed's record holds the same sessions
            part = part.head(1)
        curves = [kaplan_meier(*pairs) for pairs in searches(part)]
        middle = [f"{value:,.0f}" if np.isfinite(value) else "never" for value in map(median_of, curves)]
        first = never([one for run in part["first"] for one in run])
        rows[arm] = [f"{len(first):,}", f"{(first < NEVER).sum():,}", *middle]
    heads = ["searchers", "with a failure", "median forward passes", "median seconds"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=heads)


def figure(runs: pd.DataFrame, absent: str = NONE) -> plots.Figure:
    """Who has found a failure, over forward passes and over time: one task; without people it says `absent`."""
    said = "" if runs["arm"].map(is_people).any() else f" People: {absent}."
    task, seeds = runs["task"].iloc[0], runs["seed"].nunique()
    caption = f"{task}: Kaplan-Meier, {seeds} seeds; who stopped without a find is censored there.{said}"
    drawn, axes = plots.panels([f"Found a failure, by {unit}" for unit in UNITS], caption)
    names = list(runs["arm"].unique())
    for color, arm in zip(plots.kinds(len(names)), names, strict=True):
        part = runs[runs["arm"] == arm].head(1 if is_people(arm) else None)
        for ax, (first, spent) in zip(axes, searches(part), strict=True):
            curve = kaplan_meier(first, spent)
            left = np.concatenate([[1.0], curve.surviving])
            begin = min(1.0, *curve.calls[:1])  # the first pass, or second, but for what came before it
            along = np.concatenate([[begin], curve.calls, [spent.max()]])
            thick = 2.2 if is_people(arm) else 1.2
            label = f"{arm} ({len(first)})"
            ax.step(along, 1 - np.append(left, left[-1]), where="post", color=color, lw=thick, label=label)
    for ax, unit in zip(axes, UNITS, strict=True):
        ax.set_xlabel(unit)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("share with a failure")
        plots.legend_below(ax)
    return drawn


PEOPLE = Experiment(
    question="How long do people search for a first failure, beside attacks?",
    hypothesis="With the tools people need fewer forward passes than without, and more time than attacks.",
    design=f"""
    "It took around 40 minutes" and "twice as fast" were the measures of Ziegler et al. (2022), who paid people to
    rewrite stories with a tool. Here people play by `--play`, and their sessions lie in `{SESSIONS}/` beside the
    records. Attacks search the same model from random hazards. A look is charged in forward passes as an attack
    would be. A session that ends without a find is censored where it ended. An attack's time is its share of its
    run's wall time. Where nobody has played, attacks search a model of one round, and the table says so. The time of
    the run that trains it is then in that share.
    """,
    decides="Nothing: who plays is not under this command's control, so the verdict is always *not tested*.",
    presets={"quick": Preset(("injury",), seeds=1, minutes=3), "full": Preset(("injury",), seeds=3, minutes=9)},
    arms=arms,
    rule=rule,
    measure=measure,
    effects=effects,
    table=of_searchers,
    figure=figure,
    within=within,
)
