"""Losses and their gradients with plain lists and ``math``: every position, one after the other."""

import math


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
