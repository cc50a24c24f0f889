"""``DiffusionInfill``: the DSPy optimizer."""

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_diffusion_infill.denoisers import Denoiser, Sampling, load_denoiser
from dspy_diffusion_infill.infiller.bounds import Bounds
from dspy_diffusion_infill.infiller.leaks import Leaks
from dspy_diffusion_infill.optimizer import checks, orders
from dspy_diffusion_infill.optimizer.acceptance import Acceptance
from dspy_diffusion_infill.optimizer.announcing import Announcer
from dspy_diffusion_infill.optimizer.awaitable import compile_awaitable
from dspy_diffusion_infill.optimizer.budget import Caps
from dspy_diffusion_infill.optimizer.callbacks import SearchCallback, check_callbacks
from dspy_diffusion_infill.optimizer.endings import (
    best_on_exception,
    ends_at_a_cap,
    sigterm_as_interrupt,
)
from dspy_diffusion_infill.optimizer.estimate import CostEstimate, estimate
from dspy_diffusion_infill.optimizer.first_evaluation import first_evaluation
from dspy_diffusion_infill.optimizer.guidance import Guidance, Signal
from dspy_diffusion_infill.optimizer.holdout import check_holdout, score_holdout
from dspy_diffusion_infill.optimizer.options import (
    Auto,
    ExampleDraw,
    Order,
    Parents,
    Scoring,
    SearchOptions,
    Validation,
    kind_of_search,
)
from dspy_diffusion_infill.optimizer.plan import Plan, budget_of, open_answers, open_journal
from dspy_diffusion_infill.optimizer.prepare import prepare
from dspy_diffusion_infill.optimizer.prices import Price
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.optimizer.settings import settings_of
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.programs import Parts
from dspy_diffusion_infill.protection import Protect
from dspy_diffusion_infill.value_checks import check_flag
from dspy_diffusion_infill.windows import Masking

logger = logging.getLogger(__name__)

_KEPT_WHOLE = ("denoiser", "guidance", "validation_lm", "search_callbacks")  # a copy shares them


class DiffusionInfill(Teleprompter):
    """Infills windows of a program's instructions and keeps what the metric prefers."""

    def __init__(
        self,
        metric: Callable[..., Any] | None = None,
        denoiser: str | PathLike[str] | Denoiser | None = None,
        *,
        window: int = 8,
        stride: int = 4,
        mask: int | Sequence[int] = 8,
        masking: Masking | None = None,
        sweeps: int | None = None,
        num_proposals: int = 8,
        num_validated: int = 2,
        examples_per_context: tuple[int, int] = (1, 4),
        sampling: Sampling | None = None,
        max_metric_calls: int | None = None,
        auto: Auto | None = None,
        max_lm_tokens: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        prices: Mapping[str, Price] | None = None,
        order: Order | None = None,
        validation: Validation | None = None,
        examples: ExampleDraw | None = None,
        parents: Parents = "best",
        patience: int | None = None,
        holdout: float | Sequence[dspy.Example] | None = None,
        predictors: Sequence[str] | None = None,
        parts: Sequence[Parts] = ("instructions",),
        protect: Protect = (),
        protect_structure: bool = True,
        max_edit_fraction: float | None = None,
        max_instruction_tokens: int | None = None,
        max_growth: float | None = None,
        leaks: Leaks = "refuse",
        guidance: Guidance = "auto",
        signal: Signal = "likelihood",
        filters: bool = True,
        validation_lm: dspy.BaseLM | None = None,
        num_repeats: int = 1,
        num_threads: int | None = None,
        max_errors: int | None = None,
        run_timeout: float | None = None,
        failure_score: float | None = None,
        acceptance: Acceptance | None = None,
        seed: int = 0,
        log_dir: str | PathLike[str] | None = None,
        display_progress: bool = True,
        callbacks: Sequence[SearchCallback] = (),
        steps: int | None = None,
        temperature: float | None = None,
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
            sweeps: passes over all windows of the left-to-right order; None is 2.
            num_proposals: proposals for each window and sweep.
            num_validated: with guidance, how many of them are validated, the likeliest first.
            examples_per_context: (fewest, most) worked examples that the denoiser sees around the
                window.
            sampling: how the denoiser fills masks: ``Sampling(steps=…, temperature=…, cache=…)``.
                None is the denoiser's own temperature and algorithm.
            max_metric_calls: budget of program runs, the first evaluation included; never passed.
                None is none.
            auto: a budget of program runs by the size of the valset, in place of
                ``max_metric_calls``: 20 (``"light"``), 50 (``"medium"``) or 120 (``"heavy"``) runs
                a row. Without either, an adaptive search has ``"light"``.
            max_lm_tokens: cap on the prompt and completion tokens of all LM calls.
            max_cost: cap on their cost, USD, by litellm's price list and ``prices``.
            max_seconds: cap on the wall time of one ``compile``, the loading of the denoiser
                included. What the caps promise: ``optimizer.budget``.
            prices: USD a million prompt tokens and a million completion tokens, by the name of an
                LM's model; it goes before litellm's list.
            order: which window is masked next. ``"adaptive"``, the default: the one that promises
                most, in neighbourhoods that grow while nothing is kept, until a cap, ``patience``
                or a perfect score. ``"left_to_right"``, the default with ``sweeps``: as the paper.
                ``"random"``: as adaptive, windows at random. The next two go by it where None.
            validation: ``"racing"`` gives a trial up when its chance to win is below 20 %;
                ``"full"``, the default left to right and with your own ``acceptance``, never.
            examples: ``"failures"`` draws rows that programs get wrong more often, where the
                trainset is the valset; ``"random"``, the default left to right, each alike.
            parents: which programs an adaptive search edits. ``"pool"``: the best one, and others
                that are the best on some row; edits of different places are merged, those of
                several predictors tried at once. ``"best"``: the best one, as the paper does.
            patience: rounds over all windows in which nothing is kept, after which an adaptive
                search ends; None is no limit.
            holdout: rows that take no part in the search, or the share of the valset, 0 to 0.5,
                that does not. Student and result are scored on them once at the end, within the
                caps. None is 0.25 where the valset has 40 rows or more, else 0.
            predictors: names of the predictors to optimise; None is all.
            parts: which texts of them are edited; ``"field_descriptions"`` and ``"prefixes"`` are
                those of output fields, where the adapter shows them.
            protect: strings and regular expressions that are never masked, beside placeholders,
                field names and what stands between ``[[keep]]`` and ``[[/keep]]``.
            protect_structure: never mask code blocks, tables, JSON, tags, addresses and numbers
                with units either.
            max_edit_fraction: most words that may be changed, inserted or deleted by all edits
                together, as a share of the student's, above 0 and at most 1; None is no bound.
            max_instruction_tokens: most tokens of a predictor's instructions, by the denoiser.
            max_growth: the same as a multiple of the student's, at least 1.
            leaks: ``"refuse"`` drops proposals that copy text of an example; ``"show"`` lets them
                pass and says so in each trial's ``nearest``; ``"off"`` does neither.
            guidance: ``"auto"`` screens by the likelihood of the gold responses, under the
                program's LM where it can say it, else under the denoiser; a ``ResponseScorer`` is
                used as it is; None, with ``filters=False``, is the paper's.
            signal: ``"contrast"`` screens by the gold responses against the wrong answers that the
                best programs gave to the same rows; ``"likelihood"`` by the gold responses alone.
            filters: drop proposals that are worthless by what they say, before any call: degenerate
                text, text copied from an example, some labels of several. False tries them too.
            validation_lm: the LM that trials are run with, in place of the program's own, which the
                result has again; None is the program's own.
            num_repeats: runs of each row, at least 1, whose mean is its score: for an LM whose
                temperature is above 0. Each is a program run of the budget.
            num_threads: threads of ``dspy.Evaluate``.
            max_errors: failing examples tolerated in one evaluation; None is DSPy's setting.
                Answers that the adapter cannot parse count as failures, but not against this limit.
            run_timeout: seconds that the program may take on an example, and the metric after it.
                One that takes longer is a failure; None is no limit.
            failure_score: what a failing example scores; None is 0, or the lowest score that the
                metric has given where that is below 0.
            acceptance: decides whether a trial is kept. None is the metric; on a tie, likelihood.
                With guidance no edit is kept under which one label is never right any more.
            seed: decides every random choice; equal seeds give equal instructions.
            log_dir: of the journal; ``compile`` with the same folder goes on where it was cut off.
            display_progress: show a progress bar.
            callbacks: are told of proposals, trials, better programs and the end; they cannot
                change the search (``optimizer.callbacks``).
            steps: deprecated; ``sampling=Sampling(steps=…)``.
            temperature: deprecated; ``sampling=Sampling(temperature=…)``.

        Raises:
            TypeError: the metric does not take (example, prediction, trace=None), or an option has
                the wrong type.
            ValueError: a number is out of its range.
        """
        super().__init__()
        self.metric = None if metric is None else checks.check_metric(metric)
        self.maskings = checks.check_maskings(masking, window=window, stride=stride, mask=mask)
        checks.check_counts(num_proposals=num_proposals, num_validated=num_validated)
        checks.check_counts(num_repeats=num_repeats)
        checks.check_counts(optional=True, sweeps=sweeps, max_metric_calls=max_metric_calls)
        checks.check_counts(optional=True, patience=patience, max_lm_tokens=max_lm_tokens)
        checks.check_counts(optional=True, num_threads=num_threads)
        checks.check_example_range(examples_per_context)
        self.sweeps, self.num_proposals, self.num_validated = sweeps, num_proposals, num_validated
        self.examples_per_context, self.num_repeats = examples_per_context, num_repeats
        self.sampling = checks.check_sampling(sampling, steps=steps, temperature=temperature)
        self.max_metric_calls, self.max_lm_tokens = max_metric_calls, max_lm_tokens
        self.auto: Auto | None = checks.check_auto(auto, max_metric_calls=max_metric_calls)
        self.max_cost = checks.check_amount("max_cost", max_cost, unit="USD")
        self.max_seconds = checks.check_amount("max_seconds", max_seconds, unit="seconds")
        self.prices = checks.check_prices(prices)
        kind = kind_of_search(order, validation, examples, sweeps)
        self.order, self.validation, self.examples = kind.values()
        checks.check_choices(**kind, parents=parents, leaks=leaks, signal=signal)
        checks.check_order_options(self.order, sweeps=sweeps, parents=parents, patience=patience)
        self.parents, self.patience, self.leaks = parents, patience, leaks
        self.holdout = check_holdout(holdout)
        self.predictors, self.parts = checks.check_names(predictors), checks.check_parts(parts)
        self.protect = checks.check_protect(protect)
        self.protect_structure = check_flag("protect_structure", protect_structure)
        self.max_edit_fraction, self.max_growth = max_edit_fraction, max_growth
        self.max_instruction_tokens = max_instruction_tokens
        _ = self.bounds  # out of range is an error here
        self.guidance, self.signal = checks.check_guidance(guidance, signal=signal), signal
        self.filters = check_flag("filters", filters)
        self.acceptance = checks.check_acceptance(acceptance)
        self.validation_lm = checks.check_lm(validation_lm)
        self.num_threads, self.max_errors = num_threads, checks.check_max_errors(max_errors)
        self.run_timeout = checks.check_amount("run_timeout", run_timeout, unit="seconds")
        self.failure_score = checks.check_failure_score(failure_score)
        self.seed = checks.check_seed(seed)
        self.denoiser, self.log_dir, self.display_progress = denoiser, log_dir, display_progress
        self.search_callbacks = check_callbacks(callbacks)  # `callbacks` is DSPy's own attribute
        self._loaded: tuple[str | None, Denoiser] | None = None

    @property
    def bounds(self) -> Bounds:
        """How far the sum of all edits may go."""
        return Bounds(**self._named(Bounds))

    @property
    def caps(self) -> Caps:
        """What may be spent."""
        return Caps(**self._named(Caps))

    def get_params(self) -> dict[str, Any]:
        """A copy of the options, which loggers may change."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __getstate__(self) -> dict[str, Any]:
        """Without the denoiser that was loaded by name: a copy loads its own."""
        return {**vars(self), "_loaded": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusionInfill":
        copied = copy.copy(self)
        for name, value in vars(copied).items():
            if name not in _KEPT_WHOLE:
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def with_options(self, **options: Any) -> "DiffusionInfill":
        """A copy with other options, unchecked, that shares the denoiser, which is loaded now."""
        self._denoiser()
        vars(one := copy.copy(self)).update(options, _loaded=self._loaded)
        return one

    def estimate(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        valset: Sequence[dspy.Example] | None = None,
    ) -> CostEstimate:
        """The most that ``compile`` can cost; loads the denoiser's tokenizer and calls no LM."""
        return estimate(self._prepare(student, trainset, None, valset))

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
            ValueError: data without inputs or labels, unknown predictor, no LM, caps that do not
                cover the first evaluation, an LM without the price that ``max_cost`` needs, a
                ``log_dir`` of another search or in use: all before any call.
            TooManyErrors: more than ``max_errors`` examples of one evaluation failed, or no LM
                answers any more; holds the best program so far. So does whatever else ends the
                search, Ctrl-C and SIGTERM included: in its attributes ``best_program`` and
                ``detailed_results``.
            OSError: ``log_dir`` cannot be written.
        """
        started = time.monotonic()
        plan = self._prepare(student, trainset, teacher, valset)
        cost = estimate(plan)
        logger.info("DiffusionInfill: %s", cost)
        validator = Validator(plan.scoring, budget_of(plan, started=started))
        with open_journal(plan) as journal, sigterm_as_interrupt():
            search = Search(
                plan,
                validator,
                journal,
                answers=open_answers(plan),
                settings=settings_of(self.get_params(), plan, DiffusionInfill),
                passes_before=plan.infiller.denoiser.num_passes,
            )
            return self._searched(search, cost)

    async def acompile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | list[dspy.Module] | None = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """As ``compile``, in a thread, so that the event loop goes on meanwhile.

        The student may be a program that has ``aforward`` alone; so is the result then. A task that
        is cancelled does not end the search: ``max_seconds`` does.
        """
        return await asyncio.to_thread(
            compile_awaitable, self.compile, student, trainset, teacher=teacher, valset=valset
        )

    def _searched(self, search: Search, cost: CostEstimate) -> dspy.Module:
        """The result of a search, from the first evaluation to the rows that were held out."""
        plan, validator = search.plan, search.validator
        announcer = Announcer(search, self.search_callbacks, cost, has_bar=self.display_progress)
        with best_on_exception(announcer.end), ends_at_a_cap(search):
            search.begin(first_evaluation(plan, validator, search.journal))
            announcer.start()
            orders.run(search)
        with best_on_exception(announcer.end):
            score_holdout(search)
        return announcer.end()

    def _prepare(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None,
        valset: Sequence[dspy.Example] | None,
    ) -> Plan:
        """Checks everything, then loads the denoiser; no LM is called."""
        return prepare(
            student,
            trainset,
            valset,
            teacher,
            load=self._denoiser,
            scoring=Scoring(**self._named(Scoring)),
            options=SearchOptions(**self._named(SearchOptions)),
            validation_lm=self.validation_lm,
            log_dir=None if self.log_dir is None else Path(self.log_dir),
        )

    def _named(self, options: type[Any]) -> dict[str, Any]:
        """The options of this optimizer that a dataclass has fields for, by name."""
        return {one.name: getattr(self, one.name) for one in fields(options)}

    def _denoiser(self) -> Denoiser:
        """The denoiser; one that was named is loaded once for ``estimate`` and ``compile``."""
        if self.denoiser is not None and not isinstance(self.denoiser, str | PathLike):
            return self.denoiser
        name = None if self.denoiser is None else str(self.denoiser)
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = (name, load_denoiser(name))
        return self._loaded[1]
