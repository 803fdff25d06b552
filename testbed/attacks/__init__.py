"""Attacks: searches of the input space for a prompt on which the model's own answer is catastrophic.

`ATTACKS` is the table: name -> factory with defaults. One file a family; `search` runs any of them under a budget.
"""

from testbed.attacks.coordinate import coordinate
from testbed.attacks.gcg import gcg
from testbed.attacks.search import attack_model
from testbed.attacks.uniform import uniform

ATTACKS = {"uniform": uniform, "coordinate": coordinate, "gcg": gcg}

__all__ = ["ATTACKS", "attack_model"]
