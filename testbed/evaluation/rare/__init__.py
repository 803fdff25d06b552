"""Estimates of rare failure: P(margin <= 0) under a task's clean distribution, down to what no sampling reaches.

`ESTIMATORS` is the table: name -> factory with defaults. A factory returns `(key, objective) -> Estimate`. None of them
is to be believed by itself: each carries signs of its health, and all are calibrated against exact counts by
the question `estimators`. To ask about another distribution, exchange the task's (`estimate.under_hazards`).
"""

from testbed.evaluation.rare.estimate import Estimate, in_deployment, refuse_few, under_hazards
from testbed.evaluation.rare.extrapolation import gld, gumbel, qld
from testbed.evaluation.rare.importance import itgis, mhis
from testbed.evaluation.rare.sampling import naive
from testbed.evaluation.rare.splitting import splitting
from testbed.objective import Objective

ESTIMATORS = {
    "naive": naive,
    "mhis": mhis,
    "itgis": itgis,
    "splitting": splitting,
    "qld": qld,
    "gld": gld,
    "gumbel": gumbel,
}

__all__ = ["ESTIMATORS", "Estimate", "in_deployment", "reads", "refuse_few", "under_hazards"]

NEED_DENSITY = ("mhis", "itgis", "splitting")


def reads(name: str, objective: Objective) -> bool:
    """Whether the estimator of that name can read the model: the task gives a density, the model final residuals."""
    if name == "qld":
        return objective.task.answer_length == 1 and hasattr(objective.model, "final")
    return name not in NEED_DENSITY or objective.task.clean_log_prob is not None
