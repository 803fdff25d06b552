"""Experiments, one question a file. `EXPERIMENTS` is the table: name -> module.

A module has a docstring (the question and what was hypothesised), `TASK` (the default, or several separated by commas),
`SEEDS` and `MINUTES` (by preset; minutes a task), `grid(preset, task)` (configs, as data),
`measure(config, seed, folder, watch) -> plain numbers`, `summary(frame) -> DataFrame`, `plot(frame) -> Figure` and
`claim(frame) -> Verdict`. The last three read records only.
"""

from experiments import (
    attack_comparison,
    attack_strength,
    calibration,
    relaxed_training,
    update_frequency,
    worst_failures,
)

EXPERIMENTS = {
    "update_frequency": update_frequency,
    "attack_strength": attack_strength,
    "worst_failures": worst_failures,
    "relaxed_training": relaxed_training,
    "attack_comparison": attack_comparison,
    "calibration": calibration,
}
