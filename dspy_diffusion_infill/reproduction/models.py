"""The models of an experiment: LMs are shared, and one denoiser at a time is in memory."""

import copy
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_diffusion_infill.denoisers import Denoiser, load_denoiser
from dspy_diffusion_infill.evaluation.templates import read_prompt
from dspy_diffusion_infill.lms.diffusion import MAX_BATCH, diffusion_lm
from dspy_diffusion_infill.lms.embedded import embedded_lm
from dspy_diffusion_infill.reproduction.experiment import DIFFUSION, EMBEDDED, ModelSpec
from dspy_diffusion_infill.reproduction.retries import PatientLM
from dspy_diffusion_infill.template_adapter import TemplateAdapter

_SECRET = ("api_key",)
_ADDRESS = ("api_base", "base_url")


@dataclass(slots=True)
class Models:
    """LMs and denoisers by name.

    A denoiser of 8 billion parameters takes 16 GB, so that another one takes its place: what keys
    and tables say of it is kept, and it is loaded again where it is needed again.

    Attributes:
        specs: what each name stands for.
        on_retry: called with a model's name and an error after which a call of it is sent again.
    """

    specs: Mapping[str, ModelSpec]
    on_retry: Callable[[str, Exception], None] = lambda name, error: None
    _lms: dict[str, dspy.LM] = field(default_factory=dict)
    _denoisers: dict[str, Denoiser] = field(default_factory=dict)
    _known: dict[tuple[str, str], str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def spec(self, name: str) -> ModelSpec:
        """What a name stands for.

        Raises:
            ValueError: there is no model of that name.
        """
        if name not in self.specs:
            raise ValueError(f"model must be one of {', '.join(self.specs)}, got {name!r}")
        return self.specs[name]

    def lm(self, name: str, *, seed: int = 0) -> dspy.LM:
        """The LM of a model; its calls go through DSPy's cache. Another seed samples afresh."""
        with self._lock:
            if name not in self._lms:
                self._lms[name] = self._make_lm(name)
            lm = self._lms[name]
        if seed == 0 or lm.kwargs.get("temperature") == 0:
            return lm
        own_seed = {"seed": seed} if self.spec(name).is_local else {}
        return lm.copy(rollout_id=seed, **own_seed)

    def denoiser(self, name: str) -> Denoiser:
        """The denoiser of a model; models of the same checkpoint share its weights.

        The denoiser of another checkpoint is let go before.

        Raises:
            ValueError: the model has none.
        """
        spec = self.spec(name)
        checkpoint = spec.denoiser
        if checkpoint is None:
            raise ValueError(f"model {name!r} has no denoiser: give it one in models.yaml")
        with self._lock:
            if checkpoint not in self._denoisers:
                self._denoisers.clear()
                for other in [one for one in self._lms if self.spec(one).lm == DIFFUSION]:
                    del self._lms[other]  # an LM holds its denoiser
                self._denoisers[checkpoint] = load_denoiser(checkpoint)
            shared = self._denoisers[checkpoint]
        if spec.context_length is None:
            return shared
        own = copy.copy(shared)
        own.context_length = spec.context_length
        return own

    def threads(self, name: str, wanted: int) -> int:
        """How many calls of a model's LM may be under way at once.

        A denoiser answers a batch at a time. More calls would only wait for each other, and
        ``dspy.Evaluate`` sends again what has waited for two minutes.
        """
        spec = self.spec(name)
        if spec.lm != DIFFUSION:
            return wanted
        return min(wanted, spec.options.get("max_batch", MAX_BATCH))

    def adapter(self, name: str) -> dspy.Adapter:
        """The adapter for programs that bring none."""
        return TemplateAdapter() if self.spec(name).plain_prompts else dspy.ChatAdapter()

    def identity(self, name: str) -> str:
        """The LM with all that its answers depend on besides the row: the key of journals.

        That is its options, the system text of its judges, and the form of its prompts.
        """
        return self._kept("identity", name, self._identity)

    def lm_name(self, name: str) -> str:
        """The LM's real name: what a table says that it was measured on."""
        return self._kept("lm", name, lambda one: self.lm(one).model)

    def denoiser_name(self, name: str) -> str:
        """The denoiser's real name, with its weights' revision, and the tokens it takes."""
        return self._kept("denoiser", name, self._denoiser_name)

    def _kept(self, kind: str, name: str, find: Callable[[str], str]) -> str:
        if (kind, name) not in self._known:
            self._known[kind, name] = find(name)
        return self._known[kind, name]

    def _denoiser_name(self, name: str) -> str:
        denoiser = self.denoiser(name)
        return f"{denoiser.name}, {denoiser.context_length} tokens"

    def _identity(self, name: str) -> str:
        lm, spec = self.lm(name), self.spec(name)
        hidden = (*_SECRET, *_ADDRESS)
        options = {key: value for key, value in lm.kwargs.items() if key not in hidden}
        system = read_prompt(spec.system) if spec.system else ""
        asked = {"options": options, "system": system, "plain_prompts": spec.plain_prompts}
        return f"{lm.model} {json.dumps(asked, sort_keys=True, default=str)}"

    def token_counter(self, name: str) -> Callable[[str], int]:
        """Counts tokens: with the denoiser's tokenizer, else as four characters each."""
        spec = self.spec(name)
        if spec.lm == DIFFUSION:
            denoiser = self.denoiser(name)
            return lambda text: len(denoiser.encode(text).input_ids)
        return lambda text: -(-len(text) // 4)

    def _make_lm(self, name: str) -> dspy.LM:
        spec = self.spec(name)
        options: dict[str, Any] = dict(spec.options)
        if spec.lm == EMBEDDED:
            return embedded_lm(**options)
        if spec.lm == DIFFUSION:
            return diffusion_lm(self.denoiser(name), **options)
        on_retry = self.on_retry
        return PatientLM(spec.lm, on_retry=lambda error: on_retry(name, error), **options)
