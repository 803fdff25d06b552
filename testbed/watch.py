"""Watchers: how long work says what it is at."""

from collections.abc import Callable

Watch = Callable[[str, int, int], None]
"""`(phase, done, total)`; an exception raised in a watcher stops the work."""


def silent(phase: str, done: int, total: int) -> None:
    """A watcher that shows nothing."""
