"""Attacks that keep several prompts, or a policy."""

from attack_contract import *  # noqa: F403

NAMES = ["mcmc", "annealing", "genetic", "beam", "learned"]
