"""Attacks that descend on relaxed prompts, or train a policy."""

from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403

NAMES = ["gbda", "pez", "embedding_pgd", "learned"]
