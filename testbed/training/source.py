"""Sources: finds that come from beside the attacks, asked for on the host between compiled units.

An attack sees an objective and pays for its calls. A source sees the model and the task, and pays nothing. So it is a
limit to compare attacks with, and never an attack that anybody has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from testbed.task import Task

UPPER_LIMIT = "an upper limit that no real attacker has"
"""What is said of a source wherever it is shown."""


class Finds(NamedTuple):
    """What a source gives: prompts `[n, T]`, and the share of them that fail."""

    prompts: np.ndarray
    failing: float


class Source(NamedTuple):
    """A source of finds.

    Attributes:
      name: what it is called.
      ask: `(key, model, task, room) -> Finds`, at most `room` prompts on which the model is wrong.
      text: all that its finds depend on besides these, for digests: its parameters and its code.
    """

    name: str
    ask: Callable[[jax.Array, Any, Task, int], Finds]
    text: str
