"""What tokens cost: the user's own prices, and litellm's list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dspy

from dspy_diffusion_infill.usage import Usage

Price = tuple[float, float]
"""USD a million prompt tokens, and a million completion tokens."""

_IN_PROCESS = ("embedded/", "diffusion/")  # the names of our own LMs begin so: they cost nothing


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices by the name of an LM's model.

    Attributes:
        own: what the user says; it is looked at first.
        unlisted: models that are not looked up in litellm's list: the user's own engines.
    """

    own: Mapping[str, Price] = field(default_factory=dict)
    unlisted: frozenset[str] = frozenset()
    _found: dict[str, Price | None] = field(default_factory=dict, init=False, repr=False)

    def price(self, model: str) -> Price | None:
        """The price of a model; None where nobody knows it."""
        if model in self.own:
            return self.own[model]
        if model.startswith(_IN_PROCESS):
            return 0.0, 0.0
        if model in self.unlisted:
            return None
        if model not in self._found:
            self._found[model] = _listed(model)
        return self._found[model]

    def cost(self, usage: Usage) -> float | None:
        """USD; None where some model's price is unknown."""
        total = 0.0
        for one in usage:
            if (price := self.price(one.model)) is None:
                return None
            prompt, completion = price
            total += (one.prompt_tokens * prompt + one.completion_tokens * completion) / 1e6
        return total


def price_list(own: Mapping[str, Price] | None, lms: Iterable[dspy.BaseLM]) -> PriceList:
    """The prices of these LMs; one with an engine of the user's has only the user's price."""
    names = {lm.model for lm in lms if not isinstance(getattr(lm, "engine", None), str)}
    return PriceList(own or {}, frozenset(names))


def _listed(model: str) -> Price | None:
    """By litellm's list, in which long prompts may cost more; None where it has no such model."""
    try:
        import litellm

        # For other names it would print what providers there are.
        if not {model, model.partition("/")[2]} & litellm.model_cost.keys():
            return None
        thousand = litellm.cost_per_token(model=model, prompt_tokens=1_000, completion_tokens=1_000)
    except Exception:  # it is not installed, or raises a bare Exception for a model it cannot price
        return None
    prompt, completion = thousand
    return prompt * 1_000, completion * 1_000
