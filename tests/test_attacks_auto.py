"""The default held-out attack."""

from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403

NAMES = ["auto"]
