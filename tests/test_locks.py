"""A lock is held by one, dies with its process, and leaves nothing."""

import errno
import fcntl
import os
import threading

import pytest
from children import SERVER

from testbed.runs import locks as module
from testbed.runs.locks import held, hold


def hold_for_ever(path, pipe):
    with hold(path) as ours:
        pipe.send(ours)
        threading.Event().wait()


def test_of_two_who_want_it_one_has_it_and_then_the_other(tmp_path):
    path = tmp_path / "deep" / "run"
    assert not held(path)
    with hold(path) as first:
        with hold(path) as second:
            assert (first, second) == (True, False)
        assert held(path), "whoever did not get it does not give it back"
    assert not held(path)
    with hold(path) as again:
        assert again
    assert list(path.parent.iterdir()) == []


def test_an_error_in_the_block_gives_it_back(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_it_dies_with_its_process(tmp_path):
    path = tmp_path / "run"
    told, pipe = SERVER.Pipe()
    holder = SERVER.Process(target=hold_for_ever, args=(path, pipe))
    holder.start()
    assert told.recv(), "it holds it"
    assert held(path)
    with hold(path) as ours:
        assert not ours
    holder.kill()
    holder.join()
    assert (tmp_path / "run.lock").exists(), "a kill leaves the file, but nobody holds it"
    assert not held(path)
    with hold(path) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_owner_removed_meanwhile_guards_nothing_and_is_made_anew(tmp_path, monkeypatch):
    path, flock, calls = tmp_path / "run", fcntl.flock, []

    def removed_first(handle, kind):
        if not calls:
            os.unlink(tmp_path / "run.lock")  # its last owner gives it back between our open and our lock
        calls.append(kind)
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with hold(path) as ours:
        assert ours
        assert len(calls) == 2
        with hold(path) as other:
            assert not other


def test_where_many_threads_want_it_one_at_a_time_has_it(tmp_path):
    inside, most, had, barrier = [], [], [], threading.Barrier(8)

    def want():
        barrier.wait()
        for _ in range(50):
            with hold(tmp_path / "run") as ours:
                if ours:
                    inside.append(0)
                    most.append(len(inside))
                    had.append(0)
                    inside.pop()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert had


def test_a_file_system_without_locks_lets_everybody_in(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    with hold(tmp_path / "run") as first, hold(tmp_path / "run") as second:
        assert first and second


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError), hold(tmp_path / "file" / "run"):
        pass
