"""The count of all failures beside a game: in a process of its own that gives way, so that no edit waits for it."""

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

import jax

from experiments.play.truth import Truth, truth_of
from tasks import task_named
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs.signals import start_shielded

GIVES_WAY = 19  # the nicest that a process can be


class Count:
    """How far the count of a model's failures is, and in the end its `truth`; else `error` says why there is none."""

    def __init__(self):
        self.truth: Truth | None = None
        self.error = ""
        self.done, self.total = 0, 1

    def start(self, model: Any, task: str) -> None:
        """Count in another process, and read in a thread what it says. It ends when this process does."""
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        # The model goes through the pipe: a parent that ends while it writes arguments leaves a traceback.
        process = spawn.Process(target=_count, args=(there, task), daemon=True)
        start_shielded(process)
        there.close()
        threading.Thread(target=self._listen, args=(here, jax.device_get(model)), daemon=True).start()

    def _listen(self, here: Connection, model: Any) -> None:
        try:
            here.send(model)
            while self.truth is None and not self.error:
                self.take(*here.recv())
        except (EOFError, ConnectionError):
            self.error = "the count was stopped"

    def take(self, kind: str, said: Any) -> None:
        """Note what the other process says: `done`, `truth` or `error`."""
        if kind == "done":
            self.done, self.total = said
        else:
            setattr(self, kind, said)


def _count(there: Connection, task: str) -> None:
    """The other process: it is sent a model, and says how far it is, then the truth, or in a line why there is none."""
    os.nice(GIVES_WAY)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    played = task_named(task)
    try:
        objective = Objective(played, there.recv(), greedy(played))
        found = truth_of(jax.random.key(0), objective, lambda *progress: there.send(("done", progress)))
        there.send(("truth", found))
    except (ValueError, FloatingPointError) as error:
        there.send(("error", str(error)))
    except (EOFError, ConnectionError):  # nobody plays any more
        pass


def _end_with(parent) -> None:
    """End this process once the other has ended, however that came about."""
    parent.join()
    os._exit(1)
