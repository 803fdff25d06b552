"""One arm of an ablation: a plain model of a seed, a defence or none, and the whole account of what is left."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tasks import TASKS
from testbed.attacks import ATTACKS
from testbed.evaluation.report import Watch, report
from testbed.model import Transformer, load_or_make, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.results import run_id
from testbed.sweep import kept
from testbed.training import Schedule, attack_cost, train

DEFENCE_RATE = 1e-3  # half the plain peak: fine-tuning, not training anew
EVALUATION = ("uniform", "coordinate", "gcg", "auto")


@dataclasses.dataclass(frozen=True)
class Plain:
    """What a plain model depends on, besides its seed."""

    task: str = "injury"
    width: int = 32
    steps: int = 1536


@dataclasses.dataclass(frozen=True)
class Arm:
    """A plain model, then `steps` more under a defence.

    Attributes:
      plain: the model that the arm starts from; arms of a seed share it.
      steps: gradient steps of the defence; 0 leaves the plain model alone.
      rounds, finds, units: as in `Schedule`; 0 rounds is the control, the same steps without attacks.
      budget: margins that a find may cost; a margin is one forward pass for each answer that may be a catastrophe.
      attack: the attack trained against, by name.
      attackers: attackers of each attack in the evaluation.
    """

    plain: Plain = Plain()
    steps: int = 768
    rounds: int = 0
    finds: int = 512
    budget: int = 190
    units: int = 16
    attack: str = "gcg"
    attackers: int = 64

    @property
    def name(self) -> str:
        """What the arm is called in tables and figures."""
        if not self.steps:
            return "plain"
        return f"{self.rounds} round{'s' * (self.rounds > 1)}" if self.rounds else "control"


def plain_model(plain: Plain, seed: int, folder: Path, watch: Watch) -> Transformer:
    """The plain model of a seed: trained once a folder, then loaded by its id."""
    init_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))
    task = TASKS[plain.task]()

    def make():
        blank = Transformer(model_config(task, width=plain.width), init_key)
        schedule, show = Schedule(steps=plain.steps), functools.partial(watch, "training the plain model")
        return train(train_key, blank, task, schedule, watch=show, kept=kept(folder, name))[0]

    name, waiting = run_id("plain", plain, seed), functools.partial(watch, "waiting for the plain model", 0, 1)
    return load_or_make(folder / "models" / name, make, waiting, task=plain.task, seed=seed)


class Defended(NamedTuple):
    """An arm's model, the compute that its defence spent, and the share of each attack unit's finds that failed."""

    model: Transformer
    compute: dict[str, int]
    found: list[float]


def defended_model(arm: Arm, seed: int, folder: Path, watch: Watch) -> Defended:
    """Train an arm from the plain model of its seed; arms of a seed share every stream of keys."""
    defence_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    task, attack = TASKS[arm.plain.task](), ATTACKS[arm.attack]()
    plain = plain_model(arm.plain, seed, folder, watch)
    spent = {"gradient_steps": 0, "finds": 0, "model_calls": 0, "gradient_calls": 0, "checker_calls": 0}
    if not arm.steps:
        return Defended(plain, spent, [])
    objective = Objective(task, plain, greedy(task))
    budget = arm.budget * objective.forwards
    schedule = Schedule(arm.steps, arm.rounds, arm.finds, budget, learning_rate=DEFENCE_RATE, units=arm.units)
    calls = {f"{field}_calls": int(n) for field, n in attack_cost(schedule, attack, objective)._asdict().items()}
    show = functools.partial(watch, f"adversarial training, {arm.name}")
    file = kept(folder, run_id("arm", arm, seed))
    model, history = train(defence_key, plain, task, schedule, attack, show, file)
    spent |= {"gradient_steps": arm.steps, "finds": arm.finds if arm.rounds else 0} | calls
    return Defended(model, spent, [round(float(share), 4) for share in history.found])


def measure(arm: Arm, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """Train an arm and measure it: plain numbers for a record, with the compute that the defence spent.

    Paired arms are evaluated with the same keys; the evaluation's streams are not the training's.
    """
    _, evaluation_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    model, compute, found = defended_model(arm, seed, folder, watch)
    attacks = {name: ATTACKS[name]() for name in EVALUATION}
    measured = report(evaluation_key, model, TASKS[arm.plain.task](), attacks, attackers=arm.attackers, watch=watch)
    return {"arm": arm.name, "compute": compute, "found": found} | measured
