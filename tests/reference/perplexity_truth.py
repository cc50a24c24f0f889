"""Diffusion perplexity by full enumeration: every mask of a short response, and all of t."""

import itertools
import math

from scipy import integrate


def nelbo_by_enumeration(nll_of, length: int, sigma_max: float) -> float:
    """NELBO of the paper's Eq. 4 in nats.

    ``nll_of(masked)`` gives the summed negative log-likelihood of the masked places, a tuple.
    """

    def integrand(t: float) -> float:
        alpha = math.exp(-sigma_max * t)
        weight = sigma_max * alpha / (1 - alpha)
        return weight * sum(
            (1 - alpha) ** len(masked) * alpha ** (length - len(masked)) * nll
            for masked, nll in nlls.items()
        )

    nlls = {
        masked: nll_of(masked)
        for size in range(1, length + 1)
        for masked in itertools.combinations(range(length), size)
    }
    value, _ = integrate.quad(integrand, 0, 1, epsabs=1e-10, epsrel=1e-10, limit=200)
    return value
