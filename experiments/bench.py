"""A bench: what one run has at hand, and the models that are made on it, each once."""

import dataclasses
import functools
import hashlib
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arm import EVALUATION, Arm, Plain, attack_of, defence_of, schedule_of, sizes_of
from tasks import task_named
from testbed.attacks import attack_made
from testbed.attacks.search import Cost
from testbed.evaluation.account import report
from testbed.kinds import Config, Model, build
from testbed.objective import Objective, confirm
from testbed.outside import sources
from testbed.policy import greedy
from testbed.runs.measurements import measured_once
from testbed.runs.models import digest_of, load_or_make, make_missing
from testbed.runs.provenance import means
from testbed.runs.results import run_id
from testbed.runs.sweep import state_file
from testbed.training import population
from testbed.training.defence import Selection, access_of, attack_cost, labels_used, training_cost
from testbed.training.population import train_population
from testbed.training.rounds import program_digest, train
from testbed.training.schedule import Schedule, units
from testbed.training.selection import potentials
from testbed.training.source import Source
from testbed.watch import Watch, silent

# Stream -> what is folded into the seed's key, into how many keys that is split (0: not), and
# which of these it is. Streams of the first round keep their numbers, so that its records stay
# valid; any other name has a stream of its own.
STREAMS = {
    "plain init": (0, 2, 0), "plain training": (0, 2, 1), "defence": (1, 2, 0), "evaluation": (1, 2, 1),
    "calibration clean": (2, 8, 0), "calibration defence": (2, 8, 1), "calibration whole space": (2, 8, 2),
    "calibration incompetent": (2, 8, 3), "calibration init": (2, 8, 4), "calibration attack": (2, 8, 5),
    "calibration sample": (2, 8, 6), "comparison start": (3, 2, 0), "comparison search": (3, 2, 1),
    "comparison plant": (8, 0, 0), "strength": (4, 0, 0), "time to failure": (5, 0, 0),
    "latent hazards": (5, 3, 0), "latent push": (5, 3, 1), "latent reach": (5, 3, 2),
    "snapshots init": (5, 2, 0), "snapshots training": (5, 2, 1), "estimators": (6, 0, 0),
    "thresholds": (6, 0, 0), "tools": (7, 0, 0), "language init": (7, 2, 0), "language training": (7, 2, 1),
}  # fmt: skip


class Bench(NamedTuple):
    """What one run has at hand.

    Attributes:
      seed: of the run; arms of a seed share every stream of keys.
      folder: of its records; models lie beside it, shared by all experiments.
      watch: told what the run is at.
      made: the models made or loaded so far, by name, so that none is loaded twice.
      together: the seeds of the population in which the run's models are made, its own among them; empty if alone.
    """

    seed: int
    folder: Path
    watch: Watch
    made: dict[str, Any]
    together: tuple[int, ...] = ()

    def key(self, stream: str) -> jax.Array:
        """The key of a named stream."""
        key = jax.random.key(self.seed)
        if stream not in STREAMS:
            # Above all numbers of the table, and so apart from them.
            return jax.random.fold_in(key, 2**31 + zlib.crc32(stream.encode()) // 2)
        number, parts, part = STREAMS[stream]
        key = jax.random.fold_in(key, number)
        return jax.random.split(key, parts)[part] if parts else key

    @property
    def models(self) -> Path:
        """Where models lie."""
        return self.folder.parent / "models"

    @property
    def measurements(self) -> Path:
        """Where measurements of models lie, shared by all experiments."""
        return self.folder.parent / "measurements"

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each model that the run made or loaded, by its kind and number."""
        return {name: made.digest for name, made in self.made.items()}

    @property
    def companions(self) -> list["Bench"]:
        """A bench of each seed of the population."""
        return [self._replace(seed=seed, made=self.made if seed == self.seed else {}) for seed in self.together]


def bench(seed: int, folder: Path, watch: Watch = silent, together: tuple[int, ...] = ()) -> Bench:
    """An empty bench."""
    return Bench(seed, folder, watch, {}, together)


class Made(NamedTuple):
    """A model, the notes of its making, and the digest of its tensors."""

    model: Model
    notes: dict[str, Any]
    digest: str


def make_once(bench: Bench, name: str, make, waiting: str = "waiting for a model") -> Made:
    """The model of a name: from the bench, else from disk, else what `make() -> (model, notes)` gives."""
    if name not in bench.made:
        wait = functools.partial(bench.watch, waiting, 0, 1)
        model, notes = load_or_make(bench.models / name, make, wait)
        bench.made[name] = Made(model, notes, digest_of(model))
    return bench.made[name]


def _named(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


@functools.cache
def _init_program(config: Config) -> str:
    """The program that makes a blank model, as text."""
    return jax.jit(lambda key: build(key, config)).lower(jax.random.key(0)).as_text()


def _blank_like(config: Config) -> Any:
    return jax.eval_shape(lambda: build(jax.random.key(0), config))


def plain_parts(plain: Plain):
    """Task, sizes and schedule of a plain model."""
    task = task_named(plain.task)
    sizes = sizes_of(plain)
    recipe = ("steps", "batch", "learning_rate", "weight_decay", "b2", "clip", "warm_up", "best")
    return task, sizes, Schedule(**{name: getattr(plain, name) for name in recipe})


def _programs(*parts: Any, model: Any, members: int) -> str:
    """The digest of the programs that train a model, alone or as one of so many members."""
    if members == 1:
        return program_digest(*parts, model=model)
    return population.program_digest(*parts, model=model, members=members)


def plain_name(plain: Plain, seed: int, members: int = 1) -> str:
    """What a plain model is saved as: it names its config, its seed and the programs that make it.

    So a change of code that changes the model makes another one, and never loads this. Nor is the model of a
    population of so many `members` that of a run alone, or of another number.
    """
    task, sizes, schedule = plain_parts(plain)
    programs = _programs(task.poison or task, schedule, model=_blank_like(sizes), members=members)
    return f"{run_id('plain', plain, seed)}-{_named(_init_program(sizes), programs)}{_of(members)}"


def _of(members: int) -> str:
    return f"-of{members}" if members > 1 else ""


def plain_model(bench: Bench, plain: Plain) -> Model:
    """The plain model of a seed: trained once, then loaded."""
    if bench.together:
        return _plain_together(bench, plain)
    task, sizes, schedule = plain_parts(plain)
    name = plain_name(plain, bench.seed)

    def make():
        blank = build(bench.key("plain init"), sizes)
        show = functools.partial(bench.watch, "training the plain model")
        state, key = state_file(bench.folder, name), bench.key("plain training")
        model, _ = train(key, blank, task.poison or task, schedule, watch=show, checkpoint=state)
        return model, {"task": plain.task, "seed": bench.seed}

    return make_once(bench, name, make, "waiting for the plain model").model


def _plain_together(bench: Bench, plain: Plain) -> Model:
    """As `plain_model`, of a seed whose population is trained as one program."""
    task, sizes, schedule = plain_parts(plain)
    every, members = bench.companions, len(bench.together)
    names = [plain_name(plain, one.seed, members) for one in every]

    def make_all():
        blanks = [build(one.key("plain init"), sizes) for one in every]
        keys = jnp.stack([one.key("plain training") for one in every])
        show = functools.partial(bench.watch, f"training {members} plain models")
        state = state_file(bench.folder, names[0])
        trained = train_population(keys, blanks, task.poison or task, schedule, watch=show, checkpoint=state)
        notes = [{"task": plain.task, "seed": one.seed, "population": members} for one in every]
        return [(model, of) for (model, _), of in zip(trained, notes, strict=True)]

    return _made_together(bench, names, make_all, "waiting for the plain models").model


def _made_together(bench: Bench, names: list[str], make_all, waiting: str) -> Made:
    """The model of the bench's own seed, of a population whose members are called `names`."""
    name = names[bench.together.index(bench.seed)]
    if name not in bench.made:
        wait = functools.partial(bench.watch, waiting, 0, 1)
        make_missing([bench.models / each for each in names], make_all, wait)
    return make_once(bench, name, lambda: make_all()[bench.together.index(bench.seed)], waiting)


class Defended(NamedTuple):
    """An arm's model, and how it came about.

    Attributes:
      compute: what its defence spent, and how many labels it used.
      found: the share of each attack unit's finds that failed.
      fit: the share of the hazardous finds, as they are in the pool, on which the model no longer fails; None without.
      egregiousness: of the finds in the pool, how bad a failure on each would be, in the mean; None where none of
        them was chosen. Safe twins are none.
    """

    model: Model
    compute: dict[str, int]
    found: list[float]
    fit: float | None
    egregiousness: float | None = None


SPENT = (
    "gradient_steps", "finds", "candidates", "model_calls", "gradient_calls", "checker_calls",
    "training_gradients", "training_forwards", "forwards",
)  # fmt: skip
NOTHING = dict.fromkeys(SPENT, 0)
# Fields of an arm that say how its model is measured, as they stand in every model's name.
UNMEASURED = {"attackers": 0, "evaluation": EVALUATION, "largest_space": None}


def compute_of(schedule: Schedule, attacks: Cost, trains: Cost, selection: Selection) -> dict[str, int]:
    """What a defence spent, exactly: steps, finds, calls of its attacks, calls of its steps, and all as `forwards`."""
    finds = schedule.finds * bool(schedule.rounds)
    spent = {"gradient_steps": schedule.steps, "finds": finds, "candidates": selection.attackers(finds)}
    spent |= {f"{field}_calls": int(n) for field, n in attacks._asdict().items()}
    spent["checker_calls"] += trains.checker
    spent |= {"training_gradients": trains.gradient, "training_forwards": trains.model}
    return spent | {"forwards": int(attacks.forwards + trains.forwards)}


def labels_of(arm: Arm, pool: np.ndarray) -> int:
    """How many different prompts a defence had labelled, clean batches apart.

    Those are the different finds of the pool `[finds, T]`, and what is labelled besides
    (`testbed.training.defence.labels_used`). The latter count by draws: an upper bound.
    """
    finds = len(np.unique(pool, axis=0)) * bool(arm.rounds)
    return finds + labels_used(schedule_of(arm), defence_of(arm.recipe).lesson)


def defended_name(arm: Arm, seed: int, stream: str = "defence", members: int = 1) -> str:
    """What an arm's model is saved as: its stream, config, seed, the plain model's name and the programs.

    `members`: of the population in which plain models are made, and of all but sources also the arm's.
    """
    task, sizes, _ = plain_parts(arm.plain)
    schedule, attack = schedule_of(arm), attack_of(arm)
    together = 1 if isinstance(attack, Source) else members
    programs = _programs(
        task, schedule, attack, defence_of(arm.recipe), model=_blank_like(sizes), members=together
    )  # fmt: skip
    # How it is measured, and what it is called, does not change a model.
    kind = "defended" if stream == "defence" else stream.replace(" ", "-")
    own = run_id(kind, dataclasses.replace(arm, label="", **UNMEASURED), seed)
    order = " ".join(str(column.tolist()) for column in units(schedule))
    return f"{own}-{_named(plain_name(arm.plain, seed, members), programs, order)}{_of(members)}"


def defended_model(bench: Bench, arm: Arm, stream: str = "defence") -> Defended:
    """An arm's model, trained from the plain model of its seed once, then loaded.

    `stream` names the defence's random keys.
    """
    plain = plain_model(bench, arm.plain)
    if not arm.steps:
        return Defended(plain, NOTHING | {"labels": 0}, [], None)
    task, attack, defence, schedule = (
        task_named(arm.plain.task), attack_of(arm), defence_of(arm.recipe), schedule_of(arm)
    )  # fmt: skip
    objective, members = Objective(task, plain, greedy(task)), max(1, len(bench.together))
    show = functools.partial(bench.watch, f"adversarial training, {arm.name}")
    how = dict(attack=attack, defence=defence, watch=show)

    def noted(seed, model, history):
        found = [round(float(share), 4) for share in history.found]
        bad = np.asarray(potentials(task, history.pool)) if len(history.pool) else np.zeros(0)
        fails = confirm(Objective(task, model, greedy(task)), history.pool)[bad > 0] if bad.any() else None
        fit = None if fails is None else float(1 - fails.mean())
        notes = {"task": arm.plain.task, "seed": seed, "arm": arm.name, "found": found, "fit": fit}
        if arm.recipe.candidates > 1 and len(history.pool):
            notes["egregiousness"] = float(bad[bad > 0].mean()) if bad.any() else None
        return model, notes | {"labels": labels_of(arm, history.pool)}

    def make():
        state, key = state_file(bench.folder, name), bench.key(stream)
        return noted(bench.seed, *train(key, plain, task, schedule, checkpoint=state, **how))

    def make_all():
        plains = [plain_model(one, arm.plain) for one in bench.companions]
        keys = jnp.stack([one.key(stream) for one in bench.companions])
        trained = train_population(keys, plains, task, schedule, checkpoint=state_file(bench.folder, names[0]), **how)
        notes = [noted(seed, *one) for seed, one in zip(bench.together, trained, strict=True)]
        return [(model, of | {"population": members}) for model, of in notes]

    name = defended_name(arm, bench.seed, stream, members)
    if members > 1 and not isinstance(attack, Source):
        names = [defended_name(arm, seed, stream, members) for seed in bench.together]
        made = _made_together(bench, names, make_all, "waiting for the defended models")
    else:
        made = make_once(bench, name, make, "waiting for the defended model")
    attacks, trains = attack_cost(schedule, attack, objective, defence), training_cost(schedule, task, defence)
    compute = compute_of(schedule, attacks, trains, defence.selection) | {"labels": made.notes["labels"]}
    notes = made.notes
    return Defended(made.model, compute, notes["found"], notes["fit"], notes.get("egregiousness"))


def measure_arm(arm: Arm, bench: Bench, attacks: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Train an arm and measure it: plain numbers for a record, with what its defence spent.

    If it has attackers, it is attacked in the ways of its evaluation, or by `attacks` in their place.
    Paired arms are evaluated with the same keys; the evaluation's streams are not the training's.
    """
    model, compute, found, fit, _ = defended_model(bench, arm)
    names = (arm.evaluation if attacks is None else attacks) if arm.attackers else ()
    # All that the numbers hang on: runs that share a model share what was measured of it.
    of = {"model": digest_of(model), "task": arm.plain.task, "seed": bench.seed, "attackers": arm.attackers,
          "attacks": names, "largest": arm.largest_space, "sources": sources([arm.plain.task, names]),
          "means": means()}  # fmt: skip
    measured = measured_once(bench.measurements, of, lambda: report(
        bench.key("evaluation"), model, task_named(arm.plain.task), {name: attack_made(name) for name in names},
        attackers=arm.attackers, largest=arm.largest_space, watch=bench.watch,
    ))  # fmt: skip
    given = access_of(schedule_of(arm), attack_of(arm), defence_of(arm.recipe)) if arm.steps else ("clean",)
    return {"compute": compute, "access": ", ".join(given), "found": found, "fit": fit} | measured
