"""Registering a question: its declared part gets an entry in `protocols.json`, before any of its runs."""

from pathlib import Path

import pandas as pd
from rich.console import Console

import experiments
from experiments import protocol
from experiments.export import VERDICT
from experiments.protocol import Protocol
from experiments.reading import RECORDS
from testbed.outside import nearest
from testbed.runs import provenance, results
from testbed.text import plural

FEWEST_SEEDS = 10  # for any verdict: with fewer, no interval over seeds covers what it says
NO_RUNS = "(no runs)"


def register(name: str, why: str, out: Path, console: Console) -> int:
    """Add a question's entry to the protocols; returns 0.

    Args:
      why: one line, why the entry before was given up.
      out: the folder above the question's records; those that are shipped are looked at too.

    Raises:
      ValueError: there is no such question, nothing changed, the code is not committed, the seeds
        are few or were seen, or an entry that has records is given up without a reason.
    """
    if name not in experiments.EXPERIMENTS:
        listed = ", ".join(experiments.EXPERIMENTS)
        raise ValueError(
            f"only questions of the table can be registered, not {name!r}; choose from {listed}"
            f"{nearest(name, experiments.EXPERIMENTS)}"
        )
    experiment, before = experiments.EXPERIMENTS[name], protocol.newest(name)
    said = protocol.declared(name, experiment)
    entry = Protocol(name, protocol.digest_of(said), provenance.utc(), "", said, why=" ".join(why.split()))
    if before and before.digest == entry.digest:
        raise ValueError(f"{name} declares what it did when it was registered on {before.day}; nothing to do")
    if why and not before:
        raise ValueError(f"--why says why a protocol was given up, and {name} has none yet; leave it out")
    folders = [folder for folder in dict.fromkeys((out / name, RECORDS / name)) if folder.is_dir()]
    refuse_seen(entry, folders)
    earlier = verdict_under(before, folders) if before else ""
    if before and not earlier.endswith(NO_RUNS) and not entry.why:
        raise ValueError(f"the protocol of {before.day} has runs ({earlier}); say in --why=... what made it change")
    entry = entry._replace(revision=provenance.clean_revision(), earlier=earlier)
    protocol.append(entry)
    told = (
        f"{name} is registered: {', '.join(entry.tasks)}; seeds {entry.seeds[0]} to {entry.seeds[-1]}; {entry.digest}"
    )
    console.print(told, markup=False, highlight=False)
    if earlier:
        console.print(f"earlier protocol of {before.day}: {earlier}", markup=False, highlight=False)
    run = f"python -m experiments.run --experiment={name} --preset={protocol.REGISTERED}"
    console.print(f"commit {protocol.FILE.name}, then: {run}", markup=False, highlight=False)
    return 0


def refuse_seen(entry: Protocol, folders: list[Path]) -> None:
    """Make sure that a question is asked on seeds that nobody has seen, and on enough of them.

    Raises:
      ValueError: it is not.
    """
    if len(entry.seeds) < FEWEST_SEEDS:
        raise ValueError(f"{entry.question} asks {plural(len(entry.seeds), 'seed')}; a verdict needs {FEWEST_SEEDS}")
    for folder in folders:
        seen = sorted({record["seed"] for record in results.read(folder)[0].values()} & set(entry.seeds))
        if seen:
            told = f"{folder} has records of seed {', '.join(map(str, seen))}"
            raise ValueError(f"{told}: registered seeds must be fresh; give the preset another first_seed")


def verdict_under(entry: Protocol, folders: list[Path]) -> str:
    """The verdict that an entry had, as it was written beside its records.

    Raises:
      ValueError: it has runs, but was not judged while the code declared what it says.
    """
    made = {folder: protocol.counting(entry, results.read(folder)[0]) for folder in folders}
    for folder, records in made.items():
        if (folder / VERDICT).exists():
            (row,) = pd.read_csv(folder / VERDICT, dtype={"protocol": str}).itertuples()
            if row.protocol == entry.digest and row.made == len(records):
                return row.outcome if row.made == row.asked else f"{row.outcome} ({row.made} of {row.asked} runs)"
    for folder, records in made.items():
        if records:
            told = f"{folder} has {plural(len(records), 'run')} under the protocol of {entry.day} without a verdict"
            raise ValueError(f"{told}; judge them by --plot_only at revision {entry.revision[:12]} first")
    return f"undecided {NO_RUNS}"
