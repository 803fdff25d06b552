"""The demo model: what `--play` opens without an argument. `python -m experiments.play.demo` makes it anew.

It reads the injury task and was defended in one round, so some thousand of its two million prompts still fail. A plain
model would fall at the first key pressed.
"""

import sys
import tempfile
from pathlib import Path

import jax

from experiments.arm import Arm, Plain
from experiments.bench import bench, defended_model
from experiments.play import DEMO
from testbed.runs.models import save

ARM, SEED = Arm(Plain("injury"), rounds=1, finds=2048), 100


def make(path: Path = DEMO) -> None:
    """Train the demo model, in a few minutes, and save it at `path`."""
    with tempfile.TemporaryDirectory() as folder:
        made = defended_model(bench(SEED, Path(folder) / "play"), ARM)
        save(path, jax.device_get(made.model), task=ARM.plain.task, arm=ARM.name, seed=SEED)


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:]))
