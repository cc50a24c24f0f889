"""A family of published masked diffusion checkpoints, and the native class that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from dspy_diffusion_infill.denoisers.protocol import Algorithm

PublishedConfig = Mapping[str, Any]
"""A checkpoint's ``config.json`` as it was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of masked diffusion LMs.

    Attributes:
        model_type: as in the published ``config.json``.
        model_class: the native class with the same arithmetic.
        native_config: the published config in the native class's words.
        published_names: (published, native) parts of parameter names; ``{i}`` stands for the layer.
        shift: whether the model scores token i at position i - 1.
        context_length: tokens that fit, from the published config.
        algorithm: the sampler it was published with.
        temperature: the paper's, Table 6.
    """

    model_type: str
    model_class: type[PreTrainedModel]
    native_config: Callable[[PublishedConfig], PreTrainedConfig]
    published_names: tuple[tuple[str, str], ...]
    shift: bool
    context_length: Callable[[PublishedConfig], int]
    algorithm: Algorithm
    temperature: float

    def key_mapping(self) -> dict[str, str]:
        """Published to native names, as ``from_pretrained(key_mapping=...)`` takes them."""
        return {
            "^" + published.replace(".", r"\.").replace("{i}", r"(\d+)"): native.replace(
                "{i}", r"\1"
            )
            for published, native in self.published_names
        }

    def published_name(self, native: str) -> str:
        """The published name of a native parameter such as ``model.norm.weight``."""
        parts = native.split(".")
        layer = next((part for part in parts if part.isdigit()), "")
        for published, ours in self.published_names:
            prefix = ours.replace("{i}", layer)
            if native.startswith(prefix + "."):
                return published.replace("{i}", layer) + native[len(prefix) :]
        return native
