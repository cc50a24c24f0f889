"""Likelihood of responses under a causal LM in this process: the embedded task LM, as it answers.

The prompts of one proposal share their first tokens (template, instructions), and all proposals for
a window share what is before it. So the texts are put into one tree of tokens, whose common
prefixes stand in it once, and the model runs on the tree in a single row without padding: each
token sees its ancestors and itself, at the position that it has in its text. That gives what each
text would get alone.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dspy_diffusion_infill.denoisers.checkpoints.placement import has_fast_bfloat16, settle_kernels
from dspy_diffusion_infill.denoisers.checkpoints.smollm2 import BASE, load_base
from dspy_diffusion_infill.denoisers.masked_head import head_on_positions
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.lms.chatml import (
    DEFAULT_FORMAT,
    END_OF_TEXT,
    END_OF_TURN,
    PromptFormat,
    render,
)
from dspy_diffusion_infill.scorers.protocol import ScoredPair
from dspy_diffusion_infill.scorers.token_tree import TokenTree, attend_in_blocks, blocks_of

TOKENS_PER_PASS = 1024
"""Attention is quadratic in the tree: beyond this, a second pass costs less."""


@functools.cache
def embedded_scorer(
    prompt_format: PromptFormat = DEFAULT_FORMAT, dtype: str = "auto"
) -> "CausalScorer":
    """The scorer of the embedded LM; the weights are loaded once for each format and dtype.

    Args:
        prompt_format: as that of ``embedded_lm``.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the CPU multiplies it.

    Raises:
        MissingDependencyError: the weights or ``gguf`` are not installed.
    """
    if dtype == "auto":
        dtype = "bfloat16" if has_fast_bfloat16() else "float32"
    model, tokenizer = _embedded_weights(dtype)
    return CausalScorer(model, tokenizer, prompt_format=prompt_format, name=f"{BASE}/{dtype}")


@functools.cache
def _embedded_weights(dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_base(getattr(torch, dtype))
    return model.eval().requires_grad_(False), tokenizer


class CausalScorer:
    """Log-likelihood of responses under a causal LM that is asked in ChatML.

    A ``ResponseScorer``. It counts the response's tokens and the end: all that would end the answer
    there (end of turn, end of text, and with the formats ``cued`` and ``completion`` a line break).

    Attributes:
        name: model, dtype and prompt format.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_format: PromptFormat = DEFAULT_FORMAT,
        name: str,
    ) -> None:
        settle_kernels()
        attend_in_blocks(model)
        self.model, self.tokenizer = model, tokenizer
        self.prompt_format: PromptFormat = prompt_format
        self.name = f"{name}/{prompt_format}"
        self._lock = threading.Lock()
        self._ends: dict[str, list[int]] = {}

    def log_likelihoods(self, pairs: Sequence[ScoredPair]) -> list[float]:
        """Log-probability of each response and its end, in nats; higher is better.

        Raises:
            ContextTooLongError: a prompt and its response do not fit the model.
        """
        scores: list[float] = []
        texts = [self._tokens(pair) for pair in pairs]
        longest, limit = max((len(text.ids) for text in texts), default=0), self._limit
        if longest > limit:
            raise ContextTooLongError(f"{longest} tokens do not fit the {limit} of {self.name}")
        for tree, members in _trees(texts):
            scores += self._score(tree, members)
        return scores

    def room(self, pair: ScoredPair) -> int:
        """Tokens of the context that a pair leaves free; below 0 where it does not fit."""
        return self._limit - len(self._tokens(pair).ids)

    @property
    def _limit(self) -> int:
        return self.model.config.max_position_embeddings

    def _tokens(self, pair: ScoredPair) -> "_Text":
        rendered = render(pair.messages, self.prompt_format)
        # Apart, as the LM meets them: it continues the prompt's tokens with the response's.
        prompt, response = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (rendered.text, rendered.joint + pair.response.strip())
        )
        return _Text([*prompt, *response], len(prompt), self._end_ids(rendered.stop))

    def _end_ids(self, stop: str) -> list[int]:
        if stop not in self._ends:
            vocabulary = self.tokenizer.get_vocab()
            ends = {vocabulary[end] for end in (END_OF_TURN, END_OF_TEXT)}
            if stop:
                to_text = self.tokenizer.convert_tokens_to_string
                ends |= {vocabulary[k] for k in vocabulary if to_text([k]).startswith(stop)}
            self._ends[stop] = sorted(ends)
        return self._ends[stop]

    @torch.inference_mode()
    def _score(self, tree: TokenTree, texts: "list[tuple[_Text, list[int]]]") -> list[float]:
        # 1. A response token is scored at the node before it, the end at the last one.
        reads = [nodes[text.num_prompt - 1 :] for text, nodes in texts]
        read = torch.zeros(len(tree.ids), dtype=torch.bool)
        read[[node for nodes in reads for node in nodes]] = True
        # 2. One pass over the tree, with the head on those nodes only.
        device, dtype = self.model.device, self.model.dtype
        mask = (torch.finfo(dtype).min * ~tree.visible()).to(device, dtype)
        with self._lock, head_on_positions(self.model, read[None]):
            logits = self.model(
                input_ids=torch.tensor([tree.ids], device=device),
                attention_mask=mask[None, None],
                position_ids=torch.tensor([tree.depths], device=device),
                use_cache=False,
                blocks=blocks_of(mask),
            ).logits
        log_probs: Float[Tensor, "read vocabulary"] = logits.float().log_softmax(-1).cpu()
        # 3. Collect each text's own.
        row = (read.cumsum(0) - 1).tolist()
        scores = []
        for (text, _), nodes in zip(texts, reads, strict=True):
            *rows, last = [row[node] for node in nodes]
            targets = text.ids[text.num_prompt :]
            end = log_probs[last, text.ends].logsumexp(0)
            scores.append(float(log_probs[rows, targets].sum() + end))
        return scores


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]
    num_prompt: int
    ends: list[int]


def _trees(texts: Sequence[_Text]) -> Iterator[tuple[TokenTree, list[tuple[_Text, list[int]]]]]:
    """Texts in trees of at most ``TOKENS_PER_PASS`` tokens, in their order; a longer text alone."""
    tree, members = TokenTree(), []
    for text in texts:
        if members and len(tree.ids) + len(text.ids) > TOKENS_PER_PASS:
            yield tree, members
            tree, members = TokenTree(), []
        members.append((text, tree.add(text.ids)))
    if members:
        yield tree, members
