"""A sweep: each run once, the same records however it is watched or wherever it is done, and failures that are told."""

import io
import re
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest
from rich.console import Console
from sweeping import Config, Counting, contents, expected, facts, perform, quiet, worklist

from testbed.runs import provenance, results
from testbed.runs.launchers import threads
from testbed.runs.launchers.place import Place
from testbed.runs.locks import hold
from testbed.runs.packing import pack
from testbed.runs.sweep import MAPS, MAPS_ALLOWED, Outcome, Run, state_file, status, sweep
from testbed.training.rounds import train
from testbed.training.schedule import Schedule


@pytest.mark.parametrize("workers", [None, 1, 2, 8])
def test_every_run_is_done_once_and_recorded_alike_by_any_number_of_workers(tmp_path, workers):
    runs, counting = worklist(), Counting()
    assert sweep(runs, counting, tmp_path, quiet(), place=threads(workers)) == Outcome(6, 0, [])
    assert sorted(counting.asked) == [(size, seed) for size in range(3) for seed in range(2)]
    assert facts(tmp_path) == expected(runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{run.id}.json" for run in runs)


def test_a_record_tells_where_it_comes_from(tmp_path):
    sweep(worklist(1, 1), perform, tmp_path, quiet())
    [record] = results.read(tmp_path)[0].values()
    source = provenance.here()
    assert {name: record["provenance"][name] for name in source} == source
    assert "finished" in record["provenance"]


def test_seconds_are_those_of_the_run(tmp_path):
    started = time.perf_counter()
    sweep(worklist(1, 1), Counting(lambda *_: time.sleep(0.11)), tmp_path, quiet())
    [record] = results.read(tmp_path)[0].values()
    assert 0.1 <= record["seconds"] <= time.perf_counter() - started


def test_what_is_there_is_skipped_and_left_alone(tmp_path):
    sweep(worklist(2), perform, tmp_path, quiet())
    before, counting = contents(tmp_path), Counting()
    assert sweep(worklist(3), counting, tmp_path, quiet()) == Outcome(2, 4, [])
    assert sorted(counting.asked) == [(2, 0), (2, 1)]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert facts(tmp_path) == expected(worklist(3))
    assert sweep(worklist(3), counting, tmp_path, quiet()) == Outcome(0, 6, [])
    assert contents(tmp_path) == after


def test_a_run_that_is_listed_twice_is_done_once(tmp_path):
    counting = Counting(lambda *_: time.sleep(0.05))
    sweep(worklist() + worklist(), counting, tmp_path, quiet(), place=threads(4))
    assert sorted(counting.asked) == [(size, seed) for size in range(3) for seed in range(2)]
    assert facts(tmp_path) == expected(worklist())


def test_an_empty_worklist_is_done(tmp_path):
    assert sweep([], perform, tmp_path, quiet()) == Outcome(0, 0, [])


def test_a_damaged_record_is_not_taken_for_done_nor_overwritten(tmp_path):
    runs = worklist()
    damaged = tmp_path / f"{runs[2].id}.json"
    damaged.write_text('{"format": "worst-ca')
    outcome = sweep(runs, perform, tmp_path, quiet())
    assert damaged.read_text() == '{"format": "worst-ca', "a user's file is not destroyed"
    assert outcome.done == 5, "a run whose record could not be written is not done"
    assert len(outcome.failed) == 1
    assert runs[2].id in outcome.failed[0]
    damaged.unlink()
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(1, 5, [])
    assert facts(tmp_path) == expected(runs)


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


# An error, and what a user must be told of it.
ERRORS = {
    "value": (ValueError("size 1 is unlucky"), "size 1 is unlucky"),
    "nan": (FloatingPointError("the loss became nan at step 3"), "the loss became nan at step 3"),
    "memory": (MemoryError("no room"), "no room"),
    "a key, whose text is only the key": (KeyError("lost"), "KeyError"),
    "no words": (AssertionError(), "AssertionError"),
    "many lines": (RuntimeError("first line\nsecond line\n\nthird"), "RuntimeError: first line"),
    "with a note, as JAX's": (
        noted(ValueError("an axis of size 0"), "For simplicity"),
        "ValueError: an axis of size 0",
    ),
}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", ERRORS)
def test_a_run_that_fails_is_told_and_tried_again_while_the_others_go_on(tmp_path, name, workers):
    error, told = ERRORS[name]

    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise error

    runs = worklist()
    bad = runs[2].id
    outcome = sweep(runs, Counting(trouble), tmp_path, quiet(), place=threads(workers))
    assert (outcome.done, outcome.skipped) == (5, 0)
    assert len(outcome.failed) == 1
    assert outcome.failed[0].startswith(f"{bad}: ")
    assert "\n" not in outcome.failed[0], "a line for each that failed"
    assert told in outcome.failed[0]
    written = (tmp_path / f"{bad}.error").read_text()
    assert written.startswith("Traceback")
    assert type(error).__name__ in written
    assert "in trouble" in written, "the traceback reaches the line that raised"
    assert str(error) in written
    assert facts(tmp_path) == expected([run for run in runs if run.id != bad])

    before, counting = contents(tmp_path), Counting()
    assert sweep(runs, counting, tmp_path, quiet(), place=threads(workers)) == Outcome(1, 5, [])
    assert counting.asked == [(1, 0)]
    assert not list(tmp_path.glob("*.error")), "the error is over"
    assert facts(tmp_path) == expected(runs)
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before if name.endswith(".json"))


def test_an_error_that_stays_is_told_again(tmp_path):
    def trouble(config, seed, watch):
        raise ValueError("still")

    for _ in range(2):
        outcome = sweep(worklist(), Counting(trouble), tmp_path, quiet())
        assert (outcome.done, outcome.skipped, len(outcome.failed)) == (0, 0, 6)
        assert len(list(tmp_path.glob("*.error"))) == 6
        assert facts(tmp_path) == {}


def test_a_record_that_is_packed_while_its_run_ends_is_done(tmp_path, monkeypatch):
    write = results.write

    def write_and_pack(folder, run, record):
        write(folder, run, record)
        pack(folder)

    monkeypatch.setattr(results, "write", write_and_pack)
    assert sweep(worklist(), perform, tmp_path, quiet(), place=threads(1)) == Outcome(6, 0, [])
    assert [path.name for path in tmp_path.iterdir()] == [results.PACKED]


def test_measurements_that_json_cannot_hold_are_a_failure_of_that_run(tmp_path):
    outcome = sweep(worklist(1, 1), lambda *_: {"measurements": {"set": {1}}}, tmp_path, quiet())
    assert outcome.done == 0
    assert "cannot hold" in outcome.failed[0]
    assert facts(tmp_path) == {}


def test_watch_may_be_called_from_many_threads_while_runs_come_and_go(tmp_path):
    errors = []

    def crowd(config, seed, watch):
        def talk(phase):
            try:
                for tick in range(12):
                    watch(f"phase {phase} {tick % 3}", tick, 12)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=talk, args=(phase,)) for phase in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert sweep(worklist(4), Counting(crowd), tmp_path, console, place=threads(4)) == Outcome(8, 0, [])
    assert errors == []
    assert facts(tmp_path) == expected(worklist(4))


@pytest.mark.parametrize("fails", [False, True])
def test_a_console_that_is_no_terminal_stays_quiet(tmp_path, fails, capfd):
    def trouble(config, seed, watch):
        time.sleep(0.05)
        if fails:
            raise ValueError("no")

    console = quiet()
    sweep(worklist(), Counting(trouble), tmp_path, console)
    assert console.file.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_live_bar_with_the_phase_a_rate_and_the_time_left(tmp_path):
    def ticking(config, seed, watch):
        for tick in range(40):
            watch("phase of ticks", tick, 80)
            time.sleep(0.01)
        watch("phase of ticks", 80, 80)
        time.sleep(0.3)

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    sweep(worklist(1), perform, tmp_path, quiet())
    sweep(worklist(2), Counting(ticking), tmp_path, console, place=threads(1))
    shown = console.file.getvalue()
    assert re.search(r"80/80.*compiling what follows", shown), "a phase that is done has no time left"
    assert "\x1b[" in shown
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    phase = [line for line in lines if line.startswith("phase of ticks")]
    assert any(re.search(r"\d+/80 +[\d.,]+/s +0:00:0\d left 0:00:0\d", line) for line in phase), phase[-3:]
    runs = [line for line in lines if line.startswith("runs ")]
    assert re.search(r" 2/4 ", runs[0]), "runs that were there already count as done"
    assert re.search(r" 4/4 ", runs[-1])


def test_a_loss_that_is_nan_fails_its_run_and_says_where(tmp_path, small, lively):
    task = small("injury")
    model, key = lively(task, layers=1), jax.random.key(0)

    def diverging(run, folder, watch):
        rate = (2e-3, 1e30)[run.config.size]
        schedule = Schedule(steps=4, batch=8, units=2, learning_rate=rate)
        history = train(key, model, task, schedule, checkpoint=state_file(folder, "a"))[1]
        return {"measurements": {"loss": history.loss}}

    runs = worklist(2, 1)
    outcome = sweep(runs, diverging, tmp_path, quiet(), place=threads(1))
    assert outcome.done == 1
    assert outcome.failed[0].startswith(f"{runs[1].id}: FloatingPointError: the loss became nan at step")
    assert [path.name for path in tmp_path.glob("*.json")] == [f"{runs[0].id}.json"]


@pytest.mark.parametrize("parts", [{"seed": 9}, {"experiment": "f"}, {"measurements": [1]}, {"models": {}}])
def test_a_run_whose_parts_make_no_record_fails_and_writes_none(tmp_path, parts):
    def odd(run, folder, watch):
        return perform(run, folder, watch) | parts if parts != {"models": {}} else parts

    [failure] = sweep(worklist(1, 1), odd, tmp_path, quiet()).failed
    assert "ValueError" in failure and not list(tmp_path.glob("*.json"))


def test_the_status_of_a_folder(tmp_path):
    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise ValueError("first line\nlast line")

    runs, other = worklist(), Run("fake", Config(9), 0)
    sweep([*runs[:3], other], Counting(trouble), tmp_path, quiet())
    (tmp_path / "notes.json").write_text("{}")
    with hold(tmp_path / runs[3].id):
        before = contents(tmp_path)
        held = status(runs, tmp_path)
        assert contents(tmp_path) == before
    assert held == {
        "done": [run.id for run in runs[:2]],
        "running": [runs[3].id],
        "failed": [f"{runs[2].id}: last line"],
        "missing": [run.id for run in runs[4:]],
        "of other worklists": [other.id],
        "foreign": [f"skipped {tmp_path / 'notes.json'}: not a record of this testbed"],
    }
    assert status(runs, tmp_path / "nowhere")["missing"] == [run.id for run in runs]


def test_a_folder_is_the_same_wherever_the_work_is_done(tmp_path, monkeypatch):
    def elsewhere(work, watch):
        monkeypatch.chdir("/")  # as a cluster's workers begin
        return work(watch)

    monkeypatch.chdir(tmp_path)
    assert sweep(worklist(1, 1), perform, Path("here"), quiet(), place=nullcontext(Place(1, elsewhere))).failed == []
    assert len(facts(tmp_path / "here")) == 1


def test_a_record_from_a_machine_with_another_disk_is_written_here(tmp_path):
    runs = worklist(2, 1)
    far = Place(2, lambda work, watch: work.func(*work.args[:2], tmp_path / "far", watch))
    assert sweep(runs, perform, tmp_path / "near", quiet(), place=nullcontext(far)) == Outcome(2, 0, [])
    assert facts(tmp_path / "near") == facts(tmp_path / "far") == expected(runs)


@pytest.mark.parametrize(
    ("held", "allowed", "again"),
    [(43_531, "65530", True), (43_530, "65530", False), (42_001, None, True), (42_000, None, False), (11, "40", True)],
)
def test_programs_are_dropped_between_runs_once_they_hold_too_many_memory_maps(
    held, allowed, again, tmp_path, monkeypatch
):
    maps, limit = tmp_path / "maps", tmp_path / "max_map_count"
    maps.write_text(held * "7f00-7f01 r--p\n")
    if allowed:
        limit.write_text(f"{allowed}\n")
    monkeypatch.setattr("testbed.runs.sweep.MAPS", maps)
    monkeypatch.setattr("testbed.runs.sweep.MAPS_ALLOWED", limit)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    traced = []
    program = jax.jit(lambda x: traced.append(x) or x + 1)
    console = Console(file=io.StringIO())
    sweep(
        worklist(2, 1),
        lambda *_: {"measurements": {"x": float(program(1.0))}},
        tmp_path / "out",
        console,
        place=threads(1),
    )
    assert len(traced) == (2 if again else 1)


def test_a_run_without_room_for_its_programs_fails_in_one_line(tmp_path, monkeypatch):
    """Where maps run out, LLVM says `Cannot allocate memory`, and the whole process dies of a segmentation fault."""
    maps, limit = tmp_path / "maps", tmp_path / "max_map_count"
    limit.write_text("65530\n")
    monkeypatch.setattr("testbed.runs.sweep.MAPS", maps)
    monkeypatch.setattr("testbed.runs.sweep.MAPS_ALLOWED", limit)
    monkeypatch.setattr("jax.clear_caches", lambda: None)  # the tests after this one want theirs
    maps.write_text(56_531 * "7f00-7f01 r--p\n")
    [failure] = sweep(worklist(1, 1), perform, tmp_path / "out", quiet(), place=threads(1)).failed
    assert failure.endswith(
        "MemoryError: the process holds 56,531 of 65,530 memory maps, and a run may need 9,000; "
        "raise sysctl vm.max_map_count, or use --launcher=processes"
    )
    maps.write_text(56_530 * "7f00-7f01 r--p\n")
    assert sweep(worklist(1, 1), perform, tmp_path / "out", quiet(), place=threads(1)).failed == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_linux_tells_how_many_maps_a_process_holds_and_may_hold():
    assert 0 < MAPS.read_bytes().count(b"\n") < int(MAPS_ALLOWED.read_text())
