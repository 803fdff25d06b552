"""Attacks that keep several prompts."""

from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403

NAMES = ["mcmc", "annealing", "genetic", "beam"]
