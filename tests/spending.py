"""What an arm spends, from its config alone: nothing is trained."""

from experiments import EXPERIMENTS
from experiments.arm import Arm, attack_of, defence_of, schedule_of
from experiments.bench import NOTHING, compute_of
from experiments.worklist import runs_of
from tasks import task_named
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.training.defence import attack_cost, training_cost

ABLATIONS = [
    name
    for name, experiment in EXPERIMENTS.items()
    if isinstance(runs_of(name, experiment, "quick", experiment.presets["quick"].tasks[0], 0)[0].config, Arm)
]


def spent(config: Arm) -> dict[str, int]:
    """The compute of an arm, field by field as in its record."""
    if not config.steps:
        return NOTHING
    task = task_named(config.plain.task)
    objective = Objective(task, None, greedy(task))
    schedule, attack, defence = schedule_of(config), attack_of(config), defence_of(config.recipe)
    attacks = attack_cost(schedule, attack, objective, defence)
    return compute_of(schedule, attacks, training_cost(schedule, task, defence), defence.selection)
