"""Synthetic records, whose effects are known: for the rules of the questions and the figures drawn from them."""

import pandas as pd

TWO = ("injury", "cipher_vault")


def table(task: str, left: dict[str, list], **columns) -> pd.DataFrame:
    """Records of one task: arm -> failing prompts, seed by seed; `columns` say what else stands in every row."""
    rows = [
        {"config.plain.task": task, "arm": name, "seed": seed}
        | {
            f"{policy}.exact.{of}": n
            for policy in ("greedy", "matched")
            for of in ("failures", "egregious", "planted", "natural")
        }
        | {"greedy.exact.clean_failure": 1e-5, "greedy.exact.hazardous": 10**6, "greedy.exact.safe": 10**6}
        | {"greedy.exact.wrong": 0, "greedy.exact.false_alarms": 0, "matched.exact.false_alarms": 0}
        | {"greedy.clean.correct": 1000, "greedy.clean.samples": 1000, "compute.forwards": 1e6}
        | {"config.attack": "gcg"}
        | {name: value[seed] if isinstance(value, list) else value for name, value in columns.items()}
        for name, failures in left.items()
        for seed, n in enumerate(failures)
    ]
    return pd.DataFrame(rows)


MANY, FEW, SOME = [9999, 12000, 9000, 15000], [9, 20, 5, 0], [999, 1500, 800, 700]
MIXED = [99, 20000, 30, 9000]
SIGNS = [f"telltale.{of}" for of in ("fixed_natural", "fixed_attacked.value", "odd_twins.value", "clean_safe.value")]


def on_two(left, **columns):
    return pd.concat([table(task, left, **columns) for task in TWO])
