"""Attacks that climb by gradients."""

from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403

NAMES = ["gcg", "hotflip", "arca", "saliency"]
