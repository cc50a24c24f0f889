"""Trains a masked diffusion LM to infill prompts, and measures how well it does.

``perplexity`` and ``probe`` measure any denoiser. Training starts from a recipe:
``dspy-infill train RECIPE``, or ``dspy_diffusion_infill.training.run.train``.
"""

from dspy_diffusion_infill.training.diffusion_perplexity import DiffusionPerplexity, perplexity

__all__ = ["DiffusionPerplexity", "perplexity"]
