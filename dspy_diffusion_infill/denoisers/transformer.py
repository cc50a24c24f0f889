"""A masked diffusion LM on a native transformers model whose causal mask is off."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.saving import save_checkpoint
from dspy_diffusion_infill.denoisers.context_cache import ContextCache, Later
from dspy_diffusion_infill.denoisers.forward import ForwardPasses, Logits
from dspy_diffusion_infill.denoisers.infill_state import Filling, InfillState, ResolvedSampling
from dspy_diffusion_infill.denoisers.protocol import (
    Cache,
    Encoding,
    Infilled,
    InfillRequest,
    Message,
    Sampling,
    ScoreRequest,
    SharedContext,
)
from dspy_diffusion_infill.errors import ContextTooLongError, DenoiserError
from dspy_diffusion_infill.value_checks import broken_character


class TransformerDenoiser:
    """Implements ``Denoiser``; made by ``load_denoiser``.

    Attributes:
        checkpoint: model, tokenizer and what belongs to them.
        name: hub id or folder, with revision and dtype.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, name: str, tokens_per_batch: int | None = None
    ) -> None:
        self.checkpoint, self.name = checkpoint, name
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self.mask_id, self.context_length = checkpoint.mask_id, checkpoint.context_length
        pad_id = cast(int | None, checkpoint.tokenizer.pad_token_id)
        self._passes = ForwardPasses(
            self.model,
            shift=checkpoint.shift,
            pad_id=checkpoint.mask_id if pad_id is None else pad_id,
            tokens_per_batch=tokens_per_batch,
        )
        self._contexts = ContextCache(self._passes)
        self._mask_token = self.decode([self.mask_id])
        self._vocabulary = int(self.model.config.vocab_size)
        self._special = _special_tokens(checkpoint, self._vocabulary).to(self._passes.device)
        self._mask_only = torch.tensor([self.mask_id], device=self._passes.device)

    @property
    def num_passes(self) -> int:
        """Texts that went through the model so far."""
        return self._passes.num_passes

    def encode(self, text: str) -> Encoding:
        """Tokens with character offsets; special tokens in the text are known, none is added.

        The mask token is not: a text that spells it out holds these characters, and no mask.

        Raises:
            ValueError: the text holds half of a surrogate pair, which no encoding has.
        """
        if broken := broken_character(text):
            raise ValueError(f"the text {broken}")
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for part in self._without_whole_masks(text):
            encoded = self.tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
            start += len(part)
        return Encoding(tuple(ids), tuple(offsets))

    def _without_whole_masks(self, text: str) -> list[str]:
        """The text in parts, cut inside of each mask token that it spells out."""
        if not self._mask_token:  # the tokenizer has no text for it
            return [text]
        first, *others = text.split(self._mask_token)
        parts = [first]
        for other in others:
            parts[-1] += self._mask_token[:1]
            parts.append(self._mask_token[1:] + other)
        return parts

    def decode(self, input_ids: Sequence[int]) -> str:
        """The text of the tokens, nothing cleaned up."""
        return str(
            self.tokenizer.decode(
                list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def render(self, messages: Sequence[Message]) -> str:
        """The messages in the model's chat template, then the assistant's turn if it is due.

        A checkpoint without a template gets the role in front of each turn. transformers renders
        templates in Jinja's sandbox, where they reach nothing but the messages.

        Raises:
            DenoiserError: the template is no Jinja, refuses the messages, or leaves the sandbox.
        """
        open_turn = not messages or messages[-1]["role"] != "assistant"
        if self.tokenizer.chat_template:
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        list(messages), tokenize=False, add_generation_prompt=open_turn
                    )
                )
            except Exception as error:  # jinja2's, and whatever an expression in it raises
                raise DenoiserError(f"the chat template of {self.name} fails: {error}") from error
        turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return str(self.tokenizer.bos_token or "") + "\n\n".join(turns + ["Assistant:"] * open_turn)

    def logits(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Float32 logits of every token, from one pass; row i scores token i.

        Raises:
            ContextTooLongError: there are more tokens than ``context_length``.
            DenoiserMemoryError: the device runs out of memory.
        """
        self._check_length(input_ids.shape[-1])
        return self._passes.full(input_ids, attention_mask).to(input_ids.device)

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        """Fills every mask of every request; tokens that are not masked never change.

        Requests advance together, and a text that several of them share at some step (all proposals
        for one window share the first) goes through the model once.

        Raises:
            ContextTooLongError: a request has more tokens than ``context_length``.
            DenoiserMemoryError: the device runs out of memory, also with half the batch.
        """
        resolved = ResolvedSampling.of(
            sampling,
            temperature=self.checkpoint.temperature,
            algorithm=self.checkpoint.algorithm,
            block_length=self.checkpoint.block_length,
            forbidden=self._special if sampling.forbid_special else self._mask_only,
        )
        states = [
            InfillState(
                self._ids(request.input_ids),
                mask_id=self.mask_id,
                seed=request.seed,
                sampling=resolved,
                device=self._passes.device,
            )
            for request in requests
        ]
        contexts = [self._checked(request.context) for request in requests]
        self.run(states, sampling.cache, contexts, max_drift=sampling.max_drift)
        return [state.result() for state in states]

    def run(
        self,
        states: Sequence[Filling],
        cache: Cache,
        contexts: Sequence[SharedContext | None],
        *,
        max_drift: float | None = None,
    ) -> None:
        """Takes every state to its end; ``contexts`` are those of their requests."""
        if cache == "window":
            self._infill_with_cache(states)
        elif cache in ("context", "around"):
            later = Later(is_whole=cache == "around", max_drift=max_drift)
            self._contexts.infill(states, contexts, later)
        while unfinished := [state for state in states if not state.done]:
            self._advance(unfinished)

    def _advance(self, states: Sequence[Filling]) -> None:
        """Takes one step with each; those with the same text and candidates share the pass."""
        same: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Filling]] = {}
        for state in states:
            key = tuple(state.ids.tolist()), tuple(state.candidates().tolist())
            same.setdefault(key, []).append(state)
        groups = list(same.values())
        texts = [group[0].ids for group in groups]
        for k, logits in self._passes.at(texts, [group[0].candidates() for group in groups]):
            for state in groups[k]:
                state.advance(logits)

    def _infill_with_cache(self, states: Sequence[Filling]) -> None:
        """Infills to the end; a text is prefilled once for all states that share it."""
        same: dict[tuple[int, ...], list[Filling]] = {}
        for state in states:
            if not state.done:
                same.setdefault(tuple(state.ids.tolist()), []).append(state)
        for group in same.values():
            first = group[0]
            cache, logits = self._passes.prefill(first.ids, first.places, first.candidates())
            for state in group:
                state.advance(logits)
            while unfinished := [state for state in group if not state.done]:
                texts = [state.ids for state in unfinished]
                positions = [state.candidates() for state in unfinished]
                for k, logits in self._passes.decode_masked(cache, texts, positions):
                    unfinished[k].advance(logits)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Natural-log probability of each target, all masked places of a request hidden at once.

        Raises:
            ContextTooLongError: a request has more tokens than ``context_length``.
            ValueError: a request has not one target for each masked place.
        """
        texts = [self._ids(request.input_ids) for request in requests]
        positions = [(ids == self.mask_id).nonzero()[:, 0] for ids in texts]
        for request, places in zip(requests, positions, strict=True):
            if len(request.targets) != len(places):
                raise ValueError(
                    f"a ScoreRequest needs one target for each masked place, got "
                    f"{len(request.targets)} targets for {len(places)} places that hold "
                    f"mask_id={self.mask_id}"
                )
        scores: list[tuple[float, ...]] = [() for _ in requests]
        contexts = [self._checked(request.context) for request in requests]
        for k, logits in self._at(texts, positions, contexts):
            targets = self._ids(requests[k].targets).to(logits.device)
            log_probs = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
            scores[k] = tuple(log_probs.tolist())
        return scores

    def _at(
        self,
        texts: Sequence[Int[Tensor, " length"]],
        positions: Sequence[Int[Tensor, " places"]],
        contexts: Sequence[SharedContext | None],
    ) -> Iterator[tuple[int, Logits]]:
        """Yields (index of the text, logits of its positions), where it has any."""
        asked = [k for k, places in enumerate(positions) if len(places)]
        alone = [k for k in asked if contexts[k] is None]
        whole = self._passes.at([texts[k] for k in alone], [positions[k] for k in alone])
        yield from ((alone[k], logits) for k, logits in whole)
        for k in asked:
            if (context := contexts[k]) is not None:
                yield k, self._contexts.logits(texts[k], positions[k], context)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder for ``load_denoiser``, LLaDA's and Dream's in the published layout."""
        save_checkpoint(self.checkpoint, Path(folder))

    def _ids(self, input_ids: Sequence[int] | Tensor) -> Int[Tensor, " length"]:
        ids = torch.as_tensor(input_ids, dtype=torch.long).cpu()
        if ids.dim() != 1:
            raise ValueError(
                f"input_ids of a request must be one text, got a tensor of shape {tuple(ids.shape)}"
            )
        self._check_length(len(ids))
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocabulary:
            raise ValueError(
                f"token ids must be in 0..{self._vocabulary - 1}, "
                f"got {int(ids.min())}..{int(ids.max())}"
            )
        return ids

    def _checked(self, context: SharedContext | None) -> SharedContext | None:
        if context is not None:
            self._ids(context.input_ids)
        return context

    def _check_length(self, length: int) -> None:
        if length > self.context_length:
            raise ContextTooLongError(
                f"{length} tokens do not fit the {self.context_length} of {self.name}; "
                f"use fewer or shorter examples in a context"
            )


def _special_tokens(checkpoint: Checkpoint, vocabulary: int) -> Int[Tensor, " tokens"]:
    """What is never written into a text: special and unused ids, and the mask."""
    tokenizer = checkpoint.tokenizer
    special = torch.zeros(vocabulary, dtype=torch.bool)
    special[len(tokenizer) :] = True
    added = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    ids = [checkpoint.mask_id, *tokenizer.all_special_ids, *added]
    for value in (checkpoint.model.config.eos_token_id, checkpoint.model.config.pad_token_id):
        ids += value if isinstance(value, list) else [value]
    special[[k for k in ids if k is not None and k < vocabulary]] = True
    return special.nonzero()[:, 0]
