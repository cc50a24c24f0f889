"""The predictors under search: what of their instructions is masked, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.infiller.proposals import ProposalFilter, Rules
from dspy_diffusion_infill.optimizer.neighbourhoods import MaskableText
from dspy_diffusion_infill.programs import Part
from dspy_diffusion_infill.protection import Protection
from dspy_diffusion_infill.windows import Masking, Window


@dataclass(slots=True)
class Target:
    """One predictor under search: its examples and its current instructions, or another text of it.

    Attributes:
        slot: renders its contexts.
        text: the best instructions so far.
        protection: what of them is never masked.
        marked: the window of ``[[infill:n]]`` marks, if the instructions had any.
        filter: drops worthless proposals.
        position: where the window that was tried last begins; -1 where the next sweep begins at
            the start of the text.
    """

    slot: Slot
    text: str
    protection: Protection
    marked: Window | None
    filter: ProposalFilter
    position: int = -1

    @classmethod
    def over(
        cls,
        slot: Slot,
        text: str,
        protection: Protection,
        marked: Window | None,
        rules: Rules,
    ) -> "Target":
        """A target at the start of a search; where marks say what is filled, all may be touched.

        Args:
            slot: see above.
            text: its instructions, without marks.
            protection: see above.
            marked: see above.
            rules: for the filter, but for the protection.
        """
        rules = replace(rules, protection=None if marked else protection)
        demos = [WorkedExample.of_demo(demo, slot.signature) for demo in slot.demos]
        filter_ = ProposalFilter.over(slot.examples, text, rules, demos)
        return cls(slot, text, protection, marked, filter_)

    @property
    def name(self) -> str:
        """The predictor's name in the program; of another text than instructions its own."""
        return self.slot.name

    def move_to(self, texts: Mapping[str, str]) -> None:
        """Goes on as the target of a program with these texts."""
        moved = self.among(texts)
        self.text, self.slot = moved.text, moved.slot

    def among(self, texts: Mapping[str, str]) -> "Target":
        """The target as it is in a program with these texts."""
        predictor = self.slot.part.predictor
        others = {
            name: text
            for name, text in texts.items()
            if name != self.name and Part.named(name).predictor == predictor
        }
        return replace(self, text=texts[self.name], slot=replace(self.slot, others=others))

    def windows(self, masking: Masking, denoiser: Denoiser) -> list[Window]:
        """The windows of the current instructions."""
        if self.marked is not None:
            return [self.marked]
        return self.as_text(denoiser).windows(masking)

    def as_text(self, denoiser: Denoiser) -> MaskableText:
        """The current instructions, with their tokens and protected spans."""
        spans = self.protection.spans(self.text)
        return MaskableText(self.text, denoiser.encode(self.text).offsets, spans)
