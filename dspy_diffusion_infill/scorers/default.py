"""The scorer that ``guidance="auto"`` takes."""

import dspy

from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.lms.embedded import EmbeddedEngine
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer
from dspy_diffusion_infill.scorers.protocol import ResponseScorer


def default_scorer(lm: dspy.BaseLM | None, denoiser: Denoiser) -> ResponseScorer | None:
    """The scorer of ``guidance="auto"``.

    The embedded LM is scored from its own weights; for any other LM, which DSPy cannot ask for the
    probabilities of a given response, the denoiser stands in. torch is loaded for the first.
    """
    if isinstance(lm, dspy.LM) and isinstance(lm.engine, EmbeddedEngine):
        from dspy_diffusion_infill.scorers.causal import embedded_scorer

        return embedded_scorer(lm.engine.prompt_format)
    return DenoiserScorer(denoiser)
