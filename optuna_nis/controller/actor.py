"""The actor: one categorical distribution per parameter, made from logits."""

from __future__ import annotations

import numpy as np

from optuna_nis.controller.reward_scale import clip
from optuna_nis.space.constraint import BoolArray, FloatArray, IntArray

# Logits are between this and 0: their exponentials neither overflow nor vanish.
_MIN_LOGIT = -12.0


def bounded(logits: FloatArray, valid: BoolArray) -> FloatArray:
    """The same distribution with logits of 0 at most, none of them out of reach.

    Args:
        logits: Shape ``(number of parameters, largest number of options)``.
        valid: Which of them are options, of the same shape.
    """
    largest = np.where(valid, logits, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(np.where(valid, np.maximum(logits - largest, _MIN_LOGIT), 0.0))


def open_probabilities(logits: FloatArray, masks: BoolArray) -> FloatArray:
    """Probabilities of the options that are open, shape ``(n, *logits.shape)``."""
    weights = masks * np.exp(logits)
    # Past the first forbidden option of an infeasible row nothing may be left to take.
    return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300))


def pick(probabilities: FloatArray, uniform: FloatArray) -> IntArray:
    """Options drawn by uniform random numbers, one for each distribution."""
    cumulative = probabilities.cumsum(axis=-1)
    # The factor keeps rounding from reaching past the last option with a probability.
    level = uniform * cumulative[..., -1] * (1 - 1e-12)
    return np.asarray((cumulative <= level[..., None]).sum(axis=-1), dtype=np.int64)


def log_prob(options: IntArray, probabilities: FloatArray) -> FloatArray:
    """Log-probability of each row of options, minus infinity for what is not open."""
    taken = np.take_along_axis(probabilities, options[:, :, None], axis=2)[:, :, 0]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(taken).sum(axis=1))


def sampled_gradient(
    logits: FloatArray,
    options: IntArray,
    masks: BoolArray,
    advantage: FloatArray,
    drawn: FloatArray,
    max_importance: float,
) -> FloatArray:
    """The policy gradient as trials sample it, summed over them.

    Args:
        logits: Shape ``(number of parameters, options)``.
        options: The options taken, shape ``(k, number of parameters)``.
        masks: The options that were open, shape ``(k, number of parameters, options)``.
        advantage: Of each trial, shape ``(k,)``.
        drawn: Log-probability with which each was drawn, shape ``(k,)``; NaN for trials from
            elsewhere.
        max_importance: Upper bound on the weight of a trial that an older policy drew.

    Returns:
        Of the shape of the logits.
    """
    chosen = options[:, :, None] == np.arange(masks.shape[2])
    probabilities = open_probabilities(logits, masks)
    now = np.log(probabilities[chosen]).reshape(len(chosen), -1).sum(axis=1)
    foreign = np.isnan(drawn)
    if foreign.any():
        drawn = np.where(foreign, -np.log(masks.sum(axis=2)).sum(axis=1), drawn)
    importance = np.minimum(
        np.exp(clip(now - drawn, -50.0, 50.0)), np.where(foreign, 1.0, max_importance)
    )
    return np.asarray(np.einsum("k,kpo->po", importance * advantage, chosen - probabilities))
