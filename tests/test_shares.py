"""A count in shares is the whole count, whoever does which share; what is left out or doubled is refused."""

import dataclasses
import functools
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from children import SERVER
from command_line import command
from rich.console import Console

from experiments import counting
from tasks import task_named
from testbed.evaluation import exact, shares, walk
from testbed.kinds import build
from testbed.model import model_config
from testbed.policy import conservative, greedy, stochastic
from testbed.runs import results
from testbed.runs.locks import held
from testbed.runs.models import save
from testbed.runs.sweep import sweep
from testbed.task import ids_of, long_rank, prompt_ids, space_size

ROOT = Path(__file__).parents[1]
TASK = "injury:length=4"  # 8^4 prompts, here in eight shares
pytestmark = pytest.mark.usefixtures("own_cache")
SIZES = {"LEAVES_A_CHUNK": 64, "CHUNKS_A_CALL": 4, "PARTS_A_SHARE": 2}


def small(patch) -> None:
    """Small chunks, calls and shares."""
    for name in ("LEAVES_A_CHUNK", "CHUNKS_A_CALL"):
        patch.setattr(walk, name, SIZES[name])
    patch.setattr(shares, "PARTS_A_SHARE", SIZES["PARTS_A_SHARE"])


@pytest.fixture(scope="module")
def case(lively):
    """A task, a model, policies, and the whole count in one go."""
    task = task_named(TASK)
    policies = {"bold": conservative(task, 2.0), "greedy": greedy(task), "sampled": stochastic(task)}
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        yield task, lively(task), policies, exact.count(lively(task), task, policies)


def assert_same(together, counted) -> None:
    """Whole numbers exactly, and sums of floats to rounding."""
    for name, expected in counted.items():
        for field, value in expected._asdict().items():
            told = getattr(together[name], field)
            if field == "ids":
                assert len(told) == 0, "thousands of shares would not fit into memory"
            elif isinstance(value, float | dict) and field != "worst_margin":
                assert told == pytest.approx(value, rel=1e-9), field
            else:
                assert told == value, field


def test_shares_in_any_order_are_the_whole_count_through_json_too(case):
    task, model, policies, counted = case
    every = shares.shares_of(model, task, policies)
    assert len(every) == 8 and sum(map(len, every)) == space_size(task) == every[-1].stop
    counts = [None] * 8
    for number in (5, 0, 7, 2, 1, 6, 3, 4):
        counts[number] = shares.count_share(model, task, policies, number)
    assert_same(shares.whole(task, every, counts), counted)
    kept = [exact.from_json(exact.as_json(part)) for part in counts]
    assert_same(shares.whole(task, every, kept), counted)


def test_a_missing_a_doubled_and_a_cut_share_are_refused(case):
    task, model, policies, _ = case
    every = shares.shares_of(model, task, policies)
    counts = [shares.count_share(model, task, policies, number) for number in range(8)]
    with pytest.raises(ValueError, match="7 counts of 8 shares; count those that are missing"):
        shares.whole(task, every, counts[:-1])
    with pytest.raises(ValueError, match=r"ranks 1,536 to 2,047 .* left out or counted twice"):
        shares.whole(task, every, [*counts[:3], counts[2], *counts[4:]])
    cut = {name: one._replace(prompts=one.prompts - 1) for name, one in counts[6].items()}
    with pytest.raises(ValueError, match="visited 511 prompts"):
        shares.whole(task, every, [*counts[:6], cut, counts[7]])
    with pytest.raises(ValueError, match="ranks 0 to 4,095 "):
        shares.whole(task, every[:-1], counts[:-1])


def test_a_rank_in_two_digits_is_the_rank_in_spaces_of_any_size():
    rng = np.random.default_rng(0)
    large = task_named("injury:length=12:vocab=16")  # 2^48
    holes = large.allowed.copy()
    holes[3, :5] = holes[11, 2] = False
    for task in (large, dataclasses.replace(large, allowed=holes), task_named(TASK)):
        tokens = [np.flatnonzero(row) for row in task.allowed]
        prompts = np.stack([t[[0, -1, *rng.integers(0, len(t), 50)]] for t in tokens], axis=1).astype(np.int32)
        digits = np.asarray(jax.jit(jax.vmap(functools.partial(long_rank, task)))(prompts))
        np.testing.assert_array_equal(ids_of(task, digits), prompt_ids(task, prompts))
    assert space_size(large) == walk.MOST_COUNTABLE


def test_a_larger_space_must_be_asked_for():
    task = task_named("injury:length=11")
    model = jax.eval_shape(lambda: build(jax.random.key(0), model_config(task, width=8, heads=2, layers=1)))
    with pytest.raises(ValueError, match=r"268,435,456 that can be counted; .*--largest_space"):
        exact.parts_of(model, task, {"greedy": greedy(task)})
    walk.refuse_if_too_large(task, largest=2**33)


def saved(folder: Path) -> Path:
    """A model of `TASK` on disk."""
    task = task_named(TASK)
    save(folder / "mine", build(jax.random.key(3), model_config(task, width=8, heads=2, layers=1)), task=TASK)
    return folder / "mine"


def counted_by(folder: Path, perform) -> list[str]:
    """Do the shares of the saved model of a folder by `perform`; a line for each that failed."""
    runs = begun(folder)[1]
    return sweep(runs, perform, folder / "out" / counting.COUNT, Console(quiet=True)).failed


def begun(folder: Path):
    """The count of the saved model of a folder, and its shares, as the command begins with them."""
    out = folder / "out" / counting.COUNT
    config = counting.counting_of(str(folder / "mine"), None, None)
    counting.copy(config, str(folder / "mine"), out)
    return config, counting.runs_of(config, out)


def help_to_count(folder: Path, blocked) -> None:
    """What a helper does: shares from the third on are begun, told, and never done."""

    def perform(run, folder, watch):
        if run.config.number >= 2:
            blocked.set()
            threading.Event().wait()
        return counting.perform_share(run, folder, watch)

    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        counted_by(folder, perform)


def test_two_processes_share_a_count_and_a_killed_one_loses_one_share(tmp_path, monkeypatch):
    small(monkeypatch)
    path, folder = saved(tmp_path), tmp_path / "out" / counting.COUNT
    (config, runs), done = begun(tmp_path), []
    blocked = SERVER.Event()
    helper = SERVER.Process(target=help_to_count, args=(tmp_path, blocked))
    helper.start()
    try:
        while not blocked.wait(1.0):
            assert helper.is_alive()
        before = {run.id for run in runs if results.find(folder, run.id)}
        assert held(folder / runs[2].id) and len(before) >= 1, "one is begun, and some are done"

        def perform(run, folder, watch):
            parts = counting.perform_share(run, folder, watch)
            done.append(run.id)
            if len(done) == 1:
                helper.kill()  # its lock goes with it
            return parts

        assert counted_by(tmp_path, perform) == []
    finally:
        helper.kill()
        helper.join()
    assert len(done) == len(set(done)) and runs[2].id in done
    assert not before & set(done), "what the helper had finished is not counted again"
    status, out, _ = command(f"--count={path}", f"--out={tmp_path / 'out'}")
    assert status == 0 and "checked: every prompt was visited, and none twice" in out
    counted = exact.count(*counting.counted(config, folder))
    whole = results.find(folder, counting.whole_of(config).id)["measurements"]
    for name, expected in counted.items():
        for field, value in exact.summary(expected).items():
            numbers = field not in ("checksum", "worst_prompt") and value is not None
            assert whole[name][field] == (pytest.approx(value, rel=1e-9) if numbers else value), field


def test_the_command_says_what_it_cannot_count_before_any_work(tmp_path):
    path = saved(tmp_path)
    for flags, words in (
        ((f"--count={path}", "--largest_space=2^10"), "more than the 1,024 that can be counted"),
        ((f"--count={path}", "--largest_space=1000"), "must be 2^N, N from 0 to 48, as 2^32; not '1000'"),
        ((f"--count={path}", "--largest_space=2^99"), "must be 2^N"),
        ((f"--count={path}", "--task=cipher_vault"), "does not fit task cipher_vault"),
        ((f"--count={tmp_path / 'absent'}",), "absent is not a saved model"),
        (("--count=",), "--count= is empty"),
    ):
        status, _, err = command(*flags, f"--out={tmp_path / 'out'}")
        assert status == 2 and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "out").exists()


def test_a_count_goes_on_with_the_model_and_the_code_that_it_began_with(tmp_path, monkeypatch):
    """A helper may reach the folder, and a model like it, by other paths."""
    small(monkeypatch)
    saved(tmp_path)
    folder = tmp_path / "out" / counting.COUNT
    config, runs = begun(tmp_path)
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"mine{suffix}").rename(tmp_path / f"theirs{suffix}")
    assert counting.counting_of(str(tmp_path / "theirs"), None, None) == config
    moved = folder.rename(tmp_path / "elsewhere")
    assert sweep(runs[:2], counting.perform_share, moved, Console(quiet=True)).failed == []

    monkeypatch.setattr(counting, "source", lambda: "other")
    [failed] = sweep(runs[2:3], counting.perform_share, moved, Console(quiet=True)).failed
    assert "other code than the count was begun with" in failed


def test_shares_of_other_code_are_not_put_together(tmp_path, monkeypatch):
    small(monkeypatch)
    saved(tmp_path)
    folder = tmp_path / "out" / counting.COUNT
    config, runs = begun(tmp_path)
    assert sweep(runs, counting.perform_share, folder, Console(quiet=True)).failed == []
    find = results.find

    def found(where, name):
        record = find(where, name)
        other = record["provenance"] | {"source": "other"}
        return record | {"provenance": other} if name == runs[0].id else record

    monkeypatch.setattr(results, "find", found)
    with pytest.raises(ValueError, match=r"^1 share came from other code; delete the records in .*, count anew"):
        counting.perform_whole(counting.whole_of(config), folder, lambda *_: None)
