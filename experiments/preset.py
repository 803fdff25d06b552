"""How much of a question is asked: an experiment's `PRESETS` is a table, name -> `Preset`."""

from typing import NamedTuple


class Preset(NamedTuple):
    """On which tasks (names, separated by commas), with how many paired seeds, in about how many minutes on two cores.

    `grid(preset, task)` says which arms; a task or a number of seeds given by hand changes the minutes in proportion.
    """

    tasks: str
    seeds: int
    minutes: float
