"""Long work that can be stopped anywhere: what is done so far as one file, written whole, that knows what it is of."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from testbed.runs.results import write_atomically

FORMAT = "worst-case-testbed checkpoint 1"


def fingerprint(*arrays) -> str:
    """A name for pytrees of arrays: others, or the same in another order, get another one."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def save(path: Path, of: str, done: int, state: Any) -> None:
    """Write that `done` parts of the work `of` (a fingerprint) led to `state`, which JSON can hold."""
    write_atomically(path, json.dumps({"format": FORMAT, "of": of, "done": done, "state": state}).encode())


def load(path: Path, of: str) -> tuple[int, Any]:
    """Parts done and the state they led to; (0, None) if there is no file, or one about other work of this kind.

    Raises:
      ValueError: the file is no checkpoint: it may be somebody's, and must not be overwritten.
    """
    if not path.exists():
        return 0, None
    try:
        held = json.loads(path.read_bytes())
        if held["format"] != FORMAT:
            raise KeyError(held["format"])
        return (held["done"], held["state"]) if held["of"] == of else (0, None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of a count; delete it or choose another path") from error
