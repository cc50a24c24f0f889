"""The tokens that LMs took, by model, as DSPy's usage trackers report them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy.utils.usage_tracker import UsageTracker


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What one model took.

    Attributes:
        model: the name of its LM.
        prompt_tokens: tokens that it was sent.
        completion_tokens: tokens that it answered; so are those of which the provider does not say.
    """

    model: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Both."""
        return self.prompt_tokens + self.completion_tokens


Usage = tuple[ModelUsage, ...]
"""Each model once, in the order of their names."""


def usage_of(tracker: UsageTracker) -> Usage:
    """What a tracker has seen; answers from DSPy's cache are not in it."""
    return added(*((_read(m, entry),) for m, all_ in tracker.usage_data.items() for entry in all_))


def added(*usages: Usage) -> Usage:
    """The sum, model by model."""
    totals: dict[str, ModelUsage] = {}
    for one in (one for usage in usages for one in usage):
        old = totals.get(one.model, ModelUsage(one.model, 0, 0))
        totals[one.model] = ModelUsage(
            one.model,
            old.prompt_tokens + one.prompt_tokens,
            old.completion_tokens + one.completion_tokens,
        )
    return tuple(totals[model] for model in sorted(totals))


def num_tokens(usage: Usage) -> int:
    """Tokens of all models."""
    return sum(one.tokens for one in usage)


def roll_up(tracker: UsageTracker, into: UsageTracker) -> None:
    """Adds what a tracker has seen to another one, which no other thread may use meanwhile."""
    for model, entries in tracker.usage_data.items():
        into.usage_data[model].extend(entries)


def _read(model: str, entry: Mapping[str, Any]) -> ModelUsage:
    """One call; providers' names for the two counts differ."""
    prompt = _count(entry, "prompt_tokens", "input_tokens")
    completion = _count(entry, "completion_tokens", "output_tokens")
    total = _count(entry, "total_tokens")
    return ModelUsage(model, prompt, max(completion, total - prompt))


def _count(entry: Mapping[str, Any], *names: str) -> int:
    return next((int(entry[name]) for name in names if entry.get(name) is not None), 0)
