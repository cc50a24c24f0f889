import weakref

import pytest
from doubles import WordDenoiser

from dspy_diffusion_infill.reproduction import models as models_module
from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.models import Models


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were loaded, in order."""
    names: list[str] = []

    def load(name: str) -> WordDenoiser:
        names.append(name)
        return WordDenoiser(name=f"{name}@1")

    monkeypatch.setattr(models_module, "load_denoiser", load)
    return names


def test_one_denoiser_at_a_time_is_in_memory_and_what_is_known_of_it_stays(
    loaded: list[str],
) -> None:
    same = {"lm": "diffusion", "denoiser": "first"}
    models = Models(
        {
            "a": ModelSpec(**same),
            "longer": ModelSpec(**same, context_length=9),
            "b": ModelSpec(lm="diffusion", denoiser="second"),
        }
    )
    first = weakref.ref(models.denoiser("a"))
    said = models.lm_name("a"), models.identity("a"), models.denoiser_name("a")
    assert models.denoiser("longer").context_length == 9 and loaded == ["first"]
    assert models.lm_name("b") == "diffusion/second@1/steps=128"
    assert first() is None and loaded == ["first", "second"]
    assert (models.lm_name("a"), models.identity("a"), models.denoiser_name("a")) == said
    assert said[2] == "first@1, 2000 tokens" and loaded == ["first", "second"]
    assert models.lm("a").model == "diffusion/first@1/steps=128" and loaded == [
        "first",
        "second",
        "first",
    ]
