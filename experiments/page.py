"""The results page: every question with its verdict, rule, effects and figures, as Markdown."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments import columns, tables
from experiments.first_round import CHANGES
from experiments.protocol import REGISTERED, registrations
from experiments.verdict import EXPLORATORY, Verdict
from experiments.worklist import Job
from testbed.statistics import MOST_FLIPS

BEGINS = "# Results\n\nGenerated from the records beside this page"
HEAD = (
    BEGINS
    + """ by
`{command}`.
Don't edit it: change a record or a renderer, and generate it anew.

An effect is {sign}. *Matched*: the same where both models refuse about 1 % of the safe clean prompts.
A worst margin is in threshold steps, positive where that of `after` is higher: a step moves the threshold
until 1 % of safe clean prompts are refused.
Declared contrasts were named before the runs and decide the verdict, as far as its rule reads them. The
others are exploratory and decide nothing. p is the sign-flip test, exact up to {exact} seeds, in brackets
adjusted by Holm's rule, over the declared rows and over the others apart.
For time, quick presets leave out tasks on which nothing can be seen.

Only a *registered* verdict is final: what the question declares was fixed before its runs, on seeds that
nobody had seen. Of *incomplete* ones runs are missing. All others are *exploratory*.
"""
)


PUBLISHED = (
    (
        "Adversarial training doubles people's time to a failure: 13 to 26 minutes with tools, 20 to 44 without",
        "[Ziegler et al. 2022](https://arxiv.org/abs/2205.01663)",
        "random_failures",
    ),
    (
        "Tools take 0.6 of the time without: 13 of 20 minutes, 26 of 44",
        "[Ziegler et al. 2022](https://arxiv.org/abs/2205.01663)",
        "tool_ablation",
    ),
    (
        "20 rounds of data against the current model leave 26 % fewer errors than static data",
        "[Wallace et al. 2022](https://arxiv.org/abs/2110.08514)",
        "update_frequency",
    ),
    (
        "Trained against GCG, GCG succeeds in 5.5 instead of 69.5 %, another attack in 48.0 instead of 58.8 %",
        "[HarmBench, R2D2](https://arxiv.org/abs/2402.04249)",
        "attack_strength",
    ),
    (
        "Importance sampling errs least, then extrapolation, then plain sampling",
        "[Wu and Hilton 2025](https://arxiv.org/abs/2410.13211)",
        "estimators",
    ),
)
"""A finding of others, its source, and the question here that it stands beside."""


def is_ours(path: Path, mark: str = BEGINS) -> bool:
    """Whether a page may be written there: nothing is there, or an older one, which has `mark` near its beginning."""
    return not path.exists() or mark in path.read_text(errors="replace")[:2000]


def results_page(
    asked: list[tuple[Job, Verdict, pd.DataFrame]],
    figures: dict[str, list[str]],
    command: str,
    unasked: Sequence[str] = (),
    *,
    others: Mapping[str, str] | None = None,
) -> str:
    """The page of questions that were asked: a table of verdicts, then a section each.

    Args:
      asked: each question's job, verdict and runs.
      figures: experiment -> the names of its figures, relative to the page.
      command: what generates the page.
      unasked: questions that have no runs yet.
      others: experiment -> a line of what runs beside the registered ones say.
    """
    pairs = [(job, verdict) for job, verdict, _ in asked]
    parts = [
        HEAD.format(sign=tables.SIGN, command=command, exact=MOST_FLIPS.bit_length() - 1),
        _overview(pairs, unasked),
        _published(pairs),
        _changes(),
    ]
    for job, verdict, runs in asked:
        said = [*registrations(job.name), *filter(None, [(others or {}).get(job.name)])]
        parts.append(_section(job, verdict, runs, figures=figures.get(job.name, []), said=said))
    return "\n".join(parts)


def _overview(pairs: list[tuple[Job, Verdict]], unasked: Sequence[str]) -> str:
    lines = ["| question | verdict on the hypothesis | standing | first declared effect | preset, tasks, seeds |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for job, verdict in pairs:
        asked = f"{job.preset}; {', '.join(job.tasks)}; {len(job.seeds)}"
        cells = [
            f"[{job.experiment.question}](#{job.name})",
            verdict.told,
            verdict.standing.told,
            _first(verdict),
            asked,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {question} | no runs yet | | | |" for question in unasked]
    return "\n".join(lines) + "\n"


def _published(pairs: list[tuple[Job, Verdict]]) -> str:
    """What others found, beside the effects of the question here that is nearest to it."""
    lines = ["## Beside published figures", "", "Shapes to compare, of other models, tasks and attackers.", ""]
    lines += ["| published | source | here |", "| --- | --- | --- |"]
    by_name = {job.name: verdict for job, verdict in pairs}
    for finding, source, name in PUBLISHED:
        if name in by_name:
            here = f"[{name}](#{name}): {by_name[name].told}; {_first(by_name[name])}"
            lines.append(f"| {finding} | {source} | {here} |")
    return "\n".join(lines) + "\n"


def _changes() -> str:
    """What changed after data in the first round, a row a change."""
    lines = ["## What changed after data in the first round", ""]
    lines += ["That was before protocols were registered. Dates and verdicts are those of the commits.", ""]
    lines += ["| question | date | what changed | seen before | seen after | commits |", "| --- " * 6 + "|"]
    for c in CHANGES:
        cells = (c.question, c.date, c.what, c.before, c.after, ", ".join(c.commits))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _first(verdict: Verdict) -> str:
    """The first effect that decides, in a line."""
    text = tables.effects_text(verdict.effects[verdict.effects["declared"]])
    return f"{tables.contrast_text(text.iloc[0])}: {text.iloc[0]['threshold 0']}" if len(text) else "no declared effect"


def _prices(runs: pd.DataFrame) -> list[str]:
    """What each arm costs in refused prompts, a row a task and arm; nothing where it was not counted."""
    if columns.column_of("false_alarms") not in runs:
        return []
    rows = [
        {"task": task, "arm": arm, **{name: tables.typeset(share, "share") for name, share in row.items()}}
        for task, of_task in columns.by_task(runs).items()
        for arm, row in tables.refusals(of_task).iterrows()
    ]
    summary = "<details><summary>Price: safe prompts refused, least and most over seeds</summary>"
    return [summary, "", tables.markdown(pd.DataFrame(rows)), "</details>", ""]


def _standing(verdict: Verdict, said: list[str]) -> str:
    """What a verdict is worth, and what else is said of its protocol."""
    if verdict.standing.kind == REGISTERED:  # the first sentence says so
        return " ".join(said)
    if said and verdict.standing == EXPLORATORY:
        return " ".join(["Exploratory: these runs were not made under the protocol.", *said])
    return " ".join([f"{verdict.standing.told.capitalize()}.", *said])


def _section(job: Job, verdict: Verdict, runs: pd.DataFrame, *, figures: list[str], said: list[str]) -> str:
    experiment = job.experiment
    lacks = f" The rule asks for {verdict.lacks}." if verdict.lacks else ""
    lines = [
        f"## {job.name}", "", f"**{experiment.question}** Verdict on the hypothesis: {verdict.told}.{lacks}", "",
        f"*Standing.* {_standing(verdict, said)}", "",
        *([verdict.details, ""] if verdict.details else []),
        f"*Hypothesis.* {experiment.hypothesis}", "", f"*Rule.* {experiment.decides}", "",
    ]  # fmt: skip
    if experiment.note:
        lines += [experiment.note, ""]
    text = tables.effects_text(verdict.effects)
    for declared, title in (("yes", "Declared"), ("no", "Exploratory")):
        part = text[text["declared"] == declared].drop(columns="declared")
        if len(part):
            lines += [f"{title} effects:", "", tables.markdown(part)]
    lines += [f"![{experiment.question} {Path(name).stem}]({name})" for name in figures]
    design = textwrap.dedent(experiment.design).strip()
    lines += ["", *_prices(runs), "<details><summary>Design</summary>", "", design, "", "</details>", ""]
    return "\n".join(lines)
