"""The arms that write whole instructions: APE, COPRO, MIPROv2, GEPA and CUTIA."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import dspy

from dspy_diffusion_infill.optimizer.guidance import guide_for
from dspy_diffusion_infill.optimizer.traces import make_slots, work_examples
from dspy_diffusion_infill.programs import signature_of, with_instructions
from dspy_diffusion_infill.runs import evaluate
from rival_arms.chunks import QuotedChunks
from rival_arms.field_by_field import FieldByField
from rival_arms.job import Arm, Job
from rival_arms.ledger import Incumbent

_SHOWN = 5  # rows in a prompt of APE
_RANKED = 4  # candidates of APE for each that is tried, where guidance ranks them


class WriteInstruction(dspy.Signature):
    """I gave a friend an instruction and some inputs. My friend read the instruction and wrote an output for every one of the inputs. What was the instruction?"""  # noqa: E501

    pairs: str = dspy.InputField(desc="inputs, and what the friend wrote")
    instruction: str = dspy.OutputField(desc="the instruction alone")


def ape(job: Job, *, is_guided: bool = False) -> list[Incumbent]:
    """Whole instructions, as many as the budget can score (Zhou et al., arXiv:2211.01910).

    With guidance four times as many are written, and the likeliest are scored.
    """
    num = job.num_trials - 1
    texts = _written(job, num * (_RANKED if is_guided else 1))
    if is_guided:
        texts = _ranked(job, texts)
    for text in [job.start, *texts[:num]]:
        evaluate(with_instructions(job.program, {"self": text}), job.rows, job.metric)
    return job.ledger.trajectory()


def _written(job: Job, num: int) -> list[str]:
    """At most so many instructions, no two alike."""
    rng, write = random.Random(job.seed), dspy.Predict(WriteInstruction)
    found = dict.fromkeys([job.start])
    for number in range(2 * num):
        if len(found) > num:
            break
        shown = rng.sample(job.rows, min(_SHOWN, len(job.rows)))
        pairs = "\n".join(f"Input: {row.input}\nOutput: {row.output}" for row in shown)
        with dspy.context(lm=job.prompt_lm):
            answer = write(pairs=pairs, config={"temperature": 1.0, "rollout_id": number})
        if text := answer.instruction.strip().strip('"').strip():
            found[text] = None
    return list(found)[1:]


def _ranked(job: Job, texts: Sequence[str]) -> list[str]:
    """By the likelihood of the gold responses, the best first."""
    guide = guide_for(job.program, "self", "auto", job.denoiser)
    assert guide is not None
    slot = make_slots(job.program, work_examples(job.program, ["self"], job.rows))["self"]
    (old,) = guide.log_likelihoods(slot, [job.start])
    new = guide.log_likelihoods(slot, texts)
    gains = {text: guide.gain(slot, own, old).mean for text, own in zip(texts, new, strict=True)}
    return sorted(texts, key=lambda text: -gains[text])


def copro(job: Job) -> list[Incumbent]:
    """Ten candidates a round, as by default, until the budget is spent."""
    optimizer = dspy.COPRO(
        prompt_model=job.prompt_lm,
        metric=job.metric,
        breadth=10,
        depth=job.num_trials // 10 + 2,
    )
    options = {"display_progress": False, "display_table": 0}
    return _final(job, optimizer.compile(job.program, trainset=list(job.rows), eval_kwargs=options))


def mipro(job: Job) -> list[Incumbent]:
    """Instructions only; half of the evaluations are of different ones, as in its own settings."""
    optimizer = dspy.MIPROv2(
        metric=job.metric,
        prompt_model=job.prompt_lm,
        auto=None,
        num_candidates=max(3, job.num_trials // 2),
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        seed=job.seed + 1,  # it takes 0 for none
    )
    rows = list(job.rows)
    trials = {"num_trials": job.num_trials, "minibatch": False}
    return _final(job, optimizer.compile(job.program, trainset=rows, valset=rows, **trials))


def gepa(job: Job) -> list[Incumbent]:
    """Told what was answered and what would have been right."""
    from dspy.teleprompt.gepa import InstructionProposer

    def metric(gold: Any, pred: Any, trace: Any = None, name: Any = None, sub: Any = None) -> Any:
        score = job.metric(gold, pred)
        said = f"The answer was {pred.get('output')!r}"
        feedback = f"{said}. It was right." if score else f"{said}, and not {gold.output!r}."
        return dspy.Prediction(score=score, feedback=feedback)

    adapter = dspy.settings.adapter  # GEPA's own is JSONAdapter
    proposer = InstructionProposer(adapter=adapter) if isinstance(adapter, FieldByField) else None
    optimizer = dspy.GEPA(
        metric=metric,
        instruction_proposer=proposer,
        reflection_lm=job.prompt_lm,
        max_metric_calls=job.ledger.budget,
        seed=job.seed,
    )
    rows = list(job.rows)
    return _final(job, optimizer.compile(job.program, trainset=rows, valset=rows))


def cutia(job: Job) -> list[Incumbent]:
    """Cuts and rewrites parts of the instructions (PyPI ``cutia``), short ones too."""
    from cutia.adapters.dspy_adapter import CUTIA, dspy_adapter

    optimizer = CUTIA(
        prompt_model=job.prompt_lm,
        metric=job.metric,
        min_chunk_chars=8,
        num_threads=dspy.settings.num_threads,
        parallel_tree_building=False,
        seed=job.seed,
    )
    rows = list(job.rows)
    is_small = isinstance(dspy.settings.adapter, FieldByField)
    own = QuotedChunks(job.seed) if is_small else dspy_adapter.BoundedChatAdapter()
    with mock.patch.object(dspy_adapter, "BoundedChatAdapter", return_value=own):
        return _final(job, optimizer.compile(job.program, trainset=rows, valset=rows))


def _final(job: Job, program: dspy.Module) -> list[Incumbent]:
    (predictor,) = program.predictors()
    return job.ledger.trajectory(final=signature_of(predictor).instructions)


ARMS: dict[str, Arm] = {
    "ape": ape,
    "ape_guided": partial(ape, is_guided=True),
    "copro": copro,
    "mipro": mipro,
    "gepa": gepa,
    "cutia": cutia,
}
