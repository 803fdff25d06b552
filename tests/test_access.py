"""What a defence is given: its access, its labels, and tables and figures that say so."""

import numpy as np
import pytest
from synthetic import table

from experiments.arm import Arm, Recipe, attack_of, defence_of, schedule_of
from experiments.bench import labels_of
from experiments.figures import draw_against
from experiments.tables import by_arm, by_row
from testbed.training.defence import ACCESS, access_of

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
    assert "labels" not in by_row(spending().drop(columns="compute.labels")), "records of the first round"


def test_a_figure_has_a_curve_a_defence_and_no_point_where_nothing_was_spent():
    figure = draw_against(spending(), {"nothing": ["none"], "something": ["few", "many"]}, of=("labels", "judged"))
    left, right = figure.axes[:2]
    [runs, means] = left.lines
    assert runs.get_xdata().tolist() == [10, 10, 100, 100] and runs.get_ydata().tolist() == [90, 80, 9, 0]
    assert means.get_xdata().tolist() == [10, 100] and right.lines[1].get_xdata().tolist() == [510, 2100]
    assert left.get_xscale() == "log" and left.get_yscale() == "symlog"
