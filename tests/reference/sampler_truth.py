"""The published samplers with lists and loops, for masks anywhere in one text, at temperature 0.

``logits(ids)`` returns a row of plain floats for each token, row i scoring token i.
"""

import math
from collections.abc import Callable

import torch

Logits = Callable[[list[int]], list[list[float]]]
EPS = 1e-3


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def allowed(row: list[float], forbidden: set[int]) -> list[float]:
    return [-math.inf if k in forbidden else value for k, value in enumerate(row)]


def transfer_counts(num_masked: int, steps: int) -> list[int]:
    """LLaDA's ``get_num_transfer_tokens``."""
    counts = [num_masked // steps] * steps
    for k in range(num_masked % steps):
        counts[k] += 1
    return counts


def llada(
    ids: list[int],
    mask_id: int,
    forbidden: set[int],
    logits: Logits,
    *,
    steps: int,
    block_length: int,
) -> list[int]:
    """``low_confidence``; the masks make whole blocks, and the blocks share the steps evenly."""
    ids = list(ids)
    places = [k for k, token in enumerate(ids) if token == mask_id]
    num_blocks = len(places) // block_length
    for b in range(num_blocks):
        block = places[b * block_length : (b + 1) * block_length]
        for count in transfer_counts(len(block), steps // num_blocks):
            rows = logits(ids)
            best: list[tuple[float, int, int]] = []
            for place in block:
                if ids[place] == mask_id:
                    probs = softmax(rows[place])
                    choices = [k for k in range(len(probs)) if k not in forbidden]
                    token = max(choices, key=lambda k: probs[k])
                    best.append((probs[token], place, token))
            for _, place, token in sorted(best, reverse=True)[:count]:
                ids[place] = token
    return ids


def dream_counts(num_masked: int, steps: int) -> list[int]:
    times = torch.linspace(1, EPS, steps + 1)
    counts = []
    for i in range(steps):
        share = 1 - times[i + 1] / times[i]
        counts.append(int(num_masked * share) if i < steps - 1 else num_masked)
        num_masked -= counts[-1]
    return counts


def dream_confidence(drawn: list[float], algorithm: str, own: list[float] | None = None) -> float:
    """Published, a token is drawn with the model's own probabilities.

    Where some are forbidden, ``drawn`` are those that a token is drawn with: 0 for these.
    """
    own = drawn if own is None else own
    ranked = sorted((p for p, q in zip(own, drawn, strict=True) if q > 0), reverse=True)
    if algorithm == "topk_margin":
        return ranked[0] - ranked[1]
    if algorithm == "entropy":
        return sum(q * math.log(p + 1e-10) for p, q in zip(own, drawn, strict=True))
    return ranked[0]


def most_probable(row: list[float], top_k: int) -> list[float]:
    least = sorted(row, reverse=True)[:top_k][-1]
    return [value if value >= least else -math.inf for value in row]


def dream(
    ids: list[int],
    mask_id: int,
    forbidden: set[int],
    logits: Logits,
    *,
    steps: int,
    algorithm: str,
    top_k: int = 50,
) -> list[int]:
    """``entropy``, ``maskgit_plus`` and ``topk_margin``."""
    ids = list(ids)
    for count in dream_counts(ids.count(mask_id), steps):
        rows = logits(ids)
        best: list[tuple[float, int, int]] = []
        for place, token in enumerate(ids):
            if token == mask_id:
                own = softmax(most_probable(rows[place], top_k))
                drawn = softmax(most_probable(allowed(rows[place], forbidden), top_k))
                token = max(range(len(drawn)), key=lambda k: drawn[k])
                best.append((dream_confidence(drawn, algorithm, own), place, token))
        for _, place, token in sorted(best, reverse=True)[:count]:
            ids[place] = token
    return ids
