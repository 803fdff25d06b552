"""Estimates of rare failure: P(margin <= 0) under a task's clean distribution, down to what no sampling reaches.

`ESTIMATORS` is the table: name -> factory with defaults. A factory returns `(key, objective) -> Estimate`. None of them
is to be believed by itself: each carries signs of its health, and all are calibrated against exact counts by
`experiments/estimators.py`. To ask about another distribution, exchange the task's (`estimate.under_hazards`).
"""

from testbed.evaluation.rare.estimate import Estimate, in_deployment, under_hazards
from testbed.evaluation.rare.extrapolation import gld, gumbel, qld
from testbed.evaluation.rare.importance import itgis, mhis
from testbed.evaluation.rare.sampling import naive
from testbed.evaluation.rare.splitting import splitting

ESTIMATORS = {
    "naive": naive,
    "mhis": mhis,
    "itgis": itgis,
    "splitting": splitting,
    "qld": qld,
    "gld": gld,
    "gumbel": gumbel,
}

__all__ = ["ESTIMATORS", "Estimate", "in_deployment", "under_hazards"]
