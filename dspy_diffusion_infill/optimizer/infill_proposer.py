"""``InfillProposer``: proposes GEPA's candidates by local edits, and asks no reflection LM."""

import copy
import logging
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot
from dspy_diffusion_infill.denoisers import Denoiser, Sampling, load_denoiser
from dspy_diffusion_infill.infiller.bounds import Bounds
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.infiller.leaks import Leaks
from dspy_diffusion_infill.infiller.proposals import Proposal, Rules
from dspy_diffusion_infill.marks import read_marks
from dspy_diffusion_infill.optimizer import checks
from dspy_diffusion_infill.optimizer.guidance import Guidance, Guide, scorer_for
from dspy_diffusion_infill.optimizer.neighbourhoods import NUM_LEVELS, neighbourhood
from dspy_diffusion_infill.optimizer.reflection import (
    ReflectionRecord,
    reflected_examples,
    signature_of_records,
)
from dspy_diffusion_infill.optimizer.row_checks import check_rows
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.optimizer.traces import make_slots
from dspy_diffusion_infill.programs import instructions_of
from dspy_diffusion_infill.protection import Protect, Protection, agent_text_in, generated_text
from dspy_diffusion_infill.value_checks import check_flag, check_whole
from dspy_diffusion_infill.windows import Masking, Window, take_marks

logger = logging.getLogger(__name__)

_MOST_GUIDED = 16  # rows whose likelihood ranks proposals: those that went wrong before others
_ONE_AT_A_TIME = threading.RLock()  # copies share their denoiser


class InfillProposer:
    """Proposes the text of a GEPA candidate with one window of it infilled.

    ``dspy.GEPA(metric, instruction_proposer=InfillProposer(denoiser, trainset), …)`` evolves
    instructions by local edits and asks no reflection LM. It is a ``gepa`` proposer as well: an
    adapter's ``propose_new_texts``, or ``gepa.optimize(custom_candidate_proposer=…)``.

    Each call for a text masks its next window, in an order drawn by the seed, and goes on to the
    next ones until a proposal is new; after all of them come the wider neighbourhoods of an
    adaptive search. No text is proposed twice, nor is the old one. Equal seeds and equal calls give
    equal proposals; a copy goes on from where the original is.
    """

    def __init__(
        self,
        denoiser: str | PathLike[str] | Denoiser | None,
        trainset: Sequence[dspy.Example],
        *,
        student: dspy.Module | None = None,
        window: int = 8,
        stride: int = 4,
        mask: int | Sequence[int] = 8,
        masking: Masking | None = None,
        num_proposals: int = 8,
        examples_per_context: tuple[int, int] = (1, 4),
        sampling: Sampling | None = None,
        protect: Protect = (),
        protect_structure: bool = True,
        max_edit_fraction: float | None = None,
        max_instruction_tokens: int | None = None,
        max_growth: float | None = None,
        leaks: Leaks = "refuse",
        filters: bool = True,
        guidance: Guidance = "auto",
        seed: int = 0,
    ) -> None:
        """Sets the proposer; nothing is loaded or called.

        Args:
            denoiser: a name for ``load_denoiser``, a denoiser, or None for the default one.
            trainset: labelled examples that the denoiser sees, more often those that went wrong.
            student: the program that GEPA compiles. It gives signatures, demos and the tool text of
                agents; without it fields are as GEPA's records and the first row name them.
            window: as for ``DiffusionInfill``; so are the options below.
            stride: see above.
            mask: see above.
            masking: see above.
            num_proposals: proposals for each window, of which guidance chooses the likeliest.
            examples_per_context: see above.
            sampling: see above.
            protect: see above.
            protect_structure: see above.
            max_edit_fraction: see above; of the student's text, else the first, over generations.
            max_instruction_tokens: see above.
            max_growth: see above, of the same text.
            leaks: see above; copies that this text holds may stay.
            filters: see above.
            guidance: see above; None takes the first proposal.
            seed: decides every random choice.

        Raises:
            TypeError: an option, a row or the student has the wrong type.
            ValueError: a number is out of its range, no row is given, or one has no inputs, or the
                student's instructions are beyond ``max_instruction_tokens``.
        """
        self.maskings = checks.check_maskings(masking, window=window, stride=stride, mask=mask)
        check_whole("num_proposals", num_proposals, least=1)
        checks.check_example_range(examples_per_context)
        if student is not None:
            checks.check_student(student, has_lm=True)
        program = student or dspy.Module()
        self.trainset = checks.check_examples(trainset, program, name="trainset")
        if student is not None:
            check_rows(self.trainset, student, name="trainset")
        self.denoiser, self.student = denoiser, student
        self.num_proposals, self.examples_per_context = num_proposals, examples_per_context
        self.sampling = checks.check_sampling(sampling, steps=None, temperature=None)
        self.protect = checks.check_protect(protect)
        self.protect_structure = check_flag("protect_structure", protect_structure)
        self.bounds = Bounds(
            max_edit_fraction=max_edit_fraction,
            max_instruction_tokens=max_instruction_tokens,
            max_growth=max_growth,
        )
        checks.check_choices(leaks=leaks)
        self.leaks: Leaks = leaks
        self.guidance: Guidance = checks.check_guidance(guidance)
        self.filters, self.seed = check_flag("filters", filters), checks.check_seed(seed)
        self._infiller: Infiller | None = None
        self._turns: Counter[tuple[str, str]] = Counter()
        self._proposed: set[tuple[str, str]] = set()
        self._kept: dict[str, dict[str, None]] = {}
        self._originals = self._texts_of_student()

    def __call__(
        self,
        candidate: Mapping[str, str],
        reflective_dataset: Mapping[str, Sequence[ReflectionRecord]],
        components_to_update: Sequence[str],
    ) -> dict[str, str]:
        """New instructions by component; a component without any new proposal is left out.

        Args:
            candidate: the instructions of all components.
            reflective_dataset: GEPA's records of what the candidate answered, by component.
            components_to_update: names of the components to change.

        Raises:
            ContextTooLongError: the instructions do not fit the denoiser's context.
            ValueError: those that the evolution began with are beyond ``max_instruction_tokens``.
        """
        found = {}
        for name in components_to_update:
            try:
                with _ONE_AT_A_TIME:
                    text = self._propose(name, candidate[name], reflective_dataset.get(name) or ())
            except Exception:
                # GEPA keeps it in its own log, and goes on to spend its budget.
                logger.exception("no proposal for %r", name)
                raise
            if text is not None:
                found[name] = text
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "InfillProposer":
        """A proposer with the same past that shares denoiser, scorer, student and rows."""
        copied = copy.copy(self)
        copied._turns, copied._proposed = Counter(self._turns), set(self._proposed)
        copied._kept = {name: dict(kept) for name, kept in self._kept.items()}
        copied._originals = dict(self._originals)
        return copied

    def _propose(self, name: str, text: str, records: Sequence[ReflectionRecord]) -> str | None:
        """The best new proposal for the first window that has one; None where no window has."""
        infiller = self._ready_infiller()
        target, weights = self._target(name, text, records)
        if not target.slot.examples:
            logger.warning("no row and no answer shows what %r should give", name)
            return None
        windows = self._windows(target, infiller.denoiser)
        first = self._turns[name, text]
        for turn in range(first, first + len(windows)):
            self._turns[name, text] = turn + 1
            proposals = infiller.propose(
                target.slot,
                target.text,
                windows[turn % len(windows)],
                num=self.num_proposals,
                seed=random.Random(f"{self.seed}/{name}/{text}/{turn}").randrange(2**31),
                weights=weights,
                pool=f"{self.seed}/{name}/{text}",
            )
            if kept := target.filter.keep(proposals, target.text):
                return self._best(target, kept, infiller.denoiser).instructions
        logger.warning("the instructions of %r have no proposal that is new", name)
        return None

    def _ready_infiller(self) -> Infiller:
        """The infiller; a denoiser that was named is loaded for the first call."""
        if self._infiller is None:
            denoiser = self.denoiser
            if denoiser is None or isinstance(denoiser, str | PathLike):
                denoiser = load_denoiser(denoiser)
            self._infiller = Infiller(denoiser, self.sampling, self.examples_per_context)
        return self._infiller

    def _target(
        self, name: str, text: str, records: Sequence[ReflectionRecord]
    ) -> tuple[Target, list[float]]:
        """What is masked, and how likely each of its worked examples is drawn."""
        bare, marked = take_marks(text)
        # Proposals have no marks; what they marked stays protected in the texts that come of them.
        kept = self._kept.setdefault(name, {})
        kept.update(dict.fromkeys(read_marks(text).kept))
        if self.student is None:
            signature = signature_of_records(records, self.trainset, bare)
            adapter = dspy.settings.adapter or dspy.ChatAdapter()
            slot, agent_text = Slot(name, signature, adapter, ()), agent_text_in(bare)
        else:
            slot = make_slots(self.student, {name: ()})[name]
            agent_text = generated_text(self.student).get(name, ())
        found = reflected_examples(slot.signature, self.trainset, records)
        slot = Slot(name, slot.signature, slot.adapter, tuple(one for one, _ in found), slot.demos)
        protection = Protection(
            signature=slot.signature,
            protect=self.protect,
            agent_text=agent_text,
            kept=tuple(kept),
            structure=self.protect_structure,
        )
        original = self._originals.setdefault(name, bare)
        self.bounds.check_original(name, self._num_tokens(original))
        target = Target.over(slot, bare, protection, marked, self._rules())
        target.filter.seen, target.filter.original = self._proposed, original
        return target, [weight for _, weight in found]

    def _rules(self) -> Rules:
        """What proposals must keep to, but for the protection."""
        return Rules(
            bounds=self.bounds,
            num_tokens=self._num_tokens,
            leaks=self.leaks,
            by_content=self.filters,
        )

    def _num_tokens(self, text: str) -> int:
        return len(self._ready_infiller().denoiser.encode(text).input_ids)

    def _texts_of_student(self) -> dict[str, str]:
        """The instructions that an evolution begins with, by component.

        Raises ValueError if they are too long; where the denoiser is named, the first call does.
        """
        if self.student is None:
            return {}
        texts = {name: take_marks(text)[0] for name, text in instructions_of(self.student).items()}
        if self.denoiser is not None and not isinstance(self.denoiser, str | PathLike):
            for name, text in texts.items():
                self.bounds.check_original(name, self._num_tokens(text))
        return texts

    def _windows(self, target: Target, denoiser: Denoiser) -> list[Window]:
        """The windows of the text and then of ever wider neighbourhoods, each in a drawn order."""
        if target.marked is not None:
            return [target.marked]
        rng = random.Random(f"{self.seed}/{target.name}/{target.text}")
        text, found = target.as_text(denoiser), list[Window]()
        for level in range(NUM_LEVELS):
            windows = neighbourhood(text, self.maskings, level)
            found += rng.sample(windows, len(windows))
        return found

    def _best(self, target: Target, kept: Sequence[Proposal], denoiser: Denoiser) -> Proposal:
        """The proposal under which the gold responses are likeliest; the others may come again."""
        best = kept[0]
        scorer = scorer_for(self._lm(target.name), self.guidance, denoiser)
        if scorer is not None and len(kept) > 1:
            guide = Guide(scorer, max_examples=_MOST_GUIDED)
            found = guide.log_likelihoods(target.slot, [one.instructions for one in kept])
            zeros = [0.0] * len(found[0])
            means = [guide.gain(target.slot, one, zeros).mean for one in found]
            best = kept[max(range(len(kept)), key=lambda k: (means[k], -k))]
        for one in kept:
            if one is not best:
                target.filter.forget(one)
        return best

    def _lm(self, name: str) -> dspy.BaseLM | None:
        """The LM that a predictor of the student is bound to."""
        return None if self.student is None else dict(self.student.named_predictors())[name].lm
