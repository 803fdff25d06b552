"""A defence: what training makes of finds and clean prompts, and what that costs."""

from collections.abc import Callable
from typing import NamedTuple

from testbed.attacks.search import Attack, Cost, steps_within
from testbed.attacks.twins import TRIES
from testbed.objective import Objective
from testbed.task import Task
from testbed.training import coverage
from testbed.training.coverage import Fresh
from testbed.training.latent import USUAL_ASCENT, Ascent, Layers, noise, one_sided, untargeted
from testbed.training.losses import PLAIN, WEIGHT, Loss
from testbed.training.pseudo_inputs import pseudo
from testbed.training.schedule import Schedule
from testbed.training.selection import Order, Replay, anyone, evenly
from testbed.training.soft_losses import USUAL_SUPPLY, Supply, guided, soft
from testbed.training.soft_prompts import OVERSEERS, RATE, STEPS, Overseer
from testbed.training.source import UPPER_LIMIT, Source

OWN = {"drawn": ("errors", "unseen"), "learned": ("steps", "rate")}  # what one overseer alone can be told


class Relaxation(NamedTuple):
    """Where a relaxed loss perturbs, how far, how it climbs, and by whose verdict.

    Attributes:
      layer: in the residual stream, or several.
      eps: the radius there.
      ascent: how it is climbed.
      overseer: who judges soft prompts, one of `OVERSEERS`.
      draws: prompts that the overseer `drawn` has checked, each time.
      labels: prompts whose labels the overseer `learned` learns from.
      errors, unseen: of the overseer `drawn`, the share of prompts and of hazards that its checker misjudges.
      steps, rate: of the overseer `learned`, its training steps and the first of their learning rates.
      supply: where soft prompts come from.
      weight: how much of the loss is relaxed; the rest is clean.
    """

    layer: Layers = 0
    eps: float = 0.0
    ascent: Ascent = USUAL_ASCENT
    overseer: str = "drawn"
    draws: int = 32
    labels: int = 2048
    errors: float = 0.0
    unseen: float = 0.0
    steps: int = STEPS
    rate: float = RATE
    supply: Supply = USUAL_SUPPLY
    weight: float = WEIGHT

    def refuse_senseless(self) -> None:
        """Make sure that its numbers are in their ranges; those of other parts are looked at where they are used.

        Raises:
          ValueError: one is not; names the field of a recipe.
        """
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be at least 0 and finite, not {self.eps}")
        if not 0 < self.ascent.stride < float("inf"):
            raise ValueError(f"ascent_stride must be above 0 and finite, not {self.ascent.stride}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"relaxed_weight must be above 0 and at most 1, not {self.weight}")
        least_of = ("ascent_steps", self.ascent.steps, 0), ("draws", self.draws, 1), ("overseer_labels", self.labels, 2)
        for name, value, least in least_of:
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    @property
    def judge(self) -> Overseer:
        """The overseer of that name.

        Raises:
          ValueError: something is given that belongs to another overseer.
        """
        usual, own = Relaxation(), {}
        for overseer, names in OWN.items():
            given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
            if overseer == self.overseer:
                own = given
            elif given:
                told = ", ".join(f"overseer_{name}={value:g}" for name, value in given.items())
                raise ValueError(f"{told} is of the overseer {overseer!r}, not of {self.overseer!r}; choose that one")
        return OVERSEERS[self.overseer](self.draws, self.labels, **own)


WITHIN_EPS = ("untargeted", "one_sided", "noise", "pseudo")  # losses that push by at most `eps`
LOSSES: dict[str, Callable[[Relaxation], Loss]] = {
    "plain": lambda how: PLAIN,
    "untargeted": lambda how: untargeted(how.layer, how.eps, how.ascent, how.weight),
    "one_sided": lambda how: one_sided(how.layer, how.eps, how.ascent, how.weight),
    "noise": lambda how: noise(how.layer, how.eps, how.weight),
    "pseudo": lambda how: pseudo(how.layer, how.eps, how.ascent, how.weight),
    "soft": lambda how: soft(how.judge, how.ascent, how.supply, how.weight),
    "guided": lambda how: guided(how.judge, how.ascent, how.supply, how.weight),
}
"""`Relaxation -> Loss`.

A latent one's value raises a ValueError where the model has no such layer, and `pseudo`'s where several are named.
"""


class Selection(NamedTuple):
    """Which finds of an attack are kept: what an attack unit reads of a defence.

    Attributes:
      order: which candidates enter the pool first.
      candidates: finds to choose from, for each place in the pool.
      failures_only: whether only finds that failed are trained on.
      twins: whether every other place of the pool is for the nearest safe edit of the find before it. So half as many
        prompts are searched for, and the pool's labels stay as many.
    """

    order: Order = anyone
    candidates: int = 1
    failures_only: bool = False
    twins: bool = False

    def attackers(self, places: int) -> int:
        """How many prompts are searched for, to fill so many places of the pool."""
        return self.searched(places) * self.candidates

    def searched(self, places: int) -> int:
        """How many of so many places are for finds."""
        return places // 2 if self.twins else places


class Lesson(NamedTuple):
    """What the model learns from: what a train unit reads of a defence.

    Attributes:
      replay: which finds of the pool are drawn.
      twins: whether every other prompt drawn from the pool is replaced by its nearest safe edit, made anew each time.
      share: how much of a batch comes from the pool, once it holds any.
      loss: what the steps descend.
      fresh: labelled prompts that no search chose, if any. The rest of a batch is clean.
    """

    replay: Replay = evenly
    twins: bool = False
    share: float = 0.5
    loss: Loss = PLAIN
    fresh: Fresh | None = None


class Defence(NamedTuple):
    """Which finds are kept, and what is learnt from them: functions that compose freely.

    Each kind of unit reads one part, so defences that are alike in a part share its compiled program.
    """

    selection: Selection = Selection()
    lesson: Lesson = Lesson()


USUAL = Defence()


def refuse_unfit(schedule: Schedule, defence: Defence) -> None:
    """Say in one line that the parts of a batch are no parts of it.

    Raises:
      ValueError: a share or a number is out of range, the shares come to more than the batch, or twins that are kept
        have no place; or the loss cannot divide the batch.
    """
    lesson, room = defence.lesson, schedule.finds // schedule.units
    if not 0 <= lesson.share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {lesson.share:g}: it is how much of a batch are finds")
    if defence.selection.candidates < 1:
        raise ValueError(f"candidates must be at least 1 for each find, not {defence.selection.candidates}")
    if schedule.batch % lesson.loss.every:
        raise ValueError(
            f"a batch of {schedule.batch} has no soft prompt for each {lesson.loss.every} prompts; "
            "choose a soft_every that divides it"
        )
    if 0 < lesson.loss.kept < (taken := schedule.batch // lesson.loss.every):
        raise ValueError(f"a step takes {taken} soft prompts, and soft_kept={lesson.loss.kept} are fewer; keep more")
    if schedule.rounds and defence.selection.twins:
        if lesson.twins:
            raise ValueError("twins replaces what kept_twins has in the pool; choose one of them")
        if room % 2:
            raise ValueError(
                f"kept_twins needs an even number of finds a unit, not {room}; change finds={schedule.finds} or "
                f"units={schedule.units}"
            )
    shares = {"share": lesson.share} if schedule.rounds else {}
    if lesson.fresh is not None:
        coverage.refuse_unfit(lesson.fresh)
        shares["fresh_share"] = lesson.fresh.share
    prompts = {name: round(share * schedule.batch) for name, share in shares.items()}
    for name, number in prompts.items():
        if shares[name] and not number:
            raise ValueError(f"{name}={shares[name]:g} is no prompt of a batch of {schedule.batch}; give more, or 0")
    if sum(prompts.values()) > schedule.batch:
        told = " and ".join(f"{name}={shares[name]:g}" for name in prompts)
        raise ValueError(f"{told} are more than a batch of {schedule.batch} prompts; lower one of them")


def attack_cost(schedule: Schedule, attack: Attack | Source, objective: Objective, defence: Defence = USUAL) -> Cost:
    """Calls that all the attack units of a run make, exactly, tried twins included; a source makes none."""
    if not schedule.rounds or isinstance(attack, Source):
        return Cost(0, 0, 0)
    steps, step = steps_within(attack, objective, schedule.budget), attack.cost(objective)
    once, attackers = Cost(objective.forwards, 0, 1), defence.selection.attackers(schedule.finds)
    searched = Cost(*(attackers * (start + steps * more) for start, more in zip(once, step, strict=True)))
    twins = schedule.finds - defence.selection.searched(schedule.finds)
    return searched._replace(checker=searched.checker + twins * TRIES)


def training_cost(schedule: Schedule, task: Task, defence: Defence = USUAL) -> Cost:
    """Calls that all the train units of a run make, exactly. Forward passes stand beside the gradients.

    The checker's are the verdicts that an overseer asks for, and those of tried twins. What a loss learns before the
    run counts too.
    """
    seen, loss = schedule.steps * schedule.batch, defence.lesson.loss
    studied = loss.study.gradients if loss.study else 0
    checks = int(seen * loss.checks) + _twins_replayed(schedule, defence.lesson) * TRIES
    return Cost(seen * loss.forwards, int(seen * loss.gradients_on(task)) + studied, checks)


def _twins_replayed(schedule: Schedule, lesson: Lesson) -> int:
    """How many safe twins the train units of a run make."""
    return schedule.steps * (round(lesson.share * schedule.batch) // 2) if lesson.twins and schedule.rounds else 0


def labels_used(schedule: Schedule, lesson: Lesson) -> int:
    """How many prompts the train units of a run have labelled beside clean batches and finds.

    Safe twins, fresh prompts, those that a loss draws and those that an overseer learnt from. Each draw counts.
    """
    loss, fresh = lesson.loss, lesson.fresh
    chosen = coverage.labels_used(fresh, schedule.steps, schedule.batch) if fresh else 0
    studied = loss.study.labels if loss.study else 0
    return _twins_replayed(schedule, lesson) + chosen + int(schedule.steps * schedule.batch * loss.labels) + studied


ACCESS = {
    "clean": "clean prompts and their labels",
    "labels": "labels of prompts of its own choice",
    "hazards": "a sampler of hazardous prompts",
    "overseer": "verdicts on relaxed inputs, as many as it asks for",
    "failures": f"all failures of the model: {UPPER_LIMIT}",
}
"""What a defence may be given, and what that is. Defences compare at equal labels only within an access."""


def access_of(schedule: Schedule, attack: Attack | Source | None, defence: Defence = USUAL) -> tuple[str, ...]:
    """What a defence is given: names of `ACCESS`, in its order. An attack may always start at hazards."""
    lesson, attacks = defence.lesson, attack if schedule.rounds else None
    given = {
        "clean": True,
        "labels": attacks is not None or labels_used(schedule, lesson) > 0,
        "hazards": isinstance(attacks, Attack) or (lesson.fresh is not None and lesson.fresh.draw in coverage.SAMPLED),
        "overseer": lesson.loss.overseen,
        "failures": isinstance(attacks, Source),
    }
    return tuple(name for name in ACCESS if given[name])
