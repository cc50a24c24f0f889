"""Records of a search that never ran, as long as one likes."""

import random
from dataclasses import replace

from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.optimizer.budget import Spent
from dspy_diffusion_infill.optimizer.results import (
    DetailedResults,
    ProposalCounts,
    Refused,
    Trial,
)

TEXT = (
    "Read the customer's message and decide which of the five departments has to answer it.\n"
    "Think about what the customer wants first, then about who can help with that.\n"
    "Answer with the name of one department and nothing else."
)
WORDS = "carefully briefly only the exact name of one best team that can solve it now".split()


def synthetic(
    num_trials: int, *, num_rows: int = 32, seed: int = 0, race: bool = True
) -> DetailedResults:
    """Trials that change three words each; about one in 25 is kept."""
    rng = random.Random(seed)
    before = best = tuple(float(rng.random() < 0.5) for _ in range(num_rows))
    text, calls, trials = TEXT, num_rows, list[Trial]()
    for number in range(1, num_trials + 1):
        start, end, old = window(text, rng)
        new = " " + " ".join(rng.sample(WORDS, 3))
        scores = tuple(s if rng.random() < 0.9 else float(rng.random() < 0.5) for s in best)
        rows = tuple(range(num_rows if not race or rng.random() < 0.7 else num_rows // 4))
        scores = scores[: len(rows)]
        accepted = len(rows) == num_rows and sum(scores) > sum(best)
        calls += len(rows)
        changed = text[:start] + new + text[end:]
        trials.append(
            Trial(
                number=number,
                sweep=number // 20,
                predictor="self",
                start=start,
                end=end,
                old_text=old,
                new_text=new,
                instructions=changed,
                score=sum(scores) / len(rows),
                scores=scores,
                rows=rows,
                num_failures=0,
                confidence=rng.uniform(0.2, 1.0),
                log_likelihood_gain=rng.gauss(0.1, 0.4),
                accepted=accepted,
                nearest=(Likeness(3, "label", new, 0.42),),
                spent=Spent(
                    metric_calls=calls, lm_tokens=210 * calls, lm_cost=4e-5 * calls, seconds=calls
                ),
            )
        )
        if accepted:
            text, best = changed, scores
    return results_with(trials, text, before, best, calls)


def window(text: str, rng: random.Random) -> tuple[int, int, str]:
    spaces = [k for k, character in enumerate(text) if character == " "]
    first = rng.randrange(len(spaces) - 3)
    start, end = spaces[first], spaces[first + 3]
    return start, end, text[start:end]


def results_with(trials, text, before, best, calls) -> DetailedResults:
    kept = sum(trial.accepted for trial in trials)
    reasons = ("unchanged", "duplicate", "degenerate", "copies_example")
    return DetailedResults(
        instructions_before={"self": TEXT},
        instructions_after={"self": text},
        score_before=sum(before) / len(before),
        score_after=sum(best) / len(best),
        scores_before=before,
        scores_after=best,
        trials=tuple(trials),
        counts=ProposalCounts(
            proposed=8 * len(trials),
            unchanged=len(trials) // 2,
            duplicate=2 * len(trials),
            degenerate=len(trials) // 3,
            copies_example=len(trials) // 8,
            screened=3 * len(trials),
            validated=len(trials),
            accepted=kept,
        ),
        metric_calls=calls,
        num_failures=0,
        denoiser_passes=64 * len(trials),
        seconds=float(calls),
        denoiser="smollm2-fs",
        cache="off",
        guidance="embedded",
        skipped={},
        end_reason="max_metric_calls",
        lm_tokens=210 * calls,
        lm_cost=4e-5 * calls,
        p_value=0.013,
        answers_before=tuple("Billing, I would say" if not s else "Billing" for s in before),
        answers_after=tuple("Billing" if s else "Shipping and returns" for s in best),
        inputs=tuple(
            f"message: Hello, {k} days ago I paid for two and got one\nlanguage: English"
            if old != new
            else None
            for k, (old, new) in enumerate(zip(before, best, strict=True))
        ),
        refused=tuple(
            Refused(0, "self", 0, 8, "Read the", f" {word}", 0.5, reasons[k % len(reasons)])
            for k, word in enumerate(WORDS * 20)
        ),
        spent_before=Spent(metric_calls=len(before), lm_tokens=210 * len(before), lm_cost=0.001),
        settings={
            "options": {"metric": "right_team", "seed": 7, "window": 8, "order": "adaptive"},
            "used": {
                "program": "Predict",
                "lm": ["openai/gpt-4o-mini"],
                "adapter": "ChatAdapter",
                "denoiser": "smollm2-fs",
                "guidance": "embedded",
                "metric": "right_team",
                "seed": 7,
                "rows of the trainset": 16,
                "rows of the valset": len(before),
            },
            "code": "optimizer = DiffusionInfill(metric=right_team, seed=7)",
        },
        versions={"python": "3.11.7", "dspy-diffusion-infill": "0.1.0", "dspy": "3.4.1"},
    )


def poisoned() -> DetailedResults:
    """What a hostile LM or row could bring into instructions, windows, answers and names."""
    text = POISON * 20 + "x" * 10_000
    base = synthetic(30)
    near = (Likeness(None, POISON, text, 1.0, "name"),)
    trials = tuple(
        replace(one, old_text=POISON, new_text=text, nearest=near) for one in base.trials
    )
    return replace(
        base,
        instructions_before={POISON: text},
        instructions_after={POISON: text + POISON},
        trials=tuple(replace(one, predictor=POISON, instructions=text) for one in trials),
        answers_before=tuple([text] * len(base.scores_before)),
        answers_after=tuple([POISON] * len(base.scores_before)),
        inputs=tuple([POISON + text] * len(base.scores_before)),
        refused=tuple(replace(one, old_text=text, new_text=POISON) for one in base.refused),
        settings={
            "options": {"metric": POISON},
            "used": {"lm": [POISON], "program": POISON},
            "code": POISON,
        },
        denoiser=POISON,
        skipped={POISON: POISON},
        versions={POISON: POISON},
    )


POISON = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "'\"`--> ]]> {{ 7 * 7 }} {% raw %} "
    "\N{RIGHT-TO-LEFT OVERRIDE}evil\N{POP DIRECTIONAL FORMATTING} "
    "שלום \N{GRINNING FACE}\N{ZERO WIDTH JOINER} \x00\x1b[31m @everyone ``` &amp; <b>bold</b>\r\n"
)
