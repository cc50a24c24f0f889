import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.sampler_truth import dream_confidence, dream_counts, softmax, transfer_counts

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.denoisers.sampling import (
    Step,
    draw,
    gumbel_argmax,
    most_probable,
    nucleus,
    schedule,
)

ALGORITHMS = ["low_confidence", "random", "entropy", "maskgit_plus", "topk_margin", "origin"]


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan(num_masked: int, *, steps: int, algorithm: str = "low_confidence", block_length=None):
    return schedule(
        num_masked,
        steps=steps,
        algorithm=algorithm,  # type: ignore[arg-type]
        block_length=block_length,
        generator=numbers(),
    )


# Which places, when


@given(
    num_masked=st.integers(0, 60),
    steps=st.integers(1, 80),
    algorithm=st.sampled_from(ALGORITHMS),
    block_length=st.none() | st.integers(1, 70),
)
def test_every_step_unmasks_something_and_all_of_them_everything(
    num_masked: int, steps: int, algorithm: str, block_length: int | None
):
    made = plan(num_masked, steps=steps, algorithm=algorithm, block_length=block_length)
    assert len(made) <= min(steps, num_masked)
    assert all(step.count >= 1 for step in made)
    assert sum(step.count for step in made) == num_masked
    blocks: dict[tuple[int, int], int] = {}
    for step in made:
        blocks[step.first, step.last] = blocks.get((step.first, step.last), 0) + step.count
    ends = [0, *(last for _, last in blocks)]
    assert [first for first, _ in blocks] == ends[:-1], "blocks follow one another without a gap"
    assert all(count == last - first for (first, last), count in blocks.items())


@given(num_masked=st.integers(1, 200), steps=st.integers(1, 200))
def test_llada_spreads_tokens_over_steps_with_the_remainder_first(num_masked: int, steps: int):
    counts = [step.count for step in plan(num_masked, steps=steps)]
    assert counts == [count for count in transfer_counts(num_masked, steps) if count]


@given(num_masked=st.integers(1, 200), steps=st.integers(1, 200))
def test_dream_takes_a_share_of_what_is_left(num_masked: int, steps: int):
    counts = [step.count for step in plan(num_masked, steps=steps, algorithm="entropy")]
    assert counts == [count for count in dream_counts(num_masked, steps) if count]


def test_origin_unmasks_each_token_by_itself():
    generator, rounds = numbers(), 400
    first = []
    for _ in range(rounds):
        made = schedule(16, steps=2, algorithm="origin", block_length=None, generator=generator)
        first.append(made[0].count)
    # Binomial(16, 1/2): mean 8, standard deviation 2; five standard errors.
    assert statistics.mean(first) == pytest.approx(8, abs=5 * 2 / math.sqrt(rounds))
    assert statistics.stdev(first) == pytest.approx(2, abs=0.4)


def test_blocks_are_filled_from_left_to_right():
    made = plan(16, steps=16, block_length=8)
    assert made == [Step(0, 8, 1)] * 8 + [Step(8, 16, 1)] * 8


def test_more_blocks_than_steps_make_longer_blocks():
    assert plan(8, steps=2, block_length=1) == [Step(0, 4, 4), Step(4, 8, 4)]


# With what


EVEN = torch.arange(0, 60, 2)


def rows(seed: int = 0, places: int = 5, vocabulary: int = 60) -> torch.Tensor:
    return torch.randn(places, vocabulary, generator=numbers(seed)) * 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_temperature_the_most_likely_token_is_drawn(algorithm):
    logits = rows()
    drawn = draw(logits, algorithm=algorithm, temperature=0, generator=numbers())
    assert drawn.tokens.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 0.1, 0.8, 3.0]))
def test_what_is_forbidden_is_never_drawn(algorithm, seed: int, temperature: float):
    drawn = draw(
        rows(seed),
        algorithm=algorithm,
        temperature=temperature,
        forbidden=EVEN,
        generator=numbers(seed),
    )
    assert (drawn.tokens % 2 == 1).all()
    assert ((drawn.probability > 0) & (drawn.probability <= 1)).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_forbidden_counts_in_the_probability(algorithm):
    logits = rows()
    drawn = draw(logits, algorithm=algorithm, temperature=0.8, forbidden=EVEN, generator=numbers())
    for row, token, probability in zip(logits, drawn.tokens, drawn.probability, strict=True):
        assert probability.item() == pytest.approx(softmax(row.tolist())[int(token)], rel=1e-5)


@pytest.mark.parametrize("algorithm", ["low_confidence", "entropy", "maskgit_plus", "topk_margin"])
def test_a_place_where_the_text_would_end_comes_last(algorithm):
    """Of the tokens that may be drawn there, the model prefers one as clearly as elsewhere."""
    logits = rows()
    logits[2] = logits[1]
    logits[2, 0] = logits[2].max() + 7  # 99.9 % for a forbidden token
    drawn = draw(logits, algorithm=algorithm, temperature=0, forbidden=EVEN, generator=numbers())
    assert int(drawn.order.argmin()) == 2
    assert drawn.probability[2] < 0.01
    assert drawn.tokens[1] == drawn.tokens[2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_to_forbid_what_the_model_would_not_say_changes_nothing(algorithm):
    logits = rows()
    logits[:, ::2] = -1e4
    free, forbidding = (
        draw(logits, algorithm=algorithm, temperature=0.8, forbidden=f, generator=numbers())
        for f in (None, EVEN)
    )
    assert free.tokens.tolist() == forbidding.tokens.tolist()
    assert free.order.tolist() == pytest.approx(forbidding.order.tolist(), rel=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_probability_is_the_models_own_whatever_the_temperature(algorithm):
    logits = rows()
    drawn = draw(logits, algorithm=algorithm, temperature=2.0, top_p=0.9, generator=numbers())
    for row, token, probability in zip(logits, drawn.tokens, drawn.probability, strict=True):
        assert probability.item() == pytest.approx(softmax(row.tolist())[int(token)], rel=1e-5)


@pytest.mark.parametrize("algorithm", ["entropy", "maskgit_plus", "topk_margin"])
def test_dreams_order_is_the_published_confidence(algorithm):
    logits = rows()
    drawn = draw(logits, algorithm=algorithm, temperature=0, generator=numbers())
    for row, order in zip(most_probable(logits, 50), drawn.order, strict=True):
        truth = dream_confidence(softmax(row.tolist()), algorithm)
        assert order.item() == pytest.approx(truth, abs=1e-5)


def test_llada_orders_by_the_untempered_probability():
    drawn = draw(rows(), algorithm="low_confidence", temperature=1.5, generator=numbers())
    assert drawn.order.tolist() == drawn.probability.tolist()


@pytest.mark.parametrize("algorithm", ["random", "origin"])
def test_random_order_is_blind_to_the_logits(algorithm):
    one = draw(rows(1), algorithm=algorithm, temperature=0, generator=numbers(5)).order
    two = draw(rows(2), algorithm=algorithm, temperature=0, generator=numbers(5)).order
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_seeds_draw_equal_tokens(algorithm):
    one, two, other = (
        draw(rows(), algorithm=algorithm, temperature=2.0, generator=numbers(seed))
        for seed in (3, 3, 4)
    )
    assert one.tokens.tolist() == two.tokens.tolist()
    assert one.order.tolist() == two.order.tolist()
    assert one.tokens.tolist() != other.tokens.tolist()


@pytest.mark.parametrize("algorithm", ["low_confidence", "maskgit_plus"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_tempered_probabilities(algorithm, temperature):
    logits = torch.tensor([1.0, 0.0, -0.5, 2.0, -3.0])
    num = 20_000
    drawn = draw(
        logits.expand(num, 5), algorithm=algorithm, temperature=temperature, generator=numbers()
    )
    counts = torch.bincount(drawn.tokens, minlength=5)
    for count, p in zip(counts.tolist(), softmax((logits / temperature).tolist()), strict=True):
        assert abs(count - num * p) < 5 * math.sqrt(num * p * (1 - p))  # five sigma


def test_gumbel_noise_does_not_overflow_on_large_logits():
    logits = torch.tensor([[2000.0, 0.0, -2000.0]])
    assert gumbel_argmax(logits, 0.8, numbers()).tolist() == [0]


@given(seed=st.integers(0, 10_000), top_p=st.floats(0.01, 1.0))
def test_the_nucleus_is_the_fewest_tokens_that_have_the_probability(seed: int, top_p: float):
    logits = rows(seed, places=1, vocabulary=12)
    kept = torch.isfinite(nucleus(logits, top_p))[0]
    probs = logits[0].softmax(-1)
    chosen = sorted(probs[kept].tolist(), reverse=True)
    assert chosen == sorted(probs.tolist(), reverse=True)[: len(chosen)]
    assert sum(chosen) >= top_p - 1e-5
    assert sum(chosen[:-1]) <= top_p + 1e-5


def test_the_nucleus_is_taken_at_the_temperature():
    logits = rows(places=1, vocabulary=12)
    warm = torch.isfinite(nucleus(logits, 0.9, 5.0)).sum()
    cold = torch.isfinite(nucleus(logits, 0.9, 0.2)).sum()
    assert warm > cold


def test_only_the_most_probable_are_drawn_among():
    assert torch.isfinite(most_probable(rows(), 7)).sum(-1).tolist() == [7] * 5
    assert most_probable(rows(), None).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.5}, "steps must be a whole number, got steps=2.5"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 0}, "steps must be at least 1, got steps=0"),
        ({"top_k": 1.0}, "top_k must be a whole number"),
        ({"block_length": 0}, "block_length must be at least 1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got temperature=nan"),
        ({"temperature": float("inf")}, "temperature must be 0 or more"),
        ({"temperature": "0.8"}, "temperature must be a number or None"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got top_p=nan"),
        ({"top_p": True}, "top_p must be a number or None"),
        ({"algorithm": "greedy"}, "algorithm must be one of low_confidence, .*, got 'greedy'"),
    ],
)
def test_wrong_sampling_is_refused_when_it_is_made(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sampling(**options)
