"""The results page: every question with its verdict, rule, effects and figures, as Markdown."""

import textwrap
from pathlib import Path

from experiments import tables
from experiments.experiment import Verdict
from experiments.worklist import Job

BEGINS = "# Results\n\nGenerated from the records beside this page"
HEAD = (
    BEGINS
    + """ by
`{command}`.
Don't edit it: change a record or a renderer, and generate it anew.

An effect is {sign}. *Matched*: the same where both models refuse 1 % of the safe clean prompts.
Declared contrasts were named before the runs and decide the verdict. The others are exploratory and
decide nothing. p is the exact sign-flip test, in brackets adjusted by Holm's rule.
"""
)


def is_ours(path: Path) -> bool:
    """Whether a results page may be written there: nothing is there, or an older one."""
    return not path.exists() or path.read_text(errors="replace").startswith(BEGINS)


def results_page(jobs: list[Job], verdicts: list[Verdict], figures: dict[str, list[str]], command: str) -> str:
    """The page of questions that were asked: a table of verdicts, then a section each.

    Args:
      figures: experiment -> the names of its figures, relative to the page.
      command: what generates the page.
    """
    pairs = list(zip(jobs, verdicts, strict=True))
    parts = [HEAD.format(sign=tables.SIGN, command=command), _overview(pairs)]
    for job, verdict in pairs:
        parts.append(_section(job, verdict, figures.get(job.name, [])))
    return "\n".join(parts)


def _overview(pairs: list[tuple[Job, Verdict]]) -> str:
    lines = ["| question | verdict | preset, tasks, seeds |", "| --- | --- | --- |"]
    for job, verdict in pairs:
        asked = f"{job.preset}; {', '.join(job.tasks)}; {len(job.seeds)}"
        lines.append(f"| [{job.experiment.question}](#{job.name}) | {verdict.outcome} | {asked} |")
    return "\n".join(lines) + "\n"


def _section(job: Job, verdict: Verdict, figures: list[str]) -> str:
    experiment = job.experiment
    lacks = f" The rule asks for {verdict.lacks}." if verdict.lacks else ""
    lines = [
        f"## {job.name}", "", f"**{experiment.question}** {verdict.outcome.capitalize()}.{lacks}", "",
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
    lines += ["", "<details><summary>Design</summary>", "", design, "", "</details>", ""]
    return "\n".join(lines)
