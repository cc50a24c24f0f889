"""After, before and inside DSPy's other optimizers, on the embedded pair: nothing stands in."""

from typing import Any, Literal

import dspy
import pytest
from embedded_pair import loaded_once, needs_embedded_pair

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.lms.embedded import embedded_lm
from dspy_diffusion_infill.optimizer.cross_validation import CrossValidation
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.infill_proposer import InfillProposer
from dspy_diffusion_infill.template_adapter import TemplateAdapter

pytestmark = [pytest.mark.slow, needs_embedded_pair]

TASK = "Is the review positive or negative?"
ROWS = [
    dspy.Example(text=text, label=label).with_inputs("text")
    for text, label in [
        ("A fine film that I will see again.", "positive"),
        ("Dull, long and badly played.", "negative"),
        ("The best evening in years.", "positive"),
        ("I left after ten minutes.", "negative"),
    ]
]
# COPRO asks for two fields; the embedded LM answers with the instruction alone.
WHOLE_TEXT = TemplateAdapter(
    pattern=r"(?s)(?P<proposed_instruction>.+?)(?P<proposed_prefix_for_output_field>\s*)\Z",
    response="{proposed_instruction}",
)


class Review(dspy.Signature):
    text: str = dspy.InputField()
    label: Literal["positive", "negative"] = dspy.OutputField()


class Classifier(dspy.Module):
    """Answers under plain templates, whatever adapter COPRO's writer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.label = dspy.Predict(Review.with_instructions(TASK))

    def forward(self, text: str) -> dspy.Prediction:
        with dspy.context(adapter=TemplateAdapter()):
            return self.label(text=text)


class Copro(dspy.COPRO):
    """COPRO whose prompt model is asked under its own adapter."""

    def compile(self, student: dspy.Module, *, trainset: Any, eval_kwargs: Any) -> dspy.Module:
        with dspy.context(adapter=WHOLE_TEXT):
            return super().compile(student, trainset=trainset, eval_kwargs=eval_kwargs)


def is_right(example, prediction, trace=None, pred_name=None, pred_trace=None) -> bool:
    return example.label == prediction.label


def infill() -> DiffusionInfill:
    return DiffusionInfill(
        metric=is_right,
        denoiser=loaded_once("smollm2-fs"),
        sampling=Sampling(steps=2),
        guidance=None,
        num_proposals=2,
        max_metric_calls=2 * len(ROWS),
        max_errors=len(ROWS),
        num_threads=1,
        display_progress=False,
    )


def together(strategy: str, **optimizers: dspy.teleprompt.Teleprompter) -> dspy.Module:
    """The result of a strategy; every program of it was scored, and no step failed."""
    student, lm = Classifier(), embedded_lm(max_tokens=4)
    student.set_lm(lm)
    best = dspy.BetterTogether(metric=is_right, **optimizers).compile(
        student,
        trainset=ROWS,
        valset=ROWS,
        strategy=strategy,
        seed=0,
        num_threads=1,
        optimizer_compile_args={
            name: {"eval_kwargs": {"num_threads": 1, "display_progress": False}}
            for name in optimizers
            if name == "copro"
        },
    )
    assert not best.flag_compilation_error_occurred
    first, _, _ = strategy.partition(" -> ")
    found = {row["strategy"]: row["program"] for row in best.candidate_programs}
    assert set(found) == {"", first, strategy}
    assert student.label.signature.instructions == TASK
    for program in found.values():
        assert program.label.lm.model == lm.model
    return found[strategy]


@pytest.fixture(autouse=True)
def settings():
    with dspy.context(adapter=TemplateAdapter(), lm=None, max_errors=100):
        yield


def test_copro_then_infill():
    # Greedy: warmer, this small writer now and then gives an empty answer, which ends COPRO.
    copro = Copro(
        prompt_model=embedded_lm(max_tokens=12),
        metric=is_right,
        breadth=2,
        depth=1,
        init_temperature=0.0,
    )
    last = together("copro -> infill", copro=copro, infill=infill())
    results = last.detailed_results
    assert results.trials and results.score_after >= results.score_before


def test_gepa_without_a_reflection_lm_then_infill():
    proposer = InfillProposer(
        loaded_once("smollm2-fs"),
        ROWS,
        guidance=None,
        num_proposals=2,
        sampling=Sampling(steps=2),
    )
    gepa = dspy.GEPA(
        is_right,
        max_metric_calls=12,
        instruction_proposer=proposer,
        reflection_minibatch_size=2,
        add_format_failure_as_feedback=True,
        use_merge=False,
        track_stats=True,
        num_threads=1,
    )
    last = together("gepa -> infill", gepa=gepa, infill=infill())
    assert last.detailed_results.trials
    assert proposer._proposed


def test_gepa_evolves_better_programs_without_a_reflection_lm():
    student = Classifier()
    student.label.signature = Review.with_instructions("Write one word for the text.")
    gepa = dspy.GEPA(
        is_right,
        max_metric_calls=40,
        instruction_proposer=InfillProposer(
            loaded_once("smollm2-fs"), ROWS, num_proposals=4, sampling=Sampling(steps=2)
        ),
        add_format_failure_as_feedback=True,
        use_merge=False,
        track_stats=True,
        num_threads=1,
    )
    with dspy.context(lm=embedded_lm(max_tokens=4)):
        better = gepa.compile(student, trainset=ROWS, valset=ROWS)
    scores = better.detailed_results.val_aggregate_scores
    assert len(scores) > 1 and max(scores) > scores[0]
    assert better.label.signature.instructions != student.label.signature.instructions


def test_infill_then_the_folds_of_a_small_trainset():
    optimizer = infill()
    optimizer.max_metric_calls = 2 * 3 * len(ROWS)
    folded = CrossValidation(optimizer, folds=2)
    last = together("infill -> folded", infill=infill(), folded=folded)
    assert len(last.fold_scores.scores_after) == len(ROWS)


def test_infill_then_bootstrap():
    bootstrap = dspy.BootstrapFewShot(
        metric=is_right, max_bootstrapped_demos=1, max_labeled_demos=2
    )
    last = together("infill -> bootstrap", infill=infill(), bootstrap=bootstrap)
    assert last.label.demos
