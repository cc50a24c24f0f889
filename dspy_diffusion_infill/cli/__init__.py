"""The command ``dspy-infill``."""

from dspy_diffusion_infill.cli.app import main

__all__ = ["main"]
