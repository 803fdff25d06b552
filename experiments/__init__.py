"""Experiments, one question a file. `EXPERIMENTS` is the table: name -> module.

A module has a docstring (the question and what was hypothesised), `TASK` (the default), `SEEDS` and `MINUTES` (by
preset), `grid(preset, task)` (configs, as data), `measure(config, seed, folder, watch) -> plain numbers`,
`summary(frame) -> DataFrame`, `plot(frame) -> Figure` and `claim(frame) -> Verdict`. The last three read records only.
A long training keeps its state in `testbed.sweep.kept(folder, name)`, so that a kill loses a minute of it.
"""

from experiments import attack_comparison, calibration, update_frequency

EXPERIMENTS = {
    "update_frequency": update_frequency,
    "attack_comparison": attack_comparison,
    "calibration": calibration,
}
