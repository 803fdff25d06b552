"""One arm of an ablation as data: a plain model, a defence or none, and how it is evaluated."""

import dataclasses
import itertools
import sys
from typing import Any, NamedTuple

from tasks import task_named
from testbed.attacks import attack_named
from testbed.attacks.search import Attack
from testbed.evaluation.walk import countable, steps_of
from testbed.kinds import KINDS, Config, own_sizes
from testbed.machine import MachineConfig
from testbed.task import space_size
from testbed.text import plural
from testbed.training.coverage import DRAWS, Draw, Fresh
from testbed.training.defence import LOSSES, WITHIN_EPS, Defence, Lesson, Relaxation, Selection
from testbed.training.latent import USUAL_ASCENT, Ascent, Layers
from testbed.training.oracle import finder_made
from testbed.training.schedule import Schedule
from testbed.training.selection import ORDERS, REPLAYS
from testbed.training.soft_losses import USUAL_SUPPLY, Supply
from testbed.training.source import Source

EVALUATION = ("uniform", "coordinate", "gcg", "auto")


def added(value: Any) -> Any:
    """A field that came later, with the value that every run had until then: runs with it keep their ids."""
    return dataclasses.field(default=value, metadata={"before": value})


@dataclasses.dataclass(frozen=True)
class Plain:
    """What a plain model depends on, besides its seed: its task, its sizes and how it is trained.

    `model` is a kind of `testbed.kinds.KINDS`. A transformer has a width, layers and heads, a machine
    has bits, a hidden width, and tables by position if it is `positional`. `b2` is AdamW's.
    `best` keeps the model of the least loss, and `clip` and `warm_up` are as in `Schedule`.
    """

    task: str = "injury"
    width: int = 32
    steps: int = 1536
    layers: int = added(2)
    heads: int = added(4)
    learning_rate: float = added(2e-3)
    batch: int = added(256)
    weight_decay: float = added(1e-2)
    model: str = added("transformer")
    bits: int = added(16)
    hidden: int = added(64)
    positional: bool = added(False)
    b2: float = added(0.999)
    best: bool = added(False)
    clip: float = added(1.0)
    warm_up: int = added(50)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A `testbed.training.defence.Defence` as data: its functions by their names in `ORDERS`, `REPLAYS` and `LOSSES`.

    `layer` and `eps` say where and how far a relaxed loss perturbs, `ascent_steps` and `ascent_stride` how it climbs.
    `relaxed_weight` is how much of it is relaxed; the rest is the usual loss on clean prompts and finds.
    `overseer` judges soft prompts. It has `draws` prompts checked each time, or has learnt from `overseer_labels`.
    A checker that it asks may err on `overseer_errors` of all prompts, and overlook `overseer_unseen` of all hazards.
    What has learnt took `overseer_steps`, at a learning rate that falls from `overseer_rate` to zero.
    For each `soft_every` prompts of a batch there is one soft prompt. With `soft_kept`, so many are kept from step to
    step and climbed on; of those that a step takes, a share `soft_renewed` begins anew.
    `twins` replaces every other replayed find by a safe twin, a new one each time. `kept_twins` makes each find one
    safe twin, which takes the place behind it in the pool.
    `fresh` is `none`, or which of `DRAWS` chooses labelled prompts without a search: `fresh_share` of each batch,
    `fresh_labels` of them in all (0: new ones in every batch).
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
    ascent_steps: int = added(USUAL_ASCENT.steps)
    ascent_stride: float = added(USUAL_ASCENT.stride)
    overseer: str = added(Relaxation().overseer)
    draws: int = added(Relaxation().draws)
    overseer_labels: int = added(Relaxation().labels)
    fresh: str = added("none")
    fresh_share: float = added(0.5)
    fresh_labels: int = added(0)
    kept_twins: bool = added(False)
    overseer_errors: float = added(0.0)
    overseer_unseen: float = added(0.0)
    overseer_steps: int = added(Relaxation().steps)
    overseer_rate: float = added(Relaxation().rate)
    soft_every: int = added(USUAL_SUPPLY.every)
    soft_kept: int = added(USUAL_SUPPLY.kept)
    soft_renewed: float = added(USUAL_SUPPLY.renewed)
    relaxed_weight: float = added(Relaxation().weight)

    @property
    def relaxation(self) -> Relaxation:
        """Where and how far a relaxed loss perturbs, how it climbs, and who judges."""
        ascent = Ascent(self.ascent_steps, self.ascent_stride)
        own = (self.overseer_errors, self.overseer_unseen, self.overseer_steps, self.overseer_rate)
        judge = (self.overseer, self.draws, self.overseer_labels, *own)
        supply = Supply(self.soft_every, self.soft_kept, self.soft_renewed)
        return Relaxation(self.layer, self.eps, ascent, *judge, supply, self.relaxed_weight)


FRESH: dict[str, Draw | None] = {"none": None, **DRAWS}


def fresh_of(recipe: Recipe) -> Fresh | None:
    """The labelled prompts that a recipe adds to each batch, chosen by no search; None without any."""
    draw = FRESH[recipe.fresh]
    return draw and Fresh(draw, recipe.fresh_share, recipe.fresh_labels)


def defence_of(recipe: Recipe) -> Defence:
    """The functions that a recipe names.

    Raises:
      ValueError: a number of a relaxed loss is out of its range, belongs to another overseer, or is not given.
    """
    recipe.relaxation.refuse_senseless()
    if recipe.loss in WITHIN_EPS and not recipe.eps:
        raise ValueError(f"loss={recipe.loss} pushes by eps, and eps=0 is plain training at its price; give eps=0.3")
    loss = LOSSES[recipe.loss](recipe.relaxation)
    return Defence(
        Selection(ORDERS[recipe.order], recipe.candidates, recipe.failures_only, recipe.kept_twins),
        Lesson(REPLAYS[recipe.replay], recipe.twins, recipe.share, loss, fresh_of(recipe)),
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """A plain model, then `steps` more under a defence.

    Attributes:
      plain: the model that the arm starts from; arms of a seed share it.
      steps: gradient steps of the defence; 0 leaves the plain model alone.
      rounds, finds, units: as in `Schedule`; 0 rounds is the control, the same steps without attacks.
      budget: margins that a find may cost, that is: prompts scored.
      attack: the attack trained against, by name; or a source of `testbed.training.oracle.SOURCES`.
      attackers: attackers of each attack in the evaluation; with 0 it has no attacks.
      evaluation: the attacks of the evaluation, by name.
      recipe: what training makes of the finds, and what its loss sees.
      label: what the arm is called, if its rounds don't say it all.
      learning_rate, batch, weight_decay, b2, adam_eps, clip, warm_up: of the defence's steps. The rate is half the
        plain peak: fine-tuning, not training anew.
      options: parameters of the attack, as pairs of name and value, sorted.
      largest_space: how many prompts may be counted, where that is not as usual (`decided_by`); the failures of a
        larger space are sampled.

    Raises:
      ValueError: attackers are negative, or an attack of the evaluation is not there.
    """

    plain: Plain = Plain()
    steps: int = 768
    rounds: int = 0
    finds: int = 512
    budget: int = 190
    units: int = 16
    attack: str = "gcg"
    attackers: int = 64
    recipe: Recipe = added(Recipe())
    label: str = added("")
    learning_rate: float = added(1e-3)
    batch: int = added(256)
    weight_decay: float = added(1e-2)
    options: tuple[tuple[str, Any], ...] = added(())
    b2: float = added(0.999)
    evaluation: tuple[str, ...] = added(EVALUATION)
    adam_eps: float = added(1e-8)
    clip: float = added(1.0)
    warm_up: int = added(50)
    largest_space: int | None = added(None)

    def __post_init__(self):
        if self.attackers < 0:
            raise ValueError(f"attackers must not be negative, not {self.attackers}")
        for name in self.evaluation:
            attack_named(name)  # which would be missed only after the training

    @property
    def name(self) -> str:
        """What the arm is called in tables and figures."""
        if self.label or not self.steps:
            return self.label or "plain"
        if self.rounds:
            return rounds_named(self.rounds)
        return "control" if self.recipe.fresh == "none" else f"fresh {self.recipe.fresh}"


class Usual(NamedTuple):
    """What a kind of model is usually trained with: fields of its `Plain`, and of an `Arm` that starts from it."""

    plain: dict[str, Any]
    arm: dict[str, Any]


# A machine's gradients pass through signs: they are biased, and come in bursts. With AdamW's usual
# memory some seeds never learn the rule. And while the rate decays, others drift away from it.
# Against finds a low rate leaves a tangle of states. And once nothing is wrong, AdamW would scale up
# what little slope is left: a larger eps lets a rule stand that has been found.
USUAL = {
    "transformer": Usual({}, {}),
    "machine": Usual(
        dict(steps=6144, learning_rate=1.5e-3, b2=0.99, best=True),
        dict(steps=6144, learning_rate=3e-3, adam_eps=1e-4),
    ),
}


def usual_plain(task: str, kind: str = "transformer", **fields: Any) -> Plain:
    """A plain model of a kind as it is usually trained, but for the given fields."""
    return Plain(task, **USUAL[kind].plain | {"model": kind} | fields)


def rounds_named(rounds: int) -> str:
    """`1 round`, `4 rounds`."""
    return plural(rounds, "round")


def labelled(config: Any, name: str) -> Any:
    """The config of an arm that is called `name`: an Arm takes it as its label, unless it has that name anyway.

    A label that says no more than the rounds do stays, as it stands in the ids of older records.
    """
    if not isinstance(config, Arm) or config.name == name:
        return config
    bare = dataclasses.replace(config, label="")
    return bare if bare.name == name else dataclasses.replace(bare, label=name)


def attack_of(arm: Arm) -> Attack | Source:
    """What an arm trains against, with its parameters: an attack, or a source as the oracle.

    Raises:
      ValueError: a source is asked where failures are not counted.
    """
    attack = finder_made(arm.attack, **dict(arm.options))
    if isinstance(attack, Source) and not is_counted(arm.plain):
        raise ValueError(
            f"attack {arm.attack} draws from all failures, and on {arm.plain.task} those of a {arm.plain.model} are "
            "not counted; choose a smaller task, or model=machine on a task with an automaton"
        )
    return attack


def is_counted(plain: Plain, largest: int | None = None) -> bool:
    """Whether failures of a model are counted: in a small space, or of a machine on a task with an automaton."""
    task, sizes = task_named(plain.task), sizes_of(plain)
    return countable(task, largest=largest) or (isinstance(sizes, MachineConfig) and task.checker is not None)


def decided_by(largest: int | None, task: str) -> int | None:
    """What a limit says of one task: None if it decides as the usual limit does, else the task's own size, or 0.

    A count is the same under any limit that allows it. So runs that count alike have one id.
    """
    space = task_named(task)
    if countable(space, largest=largest) == countable(space):
        return None
    return steps_of(space) if countable(space, largest=largest) else 0


def schedule_of(arm: Arm) -> Schedule:
    """The schedule of an arm's defence."""
    own = {field.name for field in dataclasses.fields(Schedule)} - {"best"}  # which is of plain models
    return Schedule(**{name: getattr(arm, name) for name in own})


def sizes_of(plain: Plain) -> Config:
    """The sizes of a plain model.

    Raises:
      ValueError: they don't fit each other, there is no such kind of model, it has no such size, or its counts are
        larger than any float of a table.
    """
    if plain.model not in KINDS:
        raise ValueError(f"plain.model must be one of {', '.join(KINDS)}, not {plain.model!r}")
    own = own_sizes(plain.model)
    for name in itertools.chain.from_iterable(own_sizes(kind) for kind in KINDS if kind != plain.model):
        if getattr(plain, name) != getattr(Plain, name):
            raise ValueError(f"a {plain.model} has no {name}; it has {', '.join(own)}")
    task = task_named(plain.task)
    if space_size(task) > sys.float_info.max:
        raise ValueError(f"{plain.task} has more prompts than any float, so no table can compare them; make it shorter")
    return KINDS[plain.model].config_for(task, **{name: getattr(plain, name) for name in own})


def plain_to_trained(task: str) -> dict[str, Arm]:
    """Plain, control, and adversarial training in 1 and 16 rounds: the models of `update_frequency`."""
    arms = [Arm(Plain(task), steps=0), *(Arm(Plain(task), rounds=rounds) for rounds in (0, 1, 16))]
    return {arm.name: arm for arm in arms}
