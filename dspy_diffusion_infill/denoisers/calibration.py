"""How far caches and parallel unmasking are from exact passes and single tokens, for one denoiser.

Masked texts, as a rule windows of instructions, are filled with the true tokens from left to right,
once exactly and once with each cache. Each pass is compared at all masked tokens among which a real
infill would choose there. To measure ``Sampling(threshold=…)``, the true tokens are filled as it
would fill its own: the surest, and all that are surer than the threshold, at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspy_diffusion_infill.denoisers.protocol import (
    Cache,
    InfillRequest,
    Sampling,
    ScoreRequest,
)
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

THRESHOLDS = (None, 1.0, 0.95, 0.9, 0.7, 0.5)
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
        threshold: which one; None is one token at a time as the denoiser does it without, 1.0
            the same with the surest first.
        passes: mean forward passes a window.
        most_passes: the same one token at a time.
        agreement: share of masked tokens that get the same token, 0 to 1.
        nll: negative log-likelihood of the true tokens, filled in the order and in as many at once
            as the threshold says, nats a token; lower is better.
        accuracy: share of the true tokens that were the most likely ones then, 0 to 1.
    """

    threshold: float | None
    passes: float
    most_passes: float
    agreement: float
    nll: float
    accuracy: float


class SureFill:
    """A ``Filling`` with the true tokens, the surest first, and all above a threshold at once.

    Attributes:
        nll: of each token when it was filled, in nats, in the order of filling.
        hits: whether it was the most likely one.
        num_refreshes: as in ``Filling``.
    """

    def __init__(
        self,
        ids: Int[Tensor, " length"],
        mask_id: int,
        truth: Sequence[int],
        *,
        block: int | None,
        threshold: float | None,
    ) -> None:
        self.ids = ids.clone()
        self.places = (ids == mask_id).nonzero()[:, 0]
        self.filled = self.places[:0]
        self.num_refreshes = 0
        self.nll, self.hits = list[float](), list[bool]()
        self._truth = torch.tensor(list(truth))
        self._left = torch.arange(len(self.places))
        self._block, self._threshold = block or len(self.places), threshold

    @property
    def done(self) -> bool:
        """Whether every token is filled."""
        return len(self._left) == 0

    def candidates(self) -> Int[Tensor, " candidates"]:
        """The masked tokens of the first block that has any."""
        return self.places[self._among()]

    def _among(self) -> Int[Tensor, " candidates"]:
        return self._left[self._left < (self._left[0] // self._block + 1) * self._block]

    def advance(self, logits: Float[Tensor, "candidates vocabulary"]) -> None:
        """Fills the surest masked token, and what is surer than the threshold."""
        among, log_probs = self._among(), logits.log_softmax(-1).cpu()
        sureness, likeliest = log_probs.max(-1)
        chosen = torch.zeros_like(among, dtype=torch.bool)
        chosen[sureness.argmax()] = True
        if self._threshold is not None:
            chosen |= sureness.exp() > self._threshold
        numbers = among[chosen]
        true = self._truth[numbers]
        self.nll += (-log_probs[chosen, true]).tolist()
        self.hits += (likeliest[chosen] == true).tolist()
        self.filled = self.places[numbers]
        self.ids[self.filled] = true
        self._left = self._left[~torch.isin(self._left, numbers)]


def compare_thresholds(
    denoiser: TransformerDenoiser,
    requests: Sequence[ScoreRequest],
    thresholds: Sequence[float | None],
) -> list[Parallel]:
    """Fills the masked texts with each threshold, and one token at a time, in exact passes.

    With a threshold all masked tokens are one block: in blocks of one it would change nothing.

    Raises:
        ValueError: no request has a masked token.
    """
    asked = [request for request in requests if request.targets]
    if not asked:
        raise ValueError("thresholds must be compared on a request with a masked token, got none")
    most, alone = _drawn(denoiser, asked, None)
    found = []
    for threshold in thresholds:
        same = threshold is None
        passes, tokens = (most, alone) if same else _drawn(denoiser, asked, threshold)
        fills = [_sure_fill(denoiser, request, threshold) for request in asked]
        found.append(
            Parallel(
                threshold=threshold,
                passes=passes,
                most_passes=most,
                agreement=fmean(a == b for a, b in zip(tokens, alone, strict=True)),
                nll=fmean(value for fill in fills for value in fill.nll),
                accuracy=fmean(hit for fill in fills for hit in fill.hits),
            )
        )
    return found


def parallel(
    asked: Sequence[ScoreRequest], sampling: Sampling, threshold: float | None
) -> Sampling:
    """The sampling with a threshold, and the masked tokens of each text in one block."""
    if threshold is None:
        return sampling
    most = max(len(request.targets) for request in asked)
    return replace(sampling, threshold=threshold, block_length=most)


def _drawn(
    denoiser: TransformerDenoiser, asked: Sequence[ScoreRequest], threshold: float | None
) -> tuple[float, list[int]]:
    """Mean passes of infilling the texts, and the tokens that were filled in."""
    texts = [InfillRequest(request.input_ids) for request in asked]
    sampling = parallel(asked, Sampling(temperature=0), threshold)
    filled = denoiser.infill(texts, sampling)
    tokens = [
        new
        for text, one in zip(texts, filled, strict=True)
        for old, new in zip(text.input_ids, one.input_ids, strict=True)
        if old == denoiser.mask_id
    ]
    return fmean(one.num_passes for one in filled), tokens


def _sure_fill(
    denoiser: TransformerDenoiser, request: ScoreRequest, threshold: float | None
) -> SureFill:
    fill = SureFill(
        torch.tensor(request.input_ids),
        denoiser.mask_id,
        request.targets,
        block=denoiser.checkpoint.block_length if threshold is None else None,
        threshold=threshold,
    )
    denoiser.run([fill], "off", [request.context])
    return fill


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
