"""A person attacks: the red-teaming page."""

from pathlib import Path

DEMO = Path(__file__).parent / "demo"  # the saved model that `--play` opens without an argument
