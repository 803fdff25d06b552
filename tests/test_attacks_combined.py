"""Attacks made of other attacks."""

from attack_contract import *  # noqa: F403

NAMES = ["auto", "restarts", "chain", "placed", "warm_start"]
