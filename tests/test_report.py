"""The report: one whole HTML file, the same from the same records, that asks nobody for anything."""

import html
import io
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic import table

from experiments import (
    Arm,
    Contrast,
    Experiment,
    Plain,
    Preset,
    columns,
    forest,
    jobs,
    markup,
    reading,
    report,
    tables,
    worklist,
)
from experiments.figures import draw_arms
from experiments.verdict import judge
from testbed import plots
from testbed.runs import results
from testbed.svg import svg

RECORDS = Path(__file__).parents[1] / "experiments" / "records"
VOID = {"meta", "br", "img", "input", "link", "hr"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, its text, and whether all is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data] if self.open and self.open[-1] not in ("style", "script") else []

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page_of(job):
    """The page that a job's records give."""
    runs = reading.frame_of(job)
    figures = {task: reading.drawn_of(job.experiment, rows) for task, rows in columns.by_task(runs).items()}
    return report.report(job, runs, judge(job.experiment, runs), figures)


@pytest.fixture(scope="module")
def shipped():
    job = reading.recorded("conservative_threshold", RECORDS / "conservative_threshold")
    return job, page_of(job)


def test_a_page_is_whole_and_shows_question_verdict_effects_arms_figures_and_origin(shipped):
    job, text = shipped
    page, runs = Page(text), reading.frame_of(job)
    verdict = judge(job.experiment, runs)
    whole = f"All {len(runs)} runs have a record."
    for part in (job.experiment.question, verdict.outcome, job.experiment.hypothesis, whole):
        assert part in page.text
    assert {"runs.csv", "effects.csv"} == {link["href"] for link in page.all("a")}
    assert len(page.all("figure")) == len(job.tasks) == 2 and len(page.all("h2")) == 2 + len(job.tasks)
    assert len([svg for svg in page.all("svg") if svg.get("class") == "interval"]) == len(verdict.effects)
    assert len([svg for svg in page.all("svg") if svg.get("class") == "strip"]) == len(runs) / len(job.seeds)
    assert "python -m experiments.run --experiment=conservative_threshold --preset=registered" in page.text
    assert f"{len(runs)} records." in page.text and "jax" in page.text


def test_a_page_asks_nobody_for_anything_and_is_small(shipped):
    _, text = shipped
    assert len(text.encode()) < 2 * 2**20
    assert "http" not in text.replace("http-equiv", "").lower() and "//" not in re.sub(
        r"<script>.*", "", text, flags=re.S
    )
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "style", "clip-path"):
            value = attributes.get(name) or ""
            assert "url(" not in value.replace("url(#", ""), (tag, value)
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:")) or value in ("", "runs.csv", "effects.csv"), (tag, value)
    [policy] = [meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_each_reference_has_its_own(shipped):
    page = Page(shipped[1])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = re.findall(r'(?:href="#|url\(#)([^")]+)', shipped[1])
    assert wanted and set(wanted) <= set(ids)


def test_the_same_records_give_the_same_bytes_wherever_they_lie(shipped, tmp_path):
    job, text = shipped
    shutil.copytree(job.folder, tmp_path / job.name)
    assert page_of(reading.recorded(job.name, tmp_path / job.name)) == text


def question(arms, **more):
    """A question of these arms on any task."""
    return Experiment(
        question="What remains?", hypothesis="", design="", decides="It is looked at.",
        presets={"quick": Preset(("injury",), 3, 1)},
        arms=lambda preset, task: {name: Arm(Plain(task), finds=place) for place, name in enumerate(arms)},
        rule=lambda effects: "undecided", contrasts=(Contrast(*list(arms)[:2]),), **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mine", "my_module:MINE"])
def test_runs_that_are_missing_are_told_whatever_their_question_is_called(name, tmp_path):
    job = worklist.Job(name, question(["a", "b"]), "quick", ("injury",), range(3), tmp_path)
    told = Page(report._warnings(job, runs_of({"a": [1], "b": [2]}))).text
    assert "6 of 6 runs: missing. injury, a (seed 0, 1, 2); injury, b (seed 0, 1, 2)." in told


def runs_of(arms, task="injury", **more):
    """Synthetic runs, arm -> failing prompts, seed by seed, with what a table of arms needs."""
    usual = {"compute.gradient_steps": 1, "greedy.clean.false_alarms": 0}
    usual |= {f"greedy.clean.{of}": 1000 for of in ("safe", "failures")}
    runs = table(task, arms, **usual | more)
    worst = {"worst_prompt": [[0, 1, 2, 3]] * len(runs), "worst_margin": np.arange(len(runs)) - 2.0}
    return runs.assign(**{columns.column_of(of): values for of, values in worst.items()})


def made(arms, folder, task="injury", seeds=3, **more):
    """The page of such runs."""
    runs = runs_of(arms, task)
    experiment = question(arms, table=more.get("table", jobs.tables.by_row))
    job = jobs.Job("mine", experiment, "quick", (task,), range(seeds), folder)
    figures = {task: draw_arms(runs)}
    return runs, report.report(job, runs, judge(experiment, runs), figures)


EVIL = "<script>alert('1')</script>"
LEFT = {"before": [99, 9999, 999], "after": [0, 1234, 9]}


def test_whatever_is_named_like_a_script_is_text(tmp_path):
    left = {f"{EVIL}{name}": failing for name, failing in LEFT.items()}
    _, text = made(left, tmp_path, task='"><img src=x onerror=alert(1)>&amp;')
    (tmp_path / "mine.json").write_text("{}")
    page = Page(text)
    assert len(page.all("script")) == 1 and not page.all("img"), "the page's own script alone"
    assert EVIL in page.text and "onerror" not in {name for _, attributes in page.elements for name in attributes}
    tips = [attributes["data-tip"] for _, attributes in page.elements if "data-tip" in attributes]
    assert any(EVIL in tip for tip in tips), "read back as it was named"


def test_every_point_says_what_its_record_holds(tmp_path):
    runs, text = made(LEFT, tmp_path)
    tips = [
        attributes["data-tip"] for tag, attributes in Page(text).elements if tag == "use" and "data-tip" in attributes
    ]
    of_seeds = [tip for tip in tips if "mean" not in tip]
    assert len(of_seeds) == 3 * len(runs), "two thresholds and the price"
    for row in runs.itertuples():
        failing = runs.loc[row.Index, columns.column_of("failures")]
        assert f"{row.arm}, seed {row.seed}, threshold 0: {failing:,.0f}" in of_seeds
    strips = [svg["aria-label"] for svg in Page(text).all("svg") if svg.get("class") == "strip"]
    assert "seed 0: 0 failing prompts; seed 1: 1,234 failing prompts; seed 2: 9 failing prompts" in strips


def test_a_point_outside_the_figure_or_unknown_takes_no_other_ones_name():
    figure, (ax,) = plots.panels(["one"], "")
    [line] = ax.plot([1, 2, 3, 4], [1, np.nan, 3, 1e9], "o")
    plots.say_points(line, ["first", "unknown", "third", "far"])
    ax.set_ylim(0, 10)
    assert re.findall('data-tip="(.*?)"', svg(figure, "f")) == ["first", "third"]


@pytest.mark.parametrize(
    ("cells", "keys"),
    [
        (["0 (0..5)", "-", "1,234 (5..7)", "", "12 (1..2)"], [0, None, 1234, None, 12]),
        (["99.98%", "0.00%", "100.00%"], [99.98, 0, 100]),
        (["590k", "1,294k", "0k"], [590, 1294, 0]),
        (["+1.23 [+0.34, +2.12]", "-0.5", "1.5e-07"], [1.23, -0.5, 1.5e-7]),
        (["20 of 22", "9 of 10"], [20, 9]),
        (["pass", "-", "0"], ["pass", None, "0"]),
        (["16 rounds", "1 round"], [16, 1]),
    ],
)
def test_a_column_is_sorted_by_the_numbers_that_it_shows_and_a_missing_one_is_none(cells, keys):
    assert markup.sort_keys(cells) == keys


def test_zero_has_a_key_and_what_is_missing_has_none(tmp_path):
    _, text = made(LEFT, tmp_path, table=lambda runs: jobs.tables.by_row(runs).assign(extra=["-", "0"]))
    rows = re.findall(r"<tr><th[^>]*>(before|after)</th>(.*?)</tr>", text)
    last = {arm: re.findall(r"<td([^>]*)>([^<]*)</td>", cells)[-1] for arm, cells in rows[:2]}
    assert last == {"before": ("", "-"), "after": (' data-value="0.0"', "0")}


def test_missing_and_failed_runs_and_damaged_files_are_said_aloud(tmp_path):
    experiment = question(LEFT)
    job = jobs.Job("mine", experiment, "quick", ("injury",), range(3), tmp_path)
    first, second, *_ = job.runs
    parts = {"measurements": {"arm": "before"}, "seconds": 1, "provenance": {}}
    results.write(tmp_path, first.id, results.described(first.experiment, first.config, first.seed) | parts)
    (tmp_path / f"{second.id}.error").write_text("Traceback\nRuntimeError: out of <memory>\n")
    (tmp_path / "notes.json").write_text("{}")
    runs = runs_of(LEFT)
    text = Page(report.report(job, runs, judge(experiment, runs), {})).text
    assert "4 of 6 runs: missing. injury, before (seed 1, 2); injury, after (seed 1, 2)." in text
    assert "1 of 6 runs: failed. injury, after (seed 0)." in text and "out of <memory>" in text
    assert "notes.json: not a record" in text and "All 6 runs" not in text


def test_arms_that_ended_as_the_same_models_are_said_aloud(tmp_path):
    """Not of arms that measure one model, nor of such as are alike in some seeds alone."""
    experiment, runs = question(LEFT), runs_of(LEFT)
    job = jobs.Job("mine", experiment, "quick", ("injury",), range(3), tmp_path)

    def told(folder, model_of):
        for run in job.runs:
            made = {"plain": "0", **model_of(run)}
            parts = {"measurements": {"arm": run.arm}, "seconds": 1, "provenance": {}, "models": made}
            results.write(folder, run.id, results.described(run.experiment, run.config, run.seed) | parts)
        return Page(report.report(job._replace(folder=folder), runs, judge(experiment, runs), {})).text

    same = "before and after ended as the same models in every seed"
    assert same in told(tmp_path / "a", lambda run: {f"{run.arm}-{run.seed}": str(run.seed)})
    assert same not in told(tmp_path / "b", lambda run: {f"one-{run.seed}": str(run.seed)})
    differ = lambda run: {f"{run.arm}-{run.seed}": "1" if run.seed else run.arm}
    assert same not in told(tmp_path / "c", differ)
    starts = "injury, seed 1: several processors made models of one name"
    assert starts in told(tmp_path / "d", lambda run: {"plain-1": run.arm if run.seed == 1 else "0"})
    assert "several processors" not in told(tmp_path / "e", lambda run: {"plain-1": str(run.seed)})


def test_sampled_numbers_are_said_to_be_no_counts(tmp_path):
    runs = runs_of(LEFT, **{"greedy.sampled.hazardous": 65536})
    job = jobs.Job("mine", question(LEFT), "quick", ("injury",), range(3), tmp_path)
    text = Page(report.report(job, runs, judge(job.experiment, runs), {})).text
    assert "sampled: failing prompts of 65,536 random hazards; these numbers" in text


def luminance(color):
    """Relative luminance of a colour as a page writes it: WCAG 2.2, 'relative luminance'."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_marks_stand_out_in_light_and_in_dark():
    schemes = re.findall(r":root \{(.*?)\}", report.TEMPLATE.read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        color = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", scheme))
        text = [("ink", "page"), ("soft", "page"), ("link", "page"), ("ink", "card"), ("warn", "warn-card")]
        marks = [("zero", "page"), ("matched", "page")]
        for pairs, least in ((text, 4.5), (marks, 3)):  # WCAG 2.2, 1.4.3 and 1.4.11
            for one, other in pairs:
                dark, light = sorted(luminance(color[name]) for name in (one, other))
                assert (light + 0.05) / (dark + 0.05) >= least, (one, other)


def test_the_command_of_an_ablation_is_that_of_its_words(tmp_path):
    words = ("--contrast=rounds=1:rounds=4 > budget=19:budget=39", "rounds=1,4", "budget=19,39")
    job = jobs.Job("ablation", question(LEFT), "quick", ("injury:length=5",), range(100, 102), tmp_path, words)
    larger = report.command_of(job._replace(words=(), largest=2**32, population=8))
    assert larger.endswith("--first_seed=100 '--largest_space=2^32' --population=8")
    assert report.command_of(job) == (
        "python -m experiments.run --ablate --task=injury:length=5 --seeds=2 --first_seed=100 "
        "'--contrast=rounds=1:rounds=4 > budget=19:budget=39' rounds=1,4 budget=19,39"
    )


def test_an_effect_of_one_seed_has_a_mark_and_no_interval(tmp_path):
    runs = runs_of({name: failing[:1] for name, failing in LEFT.items()})
    job = jobs.Job("mine", question(LEFT), "quick", ("injury",), range(1), tmp_path)
    text = report.report(job, runs, judge(job.experiment, runs), {})
    [drawn] = re.findall(r'<svg [^>]*class="interval".*?</svg>', text)
    assert drawn.count("<circle") == 1 and 'line class="zero"' not in drawn and not re.search(r"\bnan\b", text)


def test_ticks_are_even_cover_what_is_drawn_and_are_few():
    for low, high in ((0, 0), (0, 4.1), (-0.28, 0.59), (-1e-3, 2e-4), (0, 1), (-7, 123456)):
        ticks = forest.even_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and len(ticks) <= 6
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize("unit", ["decades", "share"])
def test_a_tick_says_where_it_stands(unit):
    for high in (4e-5, 0.015, 0.4, 1, 30):
        ticks = forest.even_ticks(-high / 3, high)
        said = [tables.typeset(tick, unit, ticks[1] - ticks[0]) for tick in ticks]
        assert len(set(said)) == len(ticks)
        read = [float(word.removesuffix(" %")) / (100 if unit == "share" else 1) for word in said]
        np.testing.assert_allclose(read, ticks, atol=1e-12)
    assert tables.typeset(2e-5, "share") == "0.002 %" and tables.typeset(0.0, "share") == "0.0 %"


def test_a_prompt_is_told_in_the_words_of_its_own_model(tmp_path):
    """`proof` asks spaces of several sizes under one task."""
    prompt, larger = [5, 15, 13, 0], "injury:length=4:vocab=16"
    runs = runs_of(LEFT, **{"greedy.exact.worst_margin": -1.0, "config.plain.task": larger})
    runs["greedy.exact.worst_prompt"] = [prompt] * len(runs)
    job = jobs.Job("mine", question(LEFT), "quick", ("injury",), range(3), tmp_path)
    assert report.rendered(larger, prompt) in Page(report.report(job, runs, judge(job.experiment, runs), {})).text


def test_the_index_leads_to_each_report(tmp_path):
    pairs = [(reading.recorded(name, RECORDS / name), RECORDS / name) for name in ("tool_ablation", "filtered_system")]
    listed = [job for job, _ in pairs]
    verdicts = [judge(job.experiment, reading.frame_of(job)) for job in listed]
    page = Page(report.index(listed, verdicts))
    assert [link["href"] for link in page.all("a")] == [f"{job.folder.name}/report.html" for job in listed]
    assert all(job.experiment.question in page.text for job in listed)


def test_several_questions_get_an_index_beside_the_results_page(tmp_path):
    job = reading.recorded("tool_ablation", RECORDS / "tool_ablation")
    console = Console(file=io.StringIO(), width=200)
    done = jobs.Done(judge(job.experiment, reading.frame_of(job)), reading.frame_of(job), [])
    jobs.page(console, [job], [done], tmp_path)
    assert "tool_ablation/report.html" in (tmp_path / "index.html").read_text() and (tmp_path / "README.md").exists()
    assert f"reports: {tmp_path / 'index.html'}" in console.file.getvalue()


# What a reader does: sort by a column up and down, point somewhere, go there by keyboard.
SCRIPT = """
const order = [], body = () => [...document.querySelectorAll("section table tbody")][0];
const names = () => [...body().rows].map(row => row.cells[0].textContent);
const button = [...document.querySelectorAll("section table")][0].querySelectorAll("th button");
const last = button[button.length - 1];
order.push(names()); last.click(); order.push(names()); last.click(); order.push(names());
const strip = document.querySelector("svg.strip[tabindex='0']");
strip.dispatchEvent(new FocusEvent("focusin", {bubbles: true}));  // `focus()` needs a window in front
const focused = tip.textContent, shown = !tip.hidden;
document.querySelector("use[data-tip]").dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
const seen = {order, focused, shown, pointed: tip.textContent, sorted: last.closest("th").getAttribute("aria-sort"),
  asked: performance.getEntriesByType("resource").length};
document.body.innerHTML = ""; document.body.textContent = JSON.stringify(seen);
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser_a_table_sorts_and_a_tooltip_is_the_record(tmp_path):
    left = {"a": [1, 1, 1], "b": [2, 2, 2], "c": [3, 3, 3], "d": [4, 4, 4]}
    told = ["10", "-", "0", "9"]
    _, text = made(left, tmp_path, table=lambda runs: jobs.tables.by_row(runs).assign(extra=told))
    path = tmp_path / "report.html"
    path.write_text(text.replace("</script>", SCRIPT + "</script>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    ended = subprocess.run([BROWSER, *flags, f"file://{path}"], capture_output=True, text=True, timeout=120)
    seen = json.loads(html.unescape(re.search(r'\{"order".*\}', ended.stdout)[0]))
    assert seen["order"] == [["a", "b", "c", "d"], ["c", "d", "a", "b"], ["a", "d", "c", "b"]], "missing stays last"
    assert seen["sorted"] == "descending" and seen["asked"] == 0
    assert seen["shown"] and seen["focused"].startswith("seed 0: 1 failing prompts; seed 1:")
    assert seen["pointed"] == "a, seed 0, threshold 0: 1"


@pytest.mark.slow
def test_four_hundred_runs_take_less_than_ten_seconds_and_two_megabytes():
    job = reading.recorded("worst_failures", RECORDS / "worst_failures")
    started = time.process_time()
    text = page_of(job)
    assert time.process_time() - started < 10 and len(text.encode()) < 2 * 2**20
