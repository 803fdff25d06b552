"""Measurements on disk: what one run has measured of a model, another need not measure again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.runs.results import as_plain, read_regular, write_atomically


def measured_once(folder: Path, of: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure()` returns, as JSON gives it back; read from `folder` if it was measured before.

    A file that is damaged, altered, or of something else is measured anew. Two that measure at once write the same.

    Args:
      of: all that the numbers hang on, as JSON can hold it: model, task, attacks, keys, code and machine.
    """
    name = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name[:24]}.json"
    kept = _kept(path, name)
    if kept is None:
        kept = json.dumps(measure(), default=as_plain)
        document = {"of": name, "digest": _digest(kept), "measured": kept}
        write_atomically(path, json.dumps(document).encode())
    return json.loads(kept)


def _kept(path: Path, name: str) -> str | None:
    try:
        document = json.loads(read_regular(path))
        kept = document["measured"]
        sound = document["of"] == name and document["digest"] == _digest(kept)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return kept if sound else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
