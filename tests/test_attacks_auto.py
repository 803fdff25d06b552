"""The default held-out attack."""

from attack_contract import *  # noqa: F403

NAMES = ["auto"]
