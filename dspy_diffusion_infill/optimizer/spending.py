"""What a plan may spend: its prices, the most that one run takes, and its budget."""

from collections.abc import Callable, Iterator

import dspy

from dspy_diffusion_infill.contexts import Slot, render_messages
from dspy_diffusion_infill.optimizer.budget import Budget, RunBound
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.prices import PriceList, price_list
from dspy_diffusion_infill.optimizer.traces import make_slots, work_examples
from dspy_diffusion_infill.programs import all_predictors, signature_of
from dspy_diffusion_infill.usage import ModelUsage, Usage, added, num_tokens

CHARS_PER_TOKEN = 4  # English text under the usual tokenizers
TOKENS_OF_AN_ANSWER = 4096  # where an LM has no max_tokens

_CHARS_OF_AN_ADAPTER = 1000  # what it writes around a prompt that cannot be rendered in advance


def budget_of(plan: Plan, *, started: float) -> Budget:
    """The budget of a search that began then, by the clock of ``time.monotonic``."""
    bound = run_bound(plan)
    return Budget(plan.scoring.caps, prices=prices_of(plan), bound=bound, started=started)


def check_caps(plan: Plan) -> None:
    """Refuses caps that the first evaluation may pass, and a cap on a cost that nobody knows.

    Raises:
        ValueError: in both cases.
    """
    caps, calls, prices = plan.scoring.caps, plan.first_calls, prices_of(plan)
    if caps.max_metric_calls is not None and calls > caps.max_metric_calls:
        raise ValueError(
            f"max_metric_calls={caps.max_metric_calls} does not cover the first evaluations: "
            f"{calls} program runs"
        )
    models = {lm.model for program in _programs(plan) for _, _, lm in _calls(program)}
    for model in sorted(models) if caps.max_cost is not None else ():
        if prices.price(model) is None:
            raise ValueError(
                f"max_cost={caps.max_cost} needs the price of {model!r}, and litellm knows none: "
                f"pass prices={{{model!r}: (USD a million prompt tokens, USD a million completion "
                "tokens)}"
            )
    bound = run_bound(plan)
    mend = "raise it, give the LM a lower max_tokens, or give fewer rows"
    if caps.max_lm_tokens is not None and calls * bound.tokens > caps.max_lm_tokens:
        raise ValueError(
            f"max_lm_tokens={caps.max_lm_tokens} does not cover the first evaluations: {calls} "
            f"program runs of at most {bound.tokens} tokens; {mend}"
        )
    if caps.max_cost is not None and calls * bound.cost > caps.max_cost:
        raise ValueError(
            f"max_cost={caps.max_cost} does not cover the first evaluations: {calls} program runs "
            f"of at most {bound.cost:.6f} USD; {mend}"
        )


def prices_of(plan: Plan) -> PriceList:
    """The prices of the LMs that the plan asks."""
    lms = [lm for program in _programs(plan) for _, _, lm in _calls(program)]
    return price_list(plan.scoring.prices, lms)


def run_bound(plan: Plan) -> RunBound:
    """The most that one run is expected to take, of the student or of the teacher."""
    bounds, prices = [usage_bound(one, plan) for one in _programs(plan)], prices_of(plan)
    return RunBound(max(map(num_tokens, bounds)), max(prices.cost(one) or 0.0 for one in bounds))


def usage_bound(program: dspy.Module, plan: Plan) -> Usage:
    """What a run takes that calls each predictor once, on the longest row, with the longest answer.

    Prompts are counted at four characters a token, so that languages with longer tokens take more
    than this. So does a run with loops, or with DSPy's second try in JSON.
    """
    prompt_chars = _prompt_chars(program, plan)
    return added(
        *(
            (ModelUsage(lm.model, prompt_chars(name) // CHARS_PER_TOKEN, _longest_answer(one, lm)),)
            for name, one, lm in _calls(program)
        )
    )


def _programs(plan: Plan) -> list[dspy.Module]:
    """Those that are run."""
    teacher = plan.teacher if plan.traces_wanted else None
    return [plan.base] if teacher is None else [plan.base, teacher]


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


def _prompt_chars(program: dspy.Module, plan: Plan) -> Callable[[str], int]:
    """By a predictor's name: the characters of its longest prompt."""
    slots = _slots(program, plan)
    rows = {id(row): row for row in (*plan.trainset, *plan.valset)}.values()
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


def _slots(program: dspy.Module, plan: Plan) -> dict[str, Slot]:
    """The slot of each predictor with the first row, where that labels all of its fields."""
    names = [name for name, _ in program.named_predictors()]
    return make_slots(program, work_examples(program, names, plan.trainset[:1]))
