"""Which tokens a step fills where some are surer than ``Sampling(threshold=…)``."""

import pytest
import torch

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.denoisers.infill_state import InfillState, ResolvedSampling

MASK = 4


def state(num_masks: int, **options: object) -> InfillState:
    forbidden = torch.tensor([MASK])
    sampling = ResolvedSampling.of(
        Sampling(temperature=0, **options),  # type: ignore[arg-type]
        temperature=0.0,
        algorithm="low_confidence",
        block_length=None,
        forbidden=forbidden,
    )
    ids = torch.full((num_masks,), MASK)
    return InfillState(ids, mask_id=MASK, seed=0, sampling=sampling, device=torch.device("cpu"))


def logits(*sure: float) -> torch.Tensor:
    """One token a place with these probabilities, the rest shared by the others."""
    rows = [[p] + [(1 - p) / MASK] * MASK for p in sure]
    return torch.tensor(rows).log()


def test_a_step_fills_all_that_are_surer_than_the_threshold():
    one = state(4, threshold=0.8)
    one.advance(logits(0.95, 0.5, 0.9, 0.6))
    assert one.filled.tolist() == [0, 2]
    one.advance(logits(0.5, 0.6))  # none is: the surest
    assert one.filled.tolist() == [3]
    one.advance(logits(0.99))
    assert one.done and one.result().num_passes == 3


def test_a_threshold_stays_within_the_block_and_the_steps():
    one = state(4, threshold=0.8, block_length=2, steps=4)
    assert one.candidates().tolist() == [0, 1]
    one.advance(logits(0.9, 0.9))
    assert one.candidates().tolist() == [2, 3]
    two = state(4, threshold=0.8, steps=2)
    two.advance(logits(0.9, 0.5, 0.5, 0.5))  # two a step without the threshold, and so with it
    assert two.filled.tolist() == [0, 1]
    two = state(4, threshold=0.8, steps=2)
    two.advance(logits(0.9, 0.9, 0.9, 0.5))
    assert len(two.candidates()) == 1


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_a_threshold_outside_of_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got threshold="):
        Sampling(threshold=threshold)
