"""What a sweep leaves in its folder: where nothing can be written, and when all is done."""

import errno
import os
import subprocess

import pytest
from sweeping import Counting, expected, facts, perform, quiet, worklist

from testbed.runs import checkpoints, results
from testbed.runs.launchers import threads
from testbed.runs.locks import held, hold
from testbed.runs.sweep import Outcome, state_file, sweep


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no")])
def test_an_error_file_that_cannot_be_written_or_removed_stops_nothing(tmp_path, monkeypatch, error):
    runs, write = worklist(), results.write_atomically

    def cannot(path, *rest, **named):
        if path.suffix == ".error":
            raise error
        return write(path, *rest, **named)

    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise ValueError("the reason")

    monkeypatch.setattr(results, "write_atomically", cannot)
    outcome = sweep(runs, Counting(trouble), tmp_path, quiet())
    assert outcome == Outcome(
        5, 0, [f"{runs[2].id}: ValueError: the reason (its traceback could not be written: {error})"]
    )
    (tmp_path / f"{runs[2].id}.error").mkdir()  # neither can it be removed
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(1, 5, [])
    assert facts(tmp_path) == expected(runs)


def test_a_full_disk_fails_the_runs_that_need_room_and_the_rerun_completes(tmp_path, monkeypatch):
    runs, fsync, synced = worklist(), os.fsync, []

    def full_from_the_third(handle):
        synced.append(handle)
        if len(synced) > 2:
            full_disk()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_from_the_third)
    outcome = sweep(runs, perform, tmp_path, quiet(), place=threads(1))
    assert (outcome.done, len(outcome.failed)) == (2, 4)
    assert all("No space left" in line for line in outcome.failed)
    monkeypatch.undo()
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(4, 2, [])
    assert facts(tmp_path) == expected(runs)
    assert len(list(tmp_path.iterdir())) == len(runs), "nothing half written is left"


def test_a_small_disk_that_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk; ENOSPC is tried by the test above all the same")
    try:
        runs, room = worklist(), disk / "somebody's"
        room.write_bytes(bytes(48 * 1024))
        outcome = sweep(runs, perform, disk / "sweep", quiet(), place=threads(2))
        assert 0 < outcome.done < 6 and all("No space left" in line for line in outcome.failed)
        assert len(facts(disk / "sweep")) == outcome.done
        room.unlink()
        assert sweep(runs, perform, disk / "sweep", quiet()).failed == []
        assert facts(disk / "sweep") == expected(runs)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written_any_more_is_told_run_by_run(tmp_path):
    folder = tmp_path / "sweep"
    folder.write_text("a file in the way")
    outcome = sweep(worklist(), perform, folder, quiet())
    assert (outcome.done, len(outcome.failed)) == (0, 6)
    assert all("could not be written" in line for line in outcome.failed)
    assert folder.read_text() == "a file in the way"


def test_what_only_unfinished_work_needs_is_removed_at_the_end(tmp_path):
    runs, folder = worklist(), tmp_path / "records"
    own, part = state_file(folder, runs[5].id), state_file(folder, f"{runs[5].id}-clean")
    half = own.with_name(f".{own.name}.0123456789abcdef")  # what a kill leaves of a checkpoint
    made, unmade = state_file(folder, "plain-seed0-made"), state_file(folder, "plain-seed0-unmade")
    (tmp_path / "models").mkdir()
    for name in ("plain-seed0-made.json", "plain-seed0-made.safetensors", "plain-seed0-made.lock"):
        (tmp_path / "models" / name).touch()

    def keeping(run, folder, watch):
        for file in (own, part, half, made, unmade):
            checkpoints.save(file, "me", [run.seed])
        if (run.config.size, run.seed) == (2, 1) and not failed:
            failed.append(run)
            raise ValueError("later")
        return perform(run, folder, watch)

    failed = []
    sweep(runs, keeping, folder, quiet(), place=threads(1))
    assert all(file.exists() for file in (own, part, half, made, unmade)), "a run is missing, and may want it"
    (folder / f"{runs[0].id}.lock").touch()  # what a kill leaves
    with hold(tmp_path / "models" / "plain-seed0-made"):
        sweep(runs, keeping, folder, quiet())
        assert held(tmp_path / "models" / "plain-seed0-made"), "somebody is at work on it"
    (tmp_path / "models" / "plain-seed0-made.lock").touch()
    halves = [folder / f".{runs[0].id}.json.0123456789abcdef", folder / f".{runs[1].id}.error.0123456789abcdef"]
    halves.append(tmp_path / "models" / ".plain-seed0-made.safetensors.0123456789abcdef")
    theirs = [folder / ".mine.json.0123456789abcdef", tmp_path / "models" / ".hidden"]
    for path in (*halves, *theirs):
        path.touch()
    sweep(runs, keeping, folder, quiet())
    assert [path.exists() for path in (*halves, *theirs)] == [False] * 3 + [True] * 2
    theirs[0].unlink()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*(f"{run.id}.json" for run in runs), "checkpoints/plain-seed0-unmade.npz"}, "another may want it"
    assert not (tmp_path / "models" / "plain-seed0-made.lock").exists()
    unmade.unlink()
    checkpoints.save(own, "me", [1])
    sweep(runs, keeping, folder, quiet())
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{run.id}.json" for run in runs)


def test_a_finished_sweep_removes_nothing_of_others(tmp_path):
    runs, folder, outside = worklist(1, 1), tmp_path / "records", tmp_path / "outside"
    theirs = [
        folder / "uv.lock", folder / "sub" / "poetry.lock", folder / "sub" / f"{runs[0].id}.lock",
        folder / "other-seed0-0123456789ab.lock", folder / "checkpoints" / "epoch-7.npz",
        folder / "checkpoints" / "notes.txt", folder / "checkpoints" / "deep" / f"{runs[0].id}.npz",
        tmp_path / "models" / "uv.lock", tmp_path / "models" / "uv.json",
        outside / f"{runs[0].id}.npz", outside / "lock",
    ]  # fmt: skip
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert sweep(runs, perform, folder, quiet()).failed == []
    assert [path.read_text() for path in theirs] == ["mine"] * len(theirs)


def test_tidying_follows_no_link(tmp_path):
    runs, folder, outside = worklist(1, 1), tmp_path / "records", tmp_path / "outside"
    mine = [
        outside / f"{runs[0].id}.npz",
        outside / "plain.lock",
        outside / "plain.json",
        outside / "plain.safetensors",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    folder.mkdir()
    (folder / "checkpoints").symlink_to(outside)
    (tmp_path / "models").symlink_to(outside)
    assert sweep(runs, perform, folder, quiet()).failed == []
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    # A lock file that is a link is nobody's lock: the run is told, and what it leads to is not made or removed.
    (folder / f"{runs[0].id}.json").unlink()
    (folder / f"{runs[0].id}.lock").symlink_to(outside / "made")
    [failure] = sweep(runs, perform, folder, quiet()).failed
    assert failure.startswith(runs[0].id) and not (outside / "made").exists()
