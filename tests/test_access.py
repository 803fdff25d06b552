"""What a defence is given: its access, its labels, and tables and figures that say so."""

import io

import numpy as np
import pytest
from rich.console import Console
from synthetic import table

from experiments.ablate import ablation
from experiments.arm import Arm, Recipe, attack_of, defence_of, schedule_of
from experiments.axes import axes_of
from experiments.bench import labels_of
from experiments.figures import draw_against
from experiments.jobs import show
from experiments.reading import drawn_of
from experiments.report import report
from experiments.tables import by_arm, by_row
from experiments.worklist import ABLATION, Job
from testbed.training.defence import ACCESS, access_of
from testbed.training.source import UPPER_LIMIT

GIVEN = {
    "control": (Arm(), "clean", 0),
    "gcg": (Arm(rounds=1), "clean labels hazards", 3),
    "twins": (Arm(rounds=1, recipe=Recipe(twins=True)), "clean labels hazards", 3 + 768 * 64),
    "latent": (Arm(recipe=Recipe(loss="untargeted", layer=1, eps=0.3)), "clean", 0),
    "uniform": (Arm(recipe=Recipe(fresh="uniform")), "clean labels", 768 * 128),
    "hazards": (Arm(recipe=Recipe(fresh="hazards", fresh_labels=64)), "clean labels hazards", 64),
    "soft, drawn": (Arm(recipe=Recipe(loss="soft")), "clean overseer", 0),
    "soft, exact": (Arm(recipe=Recipe(loss="soft", overseer="exact")), "clean overseer", 0),
    "soft, learned": (Arm(recipe=Recipe(loss="soft", overseer="learned", overseer_labels=96)), "clean labels", 96),
    "guided": (Arm(recipe=Recipe(loss="guided")), "clean labels overseer", 768 * 256),
    "oracle": (Arm(rounds=4, attack="oracle"), "clean labels failures", 3),
    "gcg and soft": (Arm(rounds=4, recipe=Recipe(loss="soft")), "clean labels hazards overseer", 3),
}


@pytest.mark.parametrize("name", GIVEN)
def test_each_defence_says_its_access_and_its_labels(name):
    arm, access, labels = GIVEN[name]
    assert access_of(schedule_of(arm), attack_of(arm), defence_of(arm.recipe)) == tuple(access.split())
    pool = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])
    assert labels_of(arm, pool) == labels
    assert set(access.split()) <= ACCESS.keys()


def spending():
    """Runs of three arms, whose labels and verdicts are known."""
    runs = table("injury", {"none": [900, 800], "few": [90, 80], "many": [9, 0]}, **{"greedy.clean.safe": 1000})
    numbers = {"none": (0, 0), "few": (10, 500), "many": (100, 2000)}
    for column, place in (("compute.labels", 0), ("compute.checker_calls", 1)):
        runs[column] = [numbers[arm][place] for arm in runs["arm"]]
    return runs.assign(**{"compute.gradient_steps": 768, "access": "clean, labels"} | CLEAN)


CLEAN = {f"greedy.clean.{of}": 0 for of in ("false_alarms", "failures")}


def test_tables_say_labels_verdicts_and_access_where_records_do():
    rows = by_row(spending())
    assert rows["labels"].tolist() == ["0", "10", "100"]
    assert rows["labels and verdicts"].tolist() == ["0", "510", "2,100"]
    assert set(rows["access"]) == {"clean, labels"}
    assert by_arm(spending().assign(**{"greedy.exact.worst_margin": 0.0})).loc["labels", "many"] == "100"
    some = spending().assign(**{"greedy.exact.worst_margin": 0.0})
    some.loc[some["arm"] == "many", "compute.labels"] = float("nan")  # of the first round
    for text in (by_arm(some), by_row(some).T):
        assert text.loc["labels", ["few", "many"]].tolist() == ["10", "-"], "every cell is text"
    assert "labels" not in by_row(spending().drop(columns="compute.labels")), "records of the first round"


@pytest.mark.parametrize(("access", "said"), [("clean, labels, failures", True), ("clean, labels", False)])
def test_whoever_draws_from_all_failures_is_named_a_limit_wherever_it_is_listed(access, said, tmp_path):
    experiment, out = ablation(axes_of(["attack=gcg,oracle"])), io.StringIO()
    runs = table("injury", {"attack=gcg": [900, 800], "attack=oracle": [9, 0]}, **{"greedy.clean.safe": 1000} | CLEAN)
    own = runs["arm"] == "attack=oracle"
    runs = runs.assign(access=own.map({True: access, False: "clean, labels, hazards"}))
    runs = runs.assign(**{"config.attack": own.map({True: "oracle", False: "gcg"}), "compute.gradient_steps": 768})
    job = Job(ABLATION, experiment, "grid", ("injury",), range(2), tmp_path)
    figure = drawn_of(experiment, runs)
    verdict = show(Console(file=out, width=400), job, runs)
    page = report(job, runs, verdict, {"injury": figure})
    line = f"oracle draws from all failures of the model: {UPPER_LIMIT}"
    assert [line in shown for shown in (out.getvalue(), page, " ".join(figure.get_supxlabel().split()))] == [said] * 3


def test_a_figure_has_a_curve_a_defence_and_no_point_where_nothing_was_spent():
    figure = draw_against(spending(), {"nothing": ["none"], "something": ["few", "many"]}, of=("labels", "judged"))
    left, right = figure.axes[:2]
    [runs, means] = left.lines
    assert runs.get_xdata().tolist() == [10, 10, 100, 100] and runs.get_ydata().tolist() == [90, 80, 9, 0]
    assert means.get_xdata().tolist() == [10, 100] and right.lines[1].get_xdata().tolist() == [510, 2100]
    assert left.get_xscale() == "log" and left.get_yscale() == "symlog"
