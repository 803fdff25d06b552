"""Attacks that descend on relaxed prompts."""

from attack_contract import *  # noqa: F403

NAMES = ["gbda", "pez", "embedding_pgd"]
