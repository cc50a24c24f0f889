"""Repeated runs: an LM with a temperature answers the same prompt in several ways."""

from collections.abc import Iterator
from contextlib import contextmanager

import dspy

from dspy_diffusion_infill.programs import all_predictors


@contextmanager
def repeat(program: dspy.Module, number: int) -> Iterator[None]:
    """Has the program's LMs draw anew, by DSPy's ``rollout_id``, while it is open.

    The predictors stay the same objects, so that traces name them. An LM whose temperature is 0
    stays as it is.

    Args:
        program: no other thread may use it meanwhile.
        number: of the repeat; 0 changes nothing, so that a first run may come from DSPy's cache.
    """
    predictors = list(all_predictors(program).values()) if number else []
    lms = [predictor.lm for predictor in predictors]
    try:
        for predictor in predictors:
            if (lm := _noisy_lm(predictor)) is not None:
                first = lm.kwargs.get("rollout_id") or 0
                predictor.lm = lm.copy(rollout_id=first + number)
        yield
    finally:
        for predictor, lm in zip(predictors, lms, strict=True):
            predictor.lm = lm


def check_noise(program: dspy.Module, num_repeats: int) -> None:
    """Raises ValueError where repeats are asked for and no LM answers in several ways."""
    if num_repeats > 1 and not any(map(_noisy_lm, all_predictors(program).values())):
        raise ValueError(
            f"num_repeats={num_repeats} needs an LM that may answer in several ways, and every "
            "predictor's has temperature=0: raise the temperature, or leave num_repeats out"
        )


def _noisy_lm(predictor: dspy.Predict) -> dspy.BaseLM | None:
    """The predictor's LM, unless it is one whose temperature is 0."""
    lm = predictor.lm or dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        return None
    options = {**lm.kwargs, **predictor.config}
    return None if options.get("temperature") == 0 else lm
