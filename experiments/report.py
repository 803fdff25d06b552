"""The report: one HTML file of a question, without any request, rendered from its records alone.

The same records give the same bytes. Every number is typeset by `experiments.tables`; the template
`report.html` beside this module holds style and script.
"""

import html
import math
import re
import shlex
import string
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import columns, tables
from experiments.experiment import Verdict
from experiments.worklist import ABLATION, Job
from tasks import task_named
from testbed import plots
from testbed.runs import results
from testbed.runs.sweep import status

TEMPLATE = Path(__file__).with_name("report.html")
WORST = 3  # prompts shown of each arm
NEEDED = [columns.column_of("failures"), "greedy.clean.samples", "compute.forwards"]  # by `tables.by_row`
FOREST, STRIP = (260, 30), (150, 20)  # width and height of the small drawings, in their own units
MARGIN = 20  # left and right of them: room for half a tick's label
NUMBER = re.compile(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)k?(?!\w|[.,]\d)")  # at the beginning of a cell


def text(value: Any) -> str:
    """A value as HTML text or attribute."""
    return html.escape(str(value), quote=True)


def prose(value: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))


def element(tag: str, inside: str = "", **attributes: Any) -> str:
    """An HTML element; `inside` is HTML already, attributes are escaped here."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    given = "".join(f' {name}="{text(value)}"' for name, value in names)
    return f"<{tag}{given}>{inside}</{tag}>"


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
        _folded("Hypothesis, rule and design", _protocol(experiment)),
        _effects(verdict.effects),
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
        cells = [text(verdict.outcome), text(job.preset), text(", ".join(job.tasks)), str(len(job.seeds))]
        keys = [job.experiment.question, verdict.outcome, job.preset, ", ".join(job.tasks), len(job.seeds)]
        rows.append(_row([link, *cells], keys))
    head = _head(["question", "verdict", "preset", "tasks", "seeds"])
    table = element("table", head + element("tbody", "\n".join(rows)), class_="sortable")
    return page("What was found", element("h1", "What was found") + _scrolling(table))


def command_of(job: Job) -> str:
    """The command that makes a job's records."""
    words = ["python", "-m", "experiments.run"]
    words += ["--ablate"] if job.name == ABLATION else [f"--experiment={job.name}", f"--preset={job.preset}"]
    words += [f"--task={','.join(job.tasks)}", f"--seeds={len(job.seeds)}"]
    words += [f"--first_seed={job.seeds[0]}"] if job.seeds[0] else []
    return shlex.join([*words, *job.words])


def _verdict(job: Job, verdict: Verdict) -> str:
    if not job.experiment.decides:
        return ""
    chip = element("strong", text(verdict.outcome), class_=f"verdict {verdict.outcome.replace(' ', '-')}")
    lacks = text(f" The rule asks for {verdict.lacks}.") if verdict.lacks else ""
    return element("p", chip + lacks)


def _warnings(job: Job, runs: pd.DataFrame) -> str:
    """What of the runs is missing, failed, damaged or sampled, said before any number is shown."""
    states = status(job.runs, job.folder)
    absent = {line.partition(":")[0]: kind for kind in ("failed", "running", "missing") for line in states[kind]}
    lines = []
    for kind, verb in (("missing", "missing"), ("running", "still running"), ("failed", "failed")):
        of_kind = [run for run in job.runs if absent.get(run.id) == kind]
        if of_kind:
            arms: dict[str, list[str]] = {}
            for run in of_kind:
                arms.setdefault(f"{run.task}, {run.arm}", []).append(str(run.seed))
            told = "; ".join(f"{arm} (seed {', '.join(seeds)})" for arm, seeds in arms.items())
            lines.append(f"{len(of_kind)} of {len(job.runs)} runs: {verb}. {told}.")
    lines += states["failed"] + states["foreign"]
    if note := columns.sampled_note(runs):
        lines.append(f"{note}; these numbers of failing prompts are no counts of the space.")
    if not lines:
        return element("p", f"All {len(job.runs)} runs have a record.", class_="complete")
    return element("ul", "".join(element("li", text(line)) for line in lines), class_="warnings")


def _protocol(experiment) -> str:
    parts = {
        "Hypothesis": experiment.hypothesis,
        "Rule": experiment.decides,
        "Design": textwrap.dedent(experiment.design).strip(),
        "Note": experiment.note,
    }
    return "".join(
        element("h3", name) + "".join(element("p", prose(part)) for part in said.split("\n\n"))
        for name, said in parts.items()
        if said
    )


def _folded(summary: str, inside: str) -> str:
    return element("details", element("summary", text(summary)) + inside) if inside else ""


def _scrolling(table: str) -> str:
    return element("div", table, class_="scroll")


def _head(names: Sequence[str], sorts: bool = True) -> str:
    """A table's head; a column is sorted by the button of its name."""
    inside = (element("button", text(name), type="button") if sorts and name else text(name) for name in names)
    return element("thead", element("tr", "".join(element("th", cell, scope="col") for cell in inside)))


def _row(cells: Sequence[str], keys: Sequence[Any]) -> str:
    """A row of cells (HTML), each with the value that it is sorted by; None is missing."""
    made = []
    for place, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        given = {"scope": "row"} if place == 0 else {}
        given |= {"class_": "words"} if isinstance(key, str) else {}  # numbers are never broken over lines
        given |= {} if key is None else {"data_value": key}
        made.append(element("th" if place == 0 else "td", cell, **given))
    return element("tr", "".join(made))


def sort_keys(cells: Iterable[str]) -> list[float | str | None]:
    """What a column of typeset cells is sorted by: the number that each begins with, else its words.

    A cell that is empty or `-` is missing.
    """
    shown = [cell.strip() for cell in cells]
    missing = [cell in ("", "-") for cell in shown]
    found = [NUMBER.match(cell) for cell in shown]
    if all(match or gone for match, gone in zip(found, missing, strict=True)):
        numbers = (float(match[1].replace(",", "")) if match else None for match in found)
        return [None if gone else value for value, gone in zip(numbers, missing, strict=True)]
    return [None if gone else cell for cell, gone in zip(shown, missing, strict=True)]


# Effects: a table whose last column draws the intervals, with one scale for each unit.


def _effects(effects: pd.DataFrame) -> str:
    shown = tables.effects_text(effects)
    parts = [element("h2", "Effects"), element("p", prose(f"An effect is {tables.SIGN}."))]
    legend = _mark(8, 8, "zero") + '<text x="18" y="12">threshold 0</text>'
    legend += _mark(108, 8, "matched") + '<text x="118" y="12">at 1 % clean false alarms</text>'
    parts.append(element("svg", legend, viewBox="0 0 280 16", class_="legend", aria_hidden="true"))
    for declared, title in ((True, "Declared before the runs"), (False, "Exploratory")):
        for unit in dict.fromkeys(effects["unit"]):
            chosen = (effects["declared"] == declared) & (effects["unit"] == unit)
            if chosen.any():
                name = title if unit == "decades" else f"{title}, {unit}"
                parts.append(element("h3", text(name)) + _forest(effects[chosen], shown[chosen.to_numpy()], unit))
    return "\n".join(parts)


def _forest(effects: pd.DataFrame, shown: pd.DataFrame, unit: str) -> str:
    ends = effects[["effect", "low", "high", "matched", "matched_low", "matched_high"]].to_numpy(float)
    ends = np.append(ends[np.isfinite(ends)], 0)
    ticks = _ticks(ends.min(), ends.max())
    scale = _Scale(ticks[0], ticks[-1], FOREST[0])
    rows = []
    for (_, numbers), (_, words) in zip(effects.iterrows(), shown.iterrows(), strict=True):
        drawn = _interval(scale, numbers, words)
        arrow = " → ".join(filter(None, (words["before"], words["after"])))
        cells = [words["task"], arrow, words["counted"], words["threshold 0"], words["matched"], words["n"]]
        keys = [words["task"], arrow, words["counted"], _number(numbers["effect"]), _number(numbers["matched"])]
        keys += [_number(numbers["n"]), _number(numbers["p"]), _number(numbers["effect"])]
        rows.append(_row([*map(text, cells), text(words["p (Holm)"]), drawn], keys))
    head = _head(["task", "contrast", "counted", "threshold 0", "matched", "n", "p (Holm)", "interval"])
    axis = "".join(
        f'<line x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="0" y2="4"/>'
        f'<text x="{scale(tick):.1f}" y="15" text-anchor="middle">{text(tables.typeset(tick, unit))}</text>'
        for tick in ticks
    )
    axis = element("svg", axis, viewBox=f"0 0 {FOREST[0]} 18", class_="axis", aria_hidden="true")
    foot = element("tfoot", element("tr", element("td", "", colspan=7) + element("td", axis)))
    return _scrolling(element("table", head + element("tbody", "\n".join(rows)) + foot, class_="sortable forest"))


class _Scale:
    """From a value to a place between the margins."""

    def __init__(self, low: float, high: float, width: int):
        self.low, self.per_unit = low, (width - 2 * MARGIN) / ((high - low) or 1)

    def __call__(self, value: float) -> float:
        return MARGIN + (value - self.low) * self.per_unit


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` even steps of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    high = high if high > low else low + 1
    span = high - low
    size = 10 ** math.floor(math.log10(span / most))
    step = next(size * times for times in (1, 2, 5, 10, 20) if span / (size * times) <= most - 1)
    return [round(step * place, 12) for place in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _interval(scale: _Scale, numbers: pd.Series, words: pd.Series) -> str:
    inside = f'<line class="nothing" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="{FOREST[1]}"/>'
    names = (("zero", "effect", "", "threshold 0", 10), ("matched", "matched", "matched_", "matched", 20))
    said = []
    for kind, value, prefix, title, y in names:
        if not math.isfinite(numbers[value]):
            continue
        low, high = numbers[f"{prefix}low"], numbers[f"{prefix}high"]
        said.append(f"{title}: {words[title]}")
        if math.isfinite(low) and math.isfinite(high):
            inside += f'<line class="{kind}" x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{y}" y2="{y}"/>'
        inside += _mark(scale(numbers[value]), y, kind, said[-1])
    size = f"0 0 {FOREST[0]} {FOREST[1]}"
    return element("svg", inside, viewBox=size, class_="interval", role="img", aria_label="; ".join(said))


def _mark(x: float, y: float, kind: str, tip: str = "") -> str:
    """A disc of threshold 0, or a square of the matched one."""
    tips = f' data-tip="{text(tip)}"' if tip else ""
    if kind == "zero":
        return f'<circle class="zero" cx="{x:.1f}" cy="{y}" r="4"{tips}/>'
    return f'<rect class="matched" x="{x - 3.5:.1f}" y="{y - 3.5}" width="7" height="7"{tips}/>'


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# A task: its figure, its arms, its worst prompts.


def _task(job: Job, task: str, rows: pd.DataFrame, figure: plots.Figure | None, name: str) -> str:
    note = columns.sampled_note(rows)
    parts = [element("h2", text(task))]
    if note:
        parts.append(element("p", text(note), class_="warnings"))
    if figure is not None:
        drawn = plots.svg(figure, name)
        parts.append(element("figure", drawn, role="img", aria_label=f"{job.experiment.question} {task}"))
    shown = job.experiment.table(rows)
    arms = set(rows["arm"])
    if all(column in rows for column in NEEDED):
        by_row = shown if set(shown.index) <= arms else tables.by_row(rows)
        parts.append(_arms(by_row, rows))
        if by_row is not shown:
            parts.append(_folded("All measures", _scrolling(_table(shown))))
    else:
        parts.append(_scrolling(_table(shown)))
    parts.append(_folded(f"Worst prompts of each arm ({task})", _worst(task, rows)))
    return element("section", "\n".join(filter(None, parts)))


def _table(shown: pd.DataFrame) -> str:
    """A table of text that sorts."""
    keys = [[str(name) for name in shown.index], *(sort_keys(shown[column].astype(str)) for column in shown)]
    cells = [[text(name) for name in shown.index], *([text(cell) for cell in shown[column]] for column in shown)]
    rows = [_row(row, key) for row, key in zip(zip(*cells, strict=True), zip(*keys, strict=True), strict=True)]
    head = _head([shown.index.name or "", *map(str, shown.columns)])
    return element("table", head + element("tbody", "\n".join(rows)), class_="sortable")


def _arms(shown: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The arms of a task: a strip with a point a seed, then what the table says."""
    counted = rows.assign(failing=columns.failures(rows))
    most = float(columns.decades(counted["failing"]).max())
    scale = _Scale(0, max(most, 1), STRIP[0])
    strips, typical = {}, {}
    for arm, part in counted.groupby("arm", sort=False):
        part = part.sort_values("seed")
        strips[arm] = _strip(part, scale)
        typical[arm] = _number(columns.decades(part["failing"]).mean())
    columns_of = [sort_keys(shown[column].astype(str)) for column in shown]
    body = []
    for place, (arm, cells) in enumerate(shown.iterrows()):
        keys = [str(arm), typical[arm], *(column[place] for column in columns_of)]
        body.append(_row([text(arm), strips[arm], *map(text, cells)], keys))
    head = _head(["arm", "failing prompts, a point a seed", *map(str, shown.columns)])
    return _scrolling(element("table", head + element("tbody", "\n".join(body)), class_="sortable"))


def _strip(part: pd.DataFrame, scale: _Scale) -> str:
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
                cells = [text(arm), str(run["seed"]), element("code", text(rendered(task, run[prompt])))]
                cells += [text(plots.number(run[margin])), "fails" if failing else "does not fail"]
                body.append(_row(cells, [str(arm), int(run["seed"]), cells[2], _number(run[margin]), cells[4]]))
        head = _head(["arm", "seed", "prompt", "margin", "outcome"])
        table = element("table", head + element("tbody", "\n".join(body)), class_="sortable")
        parts.append(element("h3", text(title.capitalize())) + _scrolling(table))
    return "".join(parts)


def rendered(task: str, prompt: list[int]) -> str:
    """A prompt in the words of its task; its tokens where the task is not there or cannot say it without an answer."""
    try:
        return task_named(task).render(np.array(prompt), None)
    except Exception:  # a task's own code: whatever it raises, the tokens can be shown
        return " ".join(map(str, prompt))


# Where the numbers come from.


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
        + _folded("Provenance, by number of runs", _scrolling(_table(shown))),
    )
