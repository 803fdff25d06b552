"""Records: one whole JSON file a run or none, whatever goes wrong and whenever the process is killed.

A child process forks those that are killed inside a write: one that has not started JAX.
"""

import dataclasses
import errno
import functools
import io
import json
import os
import pathlib
import re
import signal
import stat
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from children import forked, in_child

from testbed.runs import results

ROOT = Path(__file__).parents[1]


def recorded(seed: int = 0, experiment: str = "e", config=None, **parts) -> tuple[str, dict]:
    """A run's id, and a record of it that can be written."""
    config = config or {"size": 1}
    rest = {"measurements": {"n": list(range(500))}, "seconds": 0.5, "provenance": {"revision": "x"}}
    record = results.described(experiment, config, seed) | rest | parts
    return results.run_id(experiment, config, seed), record


RUN, RECORD = recorded()


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple = (1, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    steps: int = 10
    inner: Inner = Inner()


BASE = ("e", Config(), 0)
OTHERS = {
    "experiment": ("f", Config(), 0),
    "seed": ("e", Config(), 1),
    "largest seed": ("e", Config(), 2**32 - 1),
    "name": ("e", Config(name="b"), 0),
    "steps": ("e", Config(steps=11), 0),
    "inner rate": ("e", Config(inner=Inner(rate=0.1 + 1e-12)), 0),
    "inner sizes": ("e", Config(inner=Inner(sizes=(2, 1))), 0),
}


def test_same_run_has_the_same_id_in_any_process(aftermath):
    again = ("e", Config(name="a", inner=Inner(0.1, (1, 2)), steps=10), 0)
    assert results.run_id(*BASE) == results.run_id(*again) == aftermath["id"]


def test_any_change_of_a_run_gives_another_id():
    ids = {results.run_id(*run) for run in (BASE, *OTHERS.values())}
    assert len(ids) == 1 + len(OTHERS)
    for run in ids:
        assert re.fullmatch(r"[\w-]+", run), "an id is a file name anywhere"


def test_a_field_that_is_added_later_leaves_the_ids_of_what_was_run_before():
    later = dataclasses.make_dataclass(
        "Later",
        [
            ("name", str, "a"), ("steps", int, 10), ("inner", Inner, Inner()),
            ("layers", int, dataclasses.field(default=3, metadata={"before": 2})),
        ],
        frozen=True,
    )  # fmt: skip
    assert results.run_id("e", later(layers=2), 0) == results.run_id(*BASE)
    assert len({results.run_id("e", later(layers=n), 0) for n in (1, 2, 3)}) == 3


def test_what_is_written_is_read_back(tmp_path):
    measured = {
        "text": 'naïve\n"quoted"',
        "nothing": None,
        "integer": np.int64(2**62 + 1),
        "float": np.float64(0.1),
        "single": np.float32(0.1),
        "bool": np.bool_(True),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "empty": np.zeros((0, 2)),
        "jax": jnp.arange(3.0),
        "nested": {"list": [np.uint8(255), {"deep": np.array(1.5)}]},
    }
    run, record = recorded(measurements=measured, models={"plain": "0123456789abcdef"})
    assert results.write(tmp_path, run, record) is True
    records, problems = results.read(tmp_path)
    assert problems == []
    assert list(records) == [run]
    assert records[run]["models"] == {"plain": "0123456789abcdef"}, "a question's own parts are kept"
    assert records[run]["measurements"] == {
        "text": 'naïve\n"quoted"',
        "nothing": None,
        "integer": 2**62 + 1,
        "float": 0.1,
        "single": float(np.float32(0.1)),
        "bool": True,
        "array": [[0, 1, 2], [3, 4, 5]],
        "empty": [],
        "jax": [0.0, 1.0, 2.0],
        "nested": {"list": [255, {"deep": 1.5}]},
    }


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="cannot hold"):
        results.write(tmp_path, RUN, RECORD | {"measurements": {"set": {1, 2}}})
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_never_overwritten(tmp_path):
    assert results.write(tmp_path, RUN, RECORD)
    path = tmp_path / f"{RUN}.json"
    os.utime(path, ns=(10**18, 10**18))
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert results.write(tmp_path, RUN, RECORD | {"seconds": 9}) is False
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_is_written_where_there_are_no_hard_links(tmp_path, monkeypatch):
    """As on FAT and some network folders."""

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(results.os, "link", no_links)
    assert results.write_atomically(tmp_path / "a", b"one", replace=False)
    assert not results.write_atomically(tmp_path / "a", b"two", replace=False)
    assert (tmp_path / "a").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1


def test_missing_folders_are_made(tmp_path):
    assert results.write(tmp_path / "a" / "b", RUN, RECORD)
    assert (tmp_path / "a" / "b" / f"{RUN}.json").exists()


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    results.write(tmp_path, RUN, RECORD)
    results.write_atomically(tmp_path / "other", b"x")
    umask = os.umask(0)
    os.umask(umask)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


# Places where a write can fail or die: where the code finds the function, and its name.
POINTS = {
    "dumps": (json, "dumps"),
    "mkdir": (pathlib.Path, "mkdir"),
    "open": (results, "open"),
    "fsync": (os, "fsync"),
    "link": (os, "link"),
    "replace": (os, "replace"),
    "unlink": (pathlib.Path, "unlink"),
}
LINK_POINTS = [point for point in POINTS if point != "replace"]
REPLACE_POINTS = [point for point in POINTS if point not in ("dumps", "link")]


class HalfWriter:
    """An opener of files that write half of what they are given, and then do what they are told."""

    def __init__(self, then):
        self.then = then

    def __call__(self, *arguments):
        self.file = io.FileIO(*arguments)
        return self

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.then()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("point", ["dumps", "open", "fsync", "link"])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, point):
    monkeypatch.setattr(*POINTS[point], full_disk, raising=False)
    with pytest.raises(OSError, match="No space"):
        results.write(tmp_path, RUN, RECORD)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert results.write(tmp_path, RUN, RECORD), "the next attempt succeeds"


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "open", HalfWriter(full_disk), raising=False)
    with pytest.raises(OSError, match="No space"):
        results.write(tmp_path, RUN, RECORD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", ["open", "fsync", "replace"])
def test_a_replacement_that_fails_leaves_the_old_file(tmp_path, monkeypatch, point):
    path = tmp_path / "model.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(*POINTS[point], full_disk, raising=False)
    with pytest.raises(OSError, match="No space"):
        results.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    assert results.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(point: str, when: str):
    """Patch the write point so that the process dies there; only for a process that is thrown away."""
    if point == "half":
        results.open = HalfWriter(die)
        return
    module, name = POINTS[point]
    real = getattr(module, name, open)
    setattr(module, name, die if when == "before" else lambda *args, **options: (real(*args, **options), die()))


def killed_writes(folder: Path) -> dict:
    """Kill a write at every point; report the exit status, what is there, and what the next attempt does."""
    seen = {}
    results.write(folder, RUN, RECORD)
    whole = json.loads((folder / f"{RUN}.json").read_text())
    assert {name: whole[name] for name in RECORD} == RECORD
    for point, when in [*((p, w) for p in LINK_POINTS for w in ("before", "after")), ("half", "middle")]:
        place = folder / f"{point}-{when}"
        place.mkdir()

        def write(place=place, point=point, when=when):
            dying_at(point, when)
            return results.write(place, RUN, RECORD)

        [status] = forked(write)
        records, problems = results.read(place)
        again = results.write(place, RUN, RECORD)
        seen[f"{point} {when}"] = {
            "status": status,
            "absent or whole": records in ({}, {RUN: whole}) and not problems,
            "there": bool(records),
            "written by the next": again,
            "whole in the end": results.read(place) == ({RUN: whole}, []),
        }
    return seen


def killed_replacements(folder: Path) -> dict:
    """Kill the replacement of a file at every point; report the exit status, and what the file holds."""
    seen = {}
    for point, when in [*((p, w) for p in REPLACE_POINTS for w in ("before", "after")), ("half", "middle")]:
        path = folder / f"{point}-{when}" / "model.json"
        results.write_atomically(path, b"old" * 999)

        def write(path=path, point=point, when=when):
            dying_at(point, when)
            results.write_atomically(path, b"new" * 999)

        [status] = forked(write)
        held = path.read_bytes() if path.exists() else None
        held = {None: "nothing", b"old" * 999: "old", b"new" * 999: "new"}.get(held, "damaged")
        seen[f"{point} {when}"] = {"status": status, "holds": held}
    return seen


def races(folder: Path, rounds: int = 25, writers: int = 4) -> list[list]:
    """Let processes write the same record at once; report who says that it won, and whose record is there."""
    seen = []
    for number in range(rounds):
        records = [recorded(number, writer=writer) for writer in range(writers)]
        codes = forked(*(functools.partial(results.write, folder, *record) for record in records))
        seen.append([codes, json.loads((folder / f"{recorded(number)[0]}.json").read_text())["writer"]])
    return seen


def write_and_kill(base: Path) -> dict:
    """What becomes of writes that are killed, and of those at once."""
    os.umask(0o027)
    for part in ("writes", "replacements", "races"):
        (base / part).mkdir()
    told = {
        "writes": killed_writes(base / "writes"),
        "replacements": killed_replacements(base / "replacements"),
        "races": races(base / "races"),
    }
    results.write(base, RUN, RECORD)
    mode = stat.S_IMODE((base / f"{RUN}.json").stat().st_mode)
    return told | {"id": results.run_id(*BASE), "hash": hash("a word"), "mode": mode}


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory):
    """What a child process saw, which has another umask, and another hash seed unless the environment sets it."""
    told = in_child(write_and_kill, tmp_path_factory.mktemp("killed"))
    assert told["hash"] != hash("a word") or "PYTHONHASHSEED" in os.environ
    return told


@pytest.mark.parametrize(
    "moment", [*(f"{point} {when}" for point in LINK_POINTS for when in ("before", "after")), "half middle"]
)
def test_a_write_killed_anywhere_leaves_no_record_or_a_whole_one(aftermath, moment):
    seen = aftermath["writes"][moment]
    assert seen["status"] == -signal.SIGKILL, "the process did not come by here: a write point has moved"
    assert seen["absent or whole"]
    assert seen["there"] == (moment in ("link after", "unlink before", "unlink after"))
    assert seen["written by the next"] is not seen["there"]
    assert seen["whole in the end"]


@pytest.mark.parametrize(
    "moment", [*(f"{point} {when}" for point in REPLACE_POINTS for when in ("before", "after")), "half middle"]
)
def test_a_replacement_killed_anywhere_leaves_the_old_file_or_the_new_one(aftermath, moment):
    done = moment in ("replace after", "unlink before", "unlink after")
    assert aftermath["replacements"][moment] == {"status": -signal.SIGKILL, "holds": "new" if done else "old"}


def test_of_processes_that_write_a_record_at_once_exactly_one_wins(aftermath):
    assert len(aftermath["races"]) == 25
    for codes, writer in aftermath["races"]:
        assert sorted(codes) == [0, 0, 0, 1]
        assert codes.index(1) == writer


def test_the_umask_of_the_process_holds(aftermath):
    assert aftermath["mode"] == 0o640


def written() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        results.write(Path(folder), RUN, RECORD)
        return (Path(folder) / f"{RUN}.json").read_bytes()


WRITTEN = written()
RECORDS = ROOT / "experiments" / "records"


def test_the_id_of_every_shipped_record_is_made_again_from_what_it_holds():
    """They are packed: reading re-derives each id, and tells of any that is another."""
    read = [results.read(path.parent) for path in RECORDS.glob(f"*/{results.PACKED}")]
    assert sum(len(records) for records, _ in read) > 1900
    assert all(not problems for _, problems in read)


@dataclasses.dataclass(frozen=True)
class Network:
    task: str = "injury"
    layers: int = dataclasses.field(default=2, metadata={"before": 2})


@dataclasses.dataclass(frozen=True)
class Trained:
    plain: Network = Network()
    layers: int = 2  # of the same name as one that was added, and not left out
    inner: Inner = dataclasses.field(default=Inner(), metadata={"before": Inner()})
    label: str = dataclasses.field(default="", metadata={"before": ""})


def test_the_id_of_a_run_follows_from_its_record_whatever_was_added_since(tmp_path):
    usual = Trained()
    assert results.omitted(usual) == ["plain.layers", "inner", "label"]
    assert results.omitted(Trained(Network(layers=3), label="mine", inner=Inner(0.2))) == []
    for config in (usual, Trained(Network(layers=3)), Trained(label="mine", layers=4)):
        run, record = recorded(config=config)
        assert results.write(tmp_path, run, record)
        held = results.read_record(tmp_path / f"{run}.json")
        assert held["config"] == json.loads(json.dumps(dataclasses.asdict(config))), "the config is whole"
    assert len(results.read(tmp_path)[0]) == 3


def test_other_spaces_are_no_other_content(tmp_path):
    results.write(tmp_path, RUN, RECORD)
    path = tmp_path / f"{RUN}.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert list(results.read(tmp_path)[0]) == [RUN]


@pytest.mark.parametrize("edit", ["config", "seed", "experiment"])
def test_a_record_of_the_first_format_whose_run_was_altered_is_not_used(tmp_path, edit):
    """It has no digest, but its id still says which run it is of."""
    run, record = next(iter(results.read(RECORDS / "diversity")[0].items()))
    edits = {"config": record["config"] | {"steps": 767}, "seed": 77, "experiment": "f"}
    path = tmp_path / f"{run}.json"
    path.write_text(json.dumps(record | {edit: edits[edit]}))
    [problem] = results.read(tmp_path)[1]
    assert problem.startswith(f"skipped {path}: its experiment, config and seed make run ") and "\n" not in problem


def test_many_foreign_files_are_one_line_and_a_damaged_record_is_told_beside_them(tmp_path):
    results.write(tmp_path, RUN, RECORD)
    damaged = tmp_path / f"{recorded(1)[0]}.json"
    damaged.write_bytes(WRITTEN[:50])
    for number in range(5):
        (tmp_path / f"mine-{number}.json").write_text("{}")
    assert len(results.read(tmp_path)[1]) == 6
    for number in range(1234):
        (tmp_path / f"mine-{number}.json").write_text("{}")
    records, problems = results.read(tmp_path)
    assert list(records) == [RUN] and len(problems) == 2
    assert str(damaged) in problems[0] and "1,234 files" in problems[1] and "mine-0.json" in problems[1]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, True, 1.0, "1", None])
def test_a_seed_that_keys_do_not_tell_apart_is_refused(seed):
    """Of `2**32 + 3` a key reads the same bits as of 3: two names, one run."""
    with pytest.raises(ValueError, match="a seed must be a whole number from 0 to 4294967295, not"):
        results.run_id("e", Config(), seed)


def test_what_would_not_be_read_again_is_not_written(tmp_path):
    for run, record in ((RUN, {"measurements": {}}), ("mine", RECORD), (RUN, RECORD | {"seed": 1})):
        with pytest.raises(ValueError, match=f"^{run}: "):
            results.write(tmp_path, run, record)
    assert list(tmp_path.iterdir()) == []


def test_a_renamed_record_is_told_its_name(tmp_path):
    (tmp_path / "renamed.json").write_bytes(WRITTEN)
    assert RUN in results.read(tmp_path)[1][0]


def test_folders_and_other_files_are_no_records(tmp_path):
    results.write(tmp_path, RUN, RECORD)
    (tmp_path / "models").mkdir()
    results.write(tmp_path / "models", *recorded(1))
    (tmp_path / "good.error").write_text("Traceback")
    (tmp_path / ".good.json.x7_1").write_text("{")  # what a killed write leaves
    assert list(results.read(tmp_path)[0]) == [RUN]
    assert results.read(tmp_path)[1] == []
    (tmp_path / "folder.json").mkdir()
    assert len(results.read(tmp_path)[1]) == 1


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert results.read(tmp_path / "no") == ({}, [])


def test_load_gives_a_row_a_run_with_dotted_columns(tmp_path):
    config = {"steps": 5, "plain": {"task": "injury"}}
    for seed in (0, 1):
        measured = {"arm": "plain", "greedy": {"exact": {"failures": 10.0 + seed}}}
        results.write(tmp_path, *recorded(seed, config=config, measurements=measured))
    results.write(tmp_path, *recorded(experiment="another"))
    frame = results.load(tmp_path, "e")
    assert sorted(frame) == [
        "arm", "config.plain.task", "config.steps", "config_id", "experiment",
        "greedy.exact.failures", "run", "seconds", "seed",
    ]  # fmt: skip
    runs = [recorded(seed, config=config)[0] for seed in (0, 1)]
    assert frame["run"].tolist() == sorted(runs)
    assert frame.set_index("seed")["greedy.exact.failures"].to_dict() == {0: 10.0, 1: 11.0}
    assert frame["config.plain.task"].tolist() == ["injury", "injury"]
    everything = results.load(str(tmp_path))
    assert sorted(everything["run"]) == sorted([recorded(experiment="another")[0], *runs])


def test_rows_of_other_configs_under_one_arm_have_another_config_id(tmp_path):
    """Two presets in one folder pool under their arm's name; what tells them apart is in the table."""
    for config in (Config(), Config(steps=11)):
        for seed in (0, 1):
            results.write(tmp_path, *recorded(seed, config=config, measurements={"arm": "plain"}))
    frame = results.load(tmp_path)
    assert frame.groupby("config_id")["config.steps"].unique().map(list).tolist() in ([[10], [11]], [[11], [10]])
    assert not frame.duplicated(["config_id", "seed"]).any()
    assert frame["config_id"].str.fullmatch(r"[0-9a-f]{12}").all()


def test_load_says_when_there_is_nothing(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no records"):
        results.load(tmp_path)
    results.write(tmp_path, RUN, RECORD)
    with pytest.raises(ValueError, match="no records of another"):
        results.load(tmp_path, "another")
