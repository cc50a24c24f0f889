"""Local, surgical edits of DSPy instructions: a masked diffusion language model infills windows of them."""

__all__: list[str] = []
