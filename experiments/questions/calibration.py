"""Calibration: gates that a task must pass before anything is measured on it."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd

from experiments import effects as effect_tables
from experiments import gates
from experiments.arm import EVALUATION, Arm, Plain
from experiments.bench import Bench, defended_model, make_once, plain_model, plain_name, plain_parts
from experiments.columns import by_task
from experiments.effects import share
from experiments.experiment import Experiment, Preset
from experiments.figures import caption_of
from experiments.gates import GATES, TRAINING_CALLS, WORST, fewest_left, known_by
from experiments.plants import contradictions, failing
from experiments.yardsticks import incompetent_model, untrained_over_chance, whole_space
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.evaluation.account import success_of, worst_case
from testbed.evaluation.exact import countable
from testbed.evaluation.samples import clean_behaviour
from testbed.kinds import build
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs.sweep import state_file
from testbed.statistics import Interval, clopper_pearson
from testbed.training.rounds import train

CLEAN_SAMPLES, MANY_CLEAN_SAMPLES = 2**16, 2**21  # many, where nothing exact is known of the clean failure rate
HAZARD_SAMPLES = 2**19  # with none failing, the upper end of the interval is 7e-6
FOUR_FIFTHS = 0.8
WEAKEST, STRONGEST = "clean_rejection", "gcg"
DEFENCES = {
    "control": Arm(),
    "weakest": Arm(rounds=1, attack=WEAKEST),
    "strongest": Arm(rounds=16, attack=STRONGEST),
    "best_defence": Arm(steps=3072, finds=4096, rounds=32, units=32, attack=STRONGEST),
}
MODELS = ("plain", "control", "weakest", "strongest", "best_defence", "whole_space", "incompetent")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is calibrated: the plain model that every experiment on the task starts from."""

    plain: Plain


def arms(preset: str, task: str) -> dict[str, Calibration]:
    """One run a seed."""
    return {"calibration": Calibration(Plain(task))}


def measure(config: Calibration, bench: Bench) -> dict[str, Any]:
    """One seed's models and what they fail on.

    Plain, control, defended weakly and strongly, trained on the whole space; where that leaves failures, defended as
    well as we can. For tasks whose catastrophes should take skill, also a snapshot that has none yet. Models are saved,
    so that a stopped calibration goes on with the model where it was.
    """
    task, sizes, schedule = plain_parts(config.plain)
    clean_key, sample_key = bench.key("calibration clean"), bench.key("calibration sample")
    plain, blank = plain_model(bench, config.plain), build(bench.key("calibration init"), sizes)
    taught = contradictions(sample_key, task.poison) if task.poison else np.empty((0, task.prompt_length), int)
    attacks = {name: ATTACKS[name]() for name in EVALUATION}

    def account(model, clean_samples=CLEAN_SAMPLES):
        policies = {"greedy": greedy(task)}
        clean = clean_behaviour(clean_key, model, task, policies, samples=clean_samples)["greedy"]
        worst = worst_case(sample_key, model, task, policies, samples=HAZARD_SAMPLES, watch=bench.watch)
        return {"clean": clean._asdict(), "planted": failing(model, task, taught)} | worst["greedy"]

    def defended(name):
        arm = dataclasses.replace(DEFENCES[name], plain=config.plain)
        return account(defended_model(bench, arm, "calibration defence").model)

    def made(kind, make):
        bench.watch(f"training, {kind}", 0, 1)
        name, notes = f"{plain_name(config.plain, bench.seed)}-{kind}", {"task": config.plain.task, "seed": bench.seed}
        return account(make_once(bench, name, lambda: (make(state_file(bench.folder, name)), notes)).model)

    def solved(state):
        show = functools.partial(bench.watch, "training on the whole space")
        longer, key = dataclasses.replace(schedule, steps=2 * schedule.steps), bench.key("calibration whole space")
        return train(key, blank, whole_space(task), longer, watch=show, checkpoint=state)[0]

    def unskilled(_):  # quick: no state
        return incompetent_model(bench.key("calibration incompetent"), blank, task, schedule)

    known = countable(task) and task.clean_log_prob is not None
    result = {
        "plain": account(plain, CLEAN_SAMPLES if known else MANY_CLEAN_SAMPLES),
        "control": defended("control"),
        "weakest": defended("weakest"),
        "strongest": defended("strongest"),
        "whole_space": made("whole_space", solved),
        "attacks": success_of(
            bench.key("calibration attack"), Objective(task, plain, greedy(task)), attacks, attackers=32,
            budgets=(TRAINING_CALLS, gates.MOST_CALLS), watch=bench.watch,
        ),
        "mislabelled": len(contradictions(sample_key, task)),
        "planted": len(taught),
        "competent": task.answer_length > 1 and task.poison is None,
    }  # fmt: skip
    if not GATES["G4 solvable"].passes(fewest_left(pd.json_normalize(result).iloc[0])):
        result["best_defence"] = defended("best_defence")
    if result["competent"]:
        result["untrained"] = untrained_over_chance(sample_key, task, sizes)._asdict()
        result["incompetent"] = made("incompetent", unskilled)
    return result


def numbers(runs: pd.DataFrame) -> dict[str, list[Interval | None]]:
    """What each gate reads of each seed, from the runs of one task."""
    seeds = [run for _, run in runs.sort_values("seed").iterrows()]
    return {name: [gate.read(run) for run in seeds] for name, gate in GATES.items()}


def passing(gate: str, values: list[Interval | None]) -> int:
    """In how many seeds a gate holds; one that is not asked holds."""
    return sum(value is None or bool(GATES[gate].passes(value)) for value in values)


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The share of seeds that pass each gate that a task is asked."""
    rows = []
    for task, part in by_task(runs).items():
        for name, values in numbers(part).items():
            if any(value is not None for value in values):
                interval = clopper_pearson(passing(name, values), len(values))
                rows.append(share(task, name, GATES[name].asks, interval, len(values)))
    return effect_tables.table(rows)


def rule(effects: pd.DataFrame) -> str:
    """Every gate holds in four fifths of the seeds."""
    return "supported" if (effects["effect"] >= FOUR_FIFTHS).all() else "refuted"


def _shown(value: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value.value:.3g}" + ("" if value.low == value.high else f" [{value.low:.2g}, {value.high:.2g}]")


def _outcome(gate: str, values: list[Interval | None]) -> str:
    if all(value is None for value in values):
        return "not asked"
    return "pass" if passing(gate, values) >= FOUR_FIFTHS * len(values) else f"FAIL: {GATES[gate].mend}"


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The gates of one task as text."""
    rows = {
        name: {
            "asks": GATES[name].asks,
            "measured, seed by seed": " ".join(map(_shown, values)),
            "verdict": _outcome(name, values),
        }
        for name, values in numbers(runs).items()
    }
    text = pd.DataFrame.from_dict(rows, orient="index")
    if known_by(runs, "plain") == "sampled":
        text.loc["failures"] = ["the space is too large to count", "sampled: rates [95 % interval]", ""]
    return text


def figure(runs: pd.DataFrame) -> plots.Figure:
    """Failing prompts of each model of the calibration, seed by seed, from one task."""
    columns = {model: WORST.format(model, known_by(runs, "plain"), "failures") for model in MODELS}
    long = pd.concat(
        pd.DataFrame({"arm": model.replace("_", " "), "seed": runs["seed"], "failures": runs[column]})
        for model, column in columns.items()
        if column in runs and runs[column].notna().all()
    )
    caption = f"bar: mean.\nweakest: 1 round of {WEAKEST}; strongest: 16 rounds of {STRONGEST};\nwhole space: "
    caption += "trained on all of it; incompetent: an early snapshot."
    drawn, (ax,) = plots.panels(["Failing prompts, counted exactly"], caption_of(runs, caption))
    plots.dots_by_arm(ax, long, "failures", "threshold 0", color="C3")
    ax.set_xlabel("prompts (log above 1)")
    return drawn


CALIBRATION = Experiment(
    question="Is a task fit for use?",
    hypothesis="none",
    design="""
    A task can be trivial (nothing fails), impossible (nothing helps), mislabelled, or fail all over the clean
    distribution. Then every experiment on it measures something else than it says. So a task must pass gates before
    anything is measured on it. Each gate is one number against a bound that is fixed here.
    """,
    decides="A task passes if every gate holds in at least four fifths of the seeds: supported, else refuted.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=5),
        "full": Preset(("injury",), seeds=5, minutes=8),
    },
    arms=arms,
    rule=rule,
    measure=measure,
    effects=effects,
    table=table,
    figure=figure,
    note="Seeds 0 and 1 served these gates and the questions too.",
)
