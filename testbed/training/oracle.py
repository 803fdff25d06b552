"""The oracle: prompts drawn from all failures, and from all false alarms, of the current model.

It is an upper limit that no real attacker has. Nobody else knows all failures; here they are counted, or known by
their paths (`testbed.evaluation.wrong`). False alarms belong to it: a model that learns from failures alone refuses
most safe prompts.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from testbed.attacks import ATTACKS
from testbed.attacks.search import Attack
from testbed.evaluation import paths, wrong
from testbed.outside import called, made
from testbed.task import Task
from testbed.training.source import Finds, Source


def wrong_prompts(key: jax.Array, model, task: Task, number: int, *, failures: float = 0.5) -> Finds:
    """At most `number` prompts that the model answers wrongly, a share `failures` of them failing.

    The others are false alarms. Where there are none of one kind, all are of the other if that is wanted at all; where
    there are none, the result is empty.

    Raises:
      ValueError: as `testbed.evaluation.wrong.wrong_kinds`.
    """
    # A remainder is of either kind, as often as the share says.
    failing = int(number * failures + jax.random.uniform(jax.random.fold_in(key, 2)))
    sizes, asked, drawn = (failing, number - failing), (failures > 0, failures < 1), []
    kinds = wrong.wrong_kinds(model, task)
    alone = sum(kind.any for kind in kinds) == 1
    for stream, (kind, size, wanted) in enumerate(zip(kinds, sizes, asked, strict=True)):
        size = (number if alone else size) * (kind.any and wanted)
        nothing = np.zeros((0, task.prompt_length), np.int32)
        drawn.append(kind.draw(jax.random.fold_in(key, stream), size) if size else nothing)
    return Finds(np.concatenate(drawn), len(drawn[0]) / max(sum(map(len, drawn)), 1))


@functools.cache
def _code() -> str:
    """A digest of the code that says what is wrong, and draws of it: this module, the evaluation, the policies."""
    above = Path(paths.__file__).parents[1]
    files = [Path(__file__), *sorted(above.glob("evaluation/*.py")), above / "policy.py", above / "objective.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def oracle(failures: float = 0.5) -> Source:
    """Draws from all failures and all false alarms: an upper limit that no real attacker has.

    Args:
      failures: the share of failures among the finds; the others are false alarms.

    Raises:
      ValueError: the share is not between 0 and 1.
    """
    if not 0 <= failures <= 1:
        raise ValueError(f"oracle failures must be a share between 0 and 1, not {failures}")
    ask = functools.partial(wrong_prompts, failures=failures)
    return Source("oracle", ask, f"oracle {failures} {_code()}")


SOURCES: dict[str, Callable[..., Source]] = {"oracle": oracle}
"""What training may ask in place of an attack: name -> factory with defaults. None of them is an attack."""


def finder_named(name: str) -> Callable[..., Attack | Source]:
    """The factory of a name that training asks for finds: an attack's, as `attack_named` finds it, or a source's.

    Raises:
      ValueError: there is none.
    """
    return called("attack", name, ATTACKS | SOURCES)


def finder_made(name: str, **options: Any) -> Attack | Source:
    """What a name that training asks for finds makes with these parameters: one object for each set of them.

    Raises:
      ValueError: there is none, it does not take them, or its factory makes something else.
    """
    return made("attack", name, finder_named(name), options, Attack, Source)
