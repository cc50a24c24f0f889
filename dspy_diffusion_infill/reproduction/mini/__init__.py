"""The paper's claim reproduced small, on a CPU, from nothing: ``dspy-infill mini``."""

from dspy_diffusion_infill.reproduction.mini.run import run_mini
from dspy_diffusion_infill.reproduction.mini.summary import MiniRow

__all__ = ["MiniRow", "run_mini"]
