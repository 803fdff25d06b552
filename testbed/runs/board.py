"""The live board of a sweep: runs done, the time left, and a line for each run under way."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

A_DAY = 24 * 3600


class _Rate(ProgressColumn):
    def render(self, task):
        return Text("" if not task.speed else f"{task.speed:,.2g}/s" if task.speed < 10 else f"{task.speed:,.0f}/s")


class _Left(TimeRemainingColumn):
    """The time left. A phase that is done has none: what follows is being compiled."""

    def render(self, task):
        left = "compiling what follows" if task.finished else f"left {super().render(task).plain}"
        return Text(left, style="progress.remaining")


def live_board(console: Console) -> Progress:
    """An empty board; where there is no terminal it shows nothing."""
    return Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(20),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        _Left(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=A_DAY,  # a run takes minutes: the time left follows from all runs, not the last seconds
    )


def show_phase(board: Progress, line: TaskID, phase: str, *, done: int, total: int) -> None:
    """Show on a line how many steps of a phase are done. A new phase starts a new clock."""
    if board.tasks[board.task_ids.index(line)].description != phase:
        board.reset(line, description=phase, total=total)
    board.update(line, completed=done, total=total)


def show_tally(board: Progress, overall: TaskID, failed: int, elsewhere: int) -> None:
    """Say on the first line how many runs are under way (a line each), failed, and done by others."""
    parts = {"running": len(board.task_ids) - 1, "failed": failed, "elsewhere": elsewhere}
    board.update(overall, description=", ".join(["runs", *(f"{n} {kind}" for kind, n in parts.items() if n)]))
