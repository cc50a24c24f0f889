"""How a small LM names the chunk that CUTIA may cut: it quotes, and the quote is found."""

import re
from typing import Any

import dspy
from rapidfuzz import fuzz

from rival_arms.field_by_field import FieldByField


class QuotedChunks(FieldByField):
    """Asks for the chunk alone, and takes the words of the text that are most like the answer.

    CUTIA wants a text as three parts that are equal to it to the letter. A small LM cannot copy so
    well, and each of its answers would be refused.
    """

    def __call__(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        if not {"left", "chunk", "right"} <= signature.output_fields.keys():
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        asked = signature
        for name in signature.output_fields.keys() - {"chunk"}:
            asked = asked.delete(name)
        (text,) = inputs.values()
        found = super().__call__(lm, lm_kwargs, asked, demos, inputs)
        return [_answer(text, str(one["chunk"]), signature) for one in found]


def _answer(text: str, quote: str, signature: type[dspy.Signature]) -> dict[str, Any]:
    """What CUTIA asked for; of other fields the answer is empty."""
    left, chunk, right = located(text, quote)
    known = {"has_chunk": "true", "left": left, "chunk": chunk, "right": right}
    return {name: known.get(name, "") for name in signature.output_fields}


def located(text: str, quote: str) -> tuple[str, str, str]:
    """(left, chunk, right) of the text; the chunk is whole words, and about half of it at most."""
    found = fuzz.partial_ratio_alignment(quote[: len(text) // 2], text)
    begin, stop = (found.dest_start, found.dest_end) if found else (0, 0)
    words = [w for w in re.finditer(r"\S+", text) if w.end() > begin and w.start() < stop]
    start, end = (words[0].start(), words[-1].end()) if words else (0, 0)
    return text[:start], text[start:end], text[end:]
