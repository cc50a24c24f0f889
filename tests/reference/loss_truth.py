"""Losses and their gradients with plain lists and ``math``: every position, one after the other.

And the bounds that ``elbo`` estimates, by full enumeration of the masks of a short sequence.
"""

import itertools
import math

from scipy import integrate


def loss_and_gradient(
    logits: list[list[list[float]]],
    x0: list[list[int]],
    masked: list[list[bool]],
    t: list[float],
    num_maskable: list[int],
    loss: str,
) -> tuple[float, list[list[list[float]]]]:
    """The loss, and its derivative by each logit.

    ``logits`` are of all positions: (batch, length, vocabulary).
    """
    total, gradient = 0.0, []
    for b, sequence in enumerate(logits):
        rows = []
        for k, row in enumerate(sequence):
            if not masked[b][k]:
                rows.append([0.0] * len(row))
                continue
            weight = 1 / sum(masked[b]) if loss == "masked_mean" else 1 / (t[b] * num_maskable[b])
            weight /= len(logits)
            highest = max(row)
            log_sum = highest + math.log(sum(math.exp(x - highest) for x in row))
            total += weight * (log_sum - row[x0[b][k]])
            probabilities = [math.exp(x - log_sum) for x in row]
            rows.append([weight * (p - (v == x0[b][k])) for v, p in enumerate(probabilities)])
        gradient.append(rows)
    return total, gradient


def subsets(length: int) -> list[tuple[int, ...]]:
    """Every mask of a sequence, by its masked places; the empty one is left out."""
    sizes = range(1, length + 1)
    return [subset for size in sizes for subset in itertools.combinations(range(length), size)]


def bound_by_order(nll_of, length: int) -> float:
    """Nats a token: tokens that are unmasked one by one, in an order drawn uniformly.

    ``nll_of(masked)`` gives the summed negative log-likelihood of the masked places. With k masks
    left, the next token is any of them alike.
    """
    return (
        sum(
            nll_of(masked) / len(masked) / math.comb(length, len(masked))
            for masked in subsets(length)
        )
        / length
    )


def bound_by_probability(nll_of, length: int, eps: float) -> float:
    """Nats a token: each token masked with probability p, p uniform from ``eps`` to 1."""
    nlls = {masked: nll_of(masked) for masked in subsets(length)}

    def integrand(p: float) -> float:
        return sum(
            p ** len(masked) * (1 - p) ** (length - len(masked)) * nll / (p * length)
            for masked, nll in nlls.items()
        )

    value, _ = integrate.quad(integrand, eps, 1, epsabs=1e-12, epsrel=1e-12)
    return value / (1 - eps)
