"""Runs: their records, models, locks and checkpoints; sweeps, and the launchers that say where runs are done."""
