"""Packing: the finished records of a folder as one sorted file, a line each."""

import json
import os
from pathlib import Path

from testbed.runs import results
from testbed.runs.locks import hold


def pack(folder: Path) -> tuple[int, list[str]]:
    """Fold the single records of a folder into its `records.jsonl`, then remove their files.

    A file is removed only after the packed one is safely on disk. Killed anywhere, each record is in
    one of them or in both.

    Returns:
      How many files were folded, and a line for each file that was left alone: it is no record, or
      another one than the packed file holds of its run.

    Raises:
      ValueError: the packed file has a damaged line, or another process is packing.
      OSError: the folder cannot be written.
    """
    with hold(folder / results.PACKED) as ours:
        if not ours:
            raise ValueError(f"{folder}: another process is packing its records; try again when it is done")
        singles, problems = results.read_singles(folder)
        packed, damaged = results.read_packed(folder)
        if damaged:
            raise ValueError(damaged[0])
        different = results.different(folder, singles, packed)
        folded = [run for run, record in singles.items() if results.same(packed.get(run, record), record)]
        if folded:
            _write(folder, singles | packed)
            for run in folded:
                (folder / f"{run}.json").unlink(missing_ok=True)
        return len(folded), problems + different


def _write(folder: Path, records: dict[str, dict]) -> None:
    """Write the packed file, and wait until the folder's own entry of it is on disk."""
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for _, record in sorted(records.items())]
    results.write_atomically(folder / results.PACKED, "".join(lines).encode())
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
