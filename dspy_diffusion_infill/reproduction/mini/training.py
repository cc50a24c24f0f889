"""Pretraining and fine-tuning of the small model.

The loop is plain torch, since two optimizers step at once: Muon the hidden matrices, AdamW the
rest. Masking and loss are those of all our training.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor
from torch.optim import AdamW, Optimizer
from transformers import LlamaForCausalLM

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.llada import llada_config
from dspy_diffusion_infill.denoisers.masked_head import head_on_positions
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.reproduction.mini import world
from dspy_diffusion_infill.reproduction.mini.progress import say
from dspy_diffusion_infill.reproduction.mini.recipe import (
    STAGES,
    MaskingName,
    MiniScale,
    StageName,
)
from dspy_diffusion_infill.training.loss import diffusion_loss
from dspy_diffusion_infill.training.masking import (
    MaskDraw,
    draw_t,
    full_sequence_mask,
    response_only_mask,
)

try:
    from torch.optim import Muon
except ImportError as error:
    raise MissingDependencyError(
        f"the small reproduction needs torch 2.9 or later for Muon, got {torch.__version__}: "
        "pip install --upgrade torch"
    ) from error

Texts = Callable[[Generator], Int[Tensor, "batch length"]]
CONTEXT_LENGTH = 64


def new_model(scale: MiniScale, seed: int) -> LlamaForCausalLM:
    """A small LLaDA with random weights."""
    config = llada_config(
        {
            "vocab_size": len(world.VOCABULARY),
            "d_model": scale.width,
            "n_layers": scale.layers,
            "n_heads": scale.heads,
            "mlp_ratio": 2,
            "max_sequence_length": CONTEXT_LENGTH,
            "pad_token_id": world.ID[world.PAD],
            "bos_token_id": world.ID[world.START],
        }
    )
    config.is_causal = False
    config.initializer_range = scale.width**-0.5  # the usual 0.02 is for widths of thousands
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def denoiser(model: LlamaForCausalLM, name: str) -> TransformerDenoiser:
    """The model behind the seam that the optimizer uses."""
    checkpoint = Checkpoint(
        model=model.eval(),
        tokenizer=world.tokenizer(),
        mask_id=world.ID[world.MASK],
        shift=False,
        context_length=CONTEXT_LENGTH,
        algorithm="low_confidence",
        temperature=0.0,
    )
    return TransformerDenoiser(checkpoint, name=name, tokens_per_batch=4096)


def pretrain(
    model: LlamaForCausalLM,
    seen: Int[Tensor, "instructions 4"],
    *,
    scale: MiniScale,
    seed: int,
    log: bool,
) -> None:
    """Trains on texts in which instructions and their examples never meet (FS masking)."""
    _train(
        model,
        partial(pretraining_texts, seen, scale),
        "FS",
        scale.pretraining_tokens,
        learning_rate=scale.learning_rate,
        generator=Generator().manual_seed(seed),
        log=f"seed {seed} · pretraining · FS" if log else None,
    )


def fine_tune(
    model: LlamaForCausalLM,
    seen: Int[Tensor, "instructions 4"],
    stage: StageName,
    *,
    scale: MiniScale,
    seed: int,
    log: bool,
) -> None:
    """Trains on contexts with the stage's maskings; stages of one seed start with the same text.

    Each masking of a stage has an optimizer and a schedule of its own, as ``training.run.train``
    gives each of its stages.
    """
    generator = Generator().manual_seed(1000 + seed)
    for part in STAGES[stage]:
        _train(
            model,
            partial(contexts, seen, scale),
            part.masking,
            round(part.tokens * scale.stage_tokens),
            learning_rate=part.rate * scale.learning_rate,
            generator=generator,
            log=f"seed {seed} · {stage} · {part.masking}" if log else None,
        )


def pretraining_texts(
    seen: Int[Tensor, "instructions 4"], scale: MiniScale, generator: Generator
) -> Int[Tensor, "batch length"]:
    """Instructions alone (one batch in four), or examples of an instruction that is not there."""
    if scale.met and float(torch.rand((), generator=generator)) < scale.met:
        return contexts(seen, scale, generator)
    if float(torch.rand((), generator=generator)) < 0.25:
        per_text = 6
        rows = scale.batch_tokens // (1 + per_text * (world.INSTRUCTION_LENGTH + 1))
        lists = [world.instruction_ids(world.draw(seen, rows, generator)) for _ in range(per_text)]
        return world.with_start(*lists)
    rows = scale.batch_tokens // (1 + scale.max_examples * world.EXAMPLE_LENGTH)
    chosen = world.draw(seen, rows, generator)
    return world.with_start(world.example_ids(chosen, scale.max_examples, generator))


def contexts(
    seen: Int[Tensor, "instructions 4"], scale: MiniScale, generator: Generator
) -> Int[Tensor, "batch length"]:
    """Instructions with 1 to ``max_examples`` worked examples each, equally many in one batch."""
    num_examples = int(torch.randint(1, scale.max_examples + 1, (), generator=generator))
    length = world.INSTRUCTION.stop + 1 + num_examples * world.EXAMPLE_LENGTH
    chosen = world.draw(seen, scale.batch_tokens // length, generator)
    return world.context_ids(chosen, num_examples, generator)


def _train(
    model: LlamaForCausalLM,
    texts: Texts,
    masking: MaskingName,
    num_tokens: int,
    *,
    learning_rate: float,
    generator: Generator,
    log: str | None,
) -> None:
    """Trains in place, over one warm-up and decay of the learning rate."""
    model.train()
    optimizers, done = list(_optimizers(model)), 0
    while done < num_tokens:
        for group in (group for o in optimizers for group in o.param_groups):
            group["lr"] = learning_rate * _schedule(done / num_tokens)
        x0 = texts(generator)
        loss = _step(model, optimizers, x0, masking, generator)
        before, done = done, done + x0.numel()
        if log and 5 * done // num_tokens > 5 * before // num_tokens:
            say(f"{log} · {done / 1e6:.2f} M tokens · loss {loss:.2f}")


def _step(
    model: LlamaForCausalLM,
    optimizers: Sequence[Optimizer],
    x0: Int[Tensor, "batch length"],
    masking: MaskingName,
    generator: Generator,
) -> float:
    # 1. Noise the batch.
    draws = [_mask(masking, x0.shape[1], generator) for _ in x0]
    masked = torch.stack([draw.masked for draw in draws])
    t = torch.tensor([draw.t for draw in draws])
    xt = x0.masked_fill(masked, world.ID[world.MASK])
    # 2. Logits and loss, at masked positions only.
    with head_on_positions(model, masked):
        loss = diffusion_loss(model(input_ids=xt, use_cache=False).logits, x0, masked, t)
    # 3. Step.
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _mask(masking: MaskingName, length: int, generator: Generator) -> MaskDraw:
    t = draw_t(generator)
    if masking == "RO":
        return response_only_mask(world.response_places(length), t, generator)
    return full_sequence_mask(_all_but_start(length), t, generator)


def _all_but_start(length: int) -> Bool[Tensor, " length"]:
    maskable = torch.ones(length, dtype=torch.bool)
    maskable[0] = False
    return maskable


def _optimizers(model: LlamaForCausalLM) -> Iterator[Optimizer]:
    """Muon for the matrices between embedding and head, AdamW for the rest.

    The pair needs far fewer tokens than AdamW alone: a run takes minutes on a CPU.
    """
    hidden, rest = [], []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.ndim == 2 and ".layers." in name
        (hidden if is_hidden else rest).append(parameter)
    yield Muon(hidden, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    yield AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)


def _schedule(progress: float) -> float:
    """Linear warm-up over 5 %, then cosine decay to 0; both as a share of the peak."""
    return min(1.0, progress / 0.05 + 0.02) * 0.5 * (1 + math.cos(math.pi * progress))
