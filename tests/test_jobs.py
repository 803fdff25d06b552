"""What is drawn of a folder of records, if nobody says how they were made."""

import functools
import json
import os
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import EXPERIMENTS, asked, jobs, reading, run, worklist
from experiments.arm import Arm, Plain
from testbed.runs import provenance, results

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """What is shipped of a question from before its protocol: five seeds of full, and three of quick."""
    folder = tmp_path_factory.mktemp("out") / "attack_strength"
    there = ROOT / "experiments" / "records" / "attack_strength"
    folder.mkdir()
    lines = (there / results.PACKED).read_text().splitlines(keepends=True)
    (folder / results.PACKED).write_text("".join(line for line in lines if "protocol" not in json.loads(line)))
    return folder


def copy_records(source, target, runs):
    """The records of some runs, packed, in another folder."""
    records, wanted = results.read(source)[0], {run.id for run in runs}
    lines = [json.dumps(record) for run, record in records.items() if run in wanted]
    (target / results.PACKED).write_text("\n".join(lines))


def test_records_are_drawn_whole_without_saying_how_they_were_made(shipped):
    job = reading.recorded("attack_strength", shipped)
    assert (job.preset, job.tasks, job.seeds) == ("full", ("injury", "password", "cipher_vault"), range(5))
    assert len(job.runs) == len(results.read(shipped)[0])
    assert reading.recorded("attack_strength", shipped, preset="quick").preset == "quick"
    assert reading.recorded("attack_strength", shipped, admits=lambda _, seed: seed > 2).seeds == range(3, 5)
    assert not reading.recorded("attack_strength", shipped, admits=lambda _, seed: seed > 4).tasks


def test_of_equals_records_are_of_the_smaller_preset_and_end_at_the_first_seed_without_any(shipped, tmp_path):
    quick = jobs.Job("attack_strength", EXPERIMENTS["attack_strength"], "quick", ("injury",), (0, 1, 3), shipped)
    copy_records(shipped, tmp_path, quick.runs)
    job = reading.recorded("attack_strength", tmp_path)
    assert (job.preset, job.tasks, job.seeds) == ("quick", ("injury",), range(2))


def test_what_is_drawn_is_of_the_preset_of_the_task_that_is_asked_for(shipped, tmp_path):
    of = functools.partial(jobs.Job, "attack_strength", EXPERIMENTS["attack_strength"], folder=shipped)
    wanted = of(preset="full", tasks=("injury",), seeds=range(5)).runs
    wanted += of(preset="quick", tasks=("password",), seeds=range(2, 4)).runs
    copy_records(shipped, tmp_path, wanted)
    job = reading.recorded("attack_strength", tmp_path, admits=lambda task, _: task == "password")
    assert (job.preset, job.tasks, job.seeds) == ("quick", ("password",), range(2, 4)), "from the first seed there is"


def test_a_record_of_a_task_that_is_no_more_is_not_drawn(tmp_path):
    [control, *_] = EXPERIMENTS["telltale"].arms("quick", "injury").values()
    for config in (Arm(Plain("gone")), control):
        record = results.described("telltale", config, 0) | {"seconds": 1, "provenance": {}, "measurements": {}}
        results.write(tmp_path, results.run_id("telltale", config, 0), record)
    assert len(results.read(tmp_path)[0]) == 2
    assert reading.recorded("telltale", tmp_path).tasks == ("injury",)


def test_a_flag_narrows_what_is_drawn(shipped):
    def wanted(*flags):
        with flagsaver.flagsaver():
            run.parse(["experiments.run", f"--out={shipped.parent}", "--plot_only", *flags])
            return asked.wanted([])[0]

    [whole] = wanted("--experiment=attack_strength")
    [narrow] = wanted("--experiment=attack_strength", "--seeds=2", "--task=password")
    assert (whole.preset, len(whole.tasks), whole.seeds) == ("full", 3, range(5))
    assert (narrow.preset, narrow.tasks, narrow.seeds) == ("full", ("password",), range(2))


def test_seeds_are_grouped_as_equally_as_can_be_and_one_alone_has_no_companions():
    assert worklist.groups_of(range(3), 1) == {0: (), 1: (), 2: ()}
    assert worklist.groups_of(range(3), 64) == dict.fromkeys(range(3), (0, 1, 2))
    groups = worklist.groups_of(range(100, 110), 8)
    assert sorted(set(groups.values())) == [tuple(range(100, 105)), tuple(range(105, 110))]
    assert worklist.groups_of(range(3), 2) == {0: (), 1: (1, 2), 2: (1, 2)}


def test_a_limit_of_what_is_counted_changes_the_runs_that_it_decides_and_no_others():
    job = worklist.Job("update_frequency", EXPERIMENTS["update_frequency"], "quick", ("injury",), range(1), Path("."))
    large = job._replace(tasks=("injury:length=10",))
    ids = lambda job: [run.id for run in job.runs]
    assert ids(job) == ids(job._replace(largest=2**32)) == ids(job._replace(largest=2**28))
    assert ids(large) == ids(large._replace(largest=2**29))
    assert not set(ids(large)) & set(ids(large._replace(largest=2**32)))
    assert ids(large._replace(largest=2**32)) == ids(large._replace(largest=2**40)), "a count is a count"
    assert {run.config.largest_space for run in job._replace(largest=2**4).runs} == {0}
    assert ids(job) == ids(job._replace(population=8)), "how models are made is no part of an id"


def test_a_page_shows_the_newest_figure_of_a_task(tmp_path):
    job = jobs.Job("attack_strength", EXPERIMENTS["attack_strength"], "quick", ("injury",), range(1), tmp_path)
    for age, form in ((2, "png"), (1, "svg")):
        (tmp_path / f"injury.{form}").write_text("")
        os.utime(tmp_path / f"injury.{form}", (age, age))
    assert jobs._figures(job) == f"{tmp_path}/injury.png"
    os.utime(tmp_path / "injury.svg", (3, 3))
    assert jobs._figures(job) == f"{tmp_path}/injury.svg"


def test_records_of_other_code_and_other_populations_are_told(shipped, monkeypatch):
    job = reading.recorded("attack_strength", shipped)
    monkeypatch.setattr(provenance, "source", lambda: None)  # these records are so old that they tell none
    runs = f"{len(job.runs)} runs there"
    assert jobs.made_otherwise(job) == []
    [told] = jobs.made_otherwise(job._replace(population=5))
    assert told == f"of models of other populations (--population): {runs}, whose last bits differ"
    monkeypatch.undo()
    [told] = jobs.made_otherwise(job)
    assert told == f"of other code: {runs}; if a task has changed since, another --out makes all anew"
