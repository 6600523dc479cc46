"""Confidence interval of an error rate."""

from __future__ import annotations

import numpy as np


def bootstrap_interval(counts: np.ndarray, confidence: float = 0.95, samples: int = 10_000) -> tuple[float, float]:
    """Interval of an error rate in percent when the test set is drawn anew from its own utterances.

    Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

    Args:
        counts: (2, N) errors and reference units of N utterances; of several runs, summed over them.
        confidence: probability of the interval.
        samples: draws.
    """
    generator = np.random.default_rng(0)
    size = counts.shape[1]
    rates = []
    for start in range(0, samples, 1000):
        drawn = generator.integers(size, size=(min(1000, samples - start), size))
        errors, units = counts[0][drawn].sum(axis=1), counts[1][drawn].sum(axis=1)
        rates.append(100 * errors / np.maximum(units, 1))
    low, high = np.quantile(np.concatenate(rates), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
