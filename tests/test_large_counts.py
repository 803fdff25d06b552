"""Counts beyond 2**53 are text in records, and are read, compared and shown as the numbers they are."""

import numpy as np
import pytest
from rich.console import Console
from test_effects import TABLE

from experiments.columns import counts, decades, failures, refused_share, tidy, whole
from experiments.evaluate import Evaluation, sandwich, sections
from experiments.tables import by_arm, prompts
from tasks import task_named
from testbed.evaluation.exact import lossless
from testbed.task import prompt_ids, prompts_of_ids

LARGE = 1_580_091_556_156_908_973


def test_large_integers_are_text_and_come_back_to_the_digit():
    for number in (0, 2**53, 2**53 + 1, 2**64, 2**1024):
        assert whole(lossless(number)) == number
    assert lossless(2**53) == 2**53 and lossless(2**53 + 1) == "9007199254740993"
    assert [lossless(value) for value in (None, 1e300, True, "word")] == [None, 1e300, True, "word"]


def test_a_table_of_runs_reads_and_shows_them():
    runs = TABLE.astype({"greedy.exact.failures": object, "greedy.exact.safe": object})
    plain = runs["arm"] == "plain"
    runs.loc[plain, "greedy.exact.failures"] = str(LARGE)
    runs["greedy.exact.safe"] = str(2**62)
    assert tidy(runs).groupby("arm")["greedy.exact.failures"].median()["plain"] == float(LARGE)
    np.testing.assert_array_equal(failures(runs)[plain], float(LARGE))
    np.testing.assert_allclose(decades(failures(runs))[plain], 18.1987, atol=1e-4)
    np.testing.assert_allclose(refused_share(runs), counts(runs, "false_alarms") / 2**62)
    text = by_arm(runs)["plain"]
    assert text["FAILING PROMPTS, median"] == "1.6e18"
    assert text["  range over seeds"] == "1.6e18..1.6e18"


def test_a_number_of_prompts_for_people():
    assert [prompts(n) for n in (0, 12_345, 2**28, 1e9, LARGE)] == ["0", "12,345", "268,435,456", "1.0e9", "1.6e18"]


def test_the_page_of_a_model_shows_them_in_short_and_to_the_digit():
    row = {"tau": 0.0, "found": 3, "exact": str(LARGE), "bound": None}
    console = Console(width=120)
    with console.capture() as page:
        console.print(sandwich(Evaluation("m", "injury", "w"), {"sandwich": {"greedy": row, "matched": row}}))
    assert page.get().count("1.6e18 (1,580,091,556,156,908,973)") == 2
    count = {"failures": str(LARGE), "hazardous": str(2**62), "false_alarms": 0, "safe": 9, "egregious": 2.5e17}
    count |= {"clean_failure": None, "worst_margin": -1.0, "worst_probability": 1.0}
    exact = dict.fromkeys(("greedy", "matched", "sampled"), count)
    # Of so many failures nobody knows the shape.
    rows = dict(
        row[:2]
        for row in sections(
            {"exact": exact, "shape": None, "clean": {}, "estimated": {}, "timed": {}, "told_apart": None, "budget": 1}
        )[0]
    )
    assert rows["share of hazardous prompts"] == "3.43e-01"
    assert rows["egregious ones (2/3 or more)"] == "2.5e17" and "clusters of failures, threshold 0" not in rows


def test_ranks_beyond_int64_come_back():
    task = task_named("injury:length=16:vocab=16")
    prompts = np.array([[0] * 16, [15] * 16, [*range(16)]])
    ids = prompt_ids(task, prompts)
    assert ids.tolist() == [0, 2**64 - 1, int("0123456789ABCDEF", 16)]
    np.testing.assert_array_equal(prompts_of_ids(task, ids), prompts)
    with pytest.raises(ValueError, match="outside the input space"):
        prompt_ids(task, prompts + 1)
