"""Certificates: what a count by paths says of a machine, for a stranger to check (`testbed.certificate`)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from testbed.certificate import COUNTED, FORMAT
from testbed.evaluation import exact, paths
from testbed.policy import greedy
from testbed.runs.models import load
from testbed.runs.results import write_atomically
from testbed.task import Task, tokens_by_position


def certificate_of(model, task: Task, name: str, content: bytes) -> dict[str, Any]:
    """The certificate of a machine on a task, at threshold 0.

    Args:
      name: of the task, with its sizes; content: of the model's safetensors file.

    Raises:
      ValueError: the model cannot be counted by paths.
    """
    paths.refuse_unwalkable(model, task)
    policy = greedy(task)
    counted = exact.count(model, task, {"greedy": policy})["greedy"]
    return {
        "format": FORMAT,
        "task": name,
        "model": hashlib.sha256(content).hexdigest(),
        "refusal": int(task.refusal),
        "tau": float(policy.tau),
        **{of: str(int(getattr(counted, of))) for of in COUNTED},
        "tokens": [tokens.tolist() for tokens in tokens_by_position(task)],
        "rule": {part: getattr(task.checker, part).tolist() for part in ("follow", "level", "answer")},
    }


def certify(path: str | Path, task: Task, name: str) -> Path:
    """Write the certificate of the saved machine `path` beside it; returns where.

    Raises:
      ValueError: it is no saved model, or cannot be counted by paths.
    """
    path = Path(path)
    model = load(path)
    made = certificate_of(model, task, name, path.with_name(path.name + ".safetensors").read_bytes())
    file = path.with_name(path.name + ".certificate.json")
    write_atomically(file, json.dumps(made).encode())
    return file
