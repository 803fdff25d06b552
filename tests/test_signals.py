"""Ctrl-C and SIGTERM: at once where nothing can be lost, and never in a child. Sweeps are in `test_sweep_stops`."""

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from testbed.runs import signals

# The file alone: the package would import JAX. The sum runs in C for some ten seconds, as a compilation does.
BUSY = """
import runpy, sys
with runpy.run_path(sys.argv[1])["deadly"]():
    print("begun", flush=True)
    sum(range(10**9))
"""
MASK = "import json, signal; print(json.dumps(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))))"


@pytest.mark.parametrize("stop", signals.STOPS)
def test_a_stop_ends_at_once_and_without_a_word_what_runs_in_c(stop):
    command = [sys.executable, "-c", BUSY, signals.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "begun\n"
        child.send_signal(stop)
        assert (child.stderr.read(), child.wait()) == ("", -stop)


def test_a_shielded_child_is_passed_over_by_ctrl_c_from_its_first_moment_on():
    said = []

    def start():
        said.append(json.loads(subprocess.check_output([sys.executable, "-c", MASK])))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signals.start_shielded(SimpleNamespace(start=start))
    assert said == [[signal.SIGINT]] and signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
