"""Protocols: what a question declares before its runs, kept by digest, so that a verdict is no afterthought.

A question is registered once its arms, seeds and rule are fixed (`experiments.register`). Its newest
entry in `protocols.json` counts, and older ones are its history. Runs that were made under the newest
entry decide. All else is exploratory.
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments.experiment import Experiment, runs_of
from experiments.source_code import code_of, plain
from testbed.runs import results
from testbed.runs.sweep import Run

REGISTERED = "registered"  # the preset whose runs decide
COMMAND = "python -m experiments.run --register="
FILE = Path(__file__).with_name("protocols.json")


class Protocol(NamedTuple):
    """An entry of `protocols.json`.

    Attributes:
      question: the name of the experiment.
      digest: of `declared`, 16 hexadecimal digits.
      date: when it was registered (UTC, ISO 8601); runs that finished before don't count.
      revision: git's, of the code that declares this.
      declared: what `declared` gives; see there.
      earlier: the verdict that the question's entry before this one had; empty in its first entry.
      why: why that one was given up.
    """

    question: str
    digest: str
    date: str
    revision: str
    declared: dict[str, Any]
    earlier: str = ""
    why: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks by name."""
        return tuple(self.declared["arms"])

    @property
    def seeds(self) -> range:
        """The paired seeds."""
        return range(self.declared["first_seed"], self.declared["first_seed"] + self.declared["seeds"])

    @property
    def day(self) -> str:
        """The day on which it was registered."""
        return self.date[:10]


def declared(name: str, experiment: Experiment) -> dict[str, Any]:
    """What a question declares, as plain data that reads well in a diff.

    Texts and contrasts stand as they are. `rule` and `effects` are digests of code (`source_code`),
    and so is each arm, by task and name: of its config, as in the ids of runs. A field that came
    later changes nothing.

    Raises:
      ValueError: the question has no preset `REGISTERED`, cannot be asked on one of its tasks, or
        has a rule that is no function at the top level of a module.
    """
    if REGISTERED not in experiment.presets:
        raise ValueError(f"{name} has no preset {REGISTERED!r}; give it one, with its tasks and fresh seeds")
    preset = experiment.presets[REGISTERED]
    return {
        "hypothesis": " ".join(experiment.hypothesis.split()),
        "decides": " ".join(experiment.decides.split()),
        "contrasts": plain(experiment.contrasts),
        "rule": digest_of(code_of(experiment.rule)),
        "effects": digest_of(code_of(experiment.effects)) if experiment.effects else "",
        "first_seed": preset.first_seed,
        "seeds": preset.seeds,
        "arms": {task: _arms(name, experiment, task) for task in preset.tasks},
    }


def _arms(name: str, experiment: Experiment, task: str) -> dict[str, str]:
    """Each arm of a task, with the digest that ends its runs' ids: that of seed 0, whatever seeds are asked."""
    return {run.arm: run.id.rpartition("-")[2] for run in runs_of(name, experiment, REGISTERED, task, 0)}


def digest_of(value: Any) -> str:
    """A digest of plain data; the order of keys is nothing."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def entries(file: Path | None = None) -> list[Protocol]:
    """All entries, oldest first.

    Raises:
      ValueError: the file is damaged, or was edited by hand.
    """
    file, read = file or FILE, []
    try:
        for entry in json.loads(file.read_text()):
            read.append(Protocol(**entry))
            if read[-1].digest != digest_of(read[-1].declared):
                raise ValueError(f"what {read[-1].question} declared on {read[-1].date} was edited")
        if [entry.date for entry in read] != sorted(entry.date for entry in read):
            raise ValueError("its entries are not in the order of their dates")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}; bring the file back from git, entries are only added") from error
    return read


def history(name: str, file: Path | None = None) -> list[Protocol]:
    """A question's entries, oldest first."""
    return [entry for entry in entries(file) if entry.question == name]


def registrations(name: str) -> list[str]:
    """What became of a question's protocols, a sentence each: the newest first."""
    listed = history(name)[::-1]
    told = [f"Registered {e.day}: seeds {e.seeds[0]} to {e.seeds[-1]}, revision {e.revision[:7]}." for e in listed[:1]]
    for after, before in itertools.pairwise(listed):
        why = f", given up {after.day}: {after.why.rstrip('.')}" if after.why else f", given up {after.day}"
        told.append(f"Earlier protocol: {after.earlier}, {before.day}{why}.")
    return told


def newest(name: str) -> Protocol | None:
    """A question's newest entry; None if it is not registered."""
    return next(iter(history(name)[::-1]), None)


def holds(entry: Protocol, experiment: Experiment) -> bool:
    """Whether a question declares what its entry says."""
    return REGISTERED in experiment.presets and digest_of(declared(entry.question, experiment)) == entry.digest


def covered(entry: Protocol, experiment: Experiment) -> set[str]:
    """The ids of the runs that decide."""
    first = [run for task in entry.tasks for run in runs_of(entry.question, experiment, REGISTERED, task, 0)]
    return {run._replace(seed=seed).id for run in first for seed in entry.seeds}


def protocol_of(run: Run, experiment: Experiment) -> str | None:
    """The digest of the protocol under which a run is made now; None if it decides nothing."""
    entry = newest(run.experiment)
    if entry is None or run.task not in entry.tasks or run.seed not in entry.seeds or not holds(entry, experiment):
        return None
    listed = runs_of(run.experiment, experiment, REGISTERED, run.task, run.seed)
    return entry.digest if run.id in {one.id for one in listed} else None


def counts(entry: Protocol, protocol: Any, finished: Any) -> bool:
    """Whether a run was made under an entry, by what its record says: the digest, and when it was finished."""
    return protocol == entry.digest and isinstance(finished, str) and finished >= entry.date


def counting(entry: Protocol, records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that were made under an entry."""
    told = ((record, record.get("protocol"), record["provenance"].get("finished")) for record in records.values())
    return [record for record, protocol, finished in told if counts(entry, protocol, finished)]


def append(entry: Protocol, file: Path | None = None) -> None:
    """Add an entry to the file.

    Raises:
      ValueError: the file is damaged.
    """
    file = file or FILE
    kept = [one._asdict() for one in [*entries(file), entry]]
    results.write_atomically(file, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())


def refuse_unregistered(name: str, experiment: Experiment, seeds: range, folder: Path) -> None:
    """Make sure that runs on registered seeds will decide, before hours are spent and the seeds are seen.

    Raises:
      ValueError: the question is not registered, declares otherwise since, or a record lies there
        that was made before and so would never be made anew.
    """
    preset, entry = experiment.presets[REGISTERED], newest(name)
    if not set(seeds) & set(preset.paired):
        return
    if entry is None:
        first = f"first {COMMAND}{name}, or give other seeds"
        raise ValueError(f"{name} is not registered, and its registered seeds would be seen: {first}")
    if problem := changed(entry, experiment):
        raise ValueError(problem)
    there, ids = results.read(folder)[0], covered(entry, experiment)
    kept = {record["run"] for record in counting(entry, there)}
    if stale := sorted(ids & there.keys() - kept):
        told = f"{len(stale)} records in {folder} are of registered runs, but not made under the protocol"
        raise ValueError(f"{told} of {entry.day}; move them away (the first: {stale[0]})")


def changed(entry: Protocol, experiment: Experiment) -> str:
    """A line that says what a question declares otherwise than its entry, and the mend; empty if nothing."""
    if holds(entry, experiment):
        return ""
    parts = ", ".join(differing(entry, experiment))
    mend = f"take that back, or {COMMAND}{entry.question} --why=..."
    return f"{entry.question} declares otherwise than when it was registered on {entry.day} ({parts}): {mend}"


def differing(entry: Protocol, experiment: Experiment) -> list[str]:
    """The declared parts in which a question differs from its entry; of arms the task and the name."""
    if REGISTERED not in experiment.presets:
        return [f"no preset {REGISTERED!r}"]
    now = declared(entry.question, experiment)
    parts = [part for part in now if part != "arms" and now[part] != entry.declared.get(part)]
    arms = [
        f"arm {arm!r} on {task}"
        for task in {**entry.declared["arms"], **now["arms"]}
        for before, after in [(entry.declared["arms"].get(task, {}), now["arms"].get(task, {}))]
        for arm in {**before, **after}
        if before.get(arm) != after.get(arm)
    ]
    order = [] if arms or now["arms"] == entry.declared["arms"] else ["arms"]
    return parts + arms + order
