"""Rewriting a program's prompt: COPRO, GEPA and infilling, one after the other."""

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import dspy

from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.programs import instructions_of, with_instructions
from dspy_diffusion_infill.reproduction.experiment import PromptStep, SearchSpec
from dspy_diffusion_infill.reproduction.infill_step import InfillStep, infill, is_masked
from dspy_diffusion_infill.reproduction.journals import CallsUnderWay, Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.tasks import Benchmark
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import take_marks

Instructions = dict[str, str]
PromptOutcome = Literal["given", "rewritten", "unchanged", "unfilled"]

_LONGEST_CALL = 120.0  # seconds that a stopped search waits for answers under way

# COPRO asks for two fields. An LM that cannot follow the form answers with the instruction alone.
_WHOLE_TEXT = TemplateAdapter(
    pattern=r"(?s)(?P<proposed_instruction>.+?)(?P<proposed_prefix_for_output_field>\s*)\Z",
    response="{proposed_instruction}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """One chain of rewritings.

    Attributes:
        template: what it starts from.
        steps: the rewritings.
        lm: name of the model that validates.
        shots: examples, prepared for the template.
        seed: of every random choice.
    """

    template: str
    steps: tuple[PromptStep, ...]
    lm: str
    shots: tuple[dspy.Example, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class FoundPrompt:
    """The prompt that a chain of rewritings found.

    Attributes:
        instructions: by predictor.
        outcome: ``given`` where the chain has no steps, ``rewritten``, ``unchanged``; ``unfilled``
            where a part was masked from the start and no proposal for it was ever tried, so that
            the prompt has a hole.
    """

    instructions: Instructions
    outcome: PromptOutcome


@dataclass(slots=True)
class PromptSearch:
    """Finds prompts, each once: chains that begin alike share their beginning.

    Attributes:
        task: the program and its metric.
        models: who proposes and who validates.
        search: options of all steps.
        journal: the found prompts.
        folder: of the run, for the optimizers' own journals.
        threads: program runs at once.
        stop: asked between steps.
    """

    task: Benchmark
    models: Models
    search: SearchSpec
    journal: Journal
    folder: Path
    threads: int
    stop: Stop

    def find(self, asked: SearchTask) -> FoundPrompt:
        """The prompt at the end of the chain; from the journal where it is known."""
        program = self._program(asked)
        start = found = instructions_of(program)
        is_filled = True
        for step in asked.steps:
            self.stop.check()
            key = self._key(asked, step, found)
            known = self.journal.get(key)
            if known is None:
                program = with_instructions(program, found)
                better = self._run(step, program, asked, self.folder / "searches" / key)
                self.stop.check()
                known = instructions_of(better)
                about = f"{step.kind} by {step.by}, seed {asked.seed}, {asked.template or 'own'}"
                self.journal.put(key, known, about=about)
            is_filled = is_filled and not leaves_a_hole(step, found, known)
            found = dict(known)
        if not asked.steps:
            return FoundPrompt(found, "given")
        if not is_filled:
            return FoundPrompt(found, "unfilled")
        return FoundPrompt(found, "unchanged" if bare(found) == bare(start) else "rewritten")

    def is_known(self, asked: SearchTask) -> bool:
        """Whether the whole chain is in the journal."""
        found: Mapping[str, str] = instructions_of(self._program(asked))
        for step in asked.steps:
            known = self.journal.get(self._key(asked, step, found))
            if known is None:
                return False
            found = known
        return True

    def _program(self, asked: SearchTask) -> dspy.Module:
        return self.task.program(asked.template, self.models.spec(asked.lm), seed=asked.seed)

    def _key(self, asked: SearchTask, step: PromptStep, found: Mapping[str, str]) -> str:
        """Digest of all that the step's result depends on."""
        return key_of(
            asdict(step) | {"by": self._proposer(step)},
            asdict(self.search),
            self.models.identity(asked.lm),
            self.models.spec(asked.lm).context_length,
            self.task.identity,
            [example.toDict() for example in asked.shots],
            asked.seed,
            found,
        )

    def _proposer(self, step: PromptStep) -> str:
        if step.kind != "infill":
            return self.models.identity(step.by)
        return self.models.denoiser_name(step.by)

    def _run(
        self, step: PromptStep, program: dspy.Module, asked: SearchTask, folder: Path
    ) -> dspy.Module:
        """Runs a step; if it ends early, its LM calls under way are waited for."""
        lm = self.models.lm(asked.lm, seed=asked.seed)
        if step.kind == "infill":
            adapter = self.task.adapter(program) or self.models.adapter(asked.lm)
        else:
            plain = self.models.spec(step.by).plain_prompts
            adapter = _WHOLE_TEXT if plain else dspy.ChatAdapter()
        calls = CallsUnderWay()
        callbacks = [*dspy.settings.callbacks, calls]
        try:
            with dspy.context(lm=lm, adapter=adapter, callbacks=callbacks):
                if step.kind == "infill":
                    return self._infill(step, program, asked, folder)
                run = self._copro if step.kind == "copro" else self._gepa
                return run(step, program, asked)
        finally:
            calls.wait(seconds=_LONGEST_CALL)

    def _infill(
        self, step: PromptStep, program: dspy.Module, asked: SearchTask, folder: Path
    ) -> dspy.Module:
        settings = InfillStep(
            task=self.task,
            denoiser=self.models.denoiser(step.by),
            prefix=step.prefix,
            search=self.search,
            threads=self.models.threads(asked.lm, self.threads),
            seed=asked.seed,
            folder=folder,
        )
        return infill(program, asked.shots, settings)

    def _copro(self, step: PromptStep, program: dspy.Module, asked: SearchTask) -> dspy.Module:
        optimizer = dspy.COPRO(
            prompt_model=self.models.lm(step.by, seed=asked.seed),
            metric=self.task.metric,
            breadth=self.search.copro_breadth,
            depth=self.search.copro_depth,
        )
        threads = self.models.threads(asked.lm, self.threads)
        options = {"num_threads": threads, "display_progress": False, "display_table": 0}
        return optimizer.compile(program, trainset=list(asked.shots), eval_kwargs=options)

    def _gepa(self, step: PromptStep, program: dspy.Module, asked: SearchTask) -> dspy.Module:
        task = self.task

        def metric(gold: Any, pred: Any, trace: Any = None, name: Any = None, sub: Any = None):
            score = task.metric(gold, pred)
            return dspy.Prediction(score=score, feedback=task.feedback(gold, pred))

        optimizer = dspy.GEPA(
            metric=metric,
            max_metric_calls=self.search.gepa_metric_calls,
            reflection_lm=self.models.lm(step.by, seed=asked.seed),
            num_threads=self.models.threads(asked.lm, self.threads),
            seed=asked.seed,
        )
        return optimizer.compile(program, trainset=list(asked.shots))


def leaves_a_hole(step: PromptStep, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether a part was masked from the start and is still not filled."""
    was_masked = is_masked(step.prefix, before)
    return step.kind == "infill" and was_masked and bare(after) == bare(before)


def bare(instructions: Mapping[str, str]) -> Instructions:
    """The instructions without marks, as DSPy gives them back."""
    return {name: inspect.cleandoc(take_marks(text)[0]) for name, text in instructions.items()}


def add_demos(program: dspy.Module, shots: Sequence[dspy.Example], num: int, *, seed: int) -> None:
    """Gives the program's only predictor worked examples (in-context learning)."""
    if num == 0:
        return
    if len(shots) < num:
        raise ValueError(f"{num} demos are asked for, and there are {len(shots)} shots")
    (predictor,) = program.predictors()
    predictor.demos = random.Random(seed).sample(list(shots), num)
