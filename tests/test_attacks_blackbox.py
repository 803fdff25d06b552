"""Attacks without gradients: sampling, coordinate search, phrases, enumeration."""

from attack_contract import *  # noqa: F403

NAMES = ["uniform", "clean_rejection", "clean_edits", "coordinate", "infill", "exhaustive"]
