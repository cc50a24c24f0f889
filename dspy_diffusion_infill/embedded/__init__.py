"""The embedded task LM: SmolLM2-135M-Instruct, in this process.

Importing it is light: xllamacpp is loaded with the first answer.
"""

from dspy_diffusion_infill.embedded.lm import EmbeddedEngine, embedded_lm

__all__ = ["EmbeddedEngine", "embedded_lm"]
