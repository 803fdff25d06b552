"""What there is to run: tasks, attacks and experiments, with their sizes."""

from rich.console import Console
from rich.table import Table

import experiments
from experiments.experiment import Experiment
from experiments.reading import RECORDS
from tasks import TASKS, task_named
from testbed.attacks import ATTACKS
from testbed.task import space_size
from testbed.training.oracle import SOURCES


def show_list(console: Console) -> None:
    """Tasks, attacks and experiments, a line each, with what they are worth in prompts, runs and minutes."""
    asked = experiments.EXPERIMENTS
    first_line = lambda make: make.__doc__.strip().splitlines()[0]
    sections = {
        "tasks, with the prompts of their default sizes": [
            (name, f"{space_size(task_named(name)):,}", first_line(make)) for name, make in TASKS.items()
        ],
        "attacks": [(name, "", first_line(make)) for name, make in ATTACKS.items()],
        "in place of an attack, for training only": [(name, "", first_line(make)) for name, make in SOURCES.items()],
        "experiments, with runs and minutes on two cores": [
            (name, "\n".join(_sizes(name, experiment)), experiment.question) for name, experiment in asked.items()
        ],
    }
    for title, rows in sections.items():
        grid = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column()
        for row in rows:
            grid.add_row(*row)
        console.print(grid)


def _sizes(name: str, experiment: Experiment) -> list[str]:
    """`quick: 90 runs, 8 min`, for each preset; before them, if no record is shipped, that there are no runs yet."""
    lines = ["no runs yet"] if RECORDS.is_dir() and not (RECORDS / name).is_dir() else []  # a package has no records
    for preset, size in experiment.presets.items():
        runs = size.seeds * sum(len(experiment.arms(preset, task)) for task in size.tasks)
        lines.append(f"{preset}: {runs} runs, {size.minutes:.0f} min")
    return lines
