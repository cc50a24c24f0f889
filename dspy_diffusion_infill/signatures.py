"""Signatures of predictors, typed as what they are once a predictor exists."""

from typing import Any, cast

import dspy


def signature_of(predictor: Any) -> type[dspy.Signature]:
    """The predictor's signature; DSPy's annotations also allow what only a constructor takes."""
    return cast("type[dspy.Signature]", predictor.signature)
