"""What an arm spends, from its config alone: nothing is trained."""

from experiments import EXPERIMENTS
from experiments.arm import NOTHING, Arm, compute_of, defence_of
from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.training.defence import attack_cost, training_cost
from testbed.training.rounds import Schedule

ABLATIONS = [
    name
    for name, module in EXPERIMENTS.items()
    if isinstance(module.grid("quick", module.PRESETS["quick"].tasks.split(",")[0])[0], Arm)
]


def spent(config: Arm) -> dict[str, int]:
    """The compute of an arm, field by field as in its record."""
    if not config.steps:
        return NOTHING
    task = task_named(config.plain.task)
    objective = Objective(task, None, greedy(task))
    budget, defence = config.budget * objective.forwards, defence_of(config.recipe)
    schedule = Schedule(config.steps, config.rounds, config.finds, budget, units=config.units)
    attacks = attack_cost(schedule, ATTACKS[config.attack](), objective, defence)
    return compute_of(schedule, attacks, training_cost(schedule, defence), config.recipe.candidates)
