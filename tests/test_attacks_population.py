"""Attacks that keep several prompts, and every attack of the table that no other file names."""

from pathlib import Path

from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403

from testbed.attacks import ATTACKS

FILES = sorted(
    path.stem for path in Path(__file__).parent.glob("test_attacks_*.py") if path.stem != Path(__file__).stem
)
OTHERS = [name for file in FILES for name in __import__(file).NAMES]
NAMES = [name for name in ATTACKS if name not in OTHERS]
