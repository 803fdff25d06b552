"""Synthetic runs, whose effects are known: for the rules of the questions and their figures."""

import dataclasses
import json

import pandas as pd

from experiments.bench import bench
from experiments.columns import POLICIES, column_of, tidy
from experiments.effects import only

TWO = ("injury", "cipher_vault")
MANY, FEW, SOME = [9999, 12000, 9000, 15000], [9, 20, 5, 0], [999, 1500, 800, 700]
MIXED = [99, 20000, 30, 9000]
SIGNS = [f"telltale.{of}" for of in ("fixed_natural", "fixed_attacked.value", "odd_twins.value", "clean_safe.value")]


def table(task: str, left: dict[str, list], **columns) -> pd.DataFrame:
    """Runs of one task: arm -> failing prompts, seed by seed; `columns` say what else stands in every row."""
    failing = [column_of(of, policy) for policy in POLICIES for of in ("failures", "egregious", "planted", "natural")]
    usual = {column_of(of): 10**6 for of in ("hazardous", "safe")} | {column_of("clean_failure"): 1e-5}
    usual |= {column_of("wrong"): 0} | {column_of("false_alarms", policy): 0 for policy in POLICIES}
    usual |= {"greedy.clean.correct": 1000, "greedy.clean.samples": 1000, "compute.forwards": 1e6}
    usual |= {"config.attack": "gcg", "config.finds": 128}
    rows = [
        {"task": task, "arm": name, "seed": seed}
        | dict.fromkeys(failing, n)
        | usual
        | {name: value[seed] if isinstance(value, list) else value for name, value in columns.items()}
        for name, failures in left.items()
        for seed, n in enumerate(failures)
    ]
    return pd.DataFrame(rows)


def on_two(left, **columns):
    return pd.concat([table(task, left, **columns) for task in TWO], ignore_index=True)


def values(effects: pd.DataFrame, *of: str, **equal) -> list[list]:
    """Columns of the rows of effects that have these values, rounded for comparison."""
    return only(effects, **equal)[list(of)].round(3).to_numpy().tolist()


def measured(experiment, config, folder, arm: str) -> pd.DataFrame:
    """One run of seed 0, really measured, as its record would be read back."""
    numbers = {"arm": arm, "seed": 0} | experiment.measure(config, bench(0, folder / "records"))
    return tidy(pd.json_normalize(json.loads(json.dumps({"config": dataclasses.asdict(config)} | numbers))))
