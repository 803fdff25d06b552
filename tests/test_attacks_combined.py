"""Attacks made of other attacks; `test_combine.py` says what they do."""

from attack_contract import *  # noqa: F403

NAMES = ["restarts", "chain", "placed", "warm_start"]
