"""How far caches and parallel unmasking are from exact passes and single tokens, for one denoiser.

Masked texts, as a rule windows of instructions, are filled with the true tokens from left to right,
once exactly and once with each cache. Each pass is compared at all masked tokens among which a real
infill would choose there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspy_diffusion_infill.denoisers.protocol import (
    Cache,
    Denoiser,
    InfillRequest,
    Sampling,
    ScoreRequest,
)
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

THRESHOLDS = (0.9, 0.7, 0.5)
CACHES: tuple[Cache, ...] = ("window", "around", "context")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One cache against exact passes.

    Attributes:
        cache: which one.
        max_drift: as of ``Sampling``.
        agreement: share of masked tokens with the same most likely token, 0 to 1.
        kl: mean KL divergence of the cached distribution from the exact one, nats a masked token,
            0 or more; lower is better.
        nll_exact: negative log-likelihood of the true tokens under exact passes, nats a token.
        nll: the same with the cache; lower is better.
        num_windows: windows that were filled.
        num_tokens: masked tokens that were compared, over all passes.
        refreshes: how often the whole text was computed because of drift, a window.
    """

    cache: Cache
    max_drift: float | None
    agreement: float
    kl: float
    nll_exact: float
    nll: float
    num_windows: int
    num_tokens: int
    refreshes: float


class TrueFill:
    """A ``Filling`` with the true tokens, from left to right, that keeps what each pass said."""

    def __init__(
        self, ids: Int[Tensor, " length"], mask_id: int, truth: Sequence[int], block: int | None
    ) -> None:
        self.ids, self.truth = ids.clone(), truth
        self.places = (ids == mask_id).nonzero()[:, 0]
        self.filled = self.places[:0]
        self.num_refreshes = 0
        self.log_probs: list[Float[Tensor, "candidates vocabulary"]] = []
        self._block = block or len(truth)

    @property
    def done(self) -> bool:
        """Whether every token is filled."""
        return len(self.log_probs) == len(self.truth)

    def candidates(self) -> Int[Tensor, " candidates"]:
        """The masked tokens of the present block."""
        number = len(self.log_probs)
        return self.places[number : (number // self._block + 1) * self._block]

    def advance(self, logits: Float[Tensor, "candidates vocabulary"]) -> None:
        """Fills the first masked token."""
        number = len(self.log_probs)
        self.log_probs.append(logits.log_softmax(-1).cpu())
        self.filled = self.places[number : number + 1]
        self.ids[self.filled] = self.truth[number]

    def nll(self) -> list[float]:
        """Of each true token, given the true ones before it."""
        pairs = zip(self.log_probs, self.truth, strict=True)
        return [-float(own[0, token]) for own, token in pairs]


def calibrate(
    denoiser: TransformerDenoiser,
    requests: Sequence[ScoreRequest],
    max_drifts: Sequence[float] = (),
) -> list[Calibration]:
    """Compares each cache with exact passes.

    Args:
        denoiser: the model.
        requests: masked texts with their true tokens, and the contexts that they share.
        max_drifts: with each of them, the caches that share contexts once more.

    Raises:
        ValueError: no request has a masked token.
    """
    asked = [request for request in requests if request.targets]
    if not asked:
        raise ValueError("calibrate must have a request with a masked token, got none")
    # Window by window: the distributions of one are all that is held at a time.
    nll_exact = list[float]()
    variants = [Sampling(cache=cache) for cache in CACHES]
    shared = [one for one in variants if one.shares_contexts]
    variants += [replace(one, max_drift=limit) for one in shared for limit in max_drifts]
    sums = {variant: _Sums([], [], [], []) for variant in variants}
    for request in asked:
        exact = _filled(denoiser, request, Sampling())
        nll_exact += exact.nll()
        for variant, found in sums.items():
            found.add(_filled(denoiser, request, variant), exact)
    return [
        Calibration(
            cache=variant.cache,
            max_drift=variant.max_drift,
            agreement=fmean(found.equal),
            kl=max(0.0, fmean(found.kl)),
            nll_exact=fmean(nll_exact),
            nll=fmean(found.nll),
            num_windows=len(asked),
            num_tokens=len(found.equal),
            refreshes=fmean(found.refreshes),
        )
        for variant, found in sums.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """``Sampling(threshold=…)`` against one token at a time, at temperature 0.

    Attributes:
        threshold: which one.
        passes: mean forward passes a window.
        most_passes: the same one token at a time.
        agreement: share of masked tokens that get the same token, 0 to 1.
    """

    threshold: float
    passes: float
    most_passes: float
    agreement: float


def compare_thresholds(
    denoiser: Denoiser, requests: Sequence[ScoreRequest], thresholds: Sequence[float]
) -> list[Parallel]:
    """Fills the masked texts with each threshold, and one token at a time.

    Raises:
        ValueError: no request has a masked token.
    """
    texts = [InfillRequest(request.input_ids) for request in requests if request.targets]
    if not texts:
        raise ValueError("thresholds must be compared on a request with a masked token, got none")
    places = [
        [k for k, token in enumerate(text.input_ids) if token == denoiser.mask_id] for text in texts
    ]

    def fill(threshold: float | None) -> tuple[float, list[int]]:
        filled = denoiser.infill(texts, Sampling(temperature=0, threshold=threshold))
        tokens = [one.input_ids[k] for one, own in zip(filled, places, strict=True) for k in own]
        return fmean(one.num_passes for one in filled), tokens

    most, alone = fill(None)
    found = []
    for threshold in thresholds:
        passes, tokens = fill(threshold)
        agreement = fmean(a == b for a, b in zip(tokens, alone, strict=True))
        found.append(
            Parallel(threshold=threshold, passes=passes, most_passes=most, agreement=agreement)
        )
    return found


@dataclass(frozen=True, slots=True)
class _Sums:
    equal: list[float]
    kl: list[float]
    nll: list[float]
    refreshes: list[int]

    def add(self, cached: TrueFill, exact: TrueFill) -> None:
        for ours, truth in zip(cached.log_probs, exact.log_probs, strict=True):
            self.equal.extend((ours.argmax(-1) == truth.argmax(-1)).double().tolist())
            self.kl.extend((truth.exp() * (truth - ours)).sum(-1).tolist())
        self.nll.extend(cached.nll())
        self.refreshes.append(cached.num_refreshes)


def _filled(denoiser: TransformerDenoiser, request: ScoreRequest, sampling: Sampling) -> TrueFill:
    block = denoiser.checkpoint.block_length
    fill = TrueFill(torch.tensor(request.input_ids), denoiser.mask_id, request.targets, block)
    denoiser.run([fill], sampling.cache, [request.context], max_drift=sampling.max_drift)
    return fill
