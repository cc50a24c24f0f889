"""Models, contexts and requests for ``infill_speed.py``; imports no DSPy."""

import random
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dspy_diffusion_infill.denoisers import InfillRequest, SharedContext, load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.llada import LLADA, llada_config
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

PUBLISHED = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "max_sequence_length": 4096,
    "rope_theta": 500000.0,
}
"""LLaDA-8B's own ``config.json``, as far as it decides sizes."""
SIZES = {
    "llada-8b": PUBLISHED,
    "llada-134m": PUBLISHED
    | {
        "d_model": 768,
        "n_layers": 12,
        "n_heads": 12,
        "mlp_hidden_size": 2048,
        "vocab_size": 32000,
    },
    "llada-tiny": PUBLISHED
    | {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 128, "vocab_size": 512},
}
MODELS = ("embedded", *SIZES)

# As ``DiffusionInfill`` uses a denoiser: a pool is renewed after 16 trials, two of each window.
WINDOW, STRIDE = 8, 4
CONTEXTS_PER_POOL, NUM_POOLS, WINDOWS_PER_POOL = 2, 2, 8
TOKENS_IN_FRONT = 12
"""The instructions stand near the beginning of a prompt, and the worked examples behind them."""


def load(name: str, *, device: str, dtype: str) -> TransformerDenoiser:
    """The embedded denoiser, or a LLaDA with random weights, made on the device."""
    if name == "embedded":
        loaded = load_denoiser("smollm2-fs", device=device, dtype=dtype)
        # It was trained on 2,048 tokens; its base takes 8,192, and the time does not depend on it.
        checkpoint = replace(loaded.checkpoint, context_length=4096)
        return TransformerDenoiser(checkpoint, name=name)
    config = llada_config(SIZES[name])
    config.is_causal = False
    is_float32 = dtype == "float32" or (dtype == "auto" and device == "cpu")
    with torch.device(device):
        model = LLADA.model_class._from_config(
            config, dtype=torch.float32 if is_float32 else torch.bfloat16
        ).eval()
    tokenizer = _words(config.vocab_size)
    checkpoint = Checkpoint(
        model=model,
        tokenizer=tokenizer,
        mask_id=tokenizer.convert_tokens_to_ids("[MASK]"),
        shift=False,
        context_length=SIZES[name]["max_sequence_length"],
        algorithm="low_confidence",
        temperature=0.8,
    )
    return TransformerDenoiser(checkpoint, name=name)


def _words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for each row of the embedding."""
    words = {f"w{k}": k for k in range(size - 2)} | {"[PAD]": size - 2, "[MASK]": size - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", unk_token="[PAD]"
    )


def is_bidirectional(denoiser: TransformerDenoiser) -> bool:
    """Whether the last token changes the logits of the first ones."""
    one, other = torch.arange(40, 80), torch.arange(40, 80)
    other[-1] = 99
    both = denoiser.logits(torch.stack([one, other]))[:, :8]
    return bool((both[0] - both[1]).abs().max() > 0)


@dataclass(frozen=True, slots=True)
class Task:
    """Random instructions in pools of random contexts.

    Attributes:
        instructions: their length, tokens.
        context: tokens around them.
        contexts: of all pools.
        mask_id: the denoiser's.
    """

    instructions: int
    context: int
    contexts: tuple[SharedContext, ...]
    mask_id: int

    @classmethod
    def random(cls, *, instructions: int, context: int, mask_id: int, seed: int) -> "Task":
        rng = random.Random(seed)

        def ids(num: int) -> tuple[int, ...]:
            return tuple(rng.randrange(40, 400) for _ in range(num))

        own, first = ids(instructions), TOKENS_IN_FRONT
        contexts = tuple(
            SharedContext((*ids(first), *own, *ids(context - first)), first, first + instructions)
            for _ in range(NUM_POOLS * CONTEXTS_PER_POOL)
        )
        return cls(instructions, context, contexts, mask_id)

    def requests(self, number: int, num_proposals: int) -> list[InfillRequest]:
        """Those of a window; windows take turns from left to right."""
        num_windows = (self.instructions - WINDOW) // STRIDE + 1
        start = TOKENS_IN_FRONT + number % num_windows * STRIDE
        first = number // WINDOWS_PER_POOL % NUM_POOLS * CONTEXTS_PER_POOL
        num_contexts = min(CONTEXTS_PER_POOL, num_proposals)
        requests = []
        for k in range(num_proposals):
            context = self.contexts[first + k * num_contexts // num_proposals]
            ids = list(context.input_ids)
            ids[start : start + WINDOW] = [self.mask_id] * WINDOW
            seed = number * num_proposals + k
            requests.append(InfillRequest(ids, seed, context))
        return requests
