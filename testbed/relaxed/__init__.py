"""Relaxed adversarial training: what a step descends when no prompt is searched for, by name."""

from collections.abc import Callable

from testbed.defence import PLAIN, Loss
from testbed.relaxed.latent import noise, one_sided, untargeted
from testbed.relaxed.pseudo_inputs import pseudo

LOSSES: dict[str, Callable[..., Loss]] = {
    "plain": lambda layer, eps: PLAIN,
    "untargeted": untargeted,
    "one_sided": one_sided,
    "noise": noise,
    "pseudo": pseudo,
}
"""`(layer, eps) -> Loss`: where in the residual stream, and how far.

Its value raises a ValueError where the model has no such layer, and `pseudo`'s where several are named.
"""
