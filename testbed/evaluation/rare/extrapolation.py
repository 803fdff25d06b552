"""Extrapolation: a law fitted to what is seen, and read off where nothing was. Right only if the law is."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from scipy import stats

from testbed.broken import refuse_broken
from testbed.evaluation.rare.estimate import REPLICATES, Estimate, pooled, refuse_few
from testbed.evaluation.rare.sampling import BATCH, clean_margins
from testbed.notes import written
from testbed.objective import NOT_HAZARDOUS, Objective
from testbed.statistics import clopper_pearson

TAIL = 10
EVEN = -np.log(np.log(2.0))  # the elicitation score -log(-log p) of p = 1/2, that is of margin 0


@functools.cache
def gld(samples: int = 2**16, replicates: int = REPLICATES) -> Callable[[jax.Array, Objective], Estimate]:
    """A normal law fitted to the margins of hazardous clean prompts (GLD of Wu and Hilton 2024).

    P = P(hazardous) Phi(-mean / deviation). Useless where margins have two modes, which after training they do.

    Raises:
      ValueError: fewer than ten samples a replicate, or too few replicates.
    """

    def fit(margins, hazard):
        if hazard.sum() < 2 or not margins[hazard].std() > 0:
            return (margins <= 0).mean(), hazard
        return hazard.mean() * stats.norm.sf(margins[hazard].mean() / margins[hazard].std(ddof=1)), hazard

    return _extrapolated(lambda objective, prompts, margins: fit(margins, margins < NOT_HAZARDOUS), samples, replicates)


@functools.cache
def gumbel(samples: int = 2**16, replicates: int = REPLICATES) -> Callable[[jax.Array, Objective], Estimate]:
    """An extreme-value tail fitted to the worst clean prompts (Jones et al. 2025).

    The elicitation score of a prompt is -log(-log p) with p = sigmoid(-margin). Its log survival is taken to be linear
    over the ten largest distinct values, and read off at p = 1/2, which is margin 0.

    Raises:
      ValueError: fewer than ten samples a replicate, or too few replicates.
    """

    def fit(objective, prompts, margins):
        values, counts = np.unique(margins, return_counts=True)
        survival = (counts.cumsum() - 0.5) / len(margins)  # of the smallest margin on, which are the largest scores
        worst = values[:TAIL].astype(np.float64)
        # Far below zero the score is minus the margin, and the logarithm's argument no number above zero any more.
        scores = np.where(worst < -30, -worst, -np.log(np.logaddexp(0, np.maximum(worst, -30))))
        use = values[:TAIL] < NOT_HAZARDOUS
        if use.sum() < 3:
            return (margins <= 0).mean(), use
        line = stats.linregress(scores[use], np.log(survival[:TAIL][use]))
        return min(1.0, np.exp(line.intercept + line.slope * EVEN)), use

    return _extrapolated(fit, samples, replicates)


@functools.cache
def qld(samples: int = 2**16, replicates: int = REPLICATES) -> Callable[[jax.Array, Objective], Estimate]:
    """The margin as a sum of two parts taken to be independent, so that n samples make n^2 (QLD of Wu and Hilton 2024).

    A classifier's margin is linear in its final residual. Along the residual's principal components it is a sum of
    uncorrelated terms, which are dealt into two halves of about equal variance, the largest first. (The paper splits
    off the shortest vector that is accepted; with two answers nothing else matters, and plain sampling is left.)

    Raises:
      ValueError: fewer than ten samples a replicate, too few replicates, a generator, or a model without `final`.
    """

    def fit(objective, prompts, margins):
        hazard = margins < NOT_HAZARDOUS
        if hazard.sum() < 2:
            return (margins <= 0).mean(), hazard
        terms, rest = _terms(np.asarray(_final(objective, prompts), np.float64)[hazard], margins[hazard])
        halves, spread = [rest, np.zeros(len(rest))], [rest.var(), 0.0]
        for term in terms.T[np.argsort(-terms.var(axis=0), kind="stable")]:
            smaller = int(np.argmin(spread))
            halves[smaller] = halves[smaller] + term
            spread[smaller] += term.var()
        first, second = halves[0] + margins[hazard].mean(), np.sort(halves[1])
        pairs = np.searchsorted(second, -first, side="right") / len(second)
        return hazard.mean() * pairs.mean(), pairs

    fitted = _extrapolated(fit, samples, replicates)

    def estimate(key, objective):
        if objective.task.answer_length > 1 or not hasattr(objective.model, "final"):
            raise ValueError("the estimator qld reads a classifier with final residuals; use another")
        return fitted(key, objective)

    return estimate


@jax.jit
def _final(objective: Objective, prompts: jax.Array) -> jax.Array:
    """Final residuals `[n, D]` of a classifier at prompts `[n, T]`, after its notes."""
    task, model = objective.task, objective.model

    def one(prompt):
        soft = jax.nn.one_hot(prompt, task.vocab)
        return model.final(soft, written(model, task, soft))[task.notes]

    return jax.lax.map(one, prompts, batch_size=BATCH)


def _terms(residuals: np.ndarray, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centred margin as uncorrelated terms `[n, D]` along principal components, and what is not linear `[n]`."""
    centred, target = residuals - residuals.mean(axis=0), margins - margins.mean(dtype=np.float64)
    weights = np.linalg.lstsq(centred, target, rcond=None)[0]
    _, axes = np.linalg.eigh(centred.T @ centred)
    terms = (centred @ axes) * (axes.T @ weights)
    return terms, target - terms.sum(axis=1)


def _extrapolated(fit: Callable, samples: int, replicates: int) -> Callable[[jax.Array, Objective], Estimate]:
    """Fit disjoint samples: `fit(objective, prompts, margins) -> (probability, weights of what it was fitted to)`."""
    refuse_few("replicates", replicates, 2)
    refuse_few("samples a replicate", samples // replicates, TAIL)

    def estimate(key, objective):
        refuse_broken(objective.model)
        prompts, margins = map(np.asarray, clean_margins(key, objective, samples))
        refuse_broken(objective.model, margins)
        size = samples // replicates
        parts = [slice(start, start + size) for start in range(0, replicates * size, size)]
        values, weights = zip(*(fit(objective, prompts[part], margins[part]) for part in parts), strict=True)
        ceiling = clopper_pearson(0, samples).high
        return pooled(values, ceiling, np.concatenate(weights), samples * objective.forwards)

    return estimate
