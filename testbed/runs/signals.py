"""Ctrl-C and SIGTERM: who answers them, and when."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def answered(answer: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM are given to `answer`, as `signal.signal` gives them.

    Only the main thread may set this: in another, nothing changes. A signal that is ignored
    (`nohup`) stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.getsignal(each) for each in STOPS}
        before = {each: then for each, then in before.items() if then not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, answer)
    try:
        yield
    finally:
        for each, then in before.items():
            signal.signal(each, then)


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """While the block runs, Ctrl-C and SIGTERM are only noted in the list; a second one kills.

    A handler that raises would not do: what is raised within a callback, as of JAX at a garbage
    collection, is lost.
    """
    caught: list[int] = []

    def note(number, _):
        caught.append(number)
        for each in STOPS:
            if signal.getsignal(each) is note:
                signal.signal(each, signal.SIG_DFL)

    with answered(note):
        yield caught


def deadly() -> contextlib.AbstractContextManager[None]:
    """While the block runs, Ctrl-C and SIGTERM end this process at once: for work that leaves nothing to lose.

    Otherwise Python would act on them only after what runs in C, as a long compilation.
    """
    return answered(signal.SIG_DFL)


def start_shielded(process: Any) -> None:
    """Start a process that Ctrl-C passes over from its first moment on: who started it ends it.

    A child inherits what its parent blocks. Set in the child itself, this would come too late: a
    Ctrl-C while it imports prints a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
