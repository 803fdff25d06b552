"""Packed records: one line a run, read like single files, and never fewer records than before."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from experiments import rerun
from testbed.runs import packing, results
from testbed.runs.launchers.local import threads
from testbed.runs.locks import hold
from testbed.runs.sweep import Run, status, sweep

SHIPPED = Path(__file__).parents[1] / "experiments" / "records"


def written(folder, *seeds, **parts):
    """Write a record for each seed; returns their ids."""
    rest = {"measurements": {"n": [1, 2.5, float("nan")]}, "seconds": 0.5, "provenance": {"revision": "x"}} | parts
    ids = []
    for seed in seeds:
        ids.append(results.run_id("e", {"size": 1}, seed))
        results.write(folder, ids[-1], results.described("e", {"size": 1}, seed) | rest)
    return ids


def texts(records):
    """Records as text, for a NaN is unequal to itself."""
    return {run: json.dumps(record) for run, record in records.items()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_packed_folder_reads_as_before_and_has_one_sorted_file(tmp_path):
    ids = written(tmp_path, 3, 1, 2)
    before = results.read(tmp_path)
    table = results.load(tmp_path)
    assert packing.pack(tmp_path) == (3, [])
    assert names(tmp_path) == [results.PACKED]
    after = results.read(tmp_path)
    assert texts(after[0]) == texts(before[0]) and after[1] == []
    assert results.load(tmp_path).equals(table)
    lines = (tmp_path / results.PACKED).read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == sorted(ids)
    assert all(", " not in line and ": " not in line for line in lines), "compact"


def test_packing_again_adds_what_is_new_and_changes_nothing_else(tmp_path):
    written(tmp_path, 0, 2)
    packing.pack(tmp_path)
    first = (tmp_path / results.PACKED).read_bytes()
    assert packing.pack(tmp_path) == (0, [])
    assert (tmp_path / results.PACKED).read_bytes() == first
    written(tmp_path, 1)
    assert packing.pack(tmp_path) == (1, [])
    assert len(results.read(tmp_path)[0]) == 3
    assert first.splitlines()[0] in (tmp_path / results.PACKED).read_bytes().splitlines()


@pytest.mark.parametrize("step", ["write_atomically", "fsync", "unlink"])
def test_whatever_fails_while_packing_every_record_is_still_there(tmp_path, monkeypatch, step):
    ids = written(tmp_path, 0, 1, 2)
    before = texts(results.read(tmp_path)[0])

    def broken(*_, **__):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(Path, "unlink", broken)
        else:
            patch.setattr(*{"write_atomically": (results, step), "fsync": (os, step)}[step], broken)
        with pytest.raises(OSError, match="no room"):
            packing.pack(tmp_path)
        assert all((tmp_path / f"{run}.json").exists() for run in ids), "a file goes only after its line is on disk"
    assert texts(results.read(tmp_path)[0]) == before
    assert packing.pack(tmp_path) == (3, []), "the same in both is fine"
    assert names(tmp_path) == [results.PACKED] and texts(results.read(tmp_path)[0]) == before


def test_another_record_of_a_packed_run_is_told_and_neither_is_touched(tmp_path):
    [run] = written(tmp_path, 0)
    packing.pack(tmp_path)
    packed = (tmp_path / results.PACKED).read_bytes()
    written(tmp_path, 0, seconds=0.75)
    records, [problem] = results.read(tmp_path)
    assert records[run]["seconds"] == 0.5, "the packed one counts"
    assert (
        problem.startswith(f"skipped {tmp_path / run}.json: records.jsonl holds another record") and "\n" not in problem
    )
    written(tmp_path, 1)
    folded, [left] = packing.pack(tmp_path)
    assert (folded, f"skipped {left}") == (1, problem)
    assert packed.splitlines()[0] in (tmp_path / results.PACKED).read_bytes().splitlines()
    assert (tmp_path / f"{run}.json").exists()


DAMAGE = {
    "cut short": lambda line: line[:50],
    "altered": lambda line: line.replace(b'"seconds":0.5', b'"seconds":0.6'),
    "another seed": lambda line: line.replace(b'"seed":1', b'"seed":7'),
    "no record": lambda line: b"{}",
    "no text": lambda line: b"\xff\xfe",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_told_like_a_damaged_file_and_stops_packing(tmp_path, name):
    ids = written(tmp_path, 0, 1, 2)
    packing.pack(tmp_path)
    path = tmp_path / results.PACKED
    lines = path.read_bytes().splitlines()
    [place] = [number for number, line in enumerate(lines) if json.loads(line)["run"] == ids[1]]
    lines[place] = DAMAGE[name](lines[place])
    path.write_bytes(b"\n".join(lines))
    records, [problem] = results.read(tmp_path)
    assert sorted(records) == sorted({ids[0], ids[2]})
    assert problem.startswith(f"skipped {path}, line {place + 1}: ") and "\n" not in problem
    assert results.find(tmp_path, ids[1]) is None
    written(tmp_path, 3)
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match=f"line {place + 1}: "):
        packing.pack(tmp_path)
    assert path.read_bytes() == damaged and len(results.read(tmp_path)[0]) == 3


def test_two_lines_of_a_run_are_one_if_they_are_the_same_and_told_if_not(tmp_path):
    written(tmp_path, 0)
    packing.pack(tmp_path)
    path = tmp_path / results.PACKED
    line = path.read_text()
    path.write_text(line + "\n" + line)  # as a merge may leave them
    assert (len(results.read(tmp_path)[0]), results.read(tmp_path)[1]) == (1, [])
    path.unlink()
    written(tmp_path, 0, seconds=0.75)
    packing.pack(tmp_path)
    path.write_text(line + path.read_text())
    records, [problem] = results.read(tmp_path)
    assert [record["seconds"] for record in records.values()] == [0.5] and "line 2: another record of" in problem


def test_a_pipe_in_place_of_the_packed_file_is_told_and_not_opened(tmp_path):
    [run] = written(tmp_path, 0)
    os.mkfifo(tmp_path / results.PACKED)
    records, [problem] = results.read(tmp_path)
    assert list(records) == [run] and "not a regular file" in problem
    with pytest.raises(ValueError, match="not a regular file"):
        packing.pack(tmp_path)


def test_only_one_process_packs_a_folder(tmp_path):
    written(tmp_path, 0)
    with hold(tmp_path / results.PACKED), pytest.raises(ValueError, match="another process is packing"):
        packing.pack(tmp_path)
    assert packing.pack(tmp_path)[0] == 1


def test_what_is_no_record_stays_where_it_is(tmp_path):
    written(tmp_path, 0)
    (tmp_path / "mine.json").write_text("{}")
    folded, [problem] = packing.pack(tmp_path)
    assert folded == 1 and "mine.json: not a record" in problem
    assert names(tmp_path) == ["mine.json", results.PACKED]


def test_a_sweep_skips_packed_runs_and_writes_the_others_as_files(tmp_path):
    runs = [Run("e", {"size": 1}, seed) for seed in range(4)]
    done = []

    def perform(run, folder, watch):
        done.append(run.seed)
        return {"measurements": {"n": run.seed}}

    console = Console(file=io.StringIO())
    sweep(runs[:2], perform, tmp_path, console)
    packing.pack(tmp_path)
    outcome = sweep(runs, perform, tmp_path, console)
    assert (outcome.done, outcome.skipped, sorted(done)) == (2, 2, [0, 1, 2, 3])
    assert names(tmp_path) == sorted([*(f"{run.id}.json" for run in runs[2:]), results.PACKED])
    told = status(runs, tmp_path)
    assert (len(told["done"]), told["missing"], told["foreign"]) == (4, [], [])


def test_a_run_that_is_packed_while_it_waits_is_not_done_again(tmp_path):
    """The worklist was made before: whoever has the run's turn looks once more."""
    runs = [Run("e", {"size": 1}, seed) for seed in range(2)]
    done = []

    def perform(run, folder, watch):
        done.append(run.seed)
        if run.seed == 0:
            written(tmp_path, 1)
            packing.pack(tmp_path)
        return {"measurements": {"n": run.seed}}

    sweep(runs, perform, tmp_path, Console(file=io.StringIO()), place=threads(1))
    assert done == [0]
    assert names(tmp_path) == sorted([f"{runs[0].id}.json", results.PACKED])


def test_a_record_is_named_by_its_file_or_its_question_wherever_it_is(tmp_path):
    [run] = written(tmp_path / "mine", 0)
    named = [f"{tmp_path}/mine/{run}.json", f"mine/{run}", f"{tmp_path}/mine/{run}", f"mine/{run}.json"]
    for name in named:
        assert rerun.record_named(name, tmp_path)[0]["run"] == run
    packing.pack(tmp_path / "mine")
    for name in named:
        record, folder = rerun.record_named(name, tmp_path)
        assert (record["run"], folder) == (run, tmp_path / "mine")
    with pytest.raises(ValueError, match=f"mine/{run[:-1]} does not exist; name a file, or QUESTION/ID"):
        rerun.record_named(f"mine/{run[:-1]}", tmp_path)
    shipped = next(iter(results.read(SHIPPED / "tool_ablation")[0]))
    assert rerun.record_named(f"tool_ablation/{shipped}", tmp_path)[1] == SHIPPED / "tool_ablation"
