"""``DiffusionInfill``: the DSPy optimizer."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_diffusion_infill.denoisers import Denoiser, Sampling, load_denoiser
from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.optimizer import checks
from dspy_diffusion_infill.optimizer.estimate import CostEstimate, estimate
from dspy_diffusion_infill.optimizer.guidance import Guide
from dspy_diffusion_infill.optimizer.metrics import ExactMatch, labelled_fields
from dspy_diffusion_infill.optimizer.progress import progress_bar
from dspy_diffusion_infill.optimizer.results import results_of
from dspy_diffusion_infill.optimizer.search import Search, SearchOptions
from dspy_diffusion_infill.optimizer.setup import Setup
from dspy_diffusion_infill.optimizer.validation import TooManyFailuresError, Validator
from dspy_diffusion_infill.programs import (
    bound_to,
    chosen_predictors,
    give_back_lms,
)
from dspy_diffusion_infill.protection import Protect
from dspy_diffusion_infill.scorers.default import default_scorer
from dspy_diffusion_infill.scorers.protocol import ResponseScorer
from dspy_diffusion_infill.windows import Masking, SlidingWindow

logger = logging.getLogger(__name__)

Guidance = Literal["auto"] | ResponseScorer | None


class DiffusionInfill(Teleprompter):
    """Infills windows of a program's instructions and keeps what the metric prefers."""

    def __init__(
        self,
        metric: Callable[..., Any] | None = None,
        denoiser: str | Denoiser | None = None,
        *,
        window: int = 8,
        stride: int = 4,
        mask: int | Sequence[int] = 8,
        masking: Masking | None = None,
        sweeps: int = 2,
        num_proposals: int = 8,
        num_validated: int = 2,
        examples_per_context: tuple[int, int] = (1, 4),
        steps: int = 128,
        temperature: float | None = None,
        max_metric_calls: int | None = None,
        predictors: Sequence[str] | None = None,
        protect: Protect = (),
        guidance: Guidance = "auto",
        validation_lm: dspy.BaseLM | None = None,
        num_threads: int | None = None,
        max_errors: int | None = None,
        failure_score: float = 0.0,
        seed: int = 0,
        log_dir: str | Path | None = None,
        display_progress: bool = True,
    ) -> None:
        """Sets the search; nothing is loaded or called.

        Args:
            metric: metric(example, prediction, trace=None) -> float, bool or
                ``Prediction(score=…)``; higher is better. None is exact match over the output
                fields that the examples label.
            denoiser: a name for ``load_denoiser``, a denoiser, or None for the default one.
            window: tokens of the instructions that are taken out at a time.
            stride: tokens from one window to the next, 1..window.
            mask: mask tokens that are put in for a whole window; other than ``window`` lets the
                text grow or shrink. Several numbers take turns from sweep to sweep.
            masking: another scheme in place of the three above: ``Prefix(128)``, or your own.
                Instructions that hold marks such as ``[[infill:32]]`` are filled at the marks and
                nowhere else.
            sweeps: passes over all windows.
            num_proposals: proposals for each window and sweep.
            num_validated: with guidance, how many of them are validated, the likeliest first.
            examples_per_context: (fewest, most) worked examples that the denoiser sees around the
                window.
            steps: reverse-process steps; no more passes than masked tokens are made.
            temperature: of the denoiser's sampling, >= 0; None is the denoiser's own.
            max_metric_calls: budget of program runs, the first evaluation included; never passed.
                None is none.
            predictors: names of the predictors to optimise; None is all.
            protect: strings and regular expressions that are never masked, beside placeholders and
                field names.
            guidance: ``"auto"`` screens by the likelihood of the gold responses, under the
                program's LM where it can say it, else under the denoiser; a ``ResponseScorer`` is
                used as it is; None is the paper's procedure.
            validation_lm: the LM that trials are run with, in place of the program's own, which the
                result has again; None is the program's own.
            num_threads: threads of ``dspy.Evaluate``.
            max_errors: failing examples tolerated in one evaluation; None is DSPy's setting.
                Answers that the adapter cannot parse count as failures, but not against this limit.
            failure_score: what a failing example scores.
            seed: decides every random choice; equal seeds give equal instructions.
            log_dir: a folder for the journal; ``compile`` with the same folder goes on where it was
                cut off.
            display_progress: show a progress bar.

        Raises:
            TypeError: the metric does not take (example, prediction, trace=None), or an option has
                the wrong type.
            ValueError: a number is out of its range.
        """
        super().__init__()
        self.metric = None if metric is None else checks.check_metric(metric)
        self.denoiser = denoiser
        self.maskings: tuple[Masking, ...] = (masking,) if masking is not None else ()
        for num_masks in checks.check_masks(mask) if masking is None else ():
            self.maskings += (SlidingWindow(window=window, stride=stride, mask=num_masks),)
        counted = {"sweeps": sweeps, "num_proposals": num_proposals, "num_validated": num_validated}
        checks.check_counts(**counted, max_metric_calls=max_metric_calls)
        checks.check_example_range(examples_per_context)
        self.sweeps, self.num_proposals, self.num_validated = sweeps, num_proposals, num_validated
        self.examples_per_context = examples_per_context
        self.sampling = Sampling(steps=steps, temperature=temperature)
        self.max_metric_calls = max_metric_calls
        self.predictors, self.protect = (
            checks.check_names(predictors),
            checks.check_protect(protect),
        )
        if isinstance(guidance, str) and guidance != "auto":
            raise ValueError(f'guidance must be "auto", None or a scorer, got {guidance!r}')
        self.guidance = guidance
        self.validation_lm = checks.check_lm(validation_lm)
        self.num_threads, self.max_errors = num_threads, checks.check_max_errors(max_errors)
        self.failure_score = checks.check_failure_score(failure_score)
        self.seed, self.log_dir, self.display_progress = seed, log_dir, display_progress
        self._loaded: tuple[str | None, Denoiser] | None = None

    def get_params(self) -> dict[str, Any]:
        """A copy of the options, which loggers may change."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def estimate(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        valset: Sequence[dspy.Example] | None = None,
    ) -> CostEstimate:
        """The most that ``compile`` can cost; loads the denoiser's tokenizer and calls no LM."""
        return estimate(self._set_up(student, trainset, None, valset).search(None))

    # trainset also by position, and no **kwargs that would swallow a typo.
    def compile(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | list[dspy.Module] | None = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Searches for better instructions; the student is never changed.

        Args:
            student: any DSPy program, optimised before or not.
            trainset: examples that the denoiser sees in its contexts, with ``with_inputs`` set.
            teacher: a program of the same structure whose runs give the responses of steps without
                labels.
            valset: examples that trials are scored on; None is the trainset, as in the paper.

        Returns:
            A copy of the student with the best instructions found, and ``detailed_results``,
            ``candidate_programs`` (score and program, best first) and ``total_calls`` (program
            runs).

        Raises:
            TypeError: student, data, metric or teacher are of the wrong type.
            ValueError: data without inputs or labels, unknown predictor, no LM: all before any
                call.
            TooManyErrors: more than ``max_errors`` examples of one evaluation failed; holds the
                best program so far. So does whatever else ends the search, Ctrl-C included: in
                its attributes ``best_program`` and ``detailed_results``.
        """
        setup = self._set_up(student, trainset, teacher, valset)
        cost = estimate(setup.check())
        logger.info("DiffusionInfill: %s", cost)
        search: Search | None = None
        try:
            search = setup.search(setup.first_evaluations())
            with progress_bar(search, total=cost.metric_calls, show=self.display_progress):
                search.run()
        except TooManyFailuresError as error:
            best = self._result(setup, search, student)
            raise TooManyErrors(
                str(error), best_program=best, detailed_results=results_of(best)
            ) from error
        except (Exception, KeyboardInterrupt) as error:
            vars(error)["best_program"] = best = self._result(setup, search, student)
            vars(error)["detailed_results"] = results_of(best)
            logger.warning("the search was cut off; its best program is .best_program of the error")
            raise
        return self._result(setup, search, student)

    def _set_up(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None,
        valset: Sequence[dspy.Example] | None,
    ) -> Setup:
        """Checks everything, then loads the denoiser; no LM is called."""
        checks.check_student(student, has_lm=self.validation_lm is not None)
        if self.validation_lm is not None:
            student = bound_to(student, self.validation_lm)
        names = chosen_predictors(student, self.predictors)
        train = checks.check_examples(trainset, student, name="trainset")
        val = train if valset is None else checks.check_examples(valset, student, name="valset")
        val = train if val == train else val
        teacher = checks.check_teacher(teacher)
        metric = self._metric_for(student, [*train, *val])
        denoiser = self._denoiser()
        return Setup(
            student=student,
            teacher=teacher,
            trainset=train,
            valset=val,
            names=names,
            infiller=Infiller(denoiser, self.sampling, self.examples_per_context),
            guide=self._guide(student, names, denoiser),
            validator=Validator(
                metric, self.num_threads, self.max_errors, self.failure_score, self.max_metric_calls
            ),
            options=SearchOptions(
                maskings=self.maskings,
                sweeps=self.sweeps,
                num_proposals=self.num_proposals,
                num_validated=self.num_validated,
                protect=self.protect,
                seed=self.seed,
            ),
            log_dir=self.log_dir,
        )

    def _denoiser(self) -> Denoiser:
        """The denoiser; one that was named is loaded once for ``estimate`` and ``compile``."""
        if self.denoiser is not None and not isinstance(self.denoiser, str):
            return self.denoiser
        if self._loaded is None or self._loaded[0] != self.denoiser:
            self._loaded = (self.denoiser, load_denoiser(self.denoiser))
        return self._loaded[1]

    def _result(self, setup: Setup, search: Search | None, student: dspy.Module) -> dspy.Module:
        """The best program, bound to the LMs that the student is bound to."""
        best = setup.result(search)
        if self.validation_lm is not None:
            candidates = [row["program"] for row in vars(best)["candidate_programs"]]
            for program in (best, *candidates):
                give_back_lms(program, student)
        return best

    def _metric_for(self, student: dspy.Module, examples: list[dspy.Example]) -> Callable[..., Any]:
        if self.metric is not None:
            return self.metric
        metric = ExactMatch(labelled_fields(student, examples))
        logger.info("no metric was given: normalised exact match over %s", ", ".join(metric.fields))
        return metric

    def _guide(
        self, student: dspy.Module, names: Sequence[str], denoiser: Denoiser
    ) -> Guide | None:
        if self.guidance is None:
            return None
        if not isinstance(self.guidance, str):
            return Guide(self.guidance)
        first = next(
            predictor for name, predictor in student.named_predictors() if name == names[0]
        )
        scorer = default_scorer(first.lm or dspy.settings.lm, denoiser)
        return None if scorer is None else Guide(scorer)
