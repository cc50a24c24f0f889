"""What the runs of a plan cost: prices, and the most that one run takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dspy

from dspy_diffusion_infill.contexts import Slot, render_messages
from dspy_diffusion_infill.optimizer.budget import Caps, RunBound
from dspy_diffusion_infill.optimizer.prices import Price, PriceList, price_list
from dspy_diffusion_infill.optimizer.traces import make_slots, work_examples
from dspy_diffusion_infill.programs import all_predictors, signature_of
from dspy_diffusion_infill.usage import ModelUsage, Usage, added, num_tokens

CHARS_PER_TOKEN = 4  # English text under the usual tokenizers
TOKENS_OF_AN_ANSWER = 4096  # where an LM has no max_tokens

_CHARS_OF_AN_ADAPTER = 1000  # what it writes around a prompt that cannot be rendered in advance


@dataclass(frozen=True, slots=True)
class Spending:
    """What the runs of a plan cost.

    Attributes:
        models: the names of the LMs' models.
        prices: what they cost.
        bound: the most that one run is expected to take, of the student or of the teacher.
        is_priced: whether the student's models all have a price.
    """

    models: tuple[str, ...]
    prices: PriceList
    bound: RunBound
    is_priced: bool


def spending_of(
    programs: Sequence[dspy.Module],
    rows: Sequence[dspy.Example],
    prices: Mapping[str, Price] | None,
) -> Spending:
    """What runs of the programs over the rows cost.

    Args:
        programs: the student, and the teacher where it is run.
        rows: of trainset and valset.
        prices: the user's own.
    """
    lms = [lm for program in programs for _, _, lm in _calls(program)]
    known = price_list(prices, lms)
    bounds = [usage_bound(program, rows) for program in programs]
    return Spending(
        models=tuple(sorted({lm.model for lm in lms})),
        prices=known,
        bound=RunBound(max(map(num_tokens, bounds)), max(known.cost(one) or 0.0 for one in bounds)),
        is_priced=known.cost(bounds[0]) is not None,
    )


class CapTooLowError(ValueError):
    """A cap does not cover what comes before the first trial, and after the last one."""


def check_caps(caps: Caps, calls: int, spending: Spending) -> None:
    """Refuses caps that the first evaluation may pass, and a cap on a cost that nobody knows.

    Args:
        caps: what may be spent.
        calls: program runs of the first evaluation.
        spending: what they cost.

    Raises:
        CapTooLowError: in the first case.
        ValueError: in the second.
    """
    if caps.max_metric_calls is not None and calls > caps.max_metric_calls:
        raise CapTooLowError(
            f"max_metric_calls={caps.max_metric_calls} does not cover the first evaluations: "
            f"{calls} program runs"
        )
    for model in spending.models if caps.max_cost is not None else ():
        if spending.prices.price(model) is None:
            raise ValueError(
                f"max_cost={caps.max_cost} needs the price of {model!r}, and litellm knows none: "
                f"pass prices={{{model!r}: (USD a million prompt tokens, USD a million completion "
                "tokens)}"
            )
    bound, mend = spending.bound, "raise it, give the LM a lower max_tokens, or give fewer rows"
    if caps.max_lm_tokens is not None and calls * bound.tokens > caps.max_lm_tokens:
        raise CapTooLowError(
            f"max_lm_tokens={caps.max_lm_tokens} does not cover the first evaluations: {calls} "
            f"program runs of at most {bound.tokens} tokens; {mend}"
        )
    if caps.max_cost is not None and calls * bound.cost > caps.max_cost:
        raise CapTooLowError(
            f"max_cost={caps.max_cost} does not cover the first evaluations: {calls} program runs "
            f"of at most {bound.cost:.6f} USD; {mend}"
        )


def usage_bound(program: dspy.Module, rows: Sequence[dspy.Example]) -> Usage:
    """What a run takes that calls each predictor once, on the longest row, with the longest answer.

    Prompts are counted at four characters a token, so that languages with longer tokens take more
    than this. So does a run with loops, or with DSPy's second try in JSON.
    """
    prompt_chars = _prompt_chars(program, rows)
    return added(
        *(
            (ModelUsage(lm.model, prompt_chars(name) // CHARS_PER_TOKEN, _longest_answer(one, lm)),)
            for name, one, lm in _calls(program)
        )
    )


def _calls(program: dspy.Module) -> Iterator[tuple[str, dspy.Predict, dspy.BaseLM]]:
    """Each predictor, those of frozen parts too, by name and with its LM."""
    for name, predictor in all_predictors(program).items():
        lm = predictor.lm or dspy.settings.lm
        if isinstance(lm, dspy.BaseLM):
            yield name, predictor, lm


def _longest_answer(predictor: dspy.Predict, lm: dspy.BaseLM) -> int:
    """Tokens of all the answers to one prompt."""
    options = {**getattr(lm, "kwargs", {}), **predictor.config}
    length = options.get("max_tokens") or options.get("max_completion_tokens")
    return int(length or TOKENS_OF_AN_ANSWER) * int(options.get("n") or 1)


def _prompt_chars(program: dspy.Module, rows: Sequence[dspy.Example]) -> Callable[[str], int]:
    """By a predictor's name: the characters of its longest prompt."""
    slots = _slots(program, rows[:1])
    longest_row = max(sum(len(str(value)) for value in dict(row.items()).values()) for row in rows)
    predictors = all_predictors(program)

    def chars(name: str) -> int:
        slot, predictor = slots.get(name), predictors[name]
        if slot is not None and (rendered := _rendered_chars(slot)) is not None:
            return longest_row + rendered
        instructions, demos = signature_of(predictor).instructions, str(predictor.demos)
        return longest_row + len(instructions) + len(demos) + _CHARS_OF_AN_ADAPTER

    return chars


def _rendered_chars(slot: Slot) -> int | None:
    """The characters of one prompt, as the adapter writes it; None where that cannot be known."""
    if not slot.examples:
        return None
    try:
        messages = render_messages(slot, slot.signature.instructions, slot.examples[:1])
    except Exception:  # of a predictor that is not optimised: no reason to refuse the plan
        return None
    return sum(len(message["content"]) for message in messages[:-1])


def _slots(program: dspy.Module, rows: Sequence[dspy.Example]) -> dict[str, Slot]:
    """The slot of each predictor with these rows, where they label all of its fields."""
    names = [name for name, _ in program.named_predictors()]
    return make_slots(program, work_examples(program, names, rows))
