"""A defence: what training makes of finds and clean prompts, and what that costs."""

from collections.abc import Callable
from typing import NamedTuple

from testbed.attacks.search import Attack, Cost, steps_within
from testbed.objective import Objective
from testbed.training import coverage
from testbed.training.coverage import Fresh
from testbed.training.latent import noise, one_sided, untargeted
from testbed.training.losses import PLAIN, Loss
from testbed.training.pseudo_inputs import pseudo
from testbed.training.schedule import Schedule
from testbed.training.selection import Order, Replay, anyone, evenly
from testbed.training.source import Source

LOSSES: dict[str, Callable[..., Loss]] = {
    "plain": lambda *where: PLAIN,
    "untargeted": untargeted,
    "one_sided": one_sided,
    "noise": noise,
    "pseudo": pseudo,
}
"""`(layer, eps, ascent) -> Loss`: where in the residual stream, how far, and how it is climbed.

Its value raises a ValueError where the model has no such layer, and `pseudo`'s where several are named.
"""


class Selection(NamedTuple):
    """Which finds of an attack are kept: what an attack unit reads of a defence.

    Attributes:
      order: which candidates enter the pool first.
      candidates: finds to choose from, for each place in the pool.
      failures_only: whether only finds that failed are trained on.
    """

    order: Order = anyone
    candidates: int = 1
    failures_only: bool = False


class Lesson(NamedTuple):
    """What the model learns from: what a train unit reads of a defence.

    Attributes:
      replay: which finds of the pool are drawn.
      twins: whether every other find drawn from the pool is replaced by its nearest safe edit.
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
      ValueError: a share or a number is out of range, or the shares come to more than the batch.
    """
    lesson = defence.lesson
    if lesson.fresh is None:
        return
    coverage.refuse_unfit(lesson.fresh)
    if schedule.rounds and lesson.share + lesson.fresh.share > 1:
        raise ValueError(
            f"share={lesson.share} of finds and fresh_share={lesson.fresh.share} of fresh prompts are more than a "
            "batch; lower one of them"
        )


def attack_cost(schedule: Schedule, attack: Attack | Source, objective: Objective, defence: Defence = USUAL) -> Cost:
    """Calls that all the attack units of a run make, exactly; a source makes none."""
    if not schedule.rounds or isinstance(attack, Source):
        return Cost(0, 0, 0)
    steps, step = steps_within(attack, objective, schedule.budget), attack.cost(objective)
    once, attackers = Cost(objective.forwards, 0, 1), schedule.finds * defence.selection.candidates
    return Cost(*(attackers * (start + steps * more) for start, more in zip(once, step, strict=True)))


def training_cost(schedule: Schedule, defence: Defence = USUAL) -> Cost:
    """Calls that all the train units of a run make, exactly. Forward passes stand beside the gradients."""
    seen, loss = schedule.steps * schedule.batch, defence.lesson.loss
    return Cost(seen * loss.forwards, seen * loss.gradients, 0)
