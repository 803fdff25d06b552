"""One arm of an ablation: a plain model of a seed, a defence or none, and the whole account of what is left."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.attacks.search import Cost
from testbed.evaluation.account import report
from testbed.model import Transformer, model_config
from testbed.objective import Objective, confirm
from testbed.policy import greedy
from testbed.runs.models import load_or_make
from testbed.runs.results import run_id
from testbed.runs.sweep import kept
from testbed.training.defence import LOSSES, Defence, attack_cost, training_cost
from testbed.training.latent import Layers
from testbed.training.rounds import Schedule, train
from testbed.training.selection import ORDERS, REPLAYS
from testbed.watch import Watch

DEFENCE_RATE = 1e-3  # half the plain peak: fine-tuning, not training anew
EVALUATION = ("uniform", "coordinate", "gcg", "auto")


@dataclasses.dataclass(frozen=True)
class Plain:
    """What a plain model depends on, besides its seed."""

    task: str = "injury"
    width: int = 32
    steps: int = 1536
    layers: int = dataclasses.field(default=2, metadata={"before": 2})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A `testbed.training.defence.Defence` as data: its functions by their names in `ORDERS`, `REPLAYS` and `LOSSES`.

    `layer` and `eps` say where and how far a relaxed loss perturbs.
    """

    order: str = "anyone"
    candidates: int = 1
    failures_only: bool = False
    replay: str = "evenly"
    twins: bool = False
    share: float = 0.5
    loss: str = "plain"
    layer: Layers = 0
    eps: float = 0.0


def defence_of(recipe: Recipe) -> Defence:
    """The functions that a recipe names."""
    return Defence(
        ORDERS[recipe.order],
        recipe.candidates,
        recipe.failures_only,
        REPLAYS[recipe.replay],
        recipe.twins,
        recipe.share,
        LOSSES[recipe.loss](recipe.layer, recipe.eps),
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """A plain model, then `steps` more under a defence.

    Attributes:
      plain: the model that the arm starts from; arms of a seed share it.
      steps: gradient steps of the defence; 0 leaves the plain model alone.
      rounds, finds, units: as in `Schedule`; 0 rounds is the control, the same steps without attacks.
      budget: margins that a find may cost; a margin is one forward pass for each answer that may be a catastrophe.
      attack: the attack trained against, by name.
      attackers: attackers of each attack in the evaluation; with 0 it has no attacks.
      recipe: what training makes of the finds, and what its loss sees.
      label: what the arm is called, if its rounds don't say it all.
    """

    plain: Plain = Plain()
    steps: int = 768
    rounds: int = 0
    finds: int = 512
    budget: int = 190
    units: int = 16
    attack: str = "gcg"
    attackers: int = 64
    recipe: Recipe = dataclasses.field(default=Recipe(), metadata={"before": Recipe()})
    label: str = dataclasses.field(default="", metadata={"before": ""})

    @property
    def name(self) -> str:
        """What the arm is called in tables and figures."""
        if self.label or not self.steps:
            return self.label or "plain"
        return f"{self.rounds} round{'s' * (self.rounds > 1)}" if self.rounds else "control"


def models_of(folder: Path) -> Path:
    """Where the models of an experiment lie that keeps its records in `folder`: all experiments share them."""
    return folder.parent / "models"


def plain_model(plain: Plain, seed: int, folder: Path, watch: Watch) -> Transformer:
    """The plain model of a seed: trained once, then loaded by its id."""
    init_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))
    task = task_named(plain.task)

    def make():
        blank = Transformer(model_config(task, width=plain.width, layers=plain.layers), init_key)
        schedule, show = Schedule(steps=plain.steps), functools.partial(watch, "training the plain model")
        model, _ = train(train_key, blank, task.poison or task, schedule, watch=show, kept=kept(folder, name))
        return model, {"task": plain.task, "seed": seed}

    name, waiting = run_id("plain", plain, seed), functools.partial(watch, "waiting for the plain model", 0, 1)
    return load_or_make(models_of(folder) / name, make, waiting)[0]


class Defended(NamedTuple):
    """An arm's model, and how it came about.

    Attributes:
      compute: what its defence spent.
      found: the share of each attack unit's finds that failed.
      fit: the share of all finds, as they are in the pool, on which the model no longer fails; None without finds.
    """

    model: Transformer
    compute: dict[str, int]
    found: list[float]
    fit: float | None


def compute_of(schedule: Schedule, attacks: Cost, trains: Cost, candidates: int) -> dict[str, int]:
    """What a defence spent, exactly: steps, finds, calls of its attacks, calls of its steps, and all as `forwards`."""
    finds = schedule.finds * bool(schedule.rounds)
    spent = {"gradient_steps": schedule.steps, "finds": finds, "candidates": finds * candidates}
    spent |= {f"{field}_calls": int(n) for field, n in attacks._asdict().items()}
    spent |= {"training_gradients": trains.gradient, "training_forwards": trains.model}
    return spent | {"forwards": int(attacks.forwards + trains.forwards)}


NOTHING = dict.fromkeys(
    ("gradient_steps", "finds", "candidates", "model_calls", "gradient_calls", "checker_calls",
     "training_gradients", "training_forwards", "forwards"), 0
)  # fmt: skip


def defended_model(arm: Arm, seed: int, folder: Path, watch: Watch) -> Defended:
    """An arm's model, trained from the plain model of its seed once, then loaded by the arm's id.

    Arms of a seed share every stream of keys.
    """
    defence_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    task, attack, defence = task_named(arm.plain.task), ATTACKS[arm.attack](), defence_of(arm.recipe)
    plain = plain_model(arm.plain, seed, folder, watch)
    if not arm.steps:
        return Defended(plain, NOTHING, [], None)
    objective = Objective(task, plain, greedy(task))
    budget = arm.budget * objective.forwards
    schedule = Schedule(arm.steps, arm.rounds, arm.finds, budget, learning_rate=DEFENCE_RATE, units=arm.units)
    attacks, trains = attack_cost(schedule, attack, objective, defence), training_cost(schedule, defence)

    def make():
        show = functools.partial(watch, f"adversarial training, {arm.name}")
        model, history = train(defence_key, plain, task, schedule, attack, show, defence, kept(folder, name))
        found = [round(float(share), 4) for share in history.found]
        fails = confirm(Objective(task, model, greedy(task)), history.pool) if arm.rounds else None
        fit = None if fails is None else float(1 - fails.mean())
        return model, {"task": arm.plain.task, "seed": seed, "arm": arm.name, "found": found, "fit": fit}

    # How many evaluate a model, and what it is called, changes nothing of it.
    name = run_id("defended", dataclasses.replace(arm, attackers=0, label=""), seed)
    waiting = functools.partial(watch, "waiting for the defended model", 0, 1)
    model, notes = load_or_make(models_of(folder) / name, make, waiting)
    compute = compute_of(schedule, attacks, trains, arm.recipe.candidates)
    return Defended(model, compute, notes["found"], notes["fit"])


def measure(
    arm: Arm, seed: int, folder: Path, watch: Watch, evaluation: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Train an arm and measure it: plain numbers for a record, with the compute that the defence spent.

    It is attacked by those of `EVALUATION`, or by those that `evaluation` names, if any, and if it has attackers.
    Paired arms are evaluated with the same keys; the evaluation's streams are not the training's.
    """
    _, evaluation_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    model, compute, found, fit = defended_model(arm, seed, folder, watch)
    named = EVALUATION if evaluation is None else evaluation
    attacks = {name: ATTACKS[name]() for name in named if arm.attackers}
    measured = report(evaluation_key, model, task_named(arm.plain.task), attacks, attackers=arm.attackers, watch=watch)
    return {"arm": arm.name, "compute": compute, "found": found, "fit": fit} | measured
