"""How long a GPU takes: the assumptions behind every estimate of GPU hours, in one place.

A pass of a denoiser with N parameters over n tokens takes 2·N·n operations. On an H200 LLaDA-8B
does 4e14 of them a second (its own algorithm, one text of 1,040 tokens, 128 steps, bfloat16), and a
pass takes some 22 ms however short the text is (``docs/performance.md``; an H100 computes as fast).
A served LM is counted at 1e14: it reads prompts faster and writes answers slower than that.
"""

PASS_FLOPS = 4e14
LEAST_PASS = 0.022  # seconds
SERVED_FLOPS = 1e14


def pass_hours(billions: float, passes: int, tokens: float) -> float:
    """Hours of forward passes over so many tokens each, one text at a time.

    Args:
        billions: parameters of the denoiser.
        passes: how many.
        tokens: of one pass, prompt and masks together.
    """
    return passes * max(LEAST_PASS, 2e9 * billions * tokens / PASS_FLOPS) / 3600


def served_hours(billions: float, tokens: float) -> float:
    """Hours in which a served LM reads and writes so many tokens in all."""
    return 2e9 * billions * tokens / SERVED_FLOPS / 3600
