"""The forward process with plain lists and loops, one random number after the other."""

import math

import torch


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full_sequence(maskable: list[bool], t: float, seed: int) -> list[bool]:
    candidates = [k for k, free in enumerate(maskable) if free]
    order = torch.randperm(len(candidates), generator=numbers(seed)).tolist()
    masked = [False] * len(maskable)
    for place in order[: max(1, math.floor(t * len(candidates)))]:
        masked[candidates[place]] = True
    return masked


def response_only(response: list[bool], t: float, seed: int) -> list[bool]:
    generator = numbers(seed)
    draws = torch.rand(len(response), generator=generator).tolist()
    masked = [mine and draw < t for mine, draw in zip(response, draws, strict=True)]
    if not any(masked):
        candidates = [k for k, mine in enumerate(response) if mine]
        masked[candidates[torch.randperm(len(candidates), generator=generator)[0]]] = True
    return masked


def full_sequence_for_elbo(maskable: list[bool], t: float, seed: int) -> tuple[list[bool], float]:
    candidates = [k for k, free in enumerate(maskable) if free]
    count = min(len(candidates), math.ceil(t * len(candidates)))
    masked = [False] * len(maskable)
    for place in torch.randperm(len(candidates), generator=numbers(seed)).tolist()[:count]:
        masked[candidates[place]] = True
    return masked, count / len(candidates)


def response_only_for_elbo(response: list[bool], t: float, seed: int) -> tuple[list[bool], float]:
    p_mask = (1 - 1e-3) * t + 1e-3
    draws = torch.rand(len(response), generator=numbers(seed)).tolist()
    return [mine and draw < p_mask for mine, draw in zip(response, draws, strict=True)], p_mask


def window(
    maskable: list[bool],
    t: float,
    seed: int,
    *,
    lengths: tuple[int, int],
    preferred: list[tuple[int, int]],
    tokens_per_window: int,
    order: str,
) -> list[bool]:
    generator = numbers(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    masked = [False] * len(maskable)
    spans = list(preferred)
    for _ in range(round(sum(maskable) / tokens_per_window)):
        spans.append((0, len(maskable)))
    for low, high in spans:
        places = [k for k in range(low, min(high, len(maskable))) if maskable[k]]
        if not places:
            continue
        length = min(draw(*lengths), len(places))
        first = draw(0, len(places) - length)
        if order == "left_to_right":
            filling = list(reversed(range(length)))
        else:
            filling = torch.randperm(length, generator=generator).tolist()
        for place in filling[: min(length, math.floor(t * length) + 1)]:
            masked[places[first + place]] = True
    if not any(masked):
        candidates = [k for k, free in enumerate(maskable) if free]
        masked[candidates[torch.randperm(len(candidates), generator=generator)[0]]] = True
    return masked
