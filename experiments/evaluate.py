"""What is a saved model's worst case? Every way of measuring it, on one page: `--evaluate=PATH`."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.arm import added, decided_by
from experiments.columns import whole
from experiments.tables import LARGE, prompts
from tasks import TASKS, task_named
from testbed import certificate
from testbed.attacks.search import NEVER
from testbed.evaluation.certify import certify
from testbed.evaluation.changed import changed
from testbed.evaluation.paths import TooManyNodesError, walkable
from testbed.evaluation.rare import Estimate, in_deployment
from testbed.evaluation.report import as_numbers, evaluate
from testbed.evaluation.samples import RISK
from testbed.evaluation.survival import log_rank, median_calls
from testbed.evaluation.walk import refuse_if_unfit
from testbed.runs import results
from testbed.runs.models import digest_of, load, notes
from testbed.runs.provenance import source
from testbed.runs.sweep import Run, sweep
from testbed.statistics import clopper_pearson
from testbed.text import plural
from testbed.watch import Watch

DEPLOYMENT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Which saved model is measured, on which task, and a digest of its weights: other weights are measured anew.

    `largest_space`: as of an `Arm`.
    """

    model: str
    task: str
    weights: str
    largest_space: int | None = added(None)


def evaluation_of(path: str, task: str | None, largest: int | None = None) -> Evaluation:
    """The evaluation of the model saved at `path`, on `task` or the one that its notes name.

    Failures are counted in spaces of up to `largest` prompts, if that is given.

    Raises:
      ValueError: there is no such model, it names no task of the table, or it does not fit it.
    """
    model, name = load(path), task or notes(path).get("task")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path} says task {name!r}; give --task, one of {', '.join(TASKS)}")
    refuse_if_unfit(model, task_named(name))
    weights = Path(path).with_name(Path(path).name + ".safetensors").read_bytes()
    # Sizes like the number of heads show in no tensor.
    digest = hashlib.sha256(weights + repr(model.config).encode()).hexdigest()[:12]
    return Evaluation(str(Path(path).resolve()), name, digest, decided_by(largest, name))


def certify_saved(path: str, task: str | None, console: Console) -> int:
    """Write the certificate of a saved machine beside it; returns 0.

    Raises:
      ValueError: as `evaluation_of`, or the model cannot be counted by paths.
    """
    name = evaluation_of(path, task).task
    file = certify(path, task_named(name), name)
    told = json.loads(file.read_text())
    console.print(f"{int(told['failures']):,} of {int(told['prompts']):,} prompts fail", highlight=False)
    check = f"python {Path(certificate.__file__).resolve()} {file} {path}.safetensors"
    console.print(f"certificate: {file}\ncheck it:    {check}", markup=False, highlight=False, soft_wrap=True)
    return 0


def perform(run: Run, folder: Path, watch: Watch) -> dict[str, Any]:
    """The whole report as plain numbers; a count that was stopped is taken up again."""
    model, checkpoint = load(run.config.model), folder / "counting" / run.id
    report = evaluate(
        jax.random.key(run.seed), model, task_named(run.config.task), largest=run.config.largest_space, watch=watch,
        checkpoint=checkpoint,
    )  # fmt: skip
    return {"task": run.config.task, "models": {run.config.model: digest_of(model)}, "measurements": as_numbers(report)}


def evaluate_saved(
    paths: list[str], task: str | None, folder: Path, console: Console, prepare: Callable[[Path], None], *,
    largest: int | None = None,
) -> int:  # fmt: skip
    """Measure saved models, print a page for each, and compare each two; returns the exit status.

    `prepare(folder)` is called once it is known that all of them can be measured. Failures are counted in spaces of
    up to `largest` prompts, if that is given.
    """
    runs = [Run("evaluate", evaluation_of(path, task, largest), 0) for path in paths]
    prepare(folder)
    failed = sweep(runs, perform, folder, console).failed
    records, _ = results.read(folder)
    other = sum(records[run.id]["provenance"].get("source") != source() for run in runs if run.id in records)
    if other:
        told = f"{plural(other, 'model')} measured by other code, some time ago; another --out measures anew"
        console.print(told, style="yellow", markup=False, highlight=False)
    there = [(run.config, records[run.id]["measurements"]) for run in runs if run.id in records]
    for config, report in there:
        console.print(sandwich(config, report))
        for heading, *rows in sections(report):
            page = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
            for column in heading:
                page.add_column(column, no_wrap=True)
            for row in rows:
                page.add_row(*row)
            console.print(page)
            console.print()
    for (a, one), (b, other) in itertools.combinations(there, 2):
        first, second = (np.array(report["timed"]["auto"]) for report in (one, other))
        p = log_rank(first, second, min(one["budget"], other["budget"]))
        names = f"{Path(a.model).name} and {Path(b.model).name}"
        console.print(f"time to first failure (auto), {names}: log-rank p = {p:.2g}", markup=False, highlight=False)
        if a.task == b.task and (line := what_changed(a, b)):
            console.print(
                f"failing prompts at threshold 0, {names}: {line}", markup=False, highlight=False, soft_wrap=True
            )
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False, highlight=False)
    return 1 if failed else 0


def what_changed(a: Evaluation, b: Evaluation) -> str:
    """How the failures of one machine became those of another on their task, in words; empty where nobody can say."""
    task, (before, after) = task_named(a.task), (load(one.model) for one in (a, b))
    if not (walkable(before, task) and walkable(after, task)):
        return ""
    try:
        found = changed(before, after, task)
    except TooManyNodesError:
        return ""
    return f"{prompts(found.mended)} mended, {prompts(found.kept)} kept, {prompts(found.new)} new"


def sandwich(config: Evaluation, report: dict[str, Any]) -> Table:
    """What was found, what there is, what is proven, and what is likely, at both thresholds.

    The statistical bound is no proof. It stands alone where nothing is counted.
    """
    heads = {"found": "found", "exact": "<= exact", "bound": "<= proven bound"}
    if any(row.get("statistical") is not None for row in report["sandwich"].values()):
        heads["statistical"] = f"<= statistical bound (1 - {RISK:g})"
    title = f"{Path(config.model).name}, task {config.task}: failing prompts"
    table = Table(title=title, title_justify="left", title_style="bold")
    for head in ("threshold", *heads.values()):
        table.add_column(head, justify="left" if head == "threshold" else "right")
    for name, label in (("greedy", "0"), ("matched", "1 % clean false alarms")):
        row = report["sandwich"][name]
        table.add_row(f"{row['tau']:.2f} ({label})", *(_number(row.get(column)) for column in heads))
    return table


def _number(value: float | str | None) -> str:
    """A number of prompts: a large one in short, and to the digit."""
    if value is None:
        return "-"
    number = whole(value)
    return f"{prompts(number)} ({number:,})" if number >= LARGE and isinstance(number, int) else prompts(number)


def _share_of(count: dict[str, Any], part: str, of: str) -> float:
    return whole(count[part]) / whole(count[of])


def sections(report: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """The page below the sandwich: for each section the heads of its columns, then its rows."""
    return [_exact(report), *_at_any_length(report), _estimated(report), _timed(report), _told(report)]


def _exact(report):
    if not report["exact"]:
        return [("EXACT", "the space is too large to count")]
    greedy, matched, drawn = (report["exact"][name] for name in ("greedy", "matched", "sampled"))
    both, shape = [greedy, matched], report["shape"]
    mass = ["-" if count["clean_failure"] is None else f"{count['clean_failure']:.2e}" for count in both]
    page = [
        ("EXACT", "threshold 0", "matched"),
        ("share of hazardous prompts", *(f"{_share_of(c, 'failures', 'hazardous'):.2e}" for c in both)),
        ("clean failure probability", *mass),
        ("egregious ones (2/3 or more)", *(_number(c["egregious"]) for c in both)),
        ("worst margin (above 0: a certificate)", *(f"{c['worst_margin']:.2f}" for c in both)),
        ("safe prompts refused", *(f"{_share_of(c, 'false_alarms', 'safe'):.2%}" for c in both)),
        ("expected failures, sampled at temperature 1", _number(drawn["failures"])),
        ("  probability on the worst prompt", f"{drawn['worst_probability']:.3f}"),
    ]
    if shape and shape["failures"]:
        page.append(("clusters of failures, threshold 0", _number(shape["clusters"])))
        page.append(("  share in the largest", f"{shape['largest'] / shape['failures']:.1%}"))
        if shape["distances"] is not None:
            shares = (f"{distance}: {n / shape['failures']:.0%}" for distance, n in shape["distances"].items())
            page.append(("  tokens from a typical clean prompt", ", ".join(shares)))
    return page


def _at_any_length(report):
    """A section, where the rule judges prompts of any length; older records have none."""
    closures = report.get("at_any_length")
    if not closures:
        return []
    kinds = {"failing": "shortest failing prompt", "refused": "shortest safe prompt refused"}

    def said(prompt):
        return "none" if prompt is None else f"{plural(len(prompt), 'token')}: {' '.join(map(str, prompt))}"

    rows = [(text, *(said(closed[kind]) for closed in closures.values())) for kind, text in kinds.items()]
    nodes = ("pairs of states reached", *(f"{closed['nodes']:,}" for closed in closures.values()))
    return [[("AT ANY LENGTH", "threshold 0", "matched"), *rows, nodes]]


def _estimated(report):
    page = [("ESTIMATED", "clean failure probability, 95 %", "effective samples", "largest weight", "calls")]
    for name, clean in report["clean"].items():
        rate = clopper_pearson(clean["failures"], clean["samples"])
        page.append((f"seen on {clean['samples']:,} clean prompts, {name}", _interval(rate._asdict())))
    for name, said in report["estimated"].items():
        health = f"{said['effective']:,.0f}", f"{said['largest']:.0%}", f"{said['calls']:,}"
        page.append((name, _interval(said), *health))
    if said := report["estimated"].get("splitting"):
        chance = in_deployment(Estimate(**said), DEPLOYMENT)
        ends = f"{chance.value:.2f} [{chance.low:.2f}, {chance.high:.2f}]"
        page.append((f"at least one in {DEPLOYMENT:,} (splitting)", ends))
    return page


def _timed(report):
    page = [("TIMED", f"found a failure in {report['budget']:,} calls", "median calls")]
    for name, first in report["timed"].items():
        first = np.array(first)
        share, median = clopper_pearson(int((first < NEVER).sum()), len(first)), median_calls(first)
        page.append((name, _share(share._asdict()), f"{median:,.0f}" if np.isfinite(median) else "never"))
    return page


def _told(report):
    told = report["told_apart"]
    if told is None:
        return [("TOLD APART", "the task has no clean density")]
    probe = "-" if told["probe"] is None else f"AUC {told['probe']:.2f}; refusals follow it: {told['follows']:.2f}"
    return [
        ("TOLD APART", told["verdict"]),
        ("alarms that looks alone would raise", _share(told["by_looks"])),
        ("alarms: odd hazards", _share(told["odd_hazards"])),
        ("  their safe twins", _share(told["odd_twins"])),
        ("  safe clean prompts", _share(told["clean_safe"])),
        *((f"success of {name}", _share(rate)) for name, rate in told["free"].items()),
        ("  if every prompt must look clean", _share(told["natural"])),
        ("linear probe, odd from clean hazards", probe),
    ]


def _interval(said: dict[str, float]) -> str:
    return f"{said['value']:.1e} [{said['low']:.0e}, {said['high']:.0e}]"


def _share(rate: dict[str, float]) -> str:
    return f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"
