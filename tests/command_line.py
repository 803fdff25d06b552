"""The command in this process, for tests: what its flags print, and how it ends."""

import contextlib
import io

import pytest
from absl.testing import flagsaver

from experiments import EXPERIMENTS, run


def command(*flags) -> tuple[int, str, str]:
    """What `python -m experiments.run FLAGS` does, in this process: exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with flagsaver.flagsaver(), streams[0], streams[1], pytest.raises(SystemExit) as stop:
        rest = run.parse(["experiments.run", *map(str, flags)])
        run.main(rest)
    return stop.value.code, out.getvalue(), err.getvalue()


def failing(config, bench):
    raise RuntimeError("broken [/because] of [bold]shapes")


def fail(monkeypatch):
    """Every run of the main job fails."""
    broken = EXPERIMENTS["update_frequency"]._replace(measure=failing)
    monkeypatch.setitem(EXPERIMENTS, "update_frequency", broken)
