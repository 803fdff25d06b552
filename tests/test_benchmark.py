"""The benchmark's arithmetic, on a clock that is made up, and what it measures."""

import pytest
from absl import flags

from experiments import benchmark
from tasks import TASKS
from testbed.attacks import ATTACKS


@pytest.fixture(autouse=True)
def parsed():
    """Flags at their defaults."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
        yield
        flags.FLAGS.unparse_flags()
    else:
        yield


def test_neighbours_are_compared_so_that_a_drifting_machine_changes_nothing(monkeypatch):
    clock, slow = [0.0], iter([9, 9, 1, 1, 1, 1, 5, 1, 5, 5, 5, 5])  # how slow the machine is at each call

    def work(seconds):
        clock[0] += seconds * next(slow)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    row = benchmark.paired("it", "steps/s", (lambda: work(1.0), 30), ("bare", lambda: work(0.5), 20), target=0.8)
    assert row.ratio == pytest.approx(30 / 40) and row.target == 0.8
    assert row.value == pytest.approx(30 / 5) and row.baseline == "bare (40)"


def test_every_attack_is_measured_against_its_target(monkeypatch):
    monkeypatch.setattr(benchmark, "paired", lambda name, unit, ours, bare, target: (name, ours[1], bare[2], target))
    for (name, spent, passes, target), attack in zip(benchmark.attacks(TASKS["injury"]()), ATTACKS, strict=True):
        assert name.split()[1] == f"{attack},"
        assert target == (0.6 if ATTACKS[attack]().gradients else 0.8)
        assert passes <= spent <= 128 * 400
