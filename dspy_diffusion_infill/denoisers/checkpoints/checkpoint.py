"""A loaded masked diffusion LM, and what has to be known to run it."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dspy_diffusion_infill.denoisers.protocol import Algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Model, tokenizer, and how they are used.

    Attributes:
        model: a native transformers model with ``config.is_causal`` False.
        tokenizer: its tokenizer.
        mask_id: the id of the mask token.
        shift: whether the model scores token i at position i - 1.
        context_length: tokens that fit.
        algorithm: the sampler it was published with.
        temperature: the temperature that suits it.
        block_length: masks that are filled before those that follow; None is all at once.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_id: int
    shift: bool
    context_length: int
    algorithm: Algorithm
    temperature: float
    block_length: int | None = None
