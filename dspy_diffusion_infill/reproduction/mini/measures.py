"""The exam of a stage: infill instructions, follow them, and predict the right responses."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from dspy_diffusion_infill.denoisers import Denoiser, InfillRequest, Sampling
from dspy_diffusion_infill.reproduction.mini import world
from dspy_diffusion_infill.reproduction.mini.recipe import StageName
from dspy_diffusion_infill.reproduction.mini.summary import MiniRow
from dspy_diffusion_infill.training.diffusion_perplexity import perplexity

PERPLEXITY_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Exam:
    """Held-out instructions, with examples to infill them from and a new input to follow them on.

    Attributes:
        contexts: instruction and worked examples.
        questions: the same instruction and one further example, whose response is asked.
    """

    contexts: Int[Tensor, "contexts length"]
    questions: Int[Tensor, "contexts short"]


def draw_exam(
    unseen: Int[Tensor, "instructions 4"],
    num_contexts: int,
    num_examples: int,
    generator: Generator,
) -> Exam:
    """Contexts of instructions that no training text held, each about equally often."""
    rounds = -(-num_contexts // len(unseen))
    chosen = unseen.repeat(rounds, 1)[:num_contexts]
    return Exam(
        world.context_ids(chosen, num_examples, generator), world.context_ids(chosen, 1, generator)
    )


def measure(denoiser: Denoiser, exam: Exam, *, stage: StageName, seed: int) -> MiniRow:
    """Examines a model; decoding is greedy, one token a pass."""
    # 1. Infill the whole instruction from the examples.
    is_instruction = torch.zeros(exam.contexts.shape[1], dtype=torch.bool)
    is_instruction[world.INSTRUCTION] = True
    infilled = _fill(denoiser, exam.contexts, is_instruction)
    # 2. Answer new inputs under what was infilled, and under the truth.
    is_response = world.response_places(exam.questions.shape[1])
    retold = exam.questions.clone()
    retold[:, world.INSTRUCTION] = infilled[:, world.INSTRUCTION]
    # 3. Perplexity of the true responses, each scored as text.
    start = int(is_response.nonzero()[0])
    estimate = perplexity(
        denoiser,
        [world.text(row[1:start]) for row in exam.questions],
        [world.text(row[is_response]) for row in exam.questions],
        num_samples=PERPLEXITY_SAMPLES,
        seed=seed,
    )
    return MiniRow(
        stage=stage,
        seed=seed,
        infill_exact_match=_agreement(infilled, exam.contexts),
        downstream_accuracy=_accuracy(denoiser, retold, exam, is_response),
        told_accuracy=_accuracy(denoiser, exam.questions, exam, is_response),
        perplexity=estimate.perplexity,
        num_contexts=len(exam.contexts),
    )


def _accuracy(
    denoiser: Denoiser,
    questions: Int[Tensor, "contexts short"],
    exam: Exam,
    is_response: Bool[Tensor, " short"],
) -> float:
    answers = _fill(denoiser, questions, is_response)[:, is_response]
    return _agreement(answers, exam.questions[:, is_response])


def _agreement(rows: Tensor, truth: Tensor) -> float:
    return float((rows == truth).all(1).float().mean())


def _fill(
    denoiser: Denoiser, rows: Int[Tensor, "rows length"], places: Bool[Tensor, " length"]
) -> Int[Tensor, "rows length"]:
    """The rows, with ``places`` masked and filled in."""
    masked = rows.masked_fill(places, denoiser.mask_id)
    sampling = Sampling(steps=int(places.sum()), temperature=0.0, algorithm="low_confidence")
    filled = denoiser.infill([InfillRequest(row) for row in masked], sampling)
    return torch.tensor([text.input_ids for text in filled])
