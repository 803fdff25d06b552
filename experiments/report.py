"""The report: one HTML file of a question, without any request, rendered from its records alone.

The same records give the same bytes. Every number is typeset by `experiments.tables`; the template
`report.html` beside this module holds style and script.
"""

import math
import shlex
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import columns, tables
from experiments.forest import MARGIN, finite, forests, scale_over
from experiments.markup import element, head_of, prose, row_of, scrolling, sort_keys, table_of, text
from experiments.protocol import registrations
from experiments.reading import doubts
from experiments.verdict import Verdict
from experiments.worklist import ABLATION, Job
from tasks import task_named
from testbed import plots
from testbed.runs import results
from testbed.runs.sweep import status
from testbed.svg import svg

TEMPLATE = Path(__file__).with_name("report.html")
WORST = 3  # prompts shown of each arm
STRIP = (150, 20)  # width and height of a strip of seeds, in units of its own


FOUND = "What was found"
INDEX = f"<title>{FOUND}</title>"  # by which the page that leads to reports is known


def page(title: str, body: str) -> str:
    """A whole page of the template."""
    return string.Template(TEMPLATE.read_text()).substitute(title=text(title), body=body)


def report(job: Job, runs: pd.DataFrame, verdict: Verdict, figures: dict[str, plots.Figure]) -> str:
    """The report of a job as a page.

    Args:
      runs: the runs that have records, tidy; figures: one a task.
    """
    experiment = job.experiment
    asked = f"{job.name}, preset {job.preset}; {', '.join(job.tasks)}; {len(job.seeds)} seeds"
    parts = [
        element("p", text(asked), class_="asked"),
        element("h1", text(experiment.question)),
        _verdict(job, verdict),
        _warnings(job, runs),
        _folded("Hypothesis, rule and design", _declared(job.name, experiment)),
        forests(verdict.effects),
    ]
    for place, (task, rows) in enumerate(columns.by_task(runs).items()):
        parts.append(_task(job, task, rows, figures.get(task), f"f{place}"))
    parts += [_origin(job)]
    return page(experiment.question, "\n".join(filter(None, parts)))


def index(jobs: Sequence[Job], verdicts: Sequence[Verdict]) -> str:
    """The page that leads to the reports of several questions, each in the folder of its name."""
    rows = []
    for job, verdict in zip(jobs, verdicts, strict=True):
        link = element("a", text(job.experiment.question), href=f"{job.folder.name}/report.html")
        said = [verdict.told, verdict.standing.told, job.preset, ", ".join(job.tasks)]
        cells = [*map(text, said), str(len(job.seeds))]
        rows.append(row_of([link, *cells], [job.experiment.question, *said, len(job.seeds)]))
    head = head_of(["question", "verdict", "standing", "preset", "tasks", "seeds"])
    table = element("table", head + element("tbody", "\n".join(rows)), class_="sortable")
    return page(FOUND, element("h1", FOUND) + scrolling(table))


def command_of(job: Job) -> str:
    """The command that makes a job's records."""
    words = ["python", "-m", "experiments.run"]
    words += ["--ablate"] if job.name == ABLATION else [f"--experiment={job.name}", f"--preset={job.preset}"]
    words += [f"--task={','.join(job.tasks)}", f"--seeds={len(job.seeds)}"]
    usual = job.experiment.presets[job.preset].first_seed
    words += [f"--first_seed={job.seeds[0]}"] if job.seeds[0] != usual else []
    words += [f"--largest_space=2^{job.largest.bit_length() - 1}"] if job.largest is not None else []
    words += [f"--population={job.population}"] if job.population > 1 else []
    return shlex.join([*words, *job.words])


def _verdict(job: Job, verdict: Verdict) -> str:
    if not job.experiment.decides:
        return ""
    final = verdict.standing.kind != "incomplete"
    kind = verdict.outcome.replace(" ", "-") if final else "incomplete"
    chip = element("strong", text(verdict.told), class_=f"verdict {kind}")
    said = f" {verdict.standing.told.capitalize()}."
    said += f" The rule asks for {verdict.lacks}." if verdict.lacks else ""
    return element("p", chip + text(f"{said} {verdict.details}".rstrip()))


def _warnings(job: Job, runs: pd.DataFrame) -> str:
    """What of the runs is missing, failed, damaged or sampled, said before any number is shown."""
    states = status(job.runs, job.folder)
    absent = {line.partition(": ")[0]: kind for kind in ("failed", "running", "missing") for line in states[kind]}
    lines = []
    for kind, verb in (("missing", "missing"), ("running", "still running"), ("failed", "failed")):
        of_kind = [run for run in job.runs if absent.get(run.id) == kind]
        if of_kind:
            arms: dict[str, list[str]] = {}
            for run in of_kind:
                arms.setdefault(f"{run.task}, {run.arm}", []).append(str(run.seed))
            told = "; ".join(f"{arm} (seed {', '.join(seeds)})" for arm, seeds in arms.items())
            lines.append(f"{len(of_kind)} of {len(job.runs)} runs: {verb}. {told}.")
    lines += states["failed"] + states["foreign"] + doubts(job)
    if note := columns.sampled_note(runs):
        lines.append(f"{note}; these numbers of failing prompts are no counts of the space.")
    if not lines:
        return element("p", f"All {len(job.runs)} runs have a record.", class_="complete")
    return element("ul", "".join(element("li", text(line)) for line in lines), class_="warnings")


def _declared(name: str, experiment) -> str:
    parts = {
        "Hypothesis": experiment.hypothesis,
        "Rule": experiment.decides,
        "Design": textwrap.dedent(experiment.design).strip(),
        "Note": experiment.note,
        "Protocol": "\n\n".join(registrations(name)),
    }
    return "".join(
        element("h3", name) + "".join(element("p", prose(part)) for part in said.split("\n\n"))
        for name, said in parts.items()
        if said
    )


def _folded(summary: str, inside: str) -> str:
    return element("details", element("summary", text(summary)) + inside) if inside else ""


def _task(job: Job, task: str, rows: pd.DataFrame, figure: plots.Figure | None, name: str) -> str:
    note = columns.sampled_note(rows)
    parts = [element("h2", text(task))]
    if note:
        parts.append(element("p", text(note), class_="warnings"))
    if figure is not None:
        drawn = svg(figure, name)
        parts.append(element("figure", drawn, role="img", aria_label=f"{job.experiment.question} {task}"))
    if limit := columns.limit_note(rows):
        parts.append(element("p", text(limit)))
    shown = job.experiment.table(rows)
    arms = set(rows["arm"])
    if columns.is_account(rows):
        by_row = shown if set(shown.index) <= arms else tables.by_row(rows)
        parts.append(_arms(by_row, rows))
        if by_row is not shown:
            parts.append(_folded("All measures", scrolling(table_of(shown))))
    else:
        parts.append(scrolling(table_of(shown)))
    parts.append(_folded(f"Worst prompts of each arm ({task})", _worst(task, rows)))
    return element("section", "\n".join(filter(None, parts)))


def _arms(shown: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The arms of a task: a strip with a point a seed, then what the table says."""
    counted = rows.assign(failing=columns.failures(rows))
    most = float(columns.decades(counted["failing"]).max())
    scale = scale_over(0, max(most, 1), STRIP[0])
    strips, typical = {}, {}
    for arm, part in counted.groupby("arm", sort=False):
        part = part.sort_values("seed")
        strips[arm] = _strip(part, scale)
        typical[arm] = finite(columns.decades(part["failing"]).mean())
    columns_of = [sort_keys(shown[column].astype(str)) for column in shown]
    body = []
    for place, (arm, cells) in enumerate(shown.iterrows()):
        keys = [str(arm), typical[arm], *(column[place] for column in columns_of)]
        body.append(row_of([text(arm), strips[arm], *map(text, cells)], keys))
    head = head_of(["arm", "failing prompts, a point a seed", *map(str, shown.columns)])
    return scrolling(element("table", head + element("tbody", "\n".join(body)), class_="sortable"))


def _strip(part: pd.DataFrame, scale: Callable[[float], float]) -> str:
    said = {
        row.seed: f"seed {row.seed}: {plots.number(row.failing)} failing prompts"
        for row in part.itertuples()
        if math.isfinite(row.failing)
    }
    points = "".join(
        f'<circle cx="{scale(columns.decades(row.failing)):.1f}" cy="10" r="4" data-tip="{text(said[row.seed])}"/>'
        for row in part.itertuples()
        if row.seed in said
    )
    line = f'<line x1="{MARGIN}" x2="{STRIP[0] - MARGIN}" y1="10" y2="10"/>'
    size, label = f"0 0 {STRIP[0]} {STRIP[1]}", "; ".join(said.values())
    given = {"viewBox": size, "class_": "strip", "role": "img", "tabindex": 0, "aria_label": label}
    return element("svg", line + points, **given, data_tip=label)


def _worst(task: str, rows: pd.DataFrame) -> str:
    """The prompts with the smallest margin of each arm, in the task's words."""
    parts = []
    for policy, title in columns.POLICIES.items():
        prompt, margin = columns.column_of("worst_prompt", policy), columns.column_of("worst_margin", policy)
        if prompt not in rows or margin not in rows:
            continue
        body = []
        for arm, part in rows.groupby("arm", sort=False):
            kept = part[part[prompt].map(lambda tokens: isinstance(tokens, list))]
            for _, run in kept.sort_values([margin, "seed"]).head(WORST).iterrows():
                failing = run[margin] <= 0
                cells = [text(arm), str(run["seed"]), element("code", text(rendered(_task_of(run, task), run[prompt])))]
                cells += [text(plots.number(run[margin])), "fails" if failing else "does not fail"]
                body.append(row_of(cells, [str(arm), int(run["seed"]), cells[2], finite(run[margin]), cells[4]]))
        head = head_of(["arm", "seed", "prompt", "margin", "outcome"])
        table = element("table", head + element("tbody", "\n".join(body)), class_="sortable")
        parts.append(element("h3", text(title.capitalize())) + scrolling(table))
    return "".join(parts)


def _task_of(run: pd.Series, task: str) -> str:
    """The task of a run's own model, where a question asks several under one name."""
    own = run.get("config.plain.task")
    return own if isinstance(own, str) else task


def rendered(task: str, prompt: list[int]) -> str:
    """A prompt in the words of its task; its tokens where the task is not there or cannot say it without an answer."""
    try:
        return task_named(task).render(np.array(prompt), None)
    except Exception:  # a task's own code: whatever it raises, the tokens can be shown
        return " ".join(map(str, prompt))


def _origin(job: Job) -> str:
    records = results.read(job.folder)[0]
    used = [records[run.id] for run in job.runs if run.id in records]
    kinds = dict.fromkeys(["code", "python", "device", "machine", "processor", "threads"])
    counted: dict[str, Counter] = {kind: Counter() for kind in kinds}
    for record in used:
        origin = record["provenance"]
        code = origin.get("source") or origin.get("revision", "unknown")
        counted["code"][f"{origin.get('version', 'before versions')}, {code}"] += 1
        for kind in list(kinds)[1:]:
            counted[kind][str(origin.get(kind, "unknown"))] += 1
        for library, version in origin.get("versions", {}).items():
            counted.setdefault(library, Counter())[version] += 1
    shown = pd.DataFrame(
        [(kind, value, str(count)) for kind, counter in counted.items() for value, count in sorted(counter.items())],
        columns=["what", "value", "runs"],
    ).set_index("what")
    days = sorted(filter(None, (record["provenance"].get("finished", "")[:10] for record in used)))
    finished = f"Finished from {days[0]} to {days[-1]} (UTC). " if days else ""
    links = " and ".join(element("a", name, href=name) for name in ("runs.csv", "effects.csv"))
    return element(
        "section",
        element("h2", "Where the numbers come from")
        + element("p", text(f"{len(used)} records. {finished}") + f"As tables: {links}.")
        + element("p", "This command makes them; <code>--out</code> names the folder above this one.")
        + element("pre", text(command_of(job)), tabindex=0)
        + _folded("Provenance, by number of runs", scrolling(table_of(shown))),
    )
