"""Local, surgical edits of DSPy instructions by a masked diffusion language model.

    from dspy_diffusion_infill import DiffusionInfill
    better = DiffusionInfill().compile(program, trainset)

Importing this package loads no torch: the first ``load_denoiser`` does.
"""

from dspy_diffusion_infill.denoisers import Denoiser, InfillRequest, Sampling, load_denoiser
from dspy_diffusion_infill.errors import DiffusionInfillError, TooManyErrors
from dspy_diffusion_infill.lms.diffusion import diffusion_lm
from dspy_diffusion_infill.lms.embedded import embedded_lm
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.scorers.protocol import ResponseScorer
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Prefix

__all__ = [
    "Denoiser",
    "DiffusionInfill",
    "DiffusionInfillError",
    "InfillRequest",
    "Prefix",
    "ResponseScorer",
    "Sampling",
    "TemplateAdapter",
    "TooManyErrors",
    "diffusion_lm",
    "embedded_lm",
    "load_denoiser",
]
